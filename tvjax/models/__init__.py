"""Nets, and the heads that turn their logits into probabilities and a loss."""

from typing import Any

import flax.linen as nn

from tvjax.errors import UserError
from tvjax.models import segnet
from tvjax.models.encoders.efficientnet import LITES
from tvjax.models.heads import Head, make_head, with_contact
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
    encoder: str | None = None,
    encoder_rate: float = 1.0,
    weights: str | None = None,
    weights_sha256: str | None = None,
    axis_name: str | None = None,
    boundaries: bool = False,
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
      dtype: type of the computation, e.g. `"bfloat16"`; parameters and logits stay as they are.
        None: the type of the parameters.
      precision: `jax.lax.Precision` of the net's convolutions and products in float32.
        It matters where hardware multiplies in fewer bits: `"highest"` is float32 everywhere;
        `"high"` is TF32 (10 bits) on an NVIDIA GPU, three bfloat16 products on a TPU; `"default"`
        is TF32 there, and bfloat16 (7 bits). Sums and statistics are float32 always.
      encoder: a key of `LITES`, the encoder of a U-Net; None: its own.
      encoder_rate: 0 freezes the encoder; else not read here, as the weights are not: see
        `tvjax.training`.
      weights: where the encoder begins.
      weights_sha256: digest of that file.
      axis_name: the device axis over which BatchNorm takes its statistics.
      boundaries: whether the net also tells where objects nearly touch, see `with_contact`.

    Raises:
      UserError: there is no such net or encoder, or it has no such depth.
    """
    if name not in NETS:
        raise UserError(f"model.name={name!r} is unknown; choose one of {sorted(NETS)}")
    if name == "segnet" and depth > len(segnet.FACTORS):
        raise UserError(f"model.depth={depth} of a segnet can be {len(segnet.FACTORS)} at most")
    _check_encoder(name, encoder, encoder_rate, weights, weights_sha256)
    made = make_head(name=head, num_iterations=head_iterations, kind=head_kind)
    made = with_contact(made) if boundaries else made
    options: dict[str, Any] = {"width": width, "depth": depth, "dtype": dtype}
    options["precision"] = precision
    if name != "segformer":  # which has no BatchNorm
        options |= {"momentum": momentum, "axis_name": axis_name}
    if encoder is not None:
        options |= {"encoder": LITES[encoder], "frozen": encoder_rate == 0}
    return NETS[name](channels=made.logits, **options), made


def _check_encoder(
    name: str, encoder: str | None, rate: float, weights: str | None, digest: str | None
) -> None:
    """Checks that there is such an encoder, and that nothing is said of one that is not there."""
    if encoder is None:
        given = {"weights": weights, "weights_sha256": digest, "encoder_rate": rate}
        for field, value in given.items():
            if value is not None and (field, value) != ("encoder_rate", 1.0):
                raise UserError(f"model.{field}={value} needs model.encoder, which is None")
    elif encoder not in LITES:
        raise UserError(f"model.encoder={encoder!r} is unknown; choose one of {sorted(LITES)}")
    elif name != "unet":
        raise UserError(f"model.encoder={encoder!r} needs model.name='unet', not {name!r}")
