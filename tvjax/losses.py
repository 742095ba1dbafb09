"""Losses of logits: one value per image; the caller reduces over the batch.

A logit z is any finite number and stands for the probability sigmoid(z): at infinity the
cross-entropy would be 0 times infinity. What has probabilities
alone, as a TV-softmax layer, takes the loss whose name says so: `dice_of_probabilities`.
Probabilities given as logits cannot be told from logits near 0, and are not refused.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import core
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from tvjax import arguments

Images = Shaped[ArrayLike, "..."]
"""`[..., H, W, C]`; what cannot be so is refused by name."""


def binary_cross_entropy(logits: Images, mask: Images) -> Float[Array, "..."]:
    """Mean over pixels of `-[y log sigmoid(z) + (1-y) log(1 - sigmoid(z))]` (the paper's note 2).

    Computed from logits, so that no probability is rounded to 0 or 1.

    Args:
      logits: `[..., H, W, C]`, any finite number.
      mask: `[..., H, W, C]`, 0 or 1, or a probability between them; of any number type.

    Returns:
      `[...]`, in nats per pixel, in float32 if less precise. NaN or infinity of traced
      logits that are not finite, NaN of a traced mask beyond [0, 1].

    Raises:
      ValueError: the shapes differ or hold no pixel, the logits are complex, booleans or not
        finite, or the mask is not in [0, 1].

    Example:
      >>> binary_cross_entropy(jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1)))
      Array([0.6931472, 0.6931472], dtype=float32)
    """
    z, y = _pair("logits", _logits(logits), arguments.share("mask", mask))
    pixels = optax.sigmoid_binary_cross_entropy(z, y)
    return jnp.mean(pixels, axis=(-3, -2, -1))


def focal(
    logits: Images,
    mask: Images,
    *,
    gamma: float | Shaped[ArrayLike, ""] = 2.0,
    alpha: float | Shaped[ArrayLike, ""] | None = None,
) -> Float[Array, "..."]:
    """Mean over pixels of `-(1-q)^gamma log q`, q the probability of the pixel's true class.

    Pixels that are right already weigh little; gamma = 0 is the cross-entropy. Lin et al. 2017,
    eq. 4; with alpha, eq. 5.

    Args:
      logits: `[..., H, W, C]`, any finite number.
      mask: `[..., H, W, C]`, 0 or 1, of any number type.
      gamma: at least 0.
      alpha: weight of the object in [0, 1], 1 - alpha that of the background; None weighs both
        by 1.

    Returns:
      `[...]`, in nats per pixel, in float32 if less precise. NaN or infinity of traced logits that
      are not finite, NaN of other traced arguments that cannot be so.

    Raises:
      ValueError: the shapes differ or hold no pixel, the logits are complex, booleans or not
        finite, the mask is not 0 or 1, or `gamma` or `alpha` is not one real number in its range
        (an array, a boolean or a text is none).

    Example:
      >>> focal(jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1)))  # log 2 / 4
      Array([0.1732868, 0.1732868], dtype=float32)
    """
    z, y = _pair("logits", _logits(logits), arguments.binary("mask", mask))
    arguments.number("gamma", gamma)
    gamma = arguments.weight("gamma", gamma).astype(z.dtype)
    if alpha is not None:
        alpha = arguments.fraction("alpha", alpha).astype(z.dtype)
    pixels = optax.sigmoid_focal_loss(z, y, alpha=alpha, gamma=gamma)
    return jnp.mean(pixels, axis=(-3, -2, -1))


def dice(
    logits: Images,
    mask: Images,
    *,
    smoothing: float | Shaped[ArrayLike, ""] = 1.0,
) -> Float[Array, "..."]:
    """`dice_of_probabilities` of `p = sigmoid(z)`.

    Args:
      logits: z, `[..., H, W, C]`, any finite number.
      mask: `[..., H, W, C]`, 0 or 1, or a probability between them; of any number type.
      smoothing: s, in pixels; positive.

    Returns:
      `[...]` in [0, 1), in float32 if less precise. NaN of traced arguments that cannot be so.

    Raises:
      ValueError: the shapes differ or hold no pixel, the logits are complex, booleans or not
        finite, the mask is not in [0, 1], or `smoothing` is not one positive and finite number (an
        array, a boolean or a text is none).

    Example:
      >>> dice(jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1)))  # p = 1 / 2: 1 - 17 / 25
      Array(0.32, dtype=float32)
    """
    z = arguments.finite("logits", _logits(logits))  # a sigmoid would hide infinity
    z, y = _pair("logits", z, arguments.share("mask", mask))
    return _dice(jax.nn.sigmoid(z), y, smoothing)


def dice_of_probabilities(
    probabilities: Images,
    mask: Images,
    *,
    smoothing: float | Shaped[ArrayLike, ""] = 1.0,
) -> Float[Array, "..."]:
    """`1 - (2 sum p y + s) / (sum p + sum y + s)`, sums over an image's pixels.

    Sudre et al. 2017 with one class. It does not see how many pixels are background; the smoothing
    s makes an empty prediction on an empty mask cost 0, and keeps the derivative finite there.

    Args:
      probabilities: p, `[..., H, W, C]` in [0, 1], such as those of `tv_softmax`.
      mask: y, `[..., H, W, C]`, 0 or 1, or a probability between them; of any number type.
      smoothing: s, in pixels; positive.

    Returns:
      `[...]` in [0, 1), in float32 if less precise. NaN of traced arguments that cannot be so.

    Raises:
      ValueError: the shapes differ or hold no pixel, an array is complex or not in [0, 1], or
        `smoothing` is not one positive and finite number (an array, a boolean or a text is none).

    Example:
      >>> half = jnp.full((4, 4, 1), 0.5)
      >>> dice_of_probabilities(half, jnp.ones((4, 4, 1)), smoothing=1.0)  # 1 - 17 / 25
      Array(0.32, dtype=float32)
    """
    p = _probabilities(probabilities)
    p, y = _pair("probabilities", p, arguments.share("mask", mask))
    return _dice(p, y, smoothing)


def _dice(p: jax.Array, y: jax.Array, smoothing: Any) -> jax.Array:
    s = arguments.positive("smoothing", smoothing).astype(p.dtype)
    both, each = (jnp.sum(x, axis=(-3, -2, -1)) for x in (p * y, p + y))
    return 1 - (2 * both + s) / (each + s)


def _logits(x: Any) -> jax.Array:
    """Finite numbers; booleans are a mask, whose sigmoid would be 0.5 and 0.73."""
    array = arguments.real("logits", x)
    if array.dtype == jnp.bool_:
        raise ValueError("logits must be real numbers; got bool, which a mask is")
    if isinstance(x, core.Tracer):
        return array  # what is not finite gives NaN or infinity by itself
    return arguments.finite("logits", x)


def _probabilities(x: Any) -> jax.Array:
    try:
        return arguments.share("probabilities", x)
    except ValueError as error:
        hint = "; of logits take tvjax.dice" if "in [0, 1]" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None


def _pair(name: str, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as floats of one type, refused where they are no images of one shape."""
    arguments.images(name, x.shape, empty=False)
    arguments.same_shape("mask", mask.shape, name, x.shape)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return x.astype(dtype), mask.astype(dtype)
