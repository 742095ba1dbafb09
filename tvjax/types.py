"""Types shared by the package; image arrays are `[..., H, W, C]` unless said otherwise."""

from typing import Any, NamedTuple

PyTree = Any
"""Any nest of dicts, tuples and lists whose leaves are arrays."""

Config = Any
"""An `ml_collections.ConfigDict`, whose fields type checkers cannot know; see configs/base.py."""

Dimension = Any
"""A size of an array: an int, or symbolic while a program for any size is exported."""


class Batch(NamedTuple):
    """Images and their masks, as they stand in the records (numpy on the host, jax on a device)."""

    image: Any
    """uint8 `[B, H, W, 3]`."""
    mask: Any
    """uint8 `[B, H, W, 1]`, 0 or 1; with `data.boundaries` `[B, H, W, 2]`: object and contact."""


class NumberedBatch(NamedTuple):
    """A batch that says which tiles it holds, where each has a weight of its own."""

    image: Any
    mask: Any
    row: Any
    """int32 `[B]`: places of the tiles in their split."""
