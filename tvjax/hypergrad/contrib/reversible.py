"""Hypergradients through many steps of heavy ball, run backwards instead of stored."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from tvjax.hypergrad.checks import check_least, check_positive
from tvjax.hypergrad.contrib.fixed_point import HeavyBall, to_float
from tvjax.hypergrad.degenerate import optimizer_at
from tvjax.hypergrad.dependence import kind
from tvjax.hypergrad.loops import Loop, chosen
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.hypergrad.reverse import gradient_pullback, outer_pullback
from tvjax.types import PyTree


def reversible(
    steps: int,
    learning_rate: float | Callable[[PyTree], Any],
    momentum: float,
    *,
    loop: Loop | None = None,
) -> Estimator:
    """The exact derivative through K steps of heavy ball, without a stored trajectory.

    With adjoints s of theta and u of the velocity, from s = dL_out/dtheta_K and u = 0 back:

        u <- u - eta s,   H += <u, d/dhyper g(theta_k)>,   s <- s + (d/dtheta g(theta_k))^T u,
        u <- gamma u

    where theta_k comes from theta_{k+1} by the inverse step, exactly (`hypergrad.fixed_point`). H
    begins at the outer loss's direct term, and where eta is a function of `hyper` it gains
    -<s, v_{k+1}> d eta/dhyper at each step. It is that of `reverse`.

    Source: Maclaurin, Duvenaud, Adams (2015), arXiv:1502.03492, Algorithm 2. Differs from the
    paper: the step is optax's, with the velocity along the gradient.

    Cost: 15F K + 3F for any number of hyperparameters: forward 3F, and back 3F for the gradient
    again and 9F for its pullback. Memory: two states, one step's pullback, and a buffer of
    log2(1/gamma) bits per parameter and step (0.15 for 0.9), in whole words. The model state,
    usually small, is kept at each step, since it does not run backwards.

    Prefer it to `reverse` where K states do not fit in memory.

    What it cannot do: look past its K steps, as `reverse`; nor another optimiser than
    `optax.sgd(learning_rate, momentum)`; nor a momentum that is learned, whose fraction must be
    known when the program is compiled. Parameters, velocities and inner gradients must stay below
    127 in float32 and below 2047 in float64; where one does not, state, loss and hypergradient are
    NaN. The inner gradient must come out the same, bit for bit, when it is computed again; where
    hardware adds in varying order, the difference grows by 1/gamma a step.

    Args:
      steps: K >= 1.
      learning_rate: eta, the optimiser's; where it is learned, the function of `hyper` that it is.
      momentum: gamma, the optimiser's; between 0 and 1, a fraction of denominator up to 1000.
      loop: `UNROLLED` or `SCANNED`; None: what suits the backend.

    Raises:
      ValueError: for steps below 1, a learning rate that is not positive, another momentum, and
        when called with another optimiser.
    """
    check_least(1, steps=steps)
    loop = chosen(loop)
    if not callable(learning_rate):
        check_positive(learning_rate=learning_rate)
    fraction = Fraction(momentum).limit_denominator(1000)
    if not 0 < fraction < 1 or abs(float(fraction) - momentum) > 1e-12:
        raise ValueError(
            "momentum must be a fraction between 0 and 1 with a denominator up to 1000, such as "
            f"0.9; got {momentum}"
        )
    rate_at = learning_rate if callable(learning_rate) else lambda hyper: learning_rate

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        _check_optimizer(problem.optimizer, rate_at, fraction, *kind(hyper))
        rate, pull_rate = jax.vjp(lambda h: jnp.asarray(rate_at(h)), hyper)
        ball = HeavyBall(rate, fraction)
        xs = loop.stack(inner_batches), loop.stack(list(ball.words(steps)))
        trace = optax.tree.get(state.opt_state, "trace")
        at = ball.start(state.params, trace, steps), state.model_state

        def forward(at, batch, word):
            fixed, model_state = at
            before = InnerState(_cast(fixed.position, state.params), (), model_state)
            gradient, (new, aux) = _gradient(problem, before, hyper, batch)
            return (ball.advance(fixed, gradient, word), new), (model_state, aux)

        (fixed, model_state), visited = loop.scan(forward, at, *xs, length=steps)

        def if_it_fits(tree):  # what wrapped around in fixed point is no result
            return jax.tree.map(lambda x: jnp.where(fixed.fits, x, jnp.nan), tree)

        velocity = if_it_fits(_cast(fixed.velocity, state.params))
        opt_state = optax.tree.set(state.opt_state, trace=velocity)
        params = if_it_fits(_cast(fixed.position, state.params))
        new = InnerState(params, opt_state, model_state)
        loss, outer_aux, (cotangent, direct) = outer_pullback(problem, new, hyper, outer_batch)

        def backward(carry, visit, batch, word):
            fixed, cotangents, total, slope = carry
            params = _cast(ball.position_before(fixed), state.params)
            before = InnerState(params, (), visit[0])
            slope = slope - optax.tree.vdot(cotangents[0], _cast(fixed.velocity, state.params))
            gradient, _ = _gradient(problem, before, hyper, batch)
            fixed = ball.retreat(fixed, gradient, word)
            cotangents, part = _pullback(problem, ball, before, hyper, batch, cotangents)
            return (fixed, cotangents, jax.tree.map(jnp.add, total, part), slope), None

        velocity = optax.tree.zeros_like(cotangent.params)
        cotangents = cotangent.params, velocity, cotangent.model_state
        start = fixed, cotangents, direct, jnp.zeros_like(loss)
        (_, _, gradient, slope), _ = loop.scan(
            backward, start, visited, *xs, length=steps, reverse=True
        )
        (by_rate,) = pull_rate(slope.astype(rate.dtype))
        gradient = if_it_fits(jax.tree.map(jnp.add, gradient, by_rate))
        loss, outer_aux, gradient = problem.mean((loss, outer_aux, gradient))
        return Estimate(gradient, loss, new, (loop.last(visited)[1], outer_aux), carry)

    return Estimator(estimate, steps, through_steps=False, through_settings=callable(learning_rate))


@partial(jax.jit, static_argnums=0)
def _gradient(problem: Bilevel, state: InnerState, hyper: PyTree, batch: PyTree):
    # The barriers keep a compiler that heeds them from fusing the gradient with what stands around
    # it, so that it comes out the same to the last bit forward and backward.
    params = lax.optimization_barrier(state.params)
    gradient, rest = problem.inner_gradient(state._replace(params=params), hyper, batch)
    return lax.optimization_barrier(gradient), rest


@partial(jax.jit, static_argnums=0)
def _pullback(problem: Bilevel, ball: HeavyBall, state, hyper, batch, cotangents):
    """The adjoints `(s, u, model state's)` before a step, and the step's share of H."""
    s, u, m = cotangents
    u = jax.tree.map(lambda u, s: u - jnp.asarray(ball.learning_rate, s.dtype) * s, u, s)
    ds, m, part = gradient_pullback(problem, state, hyper, batch, u, m)
    u = jax.tree.map(lambda u: float(ball.momentum) * u, u)
    return (jax.tree.map(jnp.add, s, ds), u, m), part


