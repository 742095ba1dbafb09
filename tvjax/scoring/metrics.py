"""How well a probability map matches a mask: counts, and the scores made of them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from tvjax import arguments
from tvjax.tv.dual import Field
from tvjax.tv.implicit import regions

Images = Shaped[ArrayLike, "..."]
"""`[..., H, W, C]`; what cannot be so is refused by name."""


class Counts(NamedTuple):
    """Pixels per image, `[...]`: add them over images to pool, then take the score once."""

    true_positive: Array
    false_positive: Array
    false_negative: Array

    @property
    def union(self) -> Array:
        """`TP + FP + FN`."""
        return self.true_positive + self.false_positive + self.false_negative

    @property
    def iou(self) -> Array:
        """`TP / (TP + FP + FN)` (eqs 10 and 11); 1 where prediction and mask are both empty."""
        union = self.union
        return jnp.where(union == 0, 1.0, self.true_positive / jnp.maximum(union, 1))

    @property
    def f1(self) -> Array:
        """`2 TP / (2 TP + FP + FN)`; 1 where prediction and mask are both empty."""
        total = 2 * self.true_positive + self.false_positive + self.false_negative
        return jnp.where(total == 0, 1.0, 2 * self.true_positive / jnp.maximum(total, 1))


def counts(
    probabilities: Images,
    mask: Images,
    *,
    threshold: float | Shaped[ArrayLike, ""] = 0.5,
) -> Counts:
    """Counts pixels with `p > threshold` against the mask, per image.

    Args:
      probabilities: `[..., H, W, C]` in [0, 1].
      mask: `[..., H, W, C]`, 0 or 1.
      threshold: number in [0, 1]; a pixel is positive above it, not at it.

    Returns:
      Float32 `[...]` each. NaN of traced arguments that cannot be so.

    Raises:
      ValueError: the shapes differ, or a value cannot be so.
    """
    prediction, truth, sound = _masks(probabilities, mask, threshold)

    def total(x):
        # Summed as integers: float32 could not add 1 to 2^24. As floats they add up over images.
        number = jnp.sum(x, axis=(-3, -2, -1), dtype=jnp.int32).astype(jnp.float32)
        return jnp.where(sound, number, jnp.nan)

    return Counts(total(prediction & truth), total(prediction & ~truth), total(~prediction & truth))


def iou(
    probabilities: Images,
    mask: Images,
    *,
    threshold: float | Shaped[ArrayLike, ""] = 0.5,
) -> Float[Array, "..."]:
    """Intersection over union per image (eqs 10 and 11).

    Differs from the paper, which leaves it open: an empty prediction on an empty mask scores 1.
    Where many masks are empty, a mean over images rewards predicting nothing; add up `Counts` over
    images instead, and take the score once.

    Args:
      probabilities: `[..., H, W, C]` in [0, 1].
      mask: `[..., H, W, C]`, 0 or 1.
      threshold: number in [0, 1]; a pixel is positive above it, not at it.

    Returns:
      `[...]` in [0, 1]. NaN of traced arguments that cannot be so, such as a mask of 255.

    Raises:
      ValueError: the shapes differ, or a value cannot be so.

    Example:
      >>> p = jnp.array([[[0.9], [0.8]], [[0.1], [0.6]]])
      >>> iou(p, jnp.array([[[1], [0]], [[1], [1]]]))
      Array(0.5, dtype=float32)
    """
    return counts(probabilities, mask, threshold=threshold).iou


def boundary_iou(
    probabilities: Images,
    mask: Images,
    *,
    threshold: float | Shaped[ArrayLike, ""] = 0.5,
    width: Any = 0.02,
) -> Float[Array, "..."]:
    """IoU of the inner boundaries of prediction and mask, per image (Cheng et al. 2021).

    The boundary of a mask is what an erosion by a square of 2d + 1 pixels (beyond the image is
    outside) takes away, with d = `width` times the image's diagonal, at least 1 (see
    `boundary_pixels`). It sees errors of the outline that the IoU of large objects hides; of an
    object that is nowhere wider than 2d pixels all is boundary, and it says no more than the IoU.

    Args:
      probabilities: `[..., H, W, C]` in [0, 1].
      mask: `[..., H, W, C]`, 0 or 1.
      threshold: number in [0, 1]; a pixel is positive above it, not at it.
      width: width of the boundary, as a share of the diagonal in [0, 1]; a number.

    Returns:
      `[...]` in [0, 1]; 1 where both boundaries are empty. NaN of traced arguments that cannot be
      so.

    Raises:
      ValueError: the shapes differ, or a value cannot be so.
    """
    prediction, truth, sound = _masks(probabilities, mask, threshold)
    h, w = truth.shape[-3:-1]
    arguments.number("width", width)
    arguments.share("width", width)
    pixels = boundary_pixels(h, w, width=width)
    found = counts(_boundary(prediction, pixels), _boundary(truth, pixels)).iou
    return jnp.where(sound, found, jnp.nan)


def boundary_pixels(height: int, length: int, *, width: float = 0.02) -> int:
    """How many pixels of an image's objects `boundary_iou` takes for their boundary: its d."""
    return max(1, round(float(width) * (height**2 + length**2) ** 0.5))


