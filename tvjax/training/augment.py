"""Flips, turns, changes of size and of colours, drawn anew for each image of each training batch.

What is drawn is a function of the seed, the step and the image's place in the global batch: a
resumed run draws the same, and so does one on any number of devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tvjax.errors import UserError
from tvjax.training import colour, warp
from tvjax.types import Batch

Augment = Callable[[jax.Array, Batch], Batch]
"""`(step, one device's share of the batch) -> the same share, augmented`."""


class Draw(NamedTuple):
    """What happens to each image of a batch, in this order; arrays `[B]`."""

    transpose: jax.Array
    """bool: rows become columns."""
    flip_rows: jax.Array
    """bool: upside down."""
    flip_columns: jax.Array
    """bool: left to right."""
    brightness: jax.Array
    """float32: what the image is multiplied by, before it is clipped to [0, 1]."""


def make_augment(
    *,
    flips: bool,
    turns: bool,
    brightness: float,
    seed: int,
    image_shape: tuple[int, int],
    axis_name: str | None = None,
    **limits: float,
) -> Augment | None:
    """The augmentation of training batches, masks along with their images; None if there is none.

    Flips and turns come first, then `warp.apply`, then `colour.apply`, then brightness.

    Args:
      flips: left to right and upside down, each for half of the images.
      turns: turns by 0, 90, 180 or 270 degrees, all alike often.
      brightness: b; images are multiplied by a number drawn from [1 - b, 1 + b].
      seed: seed of the draws.
      image_shape: height and width of the tiles.
      axis_name: the axis over which the batch is spread, if any.
      **limits: the fields of `warp.Limits` and of `colour.Limits`.

    Raises:
      UserError: turns are asked for, and the tiles are not square.
    """
    height, width = image_shape
    if turns and height != width:
        raise UserError(f"augmentation.turns=True needs square tiles; these are {height}x{width}")
    moved = warp.Limits(*(limits.pop(name) for name in warp.Limits._fields))
    coloured = colour.Limits(**limits)
    if not any((flips, turns, brightness, *moved, *coloured)):
        return None

    def augment(step: jax.Array, batch: Batch) -> Batch:
        share = batch.image.shape[0]
        devices = 1 if axis_name is None else lax.axis_size(axis_name)
        key = jax.random.fold_in(jax.random.key(seed), step)
        # Every device draws for all and takes its own, so that their number does not matter; each
        # part is drawn from a key of its own, whatever the others are.
        count = share * devices
        whole = (
            draw(key, count, flips=flips, turns=turns, brightness=brightness),
            warp.draw(jax.random.fold_in(key, 1), count, moved),
            colour.draw(jax.random.fold_in(key, 2), count, coloured),
        )
        first = 0 if axis_name is None else share * lax.axis_index(axis_name)
        own = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, share), whole)
        return apply(own[0], batch, *own[1:], blur=coloured.blur)

    return augment


def draw(key: jax.Array, count: int, *, flips: bool, turns: bool, brightness: float) -> Draw:
    """Draws for `count` images; the options are those of `make_augment`."""
    keys = jax.random.split(key, 4)
    turn = jax.random.randint(keys[0], (count,), 0, 4) if turns else jnp.zeros(count, jnp.int32)
    rows, columns = (jax.random.bernoulli(k, 0.5, (count,)) & flips for k in keys[1:3])
    # A turn by 90 degrees is a transposition and a flip of rows, and so on.
    return Draw(
        transpose=turn % 2 == 1,
        flip_rows=rows ^ ((turn == 1) | (turn == 2)),
        flip_columns=columns ^ ((turn == 2) | (turn == 3)),
        brightness=jax.random.uniform(
            keys[3], (count,), jnp.float32, 1 - brightness, 1 + brightness
        ),
    )


def apply(
    drawn: Draw,
    batch: Batch,
    moved: warp.Warp | None = None,
    coloured: colour.Colour | None = None,
    *,
    blur: float = 0.0,
) -> Batch:
    """Augments images (uint8, or floats in [0, 1]) and masks; uint8 become floats in [0, 1]."""

    def move(x: jax.Array) -> jax.Array:
        if x.shape[1] == x.shape[2]:  # no others are ever turned
            x = jnp.where(_each(drawn.transpose), x.swapaxes(1, 2), x)
        x = jnp.where(_each(drawn.flip_rows), x[:, ::-1], x)
        return jnp.where(_each(drawn.flip_columns), x[:, :, ::-1], x)

    image, mask = move(to_float(batch.image)), move(batch.mask)
    if moved is not None:
        image, mask = warp.apply(moved, image, mask)
    if coloured is not None:
        image = colour.apply(coloured, image, blur=blur)
    bright = image * _each(drawn.brightness).astype(image.dtype)
    return batch._replace(image=jnp.clip(bright, 0, 1), mask=mask)


def to_float(images: jax.Array) -> jax.Array:
    """uint8 in 0..255 -> float32 in [0, 1]; floats as they are."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def _each(values: jax.Array) -> jax.Array:
    return values.reshape(-1, 1, 1, 1)
