"""F2SA: the hypergradient by two trainings, one of which the outer loss pulls aside."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tvjax.hypergrad.checks import check_least, check_positive
from tvjax.hypergrad.degenerate import take_step
from tvjax.hypergrad.derivatives import gradient_of
from tvjax.hypergrad.loops import Loop, chosen
from tvjax.hypergrad.problem import Estimate, Estimator, InnerState
from tvjax.hypergrad.reverse import inner_run
from tvjax.types import PyTree


class F2SACarry(NamedTuple):
    """What `f2sa` remembers."""

    pulled: InnerState
    """z, the training that the outer loss pulls aside."""
    calls: jax.Array


def f2sa(
    sigma: float | Callable[[jax.Array], Any], *, steps: int = 1, loop: Loop | None = None
) -> Estimator:
    """The fully first-order approximation: no second derivative, and a bias of order 1/sigma.

        theta follows argmin L_in,   z follows argmin L_in + L_out / sigma,
        H = dL_out/dhyper(z) + sigma (dL_in/dhyper(z) - dL_in/dhyper(theta))

    H is the derivative of min_z (L_out + sigma L_in) - sigma min L_in, which is the outer loss at
    the optimum in the limit of a large sigma. z rides in `carry` with its optimiser's state.

    Source: Kwon, Kwon, Wright, Nowak (2023), arXiv:2301.10945, Algorithm 1. Differs from the paper:
    both move by the problem's optimiser, so that z takes steps along grad L_in + grad L_out / sigma
    whose size does not grow with sigma; and theta and z see the same inner batches, so that their
    noise, which sigma multiplies, cancels in the difference.

    Cost: 9F a step and 10F around them, less where `hyper` enters late. Memory: two plain states.

    Prefer it where second derivatives are out of reach or do not fit.

    What it cannot do: be exact. The bias is of order 1/sigma; but sigma multiplies rounding, noise
    and what theta and z lack of their optima: let it grow as they converge, `sigma=lambda calls:
    1 + calls / 10`. Nor see the optimiser's settings, which are refused.

    Args:
      sigma: the weight of the inner loss, > 0; or a function of the number of calls so far.
      steps: steps of theta and of z, >= 1.
      loop: how to run them; None: what suits the backend.

    Raises:
      ValueError: for a sigma that is not positive, or steps below 1.
    """
    check_least(1, steps=steps)
    loop = chosen(loop)
    if not callable(sigma):
        check_positive(sigma=sigma)

    def init(problem, state, hyper):
        return F2SACarry(state, jnp.zeros((), jnp.int32))

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        weight = sigma(carry.calls) if callable(sigma) else sigma
        batches = loop.stack(inner_batches)
        new, inner_aux = inner_run(problem, state, hyper, batches, steps, loop)

        def pull(z, batch):
            return _pulled(problem, z, hyper, batch, outer_batch, weight), None

        z, _ = loop.scan(pull, carry.pulled, batches, length=steps)

        def penalised(hyper):
            batch = inner_batches[-1]
            inner, (model_state, _) = problem.inner(z.params, hyper, batch, z.model_state)
            least, _ = problem.inner(new.params, hyper, batch, new.model_state)
            outer, _ = problem.outer(z.params, hyper, outer_batch, problem.mean(model_state))
            return outer + weight * (inner - least)

        h = problem.mean(gradient_of(penalised, hyper))
        loss, outer_aux = problem.outer_at(new, hyper, outer_batch)
        return Estimate(h, loss, new, (inner_aux, outer_aux), F2SACarry(z, carry.calls + 1))

    return Estimator(
        estimate, steps, init, through_steps=False, through_settings=False, horizon="optimum"
    )


@partial(jax.jit, static_argnums=0)
def _pulled(problem, z: InnerState, hyper: PyTree, batch: PyTree, outer_batch: PyTree, sigma: Any):
    """`z` after a step of the optimiser along grad L_in + grad L_out / sigma."""
    inner, (model_state, _) = problem.inner_gradient(z, hyper, batch)
    _, outer = problem.outer_gradient(z._replace(model_state=model_state), hyper, outer_batch)
    total = jax.tree.map(lambda g, f: g + f / jnp.asarray(sigma, f.dtype), inner, outer)
    params, opt_state = take_step(problem.optimizer, hyper, total, z.opt_state, z.params)
    return InnerState(params, opt_state, model_state)
