"""Hypergradients through many steps of the inner optimiser, forward."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import core
from jax.flatten_util import ravel_pytree

from tvjax.hypergrad.checks import check_least
from tvjax.hypergrad.derivatives import few, push
from tvjax.hypergrad.loops import Loop, chosen
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.hypergrad.reverse import outer_pullback
from tvjax.hypergrad.trees import basis, floats, merge
from tvjax.types import PyTree


def forward(steps: int, *, loop: Loop | None = None) -> Estimator:
    """The exact derivative through K steps, by tangents that go along: the number of `reverse`.

        Z_{k+1} = (d step/d state) Z_k + d step/dhyper,   Z_0 = 0,
        H = dL_out/dhyper + <dL_out/d state, Z_K>,   Z_k = d(state_k)/dhyper

    Source: Franceschi et al. (2017), arXiv:1703.01785, Algorithm 2.

    Cost: 9F K + 3F for one hyperparameter, 6F K + 2F for each further one (up to 4; for more, the
    outer gradient serves all). Memory: that of one step, whatever K, and a state per
    hyperparameter.

    Prefer it where hyperparameters are few: it is then cheaper than `reverse` and K is free.

    What it cannot do: many hyperparameters; and, like `reverse`, look past its K steps, which
    biases it as it does `exact`, the less the longer they are: compare with 2 K steps.

    Args:
      steps: K >= 1.
      loop: `UNROLLED` or `SCANNED`; None: what suits the backend.

    Raises:
      ValueError: for steps below 1.
    """
    check_least(1, steps=steps)
    loop = chosen(loop)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        def advance(pair, batch):
            state, tangents = pair
            new, tangents, aux = tangent_step(problem, state, hyper, batch, tangents)
            return (new, tangents), aux

        start = state, no_tangents(problem, state, hyper)
        batches = loop.stack(inner_batches)
        (new, tangents), auxes = loop.scan(advance, start, batches, length=steps)
        loss, outer_aux, gradient = _outer_along(problem, new, hyper, outer_batch, tangents)
        return Estimate(gradient, loss, new, (loop.last(auxes), outer_aux), carry)

    return Estimator(estimate, steps)


def forward_online(*, decay: Any = 1.0) -> Estimator:
    """Real-time hypergradient (RTHO): the derivative through all steps since training began.

        Z' = decay (d step/d state) Z + d step/dhyper,
        H = dL_out/dhyper + <dL_out/d state, Z'>

    `carry` is Z, the tangent of parameters, optimiser and model state in `hyper`: it is carried
    from call to call, one inner step each, and saved with the run. If `hyper` is held fixed, H is
    that of `forward` over the whole run; if it moves, Z mixes derivatives at its past values.

    Source: Franceschi et al. (2017), arXiv:1703.01785, section 3.3; Williams and Zipser (1989).

    Cost: 12F for one hyperparameter: the step's tangent 9F and the outer loss's 3F; 8F for each
    further one. Memory: that of a step and its tangent, whatever the horizon; a state per
    hyperparameter in `carry`.

    Prefer it to see beyond one step in a long training with few hyperparameters.

    What it cannot do: many hyperparameters; nor look ahead: H is the derivative of the outer loss
    as it is now, and early in training that of a short run, with the bias that `exact` has. A decay
    below 1 shortens the horizon again. What to watch: whether H keeps its sign as training goes on,
    and whether `hyper` moves so fast that Z is of values that are long past: if halving the outer
    learning rate changes where `hyper` goes, it does. Over long horizons Z grows where training is
    chaotic, and then says nothing of the mean of runs: after 400 steps of a U-Net its sign differed
    from seed to seed (`results/lambda/`). Clip the gradient, use its sign, or let Z fade by a decay
    below 1, which sees some 1 / (1 - decay) steps.

    Args:
      decay: how much of Z stays from one step to the next, in [0, 1]: 1 is the derivative through
        all steps, 0 that of `exact` through one. It may be traced.

    Raises:
      ValueError: for a decay outside of [0, 1].
    """
    if not isinstance(decay, core.Tracer) and not 0 <= decay <= 1:
        raise ValueError(f"decay must be between 0 and 1; got {decay}")

    def faded(z):
        # Not a product alone: what has overflowed is forgotten too.
        return jnp.where(decay > 0, z * jnp.asarray(decay, z.dtype), 0)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        carry = jax.tree.map(faded, carry)
        new, carry, inner_aux = tangent_step(problem, state, hyper, inner_batches[0], carry)
        loss, outer_aux, gradient = _outer_along(problem, new, hyper, outer_batch, carry)
        return Estimate(gradient, loss, new, (inner_aux, outer_aux), carry)

    given = isinstance(decay, (int, float))
    horizon = "" if given and decay == 0 else "whole run" if given and decay == 1 else "fading run"
    return Estimator(estimate, 1, no_tangents, horizon=horizon)


def no_tangents(problem: Bilevel, state: InnerState, hyper: PyTree) -> PyTree:
    """The tangents Z of a state that does not depend on `hyper` yet.

    Returns:
      an InnerState of arrays `[n, ...]`, n the number of hyperparameters in the order of
      `ravel_pytree`; None where a leaf has no derivative, such as a step count.
    """
    del problem
    n = optax.tree.size(hyper)
    return jax.tree.map(lambda x: jnp.zeros((n, *jnp.shape(x)), jnp.result_type(x)), floats(state))


@partial(jax.jit, static_argnums=0)
def tangent_step(
    problem: Bilevel, state: InnerState, hyper: PyTree, batch: PyTree, tangents: PyTree
):
    """`(state, tangents, aux)` after one inner step; compiled once for every host loop over it."""

    def advance(x):
        part, hyper = x
        new, aux = problem.inner_step(merge(part, state), hyper, batch)
        return floats(new), (new, aux)

    _, tangents, (new, aux) = push(advance, (floats(state), hyper), (tangents, basis(hyper)))
    return new, tangents, aux


@partial(jax.jit, static_argnums=0)
def _outer_along(problem, state, hyper, outer_batch, tangents) -> Any:
    """`(L_out, aux, H)` at a state and its tangents in `hyper`; averaged over devices."""
    if few(hyper):

        def outer(x):
            part, hyper = x
            whole = merge(part, state)
            return problem.outer(whole.params, hyper, outer_batch, whole.model_state)

        loss, columns, aux = push(outer, (floats(state), hyper), (tangents, basis(hyper)))
    else:
        loss, aux, (cotangent, direct) = outer_pullback(problem, state, hyper, outer_batch)
        products = jax.vmap(lambda z: jnp.asarray(optax.tree.vdot(cotangent, z)))(tangents)
        columns = products + ravel_pytree(direct)[0]
    flat, unravel = ravel_pytree(hyper)
    return problem.mean((loss, aux, unravel(columns.astype(flat.dtype))))
