"""Layers in the form that is fast on a CPU; each with a namesake in flax equals it.

Against `nn.ConvTranspose`, `nn.max_pool` and `nn.BatchNorm` as usually written, a training step of
the U-Net takes half the time on a CPU, and loses nothing on an accelerator.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tvjax.models import depthwise
from tvjax.types import Dimension


class Upsample(nn.Module):
    """A 2x2 transposed convolution of stride 2, `[B, H, W, C] -> [B, 2H, 2W, features]`.

    At stride 2 the four outputs of an input pixel overlap with no other pixel's, so it is one
    matrix product to 4 x features channels and a reshape of pixels. `kernel` is `[2, 2, C, f]`
    as in `nn.ConvTranspose(f, (2, 2), (2, 2))`, whose values it gives, and `precision` too.
    """

    features: int
    precision: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to `[B, H, W, C]`."""
        b, h, w, c = x.shape
        kernel = self.param(
            "kernel",
            # Each output sees one input pixel through one of the four taps that flax's fan counts.
            nn.initializers.variance_scaling(4.0, "fan_in", "truncated_normal"),
            (2, 2, c, self.features),
        )
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        # Flax's convolution is a correlation: the tap of output (i, j) is kernel[1-i, 1-j].
        kernel = (
            kernel[::-1, ::-1].astype(x.dtype).transpose(2, 0, 1, 3).reshape(c, 4 * self.features)
        )
        y = jnp.matmul(x.reshape(-1, c), kernel, precision=self.precision)
        y = y.reshape(b, h, w, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)
        return y + bias.astype(x.dtype).reshape(1, 1, 1, -1)


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling of stride 2, `[B, H, W, C] -> [B, H/2, W/2, C]`, for even H and W.

    Derivative: at a tie the gradient is shared equally among the maxima (`nn.max_pool` gives it
    to the first), which is the mean of the one-sided choices and keeps the flips' symmetry.
    """
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def max_pool_with_indices(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """2x2 max pooling of stride 2 that remembers where each maximum stood; any H and W.

    Odd sizes are rounded up, their last window being half as large. Value and derivative are those
    of the chosen pixel: at a tie the first in reading order, as in `nn.max_pool`, for an index
    cannot be shared as `max_pool` shares the gradient.

    Args:
      x: `[B, H, W, C]`.

    Returns:
      The maxima `[B, ceil(H/2), ceil(W/2), C]`, and uint8 indices of the same shape: 2 i + j for
      the pixel in row i and column j of its window.
    """
    b, h, w, c = x.shape
    # The edge's copies come after their original, so that no index ever points at one.
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), "edge")
    windows = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c)
    fixed = lax.stop_gradient(windows)
    # A NaN equals nothing, and must not be lost: it marks what is no image.
    largest = (fixed == fixed.max(axis=(2, 4), keepdims=True)) | jnp.isnan(fixed)
    indices = jnp.where(largest, _window_positions(), 4).min(axis=(2, 4)).astype(jnp.uint8)
    return jnp.sum(jnp.where(_chosen(indices), windows, 0), axis=(2, 4)), indices


def max_unpool(x: jax.Array, indices: jax.Array, size: tuple[Dimension, ...]) -> jax.Array:
    """Puts each value where its maximum stood, zeros elsewhere: the adjoint of the pooling.

    Args:
      x: `[B, h, w, C]`.
      indices: array of the same shape, from `max_pool_with_indices`.
      size: H and W of what was pooled.

    Returns:
      `[B, H, W, C]`.
    """
    b, h, w, c = x.shape
    y = jnp.where(_chosen(indices), x[:, :, None, :, None, :], 0).reshape(b, 2 * h, 2 * w, c)
    return y[:, : size[0], : size[1]]


def _window_positions() -> jax.Array:
    """`[1, 1, 2, 1, 2, 1]`: the index of each pixel of a window."""
    return jnp.arange(4).reshape(1, 1, 2, 1, 2, 1)


def _chosen(indices: jax.Array) -> jax.Array:
    """Bool `[B, h, 2, w, 2, C]`: whether a pixel is the one its window's index names."""
    return indices[:, :, None, :, None, :] == _window_positions()


