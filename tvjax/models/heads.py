"""From a net's logits to probabilities of the object, and to the loss that fits them."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from tvjax.losses import binary_cross_entropy


class Head(NamedTuple):
    """How logits `[..., H, W, channels]` are read; `lam` is the weight of a TV-softmax layer."""

    channels: int
    probabilities: Callable[[jax.Array, jax.Array], jax.Array]
    """`(logits, lam) -> [..., H, W, 1]` in [0, 1]."""
    cross_entropy: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """`(logits, lam, mask) -> [...]`, the mean over pixels."""


SIGMOID = Head(
    channels=1,
    probabilities=lambda logits, lam: jax.nn.sigmoid(logits),
    cross_entropy=lambda logits, lam, mask: binary_cross_entropy(logits, mask),
)
"""One logit a pixel (U-Net and LU-Net)."""
