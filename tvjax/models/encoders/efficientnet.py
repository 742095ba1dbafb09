"""EfficientNet-Lite (Tan and Le, 2019; Liu, 2020) without its classifier: an encoder."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from tvjax.models.layers import BatchNorm, DepthwiseConv

MEAN, DEVIATION = 127 / 255, 128 / 255
"""What standardises images in [0, 1], as those that the published weights were learned from."""
EPSILON = 1e-3
"""BatchNorm's, of the published weights."""


class Stage(NamedTuple):
    """Blocks of one size; the first of them strides."""

    blocks: int
    size: int
    """Side of the depthwise kernels."""
    stride: int
    expansion: int
    """Channels inside a block, over those of its input."""
    features: int


class Block(NamedTuple):
    """An inverted residual: 1x1 up, depthwise, 1x1 down."""

    size: int
    stride: int
    expansion: int
    features: int


class Lite(NamedTuple):
    """What tells the members of the family apart."""

    stem: int
    stages: tuple[Stage, ...]

    def blocks(self) -> Iterator[Block]:
        """The blocks of all stages in their order."""
        for blocks, size, stride, expansion, features in self.stages:
            for i in range(blocks):
                yield Block(size, 1 if i else stride, expansion, features)

    @property
    def depth(self) -> int:
        """How often the side is halved."""
        return 1 + sum(stage.stride == 2 for stage in self.stages)


def _lite(middle: tuple[tuple[int, int], ...], last: int = 320) -> Lite:
    """The member with these `(blocks, features)` of its middle stages, and features of the last."""
    shape = ((3, 2), (5, 2), (3, 2), (5, 1), (5, 2))  # side and stride
    stages = [Stage(n, *at, 6, c) for at, (n, c) in zip(shape, middle, strict=True)]
    return Lite(32, (Stage(1, 3, 1, 1, 16), *stages, Stage(1, 3, 1, 6, last)))


LITES = {
    "efficientnet_lite0": _lite(((2, 24), (2, 40), (3, 80), (3, 112), (4, 192))),
    "efficientnet_lite1": _lite(((3, 24), (3, 40), (4, 80), (4, 112), (5, 192))),
    "efficientnet_lite2": _lite(((3, 24), (3, 48), (4, 88), (4, 120), (5, 208)), last=352),
}
"""Encoders by the names that `model.encoder` takes."""


class EfficientNetLite(nn.Module):
    """Standardised images, and features at each halving of the side.

    Convolutions pad as TensorFlow's "SAME" does. Each is followed by BatchNorm, and all but a
    block's last by ReLU6; a block that keeps the shape adds its input.

    Differs from the original: no stochastic depth in training.

    Attributes:
      lite: the member of the family.
      momentum, dtype, precision, axis_name: see `make_model`.
    """

    lite: Lite
    momentum: float = 0.9
    dtype: str | None = None
    precision: str | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """`[B, H, W, 3]` in [0, 1] -> `[B, H/2^i, W/2^i, C_i]` for i = 0 to `lite.depth`.

        The first are the standardised images; the sides are multiples of 2^depth.
        """
        norm = partial(BatchNorm, self.momentum, EPSILON, self.axis_name)
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, precision=self.precision)
        x = (images - MEAN) / DEVIATION
        x = x if self.dtype is None else x.astype(self.dtype)
        features = [x]
        x = nn.relu6(norm()(conv(self.lite.stem, (3, 3), 2)(x), train=train))
        for i, block in enumerate(self.lite.blocks()):
            if block.stride == 2:
                features.append(x)
            x = InvertedResidual(block, conv, norm, name=f"Block_{i}")(x, train=train)
        return [*features, x]


class InvertedResidual(nn.Module):
    """A block of EfficientNet-Lite."""

    block: Block
    conv: partial
    norm: partial

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C] -> [B, H/stride, W/stride, features]`."""
        given, c = x, x.shape[-1]
        if self.block.expansion > 1:
            x = nn.relu6(self.norm()(self.conv(c * self.block.expansion, (1, 1))(x), train=train))
        x = DepthwiseConv(self.block.size, self.block.stride, use_bias=False)(x)
        x = nn.relu6(self.norm()(x, train=train))
        x = self.norm()(self.conv(self.block.features, (1, 1))(x), train=train)
        return given + x if x.shape == given.shape else x
