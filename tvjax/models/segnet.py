"""SegNet (Badrinarayanan, Kendall and Cipolla, 2017): unpooling by the indices of the pooling."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tvjax import arguments
from tvjax.models.layers import BatchNorm, max_pool_with_indices, max_unpool

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Number of convolutions in the blocks of VGG16."""
FACTORS = (1, 2, 4, 8, 8)
"""Filters of the blocks, over those of the first block."""


class SegNet(nn.Module):
    """The convolutions of VGG16 as encoder and, mirrored, as decoder; returns logits.

    Each 3x3 convolution is followed by BatchNorm and ReLU. Every block of the encoder ends in 2x2
    max pooling, and the mirrored one begins by putting the values back where the maxima stood: no
    features are passed across and nothing is learned in going up. The last convolution of the
    decoder gives the logits.

    Differs from the paper: no bias in front of BatchNorm (see `UNet`). With `width=64, depth=5`
    that is 29,435,072 + 577 channels parameters, half of them in the encoder (the paper: 14.7
    million).

    Attributes:
      channels: output channels: 1 for a sigmoid head, the number of classes for a softmax head.
      width: filters of the first block; 64 in the paper.
      depth: number of blocks of VGG16 that are used, 1 to 5; 5 in the paper.
      momentum, dtype, precision, axis_name: see `make_model`.
    """

    channels: int = 1
    width: int = 64
    depth: int = 5
    momentum: float = 0.9
    dtype: str | None = None
    precision: str | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, 3]` in [0, 1] -> logits `[B, H, W, channels]`, for any H and W."""
        images = arguments.tiles("images", images)
        conv = partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype, precision=self.precision)
        norm = partial(BatchNorm, momentum=self.momentum, axis_name=self.axis_name)

        def layer(x: jax.Array, features: int) -> jax.Array:
            return nn.relu(norm()(conv(features, use_bias=False)(x), train=train))

        filters = [self.width * factor for factor in FACTORS[: self.depth]]
        x = images if self.dtype is None else images.astype(self.dtype)
        pooled = []
        for count, features in zip(CONVOLUTIONS, filters, strict=False):
            for _ in range(count):
                x = layer(x, features)
            size = x.shape[1:3]
            x, indices = max_pool_with_indices(x)
            pooled.append((indices, size))
        for i in reversed(range(self.depth)):
            x = max_unpool(x, *pooled[i])
            for _ in range(CONVOLUTIONS[i] - 1):
                x = layer(x, filters[i])
            if i > 0:
                x = layer(x, filters[i - 1])
        logits = conv(self.channels)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
