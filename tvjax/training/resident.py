"""Data that lives on the device: a batch is a list of rows, and several steps are one program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from tvjax.types import PyTree


def take(resident: PyTree, batch: PyTree) -> PyTree:
    """The batch itself, or its rows of the arrays that reside on the device.

    A batch of integers `[B]` is a list of rows; anything else already is the batch.
    """
    if isinstance(batch, jax.Array) and jnp.issubdtype(batch.dtype, jnp.integer):
        return jax.tree.map(lambda x: x[batch], resident)
    return batch


def repeat(step: Callable) -> Callable:
    """`step(state, resident, [inner rows [B]], outer rows [B])`, n times in one program.

    Returns:
      `(state, (resident, n), inner [B, most, K], outer [B, most]) -> (state, metrics [most, ...])`,
      of which the first n <= most rows are used. One program serves every n. For accelerators: on a
      CPU, gradients of convolutions are some twenty times slower inside a loop.
    """

    def repeated(state, resident_and_n, inner_rows, *outer_rows):
        resident, n = resident_and_n

        def take_step(t, state):
            inner = [inner_rows[:, t, k] for k in range(inner_rows.shape[2])]
            return step(state, resident, inner, *(rows[:, t] for rows in outer_rows))

        def body(t, carry):
            state, metrics = carry
            state, new = take_step(t, state)
            return state, jax.tree.map(lambda all, x: all.at[t].set(x), metrics, new)

        _, shapes = jax.eval_shape(take_step, 0, state)
        most = inner_rows.shape[1]
        metrics = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        return lax.fori_loop(0, n, body, (state, metrics))

    return repeated
