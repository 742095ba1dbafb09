"""The exponential moving average of a net's weights, which predicts where `train.ema` is on."""

from typing import Any

import jax
import jax.numpy as jnp

from tvjax.hypergrad import InnerState
from tvjax.training.state import TrainState
from tvjax.types import PyTree

SLOWNESS = 10
"""Steps after which the average has half of its memory of the steps before, at least."""


def begin(inner: InnerState, decay: float) -> PyTree:
    """The average before the first step: the weights themselves, or `()` where `decay` is 0."""
    if not decay:
        return ()
    return jax.tree.map(jnp.copy, _weights(inner))


def move(before: TrainState, after: TrainState, decay: float) -> TrainState:
    """The state after some steps, with the average moved towards its weights.

    `average <- d average + (1 - d) weights`, where `d = min(decay, t / (t + 10))` after `t` steps:
    the first step's weights are all of it, and it forgets the early ones of a short run too. Of an
    update that takes K steps at once only the last weights are known: `d` is then `d^K`. Weights
    are the parameters and BatchNorm's running statistics. With a decay of 0 there is no average;
    that of `after` is not looked at.
    """
    if not decay:
        return after
    t = before.step.astype(jnp.float32)
    d = jnp.minimum(decay, t / (t + SLOWNESS)) ** (after.step - before.step)
    moved = jax.tree.map(
        lambda x, y: (d * x + (1 - d) * y).astype(y.dtype), before.average, _weights(after.inner)
    )
    return after._replace(average=moved)


def weights(state: TrainState) -> dict[str, Any]:
    """The weights that predict, as flax's `apply` takes them: the average, if there is one."""
    return state.average or _weights(state.inner)


def _weights(inner: InnerState) -> dict[str, Any]:
    return {"params": inner.params, "batch_stats": inner.model_state["batch_stats"]}
