"""How well a probability map matches a mask: counts, and the scores made of them."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num


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
