"""Rotations by any angle, changes of size and crops: one map of the plane for image and mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Limits(NamedTuple):
    """How far what is drawn goes; 0 everywhere: nothing is."""

    rotation: float
    """The greatest angle in degrees, to either side."""
    scale: float
    """s: objects grow or shrink by a factor in [1 / (1 + s), 1 + s], evenly drawn in logarithm."""
    crop: float
    """The greatest share of the sides that is cut away; what is left is enlarged to the tile."""


class Warp(NamedTuple):
    """Maps from the pixels of the result to those of the tile, both counted from the middle."""

    matrix: jax.Array
    """`[B, 2, 2]`, of rows and columns."""
    shift: jax.Array
    """`[B, 2]`: where the middle of the result lies, in parts of the tile's sides."""


def draw(key: jax.Array, count: int, limits: Limits) -> Warp | None:
    """Draws for `count` images; None if the limits are all 0."""
    if not any(limits):
        return None
    keys = jax.random.split(key, 4)
    signed, grown = (jax.random.uniform(k, (count,), jnp.float32, -1, 1) for k in keys[:2])
    cut = limits.crop * jax.random.uniform(keys[2], (count,), jnp.float32)
    shift = cut[:, None] * jax.random.uniform(keys[3], (count, 2), jnp.float32, -0.5, 0.5)
    size = (1 + limits.scale) ** grown / (1 - cut)
    return Warp(turn(limits.rotation * signed) / size[:, None, None], shift)


def turn(degrees: jax.Array) -> jax.Array:
    """`[B] -> [B, 2, 2]`: counter-clockwise turns, those by quarters without rounding."""
    quarters = jnp.round(degrees / 90)
    rest = jnp.deg2rad(degrees - 90 * quarters)
    c, s = jnp.cos(rest), jnp.sin(rest)
    c, s = (
        jnp.choose(quarters.astype(jnp.int32) % 4, sides, mode="clip")
        for sides in ((c, -s, -c, s), (s, c, -s, -c))
    )
    return jnp.stack([jnp.stack([c, s], -1), jnp.stack([-s, c], -1)], -2)


def apply(warp: Warp, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Resamples images between four pixels, and masks by the nearest.

    What lies beyond a tile's edge is its mirror image, in both, so that every pixel has its label.
    Where the map meets pixels exactly (no change, quarter turns) values are exact. Objects that
    shrink are not averaged first. Images are float `[B, H, W, C]`, masks hold any integers.
    """
    height, width = image.shape[1:3]
    rows, columns = _places(warp, height, width)

    def sample(image: jax.Array, mask: jax.Array, y: jax.Array, x: jax.Array):
        near = (jnp.floor(at + 0.5).astype(jnp.int32) for at in (y, x))
        return _between(image, y, x), _pixels(mask, *near)

    return jax.vmap(sample)(image, mask, rows, columns)


def _places(warp: Warp, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Rows and columns `[B, H, W]` of the tile, folded into it, for each pixel of the result."""
    middle = (height - 1) / 2, (width - 1) / 2
    y = (jnp.arange(height) - middle[0]).reshape(1, -1, 1)
    x = (jnp.arange(width) - middle[1]).reshape(1, 1, -1)

    def places(axis: int, side: int) -> jax.Array:
        a, b, shift = (
            values.reshape(-1, 1, 1)
            for values in (*warp.matrix[:, axis].T, side * warp.shift[:, axis])
        )
        return _fold(a * y + b * x + shift + middle[axis], side)

    return places(0, height), places(1, width)


def _fold(at: jax.Array, side: int) -> jax.Array:
    """Places mirrored at the tile's edges until they are in [0, side - 1]."""
    around = (at + 0.5) % (2 * side)
    return jnp.clip(jnp.minimum(around, 2 * side - around) - 0.5, 0, side - 1)


def _between(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Bilinear interpolation of `[H, W, C]` at places in it."""
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = ((at - low)[..., None].astype(image.dtype) for at, low in ((y, top), (x, left)))
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)

    def line(row: jax.Array) -> jax.Array:
        return (1 - right) * _pixels(image, row, left) + right * _pixels(image, row, left + 1)

    return (1 - down) * line(top) + down * line(top + 1)


def _pixels(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """The pixels at whole places; those beyond the last, whose weight is 0, are the last."""
    return image.at[row, column].get(mode="clip")
