"""The linear system of the implicit hypergradient, solved by gradient steps as training goes on.

A v = b, with A = d^2 L_in/dtheta^2 + damping I and b = grad L_out, is where the quadratic
<v, A v>/2 - <b, v> is least. A step down it costs 9F: a product with A 6F after 3F for the inner
gradient. Unlike conjugate gradients it bears an A and a b of other batches at each step.
"""

from functools import partial

import jax
import optax

from tvjax.hypergrad.checks import check_least, check_not_negative, check_positive
from tvjax.hypergrad.formulas import response
from tvjax.hypergrad.implicit import damped, hessian, widened
from tvjax.hypergrad.loops import Loop, chosen
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.hypergrad.reverse import inner_run
from tvjax.types import PyTree


@partial(jax.jit, static_argnums=(0, 6, 7))
def quadratic_step(
    problem: Bilevel,
    at: InnerState,
    hyper: PyTree,
    batch: PyTree,
    v: PyTree,
    b: PyTree,
    scale: float,
    damping: float,
) -> PyTree:
    """v - scale (A v - b), with A at a state on a batch; compiled once for every host loop."""
    product = damped(hessian(problem, at, hyper, batch), damping)
    return jax.tree.map(lambda v, a, b: (v - scale * (a - b)).astype(v.dtype), v, product(v), b)


def no_solution(problem: Bilevel, state: InnerState, hyper: PyTree) -> PyTree:
    """The v before the first step: zeros like the parameters, in float32 or more."""
    del problem, hyper
    return optax.tree.zeros_like(widened(state.params))


def by_descent(
    terms: int, scale: float, damping: float, steps: int, loop: Loop | None, *, warm: bool
) -> Estimator:
    """The estimator that takes `steps` steps on theta, then `terms` on v, each on a fresh batch.

    A `warm` v goes on from the last call's, in `carry`; else it begins at scale b.
    """
    check_least(1, terms=terms, steps=steps)
    check_positive(scale=scale)
    check_not_negative(damping=damping)
    loop = chosen(loop)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        trained = loop.stack(inner_batches[:steps])
        new, inner_aux = inner_run(problem, state, hyper, trained, steps, loop)
        (loss, outer_aux), b = problem.outer_gradient(new, hyper, outer_batch)
        b = widened(b)

        def term(v, batch):
            return quadratic_step(problem, new, hyper, batch, v, b, scale, damping), None

        v = carry if warm else optax.tree.scale(scale, b)
        v, _ = loop.scan(term, v, loop.stack(inner_batches[steps:]), length=terms)
        h = response(problem, new, new, hyper, inner_batches[-1], outer_batch, v)
        return Estimate(h, loss, new, (inner_aux, outer_aux), v if warm else carry)

    return Estimator(
        estimate,
        steps,
        no_solution if warm else lambda problem, state, hyper: (),
        through_steps=False,
        through_settings=False,
        further=terms,
        horizon="optimum",
    )
