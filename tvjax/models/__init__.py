"""Nets, and the heads that turn their logits into probabilities and a loss."""

from typing import Any

import flax.linen as nn

from tvjax.errors import UserError
from tvjax.models.heads import Head, make_head
from tvjax.models.unet import UNet

NETS: dict[str, Any] = {"unet": UNet}


def make_model(
    *,
    name: str,
    head: str,
    head_iterations: int | None,
    head_kind: str,
    axis_name: str | None = None,
    **options: Any,
) -> tuple[nn.Module, Head]:
    """The net of this name, with as many channels as its head reads.

    Args:
      name: a key of `NETS`.
      head: see `make_head`, as for the next two.
      head_iterations: `num_iterations` of a TV-softmax head.
      head_kind: `kind` of a TV-softmax head.
      axis_name: the device axis, for BatchNorm.
      **options: of the net, e.g. `width=16`.

    Raises:
      UserError: naming the field that cannot be so.
    """
    if name not in NETS:
        raise UserError(f"model.name={name!r} is unknown; choose one of {sorted(NETS)}")
    if options.get("width", 1) < 1 or options.get("depth", 1) < 1:
        raise UserError(f"model.width and model.depth must be positive, got {options}")
    try:
        made = make_head(name=head, num_iterations=head_iterations, kind=head_kind)
    except ValueError as error:
        raise UserError(f"model.head: {error}") from error
    return NETS[name](channels=made.channels, axis_name=axis_name, **options), made
