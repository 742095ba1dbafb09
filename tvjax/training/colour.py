"""Changes of contrast, saturation and hue, and blur: of images, never of masks."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LUMA = 0.299, 0.587, 0.114
"""How bright red, green and blue look (ITU-R BT.601)."""


class Limits(NamedTuple):
    """How far what is drawn goes; 0: as it is."""

    contrast: float
    """c: differences from the image's mean are multiplied by a number in [1 - c, 1 + c]."""
    saturation: float
    """s: differences from grey are multiplied by a number in [1 - s, 1 + s]."""
    hue: float
    """The greatest turn of the colours around grey, in degrees."""
    blur: float
    """The greatest standard deviation of a Gaussian, in pixels."""


class Colour(NamedTuple):
    """What happens to each image's colours, in this order; None: nothing."""

    matrix: jax.Array | None
    """`[B, 3, 3]`, from colours to colours."""
    contrast: jax.Array | None
    """`[B]`."""
    blur: jax.Array | None
    """`[B]`: standard deviations in pixels."""


def draw(key: jax.Array, count: int, limits: Limits) -> Colour:
    """Draws for `count` images."""
    keys = jax.random.split(key, 4)
    signed = [jax.random.uniform(k, (count,), jnp.float32, -1, 1) for k in keys[:3]]
    contrast = 1 + limits.contrast * signed[0] if limits.contrast else None
    matrix = None
    if limits.saturation or limits.hue:
        matrix = colours(1 + limits.saturation * signed[1], limits.hue * signed[2])
    blur = limits.blur * jax.random.uniform(keys[3], (count,), jnp.float32)
    return Colour(matrix, contrast, blur if limits.blur else None)


def colours(saturation: jax.Array, degrees: jax.Array) -> jax.Array:
    """`[B, 3, 3]`: differences from grey times `saturation`, then turned around grey.

    Grey stays as it is: `R (s I + (1 - s) 1 w^T)`, where `w` is `LUMA` and `R` the rotation around
    (1, 1, 1) in the space of red, green and blue.
    """
    s, angle = (values[:, None, None] for values in (saturation, jnp.deg2rad(degrees)))
    one, grey = jnp.eye(3)[None], jnp.array([[LUMA] * 3])
    across = jnp.array([[[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]]) / math.sqrt(3)
    vivid, cos = s * one + (1 - s) * grey, jnp.cos(angle)
    turn = cos * one + (1 - cos) / 3 + jnp.sin(angle) * across
    return jnp.matmul(turn, vivid, precision=lax.Precision.HIGHEST)


def apply(colour: Colour, image: jax.Array, *, blur: float) -> jax.Array:
    """Images `[B, H, W, 3]`, which may leave [0, 1]; `blur` is the greatest that is drawn."""
    if colour.matrix is not None:
        matrix = colour.matrix.astype(image.dtype)
        image = jnp.einsum("bhwc,bdc->bhwd", image, matrix, precision=lax.Precision.HIGHEST)
    if colour.contrast is not None:
        mean = jnp.mean(image, axis=(1, 2, 3), keepdims=True)
        factor = colour.contrast.reshape(-1, 1, 1, 1).astype(image.dtype)
        image = mean + factor * (image - mean)
    if colour.blur is not None:
        for axis in (1, 2):
            image = _blurred(image, colour.blur, math.ceil(3 * blur), axis)
    return image


def _blurred(image: jax.Array, deviation: jax.Array, radius: int, axis: int) -> jax.Array:
    """Gaussian means along an axis, by the edge's pixels beyond it; a deviation of 0 is exact."""
    side = image.shape[axis]
    at = jnp.arange(-radius, radius + 1)[None] / jnp.maximum(deviation, 1e-3)[:, None]
    weights = jnp.exp(-jnp.square(at) / 2)
    weights = (weights / jnp.sum(weights, 1, keepdims=True)).astype(image.dtype)
    around = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
    padded = jnp.pad(image, around, "edge")
    shifted = (lax.slice_in_dim(padded, k, k + side, axis=axis) for k in range(2 * radius + 1))
    parts = [weights[:, k].reshape(-1, 1, 1, 1) * x for k, x in enumerate(shifted)]
    return functools.reduce(jnp.add, parts)
