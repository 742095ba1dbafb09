"""How well a probability map matches a mask: counts, and the scores made of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from tvjax.tv.dual import Field
from tvjax.tv.implicit import regions


class Counts(NamedTuple):
    """Pixels per image, `[...]`: add them over images to pool, then take the score once."""

    true_positive: Array
    false_positive: Array
    false_negative: Array

    @property
    def iou(self) -> Array:
        """`TP / (TP + FP + FN)` (eqs 10 and 11); 1 where prediction and mask are both empty."""
        union = self.true_positive + self.false_positive + self.false_negative
        return jnp.where(union > 0, self.true_positive / jnp.maximum(union, 1), 1.0)

    @property
    def f1(self) -> Array:
        """`2 TP / (2 TP + FP + FN)`; 1 where prediction and mask are both empty."""
        total = 2 * self.true_positive + self.false_positive + self.false_negative
        return jnp.where(total > 0, 2 * self.true_positive / jnp.maximum(total, 1), 1.0)


def counts(
    probabilities: Float[Array, "*batch h w c"],
    mask: Num[Array, "*batch h w c"],
    *,
    threshold: float = 0.5,
) -> Counts:
    """Counts pixels with `p > threshold` against the mask, per image.

    Args:
      probabilities: `[..., H, W, C]` in [0, 1].
      mask: `[..., H, W, C]`, 0 or 1.
      threshold: a pixel is positive above it, not at it.
    """
    prediction = probabilities > threshold
    truth = mask > 0

    def total(x):
        # float32 is exact up to 2^24 pixels an image, and adds up without overflow.
        return jnp.sum(x, axis=(-3, -2, -1), dtype=jnp.float32)

    return Counts(total(prediction & truth), total(prediction & ~truth), total(~prediction & truth))


def iou(
    probabilities: Float[Array, "*batch h w c"],
    mask: Num[Array, "*batch h w c"],
    *,
    threshold: float = 0.5,
) -> Float[Array, "*batch"]:
    """Intersection over union per image (eqs 10 and 11).

    Differs from the paper, which leaves it open: an empty prediction on an empty mask scores 1.

    Args:
      probabilities: `[..., H, W, C]` in [0, 1].
      mask: `[..., H, W, C]`, 0 or 1.
      threshold: a pixel is positive above it, not at it.

    Returns:
      `[...]` in [0, 1].

    Example:
      >>> p = jnp.array([[[0.9], [0.8]], [[0.1], [0.6]]])
      >>> iou(p, jnp.array([[[1], [0]], [[1], [1]]]))
      Array(0.5, dtype=float32)
    """
    return counts(probabilities, mask, threshold=threshold).iou


def boundary_iou(
    probabilities: Float[Array, "*batch h w c"],
    mask: Num[Array, "*batch h w c"],
    *,
    threshold: float = 0.5,
    width: float = 0.02,
) -> Float[Array, "*batch"]:
    """IoU of the inner boundaries of prediction and mask, per image (Cheng et al. 2021).

    The boundary of a mask is what an erosion by a square of 2d + 1 pixels (beyond the image is
    outside) takes away, with d = `width` times the image's diagonal, at least 1. It sees errors of
    the outline that the IoU of large objects hides.

    Args:
      probabilities: `[..., H, W, C]` in [0, 1].
      mask: `[..., H, W, C]`, 0 or 1.
      threshold: a pixel is positive above it, not at it.
      width: of the boundary, as a share of the diagonal.

    Returns:
      `[...]` in [0, 1]; 1 where both boundaries are empty.
    """
    h, w = mask.shape[-3:-1]
    pixels = max(1, round(width * (h**2 + w**2) ** 0.5))
    prediction = _boundary(probabilities > threshold, pixels)
    truth = _boundary(mask > 0, pixels)
    return counts(prediction.astype(jnp.float32), truth.astype(jnp.uint8)).iou


def num_components(mask: Num[Array, "*batch h w c"]) -> Int[Array, "*batch"]:
    """The number of 4-connected components of each mask: many specks or few compact objects.

    Args:
      mask: `[..., H, W, C]`; positive is foreground. Channels are counted apart and added.
    """
    foreground = mask.reshape(-1, *mask.shape[-3:]) > 0

    def count(m):
        ties = Field(
            m & jnp.roll(m, -1, 0) & _inside(m.shape, 0),
            m & jnp.roll(m, -1, 1) & _inside(m.shape, 1),
        )
        index = lax.iota(jnp.int32, m.size).reshape(m.shape)
        return jnp.sum(m & (regions(ties) == index))  # each component holds its own least label

    return jax.vmap(count)(foreground).reshape(mask.shape[:-3])


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
