"""Losses: one value per image; the caller reduces over the batch."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num


def binary_cross_entropy(
    logits: Float[Array, "*batch h w c"], mask: Num[Array, "*batch h w c"]
) -> Float[Array, "*batch"]:
    """Mean over pixels of `-[y log sigmoid(z) + (1-y) log(1 - sigmoid(z))]` (the paper's note 2).

    Computed from logits, so that no probability is rounded to 0 or 1.

    Args:
      logits: `[..., H, W, C]`, any real number.
      mask: `[..., H, W, C]`, 0 or 1, of any number type.

    Returns:
      `[...]`, in nats a pixel.

    Example:
      >>> binary_cross_entropy(jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1)))
      Array([0.6931472, 0.6931472], dtype=float32)
    """
    pixels = optax.sigmoid_binary_cross_entropy(logits, mask.astype(logits.dtype))
    return jnp.mean(pixels, axis=(-3, -2, -1))


def focal(
    logits: Float[Array, "*batch h w c"],
    mask: Num[Array, "*batch h w c"],
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Float[Array, "*batch"]:
    """Mean over pixels of `-(1-q)^gamma log q`, q the probability of the pixel's true class.

    Pixels that are right already weigh little; gamma = 0 is the cross-entropy. Lin et al. 2017,
    eq. 4; with alpha, eq. 5.

    Args:
      logits: `[..., H, W, C]`, any real number.
      mask: `[..., H, W, C]`, 0 or 1, of any number type.
      gamma: at least 0.
      alpha: weight of the object, 1 - alpha being the background's; None weighs both by 1.

    Returns:
      `[...]`, in nats a pixel.

    Example:
      >>> focal(jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1)))  # log 2 / 4
      Array([0.1732868, 0.1732868], dtype=float32)
    """
    labels = mask.astype(logits.dtype)
    pixels = optax.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    return jnp.mean(pixels, axis=(-3, -2, -1))


def dice(
    probabilities: Float[Array, "*batch h w c"],
    mask: Num[Array, "*batch h w c"],
    *,
    smoothing: float = 1.0,
) -> Float[Array, "*batch"]:
    """`1 - (2 sum p y + s) / (sum p + sum y + s)`, sums over an image's pixels.

    Sudre et al. 2017 with one class. It does not see how many pixels are background; the smoothing
    s makes an empty prediction on an empty mask cost 0, and keeps the derivative finite there.

    Args:
      probabilities: `[..., H, W, C]` in [0, 1].
      mask: `[..., H, W, C]`, 0 or 1, of any number type.
      smoothing: s, in pixels; positive.

    Returns:
      `[...]` in [0, 1).

    Example:
      >>> half = jnp.full((4, 4, 1), 0.5)
      >>> dice(half, jnp.ones((4, 4, 1)), smoothing=1.0)  # 1 - 17 / 25
      Array(0.32, dtype=float32)
    """
    y = mask.astype(probabilities.dtype)
    both, each = (jnp.sum(x, axis=(-3, -2, -1)) for x in (probabilities * y, probabilities + y))
    return 1 - (2 * both + smoothing) / (each + smoothing)
