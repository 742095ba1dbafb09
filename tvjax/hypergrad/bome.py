"""BOME: the outer loss descends under the constraint that the inner one is at its least."""

import jax
import jax.numpy as jnp

from tvjax.hypergrad.checks import check_least, check_positive
from tvjax.hypergrad.degenerate import take_step
from tvjax.hypergrad.formulas import direct_term
from tvjax.hypergrad.implicit import widened
from tvjax.hypergrad.loops import Loop, chosen
from tvjax.hypergrad.problem import Estimate, Estimator, InnerState
from tvjax.krylov import dot, norm


def bome(eta: float, scale: float, *, steps: int = 1, loop: Loop | None = None) -> Estimator:
    """Bilevel optimisation made easy: first-order, with a multiplier that sets itself.

        q(theta, hyper) = L_in(theta, hyper) - L_in(theta_T, hyper),
        (d_theta, H) = grad L_out + mu grad q,
        mu = max(0, eta - <grad L_out, grad q> / |grad q|^2)

    gradients in (theta, hyper) at once. theta_T comes from theta by T = `steps` steps of gradient
    descent, of size `scale`, on L_in, and is held fixed in grad q. The problem's optimiser takes
    one step along d_theta. mu makes q fall: <d, grad q> >= eta |grad q|^2.

    Source: Ye, Liu, Wright, Stone, Liu (2022), arXiv:2209.08709, Algorithm 1, with phi = eta
    |grad q|^2. Differs from the paper: theta moves by the problem's optimiser, theirs is gradient
    descent; mu grad q is formed from the unit vector, so that no square vanishes.

    Cost: 3F a step and at most 16F. Memory: that of a plain step and three vectors like the
    parameters. `carry` is empty.

    Prefer it where second derivatives are out of reach and the batch is the whole set.

    What it cannot do: **keep the outer loss out of the training.** theta is moved by the outer loss
    too, and is argmin L_in only in the limit; with the loss of a validation set it is trained on
    that set. H is no derivative at theta, but a direction that goes with d_theta. The bias of
    theta_T is that of T steps: a component of curvature a is short by (1 - scale a)^T. In several
    dimensions mu grows as q vanishes, and steps of constant size leave an error of their order.
    dq/dhyper is a difference of two gradients that become equal: near the optimum it is rounding,
    and noise where batches are small. The optimiser's settings are refused.

    Args:
      eta: how fast the constraint is to be met, > 0.
      scale: size of the T steps, > 0.
      steps: T, >= 1.
      loop: how to run them; None: what suits the backend.

    Raises:
      ValueError: for an eta or scale that is not positive, or steps below 1.
    """
    check_least(1, steps=steps)
    check_positive(eta=eta, scale=scale)
    loop = chosen(loop)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        batch = inner_batches[-1]

        def descend(at, batch):
            slope, (model_state, _) = problem.inner_gradient(at, hyper, batch)
            params = jax.tree.map(lambda p, g: p - scale * g, at.params, slope)
            return at._replace(params=params, model_state=model_state), None

        least, _ = loop.scan(descend, state, loop.stack(inner_batches), length=steps)

        def gap(params, hyper):
            value, rest = problem.inner(params, hyper, batch, state.model_state)
            return value - problem.inner(least.params, hyper, batch, state.model_state)[0], rest

        q, (model_state, inner_aux) = problem.mean(
            jax.grad(gap, argnums=(0, 1), has_aux=True)(state.params, hyper)
        )
        at = state._replace(model_state=model_state)
        f = (
            problem.outer_gradient(at, hyper, outer_batch)[1],
            direct_term(problem, state, state, hyper, batch, outer_batch),
        )
        along, h = constrained(f, q, eta)
        params, opt_state = take_step(
            problem.optimizer, hyper, along, state.opt_state, state.params
        )
        new = InnerState(params, opt_state, model_state)
        loss, outer_aux = problem.outer_at(new, hyper, outer_batch)
        return Estimate(h, loss, new, (inner_aux, outer_aux), carry)

    return Estimator(
        estimate, steps, through_steps=False, through_settings=False, horizon="optimum"
    )


def constrained(f, q, eta: float):
    """f + mu q with the least mu >= 0 for which <f + mu q, q> >= eta |q|^2."""
    wide = widened(q)
    size = norm(wide)
    unit = jax.tree.map(lambda q: q / jnp.where(size > 0, size, 1), wide)
    push = jnp.maximum(0, eta * size - dot(widened(f), unit))
    return jax.tree.map(lambda f, n: (f + push * n).astype(f.dtype), f, unit)
