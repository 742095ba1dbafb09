"""Learning a hyperparameter by the inner loss itself."""

import jax

from tvjax.hypergrad.problem import Estimate, Estimator


def training_loss() -> Estimator:
    """The derivative of the inner loss in the hyperparameter, before the step.

        H = d/dhyper L_in(theta, hyper)

    How Jia et al. (2021) learn the weight of their TV-softmax layer, and the peer of RU-Net's
    lambda here. No hypergradient: it knows no outer loss, which is only reported.

    Cost: 4F (3F for a hyperparameter that enters after the net), and F for the outer loss.
    Memory: that of a plain step.

    Prefer it for comparison only, or where there is no validation data and lambda is no penalty.

    What it cannot do: choose the weight of a penalty. The inner loss falls with it, to 0.
    """

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        def inner(params, hyper):
            return problem.inner(params, hyper, inner_batches[0], state.model_state)[0]

        gradient = problem.mean(jax.grad(inner, argnums=1)(state.params, hyper))
        new, inner_aux = problem.inner_step(state, hyper, inner_batches[0])
        loss, outer_aux = problem.mean(problem.outer(new.params, outer_batch, new.model_state))
        return Estimate(gradient, loss, new, (inner_aux, outer_aux), carry)

    return Estimator(estimate, through_steps=False)
