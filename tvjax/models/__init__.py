"""Nets, and the heads that turn their logits into probabilities and a loss."""

from typing import Any

import flax.linen as nn

from tvjax.errors import UserError
from tvjax.models import segnet
from tvjax.models.heads import Head, make_head
from tvjax.models.segformer import SegFormer
from tvjax.models.segnet import SegNet
from tvjax.models.unet import UNet

NETS: dict[str, Any] = {"unet": UNet, "segnet": SegNet, "segformer": SegFormer}


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
      momentum: decay of BatchNorm's running statistics, in nets that have them.
      dtype: type of the computation; None: the type of the parameters.
      precision: `jax.lax.Precision` of the net's convolutions and products in float32.
        It matters where hardware multiplies in fewer bits: `"highest"` is float32 everywhere;
        `"high"` is TF32 (10 bits) on an NVIDIA GPU, three bfloat16 products on a TPU; `"default"`
        is TF32 there, and bfloat16 (7 bits). Sums and statistics are float32 always.
      axis_name: the device axis, for BatchNorm.

    Raises:
      UserError: there is no such net, or it has no such depth.
    """
    if name not in NETS:
        raise UserError(f"model.name={name!r} is unknown; choose one of {sorted(NETS)}")
    if name == "segnet" and depth > len(segnet.FACTORS):
        raise UserError(f"model.depth={depth} of a segnet can be {len(segnet.FACTORS)} at most")
    made = make_head(name=head, num_iterations=head_iterations, kind=head_kind)
    options: dict[str, Any] = {"width": width, "depth": depth, "dtype": dtype}
    options["precision"] = precision
    if name != "segformer":  # which has no BatchNorm
        options |= {"momentum": momentum, "axis_name": axis_name}
    return NETS[name](channels=made.channels, **options), made