def _cast(fixed: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, p: to_float(x).astype(p.dtype), fixed, like)


@lru_cache
def _check_optimizer(
    optimizer: Any, rate_at: Callable, momentum: Fraction, treedef: Any, leaves: tuple
) -> None:
    """Raises ValueError unless the optimiser takes the steps that run backwards here."""
    gamma = float(momentum)
    with jax.ensure_compile_time_eval():
        for size in (0.0, 0.5):  # of a function of hyper, at two places
            (hyper,) = treedef.unflatten([jnp.full(x.shape, size, x.dtype) for x in leaves])
            made, eta = optimizer_at(optimizer, hyper), float(rate_at(hyper))
            params, velocity = {"x": jnp.asarray([0.5, -2.0], jnp.float32)}, np.zeros(2)
            state = made.init(params)
            for g in np.random.default_rng(0).normal(size=(3, 2)):
                velocity = gamma * velocity + g
                updates, state = made.update({"x": jnp.asarray(g, jnp.float32)}, state, params)
                if not np.allclose(
                    optax.tree.get(updates, "x"), -eta * velocity, rtol=1e-4, atol=1e-6 * abs(eta)
                ):
                    raise ValueError(
                        f"reversible needs optax.sgd({eta}, momentum={gamma}); this optimiser "
                        "takes other steps"
                    )
