"""Losses of a batch taken in parts, so that one part at a time needs memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.hypergrad.loops import SCANNED, Loop, chosen


def in_parts(loss: Callable[..., Any], parts: int, loop: Loop | None = None) -> Callable[..., Any]:
    """The mean of a stateful inner loss over equal parts of the batch, as a loss of the batch.

    Its gradient is the mean of theirs, and so it is for whatever else differentiates a loss. Each
    part's forward pass is repeated in the backward pass: a step costs 4F for 3F, and needs a
    part's memory. What the loss updates goes from part to part: BatchNorm takes its statistics
    over one part, and moves the running ones once per part.

    Args:
      loss: `(params, hyper, batch, model_state) -> (loss, (model_state, aux))`, a mean over images.
      parts: how many; each takes every `parts`-th image, so that the number of devices does not
        matter. It divides each device's share of the batch.
      loop: how to run over them; None: as it suits the backend.
    """
    if parts == 1:
        return loss
    repeated = jax.checkpoint(loss)

    def whole(params, hyper, batch, model_state):
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

        def part(model_state, batch):
            value, (model_state, aux) = repeated(params, hyper, batch, model_state)
            return model_state, (value, aux)

        run, rows = chosen(loop), jax.tree.map(split, batch)
        batches = run.stack([jax.tree.map(lambda x, n=n: x[n], rows) for n in range(parts)])
        model_state, found = run.scan(part, model_state, batches, length=parts)
        stacked = found if isinstance(found, tuple) else SCANNED.stack(found)
        value, aux = jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)
        return value, (model_state, aux)

    return whole
