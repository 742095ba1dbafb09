"""Nets, and the heads that turn their logits into probabilities and a loss."""

from typing import Any

import flax.linen as nn

from tvjax.errors import UserError
from tvjax.models.heads import Head, make_head
from tvjax.models.segformer import SegFormer
from tvjax.models.segnet import SegNet
from tvjax.models.unet import UNet

NETS: dict[str, Any] = {"unet": UNet, "segnet": SegNet, "segformer": SegFormer}

PRECISIONS = ("highest", "high", "default")
"""Of the nets' convolutions and products, as `jax.lax.Precision` has them."""


def make_model(
    *,
    name: str,
    head: str,
    head_iterations: int | None,
    head_kind: str,
    width: int,
    depth: int,
    momentum: float,
    dtype: str | None,
    precision: str,
    axis_name: str | None = None,
) -> tuple[nn.Module, Head]:
    """The net of this name, with as many channels as its head reads.

    Args:
      name: a key of `NETS`.
      head: see `make_head`, as for the next two.
      head_iterations: `num_iterations` of a TV-softmax head.
      head_kind: `kind` of a TV-softmax head.
      width: filters of the first block, or channels of one attention head.
      depth: number of blocks, see the net.
      momentum: of BatchNorm's running statistics, in nets that have them.
      dtype: of the computation; None: that of the parameters.
      precision: of the net's convolutions and products in float32, one of `PRECISIONS`. It
        matters where hardware multiplies in fewer bits: `"highest"` is float32 everywhere;
        `"high"` is TF32 (10 bits) on an NVIDIA GPU, three bfloat16 products on a TPU; `"default"`
        is TF32 there, and bfloat16 (7 bits). Sums and statistics are float32 always.
      axis_name: the device axis, for BatchNorm.

    Raises:
      UserError: naming the field that cannot be so.
    """
    if name not in NETS:
        raise UserError(f"model.name={name!r} is unknown; choose one of {sorted(NETS)}")
    if precision not in PRECISIONS:
        raise UserError(
            f"model.precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}"
        )
    for field, value in (("width", width), ("depth", depth)):
        if value < 1:
            raise UserError(f"model.{field}={value} must be positive")
    try:
        made = make_head(name=head, num_iterations=head_iterations, kind=head_kind)
    except ValueError as error:
        raise UserError(f"model.head: {error}") from error
    options: dict[str, Any] = {"width": width, "depth": depth, "dtype": dtype}
    options["precision"] = precision
    if name != "segformer":  # which has no BatchNorm
        options |= {"momentum": momentum, "axis_name": axis_name}
    return NETS[name](channels=made.channels, **options), made
