"""Means of a function of images over the symmetries of their shape: test-time augmentation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def average(predict: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Mean of `turn_back(predict(turn(images)))` over the symmetries of the images' shape.

    Those are the eight of the square (quarter turns and flips), or the four that keep the shape of
    images that are not square (flips and the half turn). The mean moves along with the images: of a
    turned image it is the turned mean, up to rounding. `predict` is compiled once, and runs eight
    or four times.

    Args:
      predict: images `[B, H, W, C]` -> arrays `[B, H, W, D]`.
      images: `[B, H, W, C]`.

    Returns:
      `[B, H, W, D]`.

    Example:
      >>> images = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, ..., None]
      >>> average(lambda x: x.at[:, 1:].set(0), images)[0, ..., 0]  # sees the first row alone
      Array([[0.5, 1. ],
             [1.5, 2. ]], dtype=float32)
    """
    number = 8 if images.shape[1] == images.shape[2] else 4

    def one(k: jax.Array) -> jax.Array:
        rows, columns, transposed = k % 2 == 1, k // 2 % 2 == 1, k >= 4
        turned = _flip(_flip(_transpose(images, transposed), rows, 1), columns, 2)
        return _transpose(_flip(_flip(predict(turned), columns, 2), rows, 1), transposed)

    return lax.map(one, jnp.arange(number)).mean(0)


def _flip(x: jax.Array, is_flipped: jax.Array, axis: int) -> jax.Array:
    return jnp.where(is_flipped, jnp.flip(x, axis), x)


def _transpose(x: jax.Array, is_transposed: jax.Array) -> jax.Array:
    if x.shape[1] != x.shape[2]:  # then it never is
        return x
    return jnp.where(is_transposed, x.swapaxes(1, 2), x)
