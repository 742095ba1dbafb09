"""From a net's logits to probabilities of the object, and to the loss that fits them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tvjax.losses import binary_cross_entropy
from tvjax.tv.softmax import tv_softmax


class Head(NamedTuple):
    """How logits `[..., H, W, channels]` are read; `lam` is the weight of a TV-softmax layer."""

    channels: int
    probabilities: Callable[[jax.Array, jax.Array], jax.Array]
    """`(logits, lam) -> [..., H, W, 1]` in [0, 1], of the object."""
    classes: Callable[[jax.Array, jax.Array], jax.Array]
    """`(logits, lam) -> [..., H, W, channels]`: of every class that the head tells apart."""
    cross_entropy: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """`(logits, lam, mask) -> [...]`, the mean over pixels."""


def make_head(*, name: str, num_iterations: int | None, kind: str) -> Head:
    """The head of this name.

    Args:
      name: `"sigmoid"` (U-Net, LU-Net), `"softmax"` (the control of RU-Net: its head with lambda
        = 0) or `"tv_softmax"` (RU-Net).
      num_iterations: of the TV-softmax; the paper's is 1, None converges.
      kind: of the TV-softmax, `"anisotropic"` or `"isotropic"`.

    Raises:
      ValueError: for another name.
    """
    if name == "sigmoid":
        return SIGMOID
    if name == "softmax":
        return _softmax_head(lambda logits, lam: jax.nn.softmax(logits, axis=-1))
    if name == "tv_softmax":
        return _softmax_head(
            lambda logits, lam: tv_softmax(logits, lam, num_iterations=num_iterations, kind=kind)
        )
    raise ValueError(f"unknown head {name!r}; choose one of sigmoid, softmax, tv_softmax")


SIGMOID = Head(
    channels=1,
    probabilities=lambda logits, lam: jax.nn.sigmoid(logits),
    classes=lambda logits, lam: jax.nn.sigmoid(logits),
    cross_entropy=lambda logits, lam, mask: binary_cross_entropy(logits, mask),
)
"""One logit a pixel."""


def _softmax_head(layer: Callable[[jax.Array, jax.Array], jax.Array]) -> Head:
    """Two logits a pixel, background and object, through a layer that gives probabilities."""

    def cross_entropy(logits, lam, mask):
        # Kept above the least normal number: a class that was ruled out costs 87 nats, not inf.
        p = layer(logits, lam)
        p = jnp.maximum(p, jnp.finfo(p.dtype).tiny)
        truth = jnp.concatenate([mask == 0, mask > 0], axis=-1)
        return -jnp.mean(jnp.sum(jnp.where(truth, jnp.log(p), 0), axis=-1), axis=(-2, -1))

    return Head(2, lambda logits, lam: layer(logits, lam)[..., 1:], layer, cross_entropy)
