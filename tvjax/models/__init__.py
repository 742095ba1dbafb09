"""Nets, and the heads that turn their logits into probabilities and a loss."""

from typing import Any

import flax.linen as nn

from tvjax.errors import UserError
from tvjax.models.heads import SIGMOID, Head
from tvjax.models.unet import UNet

NETS: dict[str, Any] = {"unet": UNet}
HEADS: dict[str, Head] = {"sigmoid": SIGMOID}


def make_model(
    *, name: str, head: str, axis_name: str | None = None, **options: Any
) -> tuple[nn.Module, Head]:
    """The net of this name, with as many channels as its head reads.

    Args:
      name: a key of `NETS`.
      head: a key of `HEADS`.
      axis_name: the device axis, for BatchNorm.
      **options: of the net, e.g. `width=16`.

    Raises:
      UserError: naming the field that cannot be so.
    """
    for field, value, known in (("name", name, NETS), ("head", head, HEADS)):
        if value not in known:
            raise UserError(f"model.{field}={value!r} is unknown; choose one of {sorted(known)}")
    if options.get("width", 1) < 1 or options.get("depth", 1) < 1:
        raise UserError(f"model.width and model.depth must be positive, got {options}")
    return NETS[name](channels=HEADS[head].channels, axis_name=axis_name, **options), HEADS[head]
