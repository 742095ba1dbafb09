"""Waiting until the sign of a noisy gradient is known."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.special import betainc

from tvjax.types import PyTree


class SignificanceState(NamedTuple):
    """Of `until_significant`: Welford's running moments, one of each for every element."""

    count: jax.Array
    mean: jax.Array
    spread: jax.Array
    """The sum of squared deviations from the mean."""
    inner: PyTree


def until_significant(
    optimizer: optax.GradientTransformation, threshold: float
) -> optax.GradientTransformation:
    """Collects gradients until their mean is far enough from 0 for its sign, then steps by it.

    Each element waits on its own and has an optimiser of its own: while it waits its update is 0
    and its optimiser stands still; when its mean is significant, its optimiser gets the mean as the
    gradient, and the element starts collecting anew. With mini-batches the sign of a hypergradient
    is often a coin toss: this asks for evidence first. A mean that is not finite is passed on at
    once, to be seen.

    Cost: none to speak of. Memory: three numbers an element, and its optimiser's state.

    What it cannot do: keep many looks honest. The mean is looked at after every gradient from the
    second, and each look at pure noise errs with the same probability.

    Args:
      optimizer: any optax optimiser; what it does to several elements together, such as clipping by
        their norm, it does to each alone.
      threshold: z > 0. An element moves when noise about 0 would look so with the probability of
        a normal number beyond z standard deviations: 0.046 a look for 2, 0.0027 for 3. Few
        gradients tell little of their own spread, and by Student's t must be further from 0.

    Raises:
      ValueError: for a threshold that is not positive.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive; got {threshold}")
    least = math.erfc(threshold / math.sqrt(2))

    def init(params):
        flat = ravel_pytree(params)[0]
        zeros = jnp.zeros_like(flat)
        return SignificanceState(zeros, zeros, zeros, jax.vmap(optimizer.init)(flat))

    def one(g, state, param) -> tuple[Any, Any]:
        """The update and the state of one element."""
        count = state.count + 1
        mean = state.mean + (g - state.mean) / count
        spread = state.spread + (g - state.mean) * (g - mean)
        ready = (chance(count, mean, spread) < least) | ~jnp.isfinite(mean)
        zero = jnp.zeros_like(mean)
        step, inner = optimizer.update(mean, state.inner, param)
        moved = step, SignificanceState(zero, zero, zero, inner)
        waits = zero, SignificanceState(count, mean, spread, state.inner)
        return jax.tree.map(partial(jnp.where, ready), moved, waits)

    def update(updates, state, params=None):
        flat, unravel = ravel_pytree(updates)
        params = None if params is None else ravel_pytree(params)[0]
        steps, state = jax.vmap(one)(flat, state, params)
        return unravel(steps), state

    return optax.GradientTransformation(init, update)


def chance(count: Any, mean: Any, spread: Any) -> Any:
    """The probability that normal numbers about 0 have a mean this far from it (Student's t).

        P(|T| >= |mean| / sqrt(spread / (n (n - 1)))),   T of n - 1 degrees of freedom

    Args:
      count: n >= 1 numbers; one alone tells nothing, and the probability is 1.
      mean: of the numbers.
      spread: the sum of their squared deviations from it.
    """
    count, mean, spread = map(jnp.asarray, (count, mean, spread))
    total = spread + count * mean**2
    known = (count > 1) & (total > 0)
    share = jnp.where(known, spread / jnp.where(known, total, 1), 1)
    freedom = jnp.where(known, count - 1, 1)
    return betainc(freedom / 2, jnp.full_like(share, 0.5), share)
