"""How well a probability map matches a mask: counts, and the scores made of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from tvjax import arguments

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
      ValueError: the shapes differ, an image has no pixels, a value cannot be so, or `threshold` is
        not one number in [0, 1] (an array, a boolean or a text is none).
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
      ValueError: the shapes differ, an image has no pixels, a value cannot be so, or `threshold` is
        not one number in [0, 1] (an array, a boolean or a text is none).

    Example:
      >>> p = jnp.array([[[0.9], [0.8]], [[0.1], [0.6]]])
      >>> iou(p, jnp.array([[[1], [0]], [[1], [1]]]))
      Array(0.5, dtype=float32)
    """
    return counts(probabilities, mask, threshold=threshold).iou


def _masks(
    probabilities: ArrayLike, mask: ArrayLike, threshold: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prediction and truth as booleans, and whether each image's values are all valid."""
    p, y = arguments.share("probabilities", probabilities), arguments.binary("mask", mask)
    arguments.images("probabilities", p.shape, empty=False)
    arguments.same_shape("mask", y.shape, "probabilities", p.shape)
    dtype = jnp.promote_types(p.dtype, jnp.float32)
    t = arguments.fraction("threshold", threshold).astype(dtype)
    sound = jnp.all((p == p) & (y == y) & (t == t), axis=(-3, -2, -1))
    return p.astype(dtype) > t, y > 0, sound
