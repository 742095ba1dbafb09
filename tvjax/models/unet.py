"""The paper's U-Net (section 4, Figure 3; Ronneberger et al. 2015)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tvjax import arguments
from tvjax.models.layers import BatchNorm, Upsample, max_pool


class UNet(nn.Module):
    """Encoder of `depth` blocks, bottleneck and mirrored decoder; returns logits.

    Block i has two 3x3 convolutions of `width * 2^i` filters, each followed by BatchNorm and
    ReLU; 2x2 max pooling goes down, a 2x2 transposed convolution comes up, and the encoder's
    features of the same size are concatenated. A 1x1 convolution ends it.

    Differs from the paper: no bias in front of BatchNorm, where it has no effect and a gradient
    of pure rounding noise, which Adam would amplify in hypergradients. With `width=64, depth=2,
    channels=1` that is 1,864,129 parameters, against 1,865,409 with those biases.

    Attributes:
      channels: output channels: 1 for a sigmoid head, the number of classes for a softmax head.
      width: filters of the first block.
      depth: number of encoder blocks; the deepest features are 2^depth times smaller.
      momentum: decay of BatchNorm's running statistics.
      dtype: type of the computation, e.g. `"bfloat16"`; parameters and logits stay as they are.
      precision: precision of convolutions and products, see `make_model`.
      axis_name: the device axis over which BatchNorm takes its statistics.
    """

    channels: int = 1
    width: int = 64
    depth: int = 2
    momentum: float = 0.9
    dtype: str | None = None
    precision: str | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, 3]` in [0, 1] -> logits `[B, H, W, channels]`, for any H and W.

        Sizes that 2^depth does not divide are padded with the edge's pixels and cropped back.
        """
        images = arguments.tiles("images", images)
        _, h, w, _ = images.shape
        conv = partial(nn.Conv, dtype=self.dtype, precision=self.precision)
        norm = partial(BatchNorm, momentum=self.momentum, axis_name=self.axis_name)

        def block(x: jax.Array, features: int) -> jax.Array:
            for _ in range(2):
                x = nn.relu(norm()(conv(features, (3, 3), use_bias=False)(x), train=train))
            return x

        x = images if self.dtype is None else images.astype(self.dtype)
        multiple = 2**self.depth
        x = jnp.pad(x, ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0)), "edge")
        skips = []
        for i in range(self.depth):
            x = block(x, self.width * 2**i)
            skips.append(x)
            x = max_pool(x)
        x = block(x, self.width * 2**self.depth)
        for i in reversed(range(self.depth)):
            x = Upsample(self.width * 2**i, self.precision)(x)
            x = block(jnp.concatenate([skips[i], x], axis=-1), self.width * 2**i)
        logits = conv(self.channels, (1, 1))(x)
        return logits[:, :h, :w, :].astype(jnp.promote_types(logits.dtype, jnp.float32))
