"""Hypergradients through many steps of heavy ball, run backwards instead of stored."""

from fractions import Fraction
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from tvjax.hypergrad.checks import check_least, check_positive
from tvjax.hypergrad.contrib.fixed_point import HeavyBall, to_float
from tvjax.hypergrad.loops import UNROLLED, Loop
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.hypergrad.reverse import gradient_pullback, outer_pullback
from tvjax.hypergrad.trees import zeros
from tvjax.types import PyTree


def reversible(
    steps: int, learning_rate: float, momentum: float, *, loop: Loop = UNROLLED
) -> Estimator:
    """The exact derivative through K steps of heavy ball, without a stored trajectory.

    With adjoints s of theta and u of the velocity, from s = dL_out/dtheta_K and u = 0 back:

        u <- u - eta s,   H += <u, d/dhyper g(theta_k)>,   s <- s + (d/dtheta g(theta_k))^T u,
        u <- gamma u

    where theta_k comes from theta_{k+1} by the inverse step, exactly (`hypergrad.fixed_point`).
    H is that of `reverse`.

    Source: Maclaurin, Duvenaud, Adams (2015), arXiv:1502.03492, Algorithm 2. Differs from the
    paper: the step is optax's, with the velocity along the gradient.

    Cost: 15F K + 3F for any number of hyperparameters: forward 3F, and back 3F for the gradient
    again and 9F for its pullback. Memory: two states, one step's pullback, and a buffer of
    log2(1/gamma) bits per parameter and step (0.15 for 0.9), in whole words. The model state,
    usually small, is kept at each step, since it does not run backwards.

    Prefer it to `reverse` where K states do not fit in memory.

    What it cannot do: look past its K steps, as `reverse`; nor another optimiser than
    `optax.sgd(learning_rate, momentum)`. Parameters, velocities and inner gradients must stay below
    127 in float32 and below 2047 in float64; where one does not, state, loss and hypergradient are
    NaN. The inner gradient must come out the same, bit for bit, when it is computed again; where
    hardware adds in varying order, the difference grows by 1/gamma a step.

    Args:
      steps: K >= 1.
      learning_rate: eta, the optimiser's.
      momentum: gamma, the optimiser's; between 0 and 1, a fraction of denominator up to 1000.
      loop: `UNROLLED` or `SCANNED`; see `tvjax.hypergrad.loops`.

    Raises:
      ValueError: for steps below 1, a learning rate that is not positive, another momentum, and
        when called with another optimiser.
    """
    check_least(1, steps=steps)
    check_positive(learning_rate=learning_rate)
    fraction = Fraction(momentum).limit_denominator(1000)
    if not 0 < fraction < 1 or abs(float(fraction) - momentum) > 1e-12:
        raise ValueError(
            "momentum must be a fraction between 0 and 1 with a denominator up to 1000, such as "
            f"0.9; got {momentum}"
        )
    ball = HeavyBall(learning_rate, fraction)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        _check_optimizer(problem.optimizer, ball)
        xs = loop.stack(inner_batches), loop.stack(list(ball.words(steps)))
        trace = optax.tree.get(state.opt_state, "trace")
        at = ball.start(state.params, trace, steps), state.model_state

        def forward(at, batch, word):
            fixed, model_state = at
            before = InnerState(_cast(fixed.position, state.params), (), model_state)
            gradient, (new, aux) = _gradient(problem, before, hyper, batch)
            return (_advance(ball, fixed, gradient, word), new), (model_state, aux)

        (fixed, model_state), visited = loop.scan(forward, at, *xs, length=steps)

        def if_it_fits(tree):  # what wrapped around in fixed point is no result
            return jax.tree.map(lambda x: jnp.where(fixed.fits, x, jnp.nan), tree)

        velocity = if_it_fits(_cast(fixed.velocity, state.params))
        opt_state = optax.tree.set(state.opt_state, trace=velocity)
        params = if_it_fits(_cast(fixed.position, state.params))
        new = InnerState(params, opt_state, model_state)
        loss, outer_aux, (cotangent, direct) = outer_pullback(problem, new, hyper, outer_batch)

        def backward(carry, visit, batch, word):
            fixed, cotangents, total = carry
            params = _cast(_position_before(ball, fixed), state.params)
            before = InnerState(params, (), visit[0])
            gradient, _ = _gradient(problem, before, hyper, batch)
            fixed = _retreat(ball, fixed, gradient, word)
            cotangents, part = _pullback(problem, ball, before, hyper, batch, cotangents)
            return (fixed, cotangents, jax.tree.map(jnp.add, total, part)), None

        cotangents = cotangent.params, zeros(cotangent.params), cotangent.model_state
        (_, _, gradient), _ = loop.scan(
            backward, (fixed, cotangents, direct), visited, *xs, length=steps, reverse=True
        )
        gradient = if_it_fits(gradient)
        loss, outer_aux, gradient = problem.mean((loss, outer_aux, gradient))
        return Estimate(gradient, loss, new, (loop.last(visited)[1], outer_aux), carry)

    return Estimator(estimate, steps, through_steps=False, through_settings=False)


_advance = jax.jit(HeavyBall.advance, static_argnums=0)
_retreat = jax.jit(HeavyBall.retreat, static_argnums=0)
_position_before = jax.jit(HeavyBall.position_before, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _gradient(problem: Bilevel, state: InnerState, hyper: PyTree, batch: PyTree):
    # The barriers keep a compiler that heeds them from fusing the gradient with what stands around
    # it, so that it comes out the same to the last bit forward and backward.
    params = lax.optimization_barrier(state.params)
    gradient, rest = problem.inner_gradient(state._replace(params=params), hyper, batch)
    return lax.optimization_barrier(gradient), rest


@partial(jax.jit, static_argnums=(0, 1))
def _pullback(problem: Bilevel, ball: HeavyBall, state, hyper, batch, cotangents):
    """The adjoints `(s, u, model state's)` before a step, and the step's share of H."""
    s, u, m = cotangents
    u = jax.tree.map(lambda u, s: u - ball.learning_rate * s, u, s)

    ds, m, part = gradient_pullback(problem, state, hyper, batch, u, m)
    u = jax.tree.map(lambda u: float(ball.momentum) * u, u)
    return (jax.tree.map(jnp.add, s, ds), u, m), part


def _cast(fixed: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, p: to_float(x).astype(p.dtype), fixed, like)


@lru_cache
def _check_optimizer(optimizer: optax.GradientTransformation, ball: HeavyBall) -> None:
    """Raises ValueError unless the optimiser takes the steps that run backwards here."""
    eta, gamma = ball.learning_rate, float(ball.momentum)
    with jax.ensure_compile_time_eval():
        params, velocity = {"x": jnp.asarray([0.5, -2.0], jnp.float32)}, np.zeros(2)
        state = optimizer.init(params)
        for g in np.random.default_rng(0).normal(size=(3, 2)):
            velocity = gamma * velocity + g
            updates, state = optimizer.update({"x": jnp.asarray(g, jnp.float32)}, state, params)
            if not np.allclose(
                optax.tree.get(updates, "x"), -eta * velocity, rtol=1e-4, atol=1e-6 * eta
            ):
                raise ValueError(
                    f"reversible needs optax.sgd({eta}, momentum={gamma}); this optimiser takes "
                    "other steps"
                )
