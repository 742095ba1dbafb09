"""Waiting until the sign of a noisy gradient is known."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tvjax.types import PyTree


class SignificanceState(NamedTuple):
    """Of `until_significant`: Welford's running moments, element by element."""

    count: PyTree
    mean: PyTree
    spread: PyTree
    """The sum of squared deviations from the mean."""
    inner: Any


def until_significant(
    optimizer: optax.GradientTransformation, threshold: float
) -> optax.GradientTransformation:
    """Collects gradients until their mean is `threshold` standard errors from 0, then steps by it.

    Each element waits on its own. While one waits its update is 0; when its mean is significant,
    `optimizer` gets the mean as the gradient and the element starts collecting anew. With
    mini-batches the sign of a hypergradient is often a coin toss: this asks for evidence first.

    Args:
      optimizer: any optax optimiser.
      threshold: z > 0 standard errors; 2 is wrong in about one of twenty steps per look, so a
        patient 3 is a better bet where many looks are taken.

    Raises:
      ValueError: for a threshold that is not positive.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive; got {threshold}")

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SignificanceState(zeros, zeros, zeros, optimizer.init(params))

    def update(updates, state, params=None):
        count = jax.tree.map(lambda n: n + 1, state.count)
        mean = jax.tree.map(lambda m, g, n: m + (g - m) / n, state.mean, updates, count)
        spread = jax.tree.map(
            lambda s, g, old, new: s + (g - old) * (g - new),
            state.spread, updates, state.mean, mean,
        )  # fmt: skip
        # |mean| > z sqrt(spread / (n (n - 1))), squared; one gradient alone is never enough.
        ready: Any = jax.tree.map(
            lambda m, s, n: (n > 1) & (m**2 * n * (n - 1) > threshold**2 * s), mean, spread, count
        )

        def keep(x, y):  # x where ready, y elsewhere
            return jax.tree.map(jnp.where, ready, x, y)

        zeros = jax.tree.map(jnp.zeros_like, mean)
        step, inner = optimizer.update(keep(mean, zeros), state.inner, params)
        any_ready = jnp.any(jnp.stack([jnp.any(r) for r in jax.tree.leaves(ready)]))
        inner = jax.tree.map(lambda new, old: jnp.where(any_ready, new, old), inner, state.inner)
        new = SignificanceState(keep(zeros, count), keep(zeros, mean), keep(zeros, spread), inner)
        return keep(step, zeros), new

    return optax.GradientTransformation(init, update)