def num_components(mask: Images) -> Int[Array, "..."]:
    """The number of 4-connected components of each mask: many specks or few compact objects.

    Args:
      mask: `[..., H, W, C]`; positive is foreground. Channels are counted apart and added.

    Raises:
      ValueError: the mask is complex or of less than three axes, or concrete and holds NaN.
    """
    mask = arguments.valid("mask", mask, lambda m: m == m, "a number")
    arguments.images("mask", mask.shape)
    foreground = mask.reshape(math.prod(mask.shape[:-3]), *mask.shape[-3:]) > 0

    def count(m):
        ties = Field(
            m & jnp.roll(m, -1, 0) & _inside(m.shape, 0),
            m & jnp.roll(m, -1, 1) & _inside(m.shape, 1),
        )
        index = lax.iota(jnp.int32, m.size).reshape(m.shape)
        return jnp.sum(m & (regions(ties) == index))  # each component holds its own least label

    return jax.vmap(count)(foreground).reshape(mask.shape[:-3])


def _masks(
    probabilities: ArrayLike, mask: ArrayLike, threshold: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prediction and truth as booleans, and whether each image's values are all valid."""
    p, y = arguments.share("probabilities", probabilities), arguments.binary("mask", mask)
    arguments.images("probabilities", p.shape)
    arguments.same_shape("mask", y.shape, "probabilities", p.shape)
    dtype = jnp.promote_types(p.dtype, jnp.float32)
    arguments.number("threshold", threshold)
    t = arguments.share("threshold", threshold).astype(dtype)
    sound = jnp.all((p == p) & (y == y) & (t == t), axis=(-3, -2, -1))
    return p.astype(dtype) > t, y > 0, sound


def _boundary(mask: Bool[Array, "*batch h w c"], pixels: int) -> Bool[Array, "*batch h w c"]:
    eroded = mask
    for _ in range(pixels):
        for axis in (-3, -2):
            size = mask.shape[axis]
            pads = [(0, 0)] * mask.ndim
            pads[axis] = (1, 1)
            padded = jnp.pad(eroded, pads)
            ahead = lax.slice_in_dim(padded, 2, size + 2, axis=axis)
            behind = lax.slice_in_dim(padded, 0, size, axis=axis)
            eroded = eroded & ahead & behind
    return mask & ~eroded


def _inside(shape: tuple[int, ...], axis: int) -> Bool[Array, "h w c"]:
    """True but for the last index of an axis, whose pixels have no neighbour ahead."""
    return lax.broadcasted_iota(jnp.int32, shape, axis) < shape[axis] - 1
