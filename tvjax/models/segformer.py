"""SegFormer (Xie et al., 2021): a mix transformer as encoder, matrix products alone as decoder."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tvjax import arguments
from tvjax.models.layers import DepthwiseConv
from tvjax.types import Dimension

HEADS = (1, 2, 5, 8)
"""Attention heads of the four stages, `width` channels each."""
REDUCTIONS = (8, 4, 2, 1)
"""Factors by which the side of the keys' grid is reduced in each stage."""
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Side and stride of the patches, which overlap, that each stage starts from."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Moments of the colours of photographs, which standardise images as in the paper: with no
BatchNorm to do it, the net hardly learns from colours in [0, 1], whose mean drowns the rest."""
EXPANSION = 4
"""Factor by which a Mix-FFN has more channels inside."""


class SegFormer(nn.Module):
    """Four stages at 1/4 to 1/32 of the size, an all-MLP decoder at 1/4; returns logits.

    Stage i has `width * HEADS[i]` channels: a patch embedding and `depth` blocks of attention and
    Mix-FFN. The decoder projects each stage to 8 `width` channels, upsamples them to 1/4,
    fuses them, and upsamples the logits to the image's size (bilinear, both).

    `width=32, depth=2` is SegFormer-B0: 3,713,120 + 257 channels parameters.

    Differs from the paper: LayerNorm in the decoder where its code has BatchNorm, so that there
    are no running statistics; no stochastic depth; and no bias of the keys, which the softmax
    cancels: its gradient is pure rounding noise, which Adam would amplify in hypergradients. With
    those 1,024 biases B0 has 3,752,694 parameters for 150 classes (the paper: 3.8 million).

    Attributes:
      channels: output channels: 1 for a sigmoid head, the number of classes for a softmax head.
      width: channels of one attention head.
      depth: blocks in a stage.
      dtype, precision: see `make_model`.
    """

    channels: int = 1
    width: int = 32
    depth: int = 2
    dtype: str | None = None
    precision: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, 3]` in [0, 1] -> logits `[B, H, W, channels]`, for any H and W."""
        images = arguments.tiles("images", images)
        del train  # nothing here depends on it
        norm = partial(nn.LayerNorm, dtype=self.dtype)
        conv = partial(nn.Conv, dtype=self.dtype, precision=self.precision)
        dense = partial(nn.Dense, dtype=self.dtype, precision=self.precision)
        mean, deviation = (jnp.asarray(c, images.dtype) for c in (MEAN, DEVIATION))
        x = (images - mean.reshape(1, 1, 1, 3)) / deviation.reshape(1, 1, 1, 3)
        x = x if self.dtype is None else x.astype(self.dtype)
        stages = []
        for heads, reduction, (side, stride) in zip(HEADS, REDUCTIONS, PATCHES, strict=True):
            x = conv(self.width * heads, (side, side), stride, padding=side // 2)(x)
            x = norm()(x)
            for _ in range(self.depth):
                x = x + Attention(heads, reduction, self.dtype, self.precision)(norm()(x))
                x = x + MixFFN(self.dtype, self.precision)(norm()(x))
            x = norm()(x)
            stages.append(x)
        size, features = stages[0].shape[1:3], HEADS[-1] * self.width
        x = jnp.concatenate([_resize(dense(features)(y), size) for y in stages], axis=-1)
        x = nn.relu(norm()(dense(features, use_bias=False)(x)))
        logits = _resize(dense(self.channels)(x), images.shape[1:3])
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class Attention(nn.Module):
    """Self-attention whose keys and values live on a grid `reduction` times coarser.

    The coarser grid is a convolution of `reduction` x `reduction` patches (zero-padded where they
    do not fit), so that the cost falls by reduction^2.
    """

    heads: int
    reduction: int
    dtype: str | None = None
    precision: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        b, h, w, c = x.shape
        dense = partial(nn.Dense, c, dtype=self.dtype, precision=self.precision)
        product = partial(jnp.einsum, precision=self.precision)
        r = self.reduction
        coarse = x
        if r > 1:
            # Patches that do not overlap are rows of a matrix; convolved, they are slow on a CPU.
            coarse = jnp.pad(x, ((0, 0), (0, -h % r), (0, -w % r), (0, 0)))
            coarse = coarse.reshape(b, -(-h // r), r, -(-w // r), r, c).swapaxes(2, 3)
            coarse = dense(name="reduce")(coarse.reshape(*coarse.shape[:3], r * r * c))
            coarse = nn.LayerNorm(dtype=self.dtype)(coarse)
        query = dense(name="query")(x)
        key = dense(name="key", use_bias=False)(coarse)
        value = dense(name="value")(coarse)
        q, k, v = (y.reshape(b, -1, self.heads, c // self.heads) for y in (query, key, value))
        scores = product("bqhc,bkhc->bhqk", q, k) / (c // self.heads) ** 0.5
        weights = nn.softmax(scores.astype(jnp.promote_types(x.dtype, jnp.float32)))
        y = product("bhqk,bkhc->bqhc", weights.astype(x.dtype), v)
        return dense(name="out")(y.reshape(b, h, w, c))


class MixFFN(nn.Module):
    """Two matrix products with a 3x3 depthwise convolution between, which tells positions apart."""

    dtype: str | None = None
    precision: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        c = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype, precision=self.precision)
        y = nn.gelu(DepthwiseConv()(dense(EXPANSION * c)(x)), approximate=False)
        return dense(c)(y)


def _resize(x: jax.Array, size: tuple[Dimension, ...]) -> jax.Array:
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")
