"""Heads: a net's logits become probabilities of the object, and the losses that fit them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tvjax import arguments
from tvjax.losses import binary_cross_entropy, dice_of_probabilities, focal
from tvjax.tv.softmax import tv_softmax


class Head(NamedTuple):
    """How logits `[..., H, W, C]` are read; `lam` is the weight of a TV-softmax layer."""

    channels: int
    """The classes that it tells apart."""
    probabilities: Callable[[jax.Array, jax.Array], jax.Array]
    """`(logits, lam) -> [..., H, W, 1]` in [0, 1], of the object."""
    classes: Callable[[jax.Array, jax.Array], jax.Array]
    """`(logits, lam) -> [..., H, W, channels]`: of every class that the head tells apart."""
    cross_entropy: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """`(logits, lam, mask) -> [...]`, the mean over pixels."""
    log_odds: Callable[[jax.Array, jax.Array], jax.Array]
    """`(logits, lam) -> [..., H, W, 1]`: log p - log(1 - p)."""
    contact: Callable[[jax.Array], jax.Array] | None = None
    """`logits -> [..., H, W, 1]`: the logit of contact, see `with_contact`; None: it has none."""

    @property
    def logits(self) -> int:
        """The number of channels of the logits."""
        return self.channels + (self.contact is not None)


Loss = Callable[[Head, jax.Array, jax.Array, jax.Array], jax.Array]
"""`(head, logits, lam, mask) -> [...]`, one value an image."""


def make_loss(
    *,
    name: str,
    mix: float | jax.Array,
    dice_smoothing: float,
    focal_gamma: float,
    focal_alpha: float | None,
) -> Loss:
    """The loss of this name, for any head; of one with contact, plus the cross-entropy of that.

    Args:
      name: `"bce"` (the cross-entropy), `"dice"`, `"focal"`, or `"mix"`: (1 - mix) bce + mix dice.
      mix: share of dice in `"mix"`, in [0, 1]; may be traced.
      dice_smoothing: `smoothing` of `tvjax.losses.dice_of_probabilities`.
      focal_gamma: `gamma` of `tvjax.losses.focal`.
      focal_alpha: `alpha` of `tvjax.losses.focal`.
    """
    losses: dict[str, Loss] = {
        "bce": lambda head, logits, lam, mask: head.cross_entropy(logits, lam, mask),
        "dice": lambda head, logits, lam, mask: dice_of_probabilities(
            head.probabilities(logits, lam), mask, smoothing=dice_smoothing
        ),
        "focal": lambda head, logits, lam, mask: focal(
            head.log_odds(logits, lam), mask, gamma=focal_gamma, alpha=focal_alpha
        ),
    }
    losses["mix"] = lambda *args: (1 - mix) * losses["bce"](*args) + mix * losses["dice"](*args)

    def loss(head: Head, logits: jax.Array, lam: Any, mask: jax.Array) -> jax.Array:
        if head.contact is None:
            return losses[name](head, logits, lam, mask)
        fit = losses[name](head, logits, lam, mask[..., :1])
        return fit + binary_cross_entropy(head.contact(logits), mask[..., 1:])

    return loss


def with_contact(head: Head) -> Head:
    """The head, with one more logit: of contact, which tells objects apart that nearly touch.

    Contact is no class beside object and background, but a second question: pixels along the
    outline of an object are object and contact. So all else means what it means without.
    """

    def own(function: Callable) -> Callable:
        return lambda logits, *rest: function(logits[..., :-1], *rest)

    return Head(
        channels=head.channels,
        probabilities=own(head.probabilities),
        classes=own(head.classes),
        cross_entropy=own(head.cross_entropy),
        log_odds=own(head.log_odds),
        contact=lambda logits: logits[..., -1:],
    )


def make_head(*, name: str, num_iterations: int | None, kind: str) -> Head:
    """The head of this name.

    Args:
      name: `"sigmoid"` (U-Net, LU-Net), `"softmax"` (the control of RU-Net: its head with lambda
        = 0) or `"tv_softmax"` (RU-Net).
      num_iterations: iterations of the TV-softmax; the paper's is 1, None converges.
      kind: kind of variation of the TV-softmax, `"anisotropic"` or `"isotropic"`.

    Raises:
      ValueError: for another name, or a number of iterations that is no integer of at least 0.
    """
    if num_iterations is not None:
        num_iterations = arguments.count("num_iterations", num_iterations, 0)
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
    log_odds=lambda logits, lam: logits,
)
"""One logit a pixel."""


def _softmax_head(layer: Callable[[jax.Array, jax.Array], jax.Array]) -> Head:
    """Two logits a pixel, background and object, through a layer that gives probabilities."""

    def log_probabilities(logits, lam):
        if logits.shape[-1] != 2:
            raise ValueError(f"logits must have 2 channels; got shape {logits.shape}")
        # Kept above the least normal number: a class that was ruled out costs 87 nats, not inf.
        p = layer(logits, lam)
        return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))

    def cross_entropy(logits, lam, mask):
        log_p = log_probabilities(logits, lam)
        y = arguments.binary("mask", mask)
        arguments.same_shape("mask", y.shape, "one class of logits", (*logits.shape[:-1], 1))
        fit = jnp.where(y > 0, log_p[..., 1:], jnp.where(y == 0, log_p[..., :1], jnp.nan))
        return -jnp.mean(fit, axis=(-3, -2, -1))

    def log_odds(logits, lam):
        log_p = log_probabilities(logits, lam)
        return log_p[..., 1:] - log_p[..., :1]

    return Head(
        channels=2,
        probabilities=lambda logits, lam: layer(logits, lam)[..., 1:],
        classes=layer,
        cross_entropy=cross_entropy,
        log_odds=log_odds,
    )