class DepthwiseConv(nn.Module):
    """A convolution of each channel by itself, `[B, H, W, C] -> [B, H/s, W/s, C]`, zero-padded.

    `kernel` `[k, k, 1, C]` and `bias` are those of `nn.Conv(C, (k, k), s, "SAME",
    feature_group_count=C)`, whose values it gives, `H/s` and `W/s` rounded up; see
    `tvjax.models.depthwise`.
    """

    size: int = 3
    """The kernel's side, k."""
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to `[B, H, W, C]`."""
        k, c = self.size, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, c))
        y = depthwise.convolve(x, kernel[:, :, 0], self.stride)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (c,)).astype(x.dtype)
            y = y + bias.reshape(1, 1, 1, c)
        return y


class BatchNorm(nn.Module):
    """`nn.BatchNorm` over all axes but the last, with statistics that keep their digits.

    `train=True` normalises by the batch's mean and variance (biased) and moves the running ones by
    `running = momentum * running + (1 - momentum) * batch`; `train=False` uses the running ones.
    All is computed in float32 or wider and rounded to the dtype of the input at the end. The error
    does not grow with mean/std. With `axis_name` the statistics are those of the whole axis, so
    that the result does not depend on the number of devices. Derivatives of any order flow
    through the batch's statistics and through the running ones.

    Raises:
      ValueError: `train=True` and there is nothing to take the mean of.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `[..., C]`."""
        c = x.shape[-1]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scale = self.param("scale", nn.initializers.ones_init(), (c,))
        bias = self.param("bias", nn.initializers.zeros_init(), (c,))
        mean_var = (
            self.variable("batch_stats", "mean", jnp.zeros, (c,)),
            self.variable("batch_stats", "var", jnp.ones, (c,)),
        )
        rows = x.reshape(-1, c).astype(wide)
        if train:
            mean, var = _moments(rows, self.axis_name)
            if not self.is_initializing():
                for running, new in zip(mean_var, (mean, var), strict=True):
                    moved = self.momentum * running.value + (1 - self.momentum) * new
                    running.value = moved.astype(running.value.dtype)
        else:
            mean, var = (v.value.astype(wide) for v in mean_var)
        factor = scale.astype(wide) * lax.rsqrt(var + self.epsilon)
        # Subtracted first, and to the derivative in the offset, a sum over rows less.
        centre = lax.stop_gradient(mean)
        offset = bias.astype(wide) - (mean - centre) * factor
        y = (rows - centre.reshape(1, c)) * factor.reshape(1, c) + offset.reshape(1, c)
        return y.reshape(x.shape).astype(x.dtype)


def _moments(rows: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of the columns of `[N, C]`, over all devices of the axis.

    The variance is E[(x - c)^2] - (mean - c)^2, which holds for any c, a constant to the
    derivative: with the mean as c, nothing cancels and derivatives of any order are right.
    """
    near = lax.stop_gradient(_column_means(rows, axis_name))
    mean = near + _column_means(rows - near.reshape(1, -1), axis_name)  # to the last digit
    centre = lax.stop_gradient(mean)
    square = _column_means(jnp.square(rows - centre.reshape(1, -1)), axis_name)
    return mean, square - jnp.square(mean - centre)


def _column_means(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """Means of the columns of `[N, C]`, over all devices of the axis.

    Sums of up to 32 rows each, and of up to 32 of these sums, and so on: one running sum in float32
    loses digits in proportion to N. As products, which are vectorised on a CPU where reductions are
    not; HIGHEST keeps GPUs and TPUs from rounding to fewer bits. The last product divides: so the
    means are its output, which no compiler computes again, and otherwise, where they are used.
    """
    n, c = rows.shape
    if n == 0:
        raise ValueError("BatchNorm has no mean of an empty batch; give it at least one pixel")
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    terms = _terms(n)
    rows = jnp.pad(rows, ((0, math.prod(terms) - n), (0, 0)))
    for i, k in enumerate(terms):
        weight = 1 if i + 1 < len(terms) else 1 / (n * devices)
        weights = jnp.full((1, k), weight, rows.dtype)
        rows = jnp.matmul(weights, rows.reshape(k, -1), precision=lax.Precision.HIGHEST)
    means = rows.reshape(c)
    return means if axis_name is None else lax.psum(means, axis_name)


def _terms(n: int) -> list[int]:
    """Numbers from 1 to 32 whose product is n, or little more where n has no such factors."""
    if n <= 32:
        return [n]
    k = next((k for k in range(32, 7, -1) if n % k == 0), 32)
    return [k, *_terms(-(-n // k))]
