"""One-step formulas that stand in for the derivative of the optimiser's step.

Each replaces d step/dg by something simpler: -learning_rate (`sgd_formula`, `paper`, `darts`), or
-learning_rate over Adam's running scale (`preconditioned`). They are cheap to write, and exact
only where the optimiser is gradient descent: compare them with `exact` by `audit`. For costs in
forward passes F see `tvjax.hypergrad.exact`.

An outer loss that takes `hyper` itself adds its direct term, which the formulas below leave out. An
optimiser whose settings depend on `hyper` is refused: no formula knows how they act.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tvjax.hypergrad.adam import adam_scaling
from tvjax.hypergrad.checks import check_positive, check_precise, check_within
from tvjax.hypergrad.derivatives import gradient_of
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.krylov import norm
from tvjax.types import PyTree


def sgd_formula(learning_rate: optax.ScalarOrSchedule) -> Estimator:
    """The formula for gradient descent, with the regulariser's gradient at theta(t).

        H = -learning_rate <grad L_out(theta'), d/dhyper grad L_in(theta, hyper)>

    Equation 26 of the paper, read as it is derived (eqs 20 to 25).

    Cost: 8F. Memory: that of a plain step.

    Prefer `exact`, which is cheaper and holds for every optimiser; this is its peer for SGD.

    What it cannot do: it is exact for SGD and heavy ball alone. For any other optimiser it is not
    the gradient: with Adam both size and sign can be wrong.

    Args:
      learning_rate: a float, or a schedule of the optimiser's own `count`.
    """

    return _of_descent(learning_rate, lambda state, new: state)


def paper(learning_rate: optax.ScalarOrSchedule) -> Estimator:
    """Algorithm 1 of the paper as printed: the regulariser's gradient at theta(t+1).

        H = -learning_rate <grad L_out(theta'), d/dhyper grad L_in(theta', hyper)>

    Cost: 9F. Memory: that of a plain step.

    Prefer it for comparison only.

    What it cannot do: it differs from eq. 26's own derivation in the point at which g_TV is taken,
    so it is not the derivative of the step even for SGD, and it needs a forward pass more.

    Args:
      learning_rate: a float, or a schedule of the optimiser's own `count`.
    """
    # The statistics of the new state are the step's; the old ones only seed this forward pass.
    return _of_descent(learning_rate, lambda state, new: state._replace(params=new.params))


def _of_descent(
    learning_rate: optax.ScalarOrSchedule, place: Callable, scaling: Callable | None = None
) -> Estimator:
    """The formula for gradient descent, with d/dhyper grad L_in at `place(old state, new)`."""

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        new, inner_aux = problem.inner_step(state, hyper, inner_batches[0])
        (loss, outer_aux), q = problem.outer_gradient(new, hyper, outer_batch)
        rate = _rate(learning_rate, state.opt_state)
        if scaling is None:
            q = optax.tree.scale(rate, q)
        else:
            q = jax.tree.map(lambda p, b: rate * p * b, scaling(new.opt_state), q)
        at, batch = place(state, new), inner_batches[0]
        gradient = response(problem, at, new, hyper, batch, outer_batch, q)
        return Estimate(gradient, loss, new, (inner_aux, outer_aux), carry)

    return Estimator(estimate, through_steps=False, through_settings=False)


def preconditioned(
    learning_rate: optax.ScalarOrSchedule,
    *,
    scaling: Callable[[PyTree], PyTree] | None = None,
) -> Estimator:
    """The SGD formula with the optimiser's own diagonal scaling P.

        H = -learning_rate <grad L_out(theta'), P d/dhyper grad L_in(theta, hyper)>

    With Adam P = 1 / (sqrt(vhat) + eps): the step's derivative with the second moment held fixed,
    and with the first moment passed on in full rather than its share 1 - b1 of one step, as it is
    in the sum over the steps to come. It is what adaptive preconditioning means in the SAMA
    algorithm (Choe et al. 2023, arXiv:2310.05674, section 3.2).

    Cost: 8F. Memory: that of a plain step.

    Prefer it to `sgd_formula` under Adam where the scale of an update matters: sizes are those of
    Adam's steps.

    What it cannot do: it leaves out that the gradient also moves vhat, the term that shrinks
    Adam's derivative and can turn its sign. At zero gradients P is 1/eps.

    Args:
      learning_rate: a float, or a schedule of the optimiser's own `count`.
      scaling: function of the optimiser's new state to P, a pytree like the parameters;
        `adam_scaling()` by default.
    """
    scaling = adam_scaling() if scaling is None else scaling
    return _of_descent(learning_rate, lambda state, new: state, scaling)


def darts(learning_rate: optax.ScalarOrSchedule, *, radius: float = 0.01) -> Estimator:
    """DARTS: the SGD formula by a finite difference, without a second derivative.

        H = -learning_rate [d/dhyper L_in(theta+, hyper) - d/dhyper L_in(theta-, hyper)] / (2 h),
        theta+- = theta +- h grad L_out(theta'),   h = radius / ||grad L_out(theta')||

    Source: Liu, Simonyan, Yang (2019), arXiv:1806.09055, eqs 7 and 8.

    Cost: 8F for any number of hyperparameters: a step, the outer gradient, and two forward passes
    with a pullback to `hyper` only (no more than 12F if `hyper` enters at the first layer).
    Memory: that of a plain step.

    Prefer it where the inner gradient cannot be differentiated again. Its error against
    `sgd_formula` is of order `radius^2`, times third derivatives, plus rounding of order
    1e-7 / radius in float32.

    What it cannot do: what `sgd_formula` cannot; and across kinks, as of TV, `radius` decides.
    Where rounding swallows most of the displacement, since theta is too large for it, the result is
    NaN.

    Args:
      learning_rate: a float, or a schedule of the optimiser's own `count`.
      radius: the length of the displacement of theta, > 0.

    Raises:
      ValueError: for a radius that is not positive, and for parameters or hyperparameters of fewer
        bits than float32.
    """
    check_positive(radius=radius)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        check_precise(params=state.params, hyper=hyper)
        new, inner_aux = problem.inner_step(state, hyper, inner_batches[0])
        (loss, outer_aux), q = problem.outer_gradient(new, hyper, outer_batch)
        size = norm(q)
        h = radius / jnp.where(size > 0, size, 1)

        def along(hyper, params):
            return problem.inner(params, hyper, inner_batches[0], state.model_state)[0]

        ends = [
            jax.tree.map(lambda p, q, s=sign: p + s * h * q, state.params, q)
            for sign in (1.0, -1.0)
        ]
        plus, minus = (jax.grad(along)(hyper, params) for params in ends)
        # Where rounding swallowed more than half of the displacement, the result is no number.
        swallowed = (size > 0) & (norm(jax.tree.map(jnp.subtract, *ends)) < radius)
        scale = _rate(learning_rate, state.opt_state) / jnp.where(swallowed, jnp.nan, 2 * h)
        gradient = problem.mean(jax.tree.map(lambda a, b: -scale * (a - b), plus, minus))
        through_loss = direct_term(problem, state, new, hyper, inner_batches[0], outer_batch)
        gradient = jax.tree.map(jnp.add, gradient, through_loss)
        return Estimate(gradient, loss, new, (inner_aux, outer_aux), carry)

    return Estimator(estimate, through_steps=False, through_settings=False)


def training_loss() -> Estimator:
    """The derivative of the inner loss in the hyperparameter, before the step.

        H = d/dhyper L_in(theta, hyper)

    How Jia et al. (2021) learn the weight of their TV-softmax layer, and the peer of RU-Net's
    lambda here. No hypergradient: it knows no outer loss, which is only reported.

    Cost: 4F (3F for a hyperparameter that enters after the net), and F for the outer loss.
    Memory: that of a plain step.

    Prefer it for comparison only, or where there is no validation data and lambda is no penalty.

    What it cannot do: choose the weight of a penalty. The inner loss falls with it, to 0. Nor see
    what `hyper` does in the optimiser or in the outer loss: both are refused. Where the outer loss
    is only to be reported, as that of RU-Net is, let it take `lax.stop_gradient(hyper)`.
    """

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        def inner(params, hyper):
            return problem.inner(params, hyper, inner_batches[0], state.model_state)[0]

        gradient = problem.mean(jax.grad(inner, argnums=1)(state.params, hyper))
        new, inner_aux = problem.inner_step(state, hyper, inner_batches[0])
        loss, outer_aux = problem.outer_at(new, hyper, outer_batch)
        return Estimate(gradient, loss, new, (inner_aux, outer_aux), carry)

    return Estimator(estimate, through_steps=False, through_settings=False, through_outer=False)


def response(
    problem: Bilevel,
    at: InnerState,
    new: InnerState,
    hyper: PyTree,
    inner_batch: PyTree,
    outer_batch: PyTree,
    q: PyTree,
) -> PyTree:
    """-<q, d/dhyper grad L_in(at, hyper)>, and the direct term."""

    def along_q(hyper):
        gradient, (model_state, _) = problem.inner_gradient(at, hyper, inner_batch)
        loss, _ = problem.outer(new.params, hyper, outer_batch, model_state)
        return loss - optax.tree.vdot(gradient, q)

    return problem.mean(gradient_of(along_q, hyper))


def direct_term(
    problem: Bilevel,
    at: InnerState,
    new: InnerState,
    hyper: PyTree,
    inner_batch: PyTree,
    outer_batch: PyTree,
) -> PyTree:
    """What `hyper` does to the outer loss otherwise than through the parameters.

    It is there where the outer loss takes `hyper` itself (the weight of a TV-softmax head), or
    where the inner loss passes it on in the model state that the outer loss reads; elsewhere it is
    zero and, under `jit`, costs nothing.
    """

    def not_through_params(hyper):
        _, (model_state, _) = problem.inner(at.params, hyper, inner_batch, at.model_state)
        return problem.outer(new.params, hyper, outer_batch, problem.mean(model_state))[0]

    return problem.mean(gradient_of(not_through_params, hyper))


def _rate(learning_rate: optax.ScalarOrSchedule, opt_state: PyTree) -> Any:
    if not callable(learning_rate):
        check_within(0, np.inf, learning_rate=learning_rate)
        return learning_rate
    counts = optax.tree.get_all_with_path(opt_state, "count")
    if not counts:
        raise ValueError("the learning rate is a schedule, but the optimiser keeps no count")
    return learning_rate(counts[0][1])
