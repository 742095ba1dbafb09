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
