"""The paper's U-Net (section 4, Figure 3; Ronneberger et al. 2015)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tvjax import arguments
from tvjax.models.encoders.efficientnet import EfficientNetLite, Lite
from tvjax.models.layers import BatchNorm, Upsample, max_pool

ENCODER = "encoder"
"""Where the encoder's parameters and statistics lie among the net's."""


class UNet(nn.Module):
    """Encoder of `depth` blocks, bottleneck and mirrored decoder; returns logits.

    Block i has two 3x3 convolutions of `width * 2^i` filters, each followed by BatchNorm and
    ReLU; 2x2 max pooling goes down, a 2x2 transposed convolution comes up, and the encoder's
    features of the same size are concatenated. A 1x1 convolution ends it.

    Differs from the paper: no bias in front of BatchNorm, where it has no effect and a gradient
    of pure rounding noise, which Adam would amplify in hypergradients. With `width=64, depth=2,
    channels=1` that is 1,864,129 parameters, against 1,865,409 with those biases.

    With an encoder, whose features at each size take the place of the blocks', the decoder is the
    same; what it concatenates at full size are the standardised images.

    Attributes:
      channels: output channels: 1 for a sigmoid head, the number of classes for a softmax head.
      width: filters of the first block.
      depth: number of encoder blocks; the deepest features are 2^depth times smaller. Not read
        with an encoder, which has its own.
      momentum, dtype, precision, axis_name: see `make_model`.
      encoder: what stands in place of the encoder's blocks and the bottleneck; None: nothing.
      frozen: whether the encoder stays as it is: BatchNorm in it uses its running statistics, in
        training too, and there is no derivative in its parameters.
    """

    channels: int = 1
    width: int = 64
    depth: int = 2
    momentum: float = 0.9
    dtype: str | None = None
    precision: str | None = None
    axis_name: str | None = None
    encoder: Lite | None = None
    frozen: bool = False

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

        depth = self.depth if self.encoder is None else self.encoder.depth
        padding = ((0, 0), *((0, -side % 2**depth) for side in (h, w)), (0, 0))
        x = jnp.pad(images, padding, "edge")
        if self.encoder is None:
            *skips, x = self._blocks(x, block)
        else:
            *skips, x = self._encoder_features(x, train)
        for i in reversed(range(depth)):
            x = Upsample(self.width * 2**i, self.precision)(x)
            x = block(jnp.concatenate([skips[i], x], axis=-1), self.width * 2**i)
        logits = conv(self.channels, (1, 1))(x)
        return logits[:, :h, :w, :].astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _blocks(self, x: jax.Array, block: Callable[..., jax.Array]) -> list[jax.Array]:
        """The features at each size, of the U-Net's own blocks."""
        x = x if self.dtype is None else x.astype(self.dtype)
        features = []
        for i in range(self.depth):
            features.append(block(x, self.width * 2**i))
            x = max_pool(features[-1])
        return [*features, block(x, self.width * 2**self.depth)]

    def _encoder_features(self, x: jax.Array, train: bool) -> list[jax.Array]:
        """The same of the encoder."""
        assert self.encoder is not None
        settings = self.momentum, self.dtype, self.precision, self.axis_name
        encoder = EfficientNetLite(self.encoder, *settings, name=ENCODER)
        features = encoder(x, train=train and not self.frozen)
        return jax.tree.map(lax.stop_gradient, features) if self.frozen else features
