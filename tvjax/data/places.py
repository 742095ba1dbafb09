"""Where tiles lie in large images, and which of them are too near each other for two splits.

An image is cut into blocks of tiles, with a gap between blocks; tiles within a block touch. What
stays together is a block, with all blocks of other images that come nearer than the gap.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tvjax.data.splits import by_first


class Places(NamedTuple):
    """What is known of where tiles lie."""

    near: np.ndarray
    """Int `[N]`, equal for tiles that are too near each other for two splits."""
    image: np.ndarray
    """Int `[N]`, equal for tiles of one image, which show different ground."""
    pairs: np.ndarray
    """Int `[P, 2]`: tiles that are nearer to each other than the gap, or overlap."""

    def across(self, twins: np.ndarray) -> np.ndarray:
        """Labels of near-duplicates `[N]` without those that are all of one image."""
        _, label, count = np.unique(twins, return_inverse=True, return_counts=True)
        least, most = np.full(len(count), len(twins)), np.full(len(count), -1)
        np.minimum.at(least, label, self.image)
        np.maximum.at(most, label, self.image)
        return np.where((least == most)[label], np.arange(len(twins)), by_first(twins))


REST = 0.5
"""Share of a tile that must be left at the end of a row for one more, moved back to the edge."""


def cut(length: int, tile: int, gap: int, block: int | None) -> list[tuple[int, int]]:
    """Starts of tiles along an axis, and the number of the block of each.

    A rest of at least half a tile gets a tile of its own that ends with the axis and overlaps the
    one before it, in the same block. Smaller rests are left out.

    Args:
      length: pixels of the axis.
      tile: pixels of a tile.
      gap: pixels between blocks.
      block: tiles in a block; None: all.
    """
    block = max(1, length) if block is None else block
    found, number = [], 0
    while (start := number * tile + number // block * gap) + tile <= length:
        found.append((start, number // block))
        number += 1
    if found and length - found[-1][0] - tile >= REST * tile:
        found.append((length - tile, found[-1][1]))
    return found


def cut_by_lattice(
    length: int, offset: int, tile: int, gap: int, block: int
) -> list[tuple[int, int]]:
    """Starts of tiles and numbers of their blocks, where blocks are cells of a lattice.

    Images that lie side by side share the lattice: whatever they are cut into, tiles of different
    blocks are `gap` apart.
    The axis begins on it at `offset`, in pixels; all else is as in `cut`.
    """
    pitch, found = block * tile + gap, []
    for number in range(offset // pitch, (offset + length - 1) // pitch + 1):
        low = max(0, number * pitch - offset)
        high = min(length, number * pitch + block * tile - offset)
        found += [(low + start, number) for start, _ in cut(high - low, tile, 0, None)]
    return found


def block_side(tiles: int, fractions: Sequence[float]) -> int:
    """Tiles along the side of a block, of which two fit into the smallest split."""
    return max(1, math.isqrt(int(min(fractions) * tiles / 2)))


def near(boxes: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Pairs of boxes that overlap, or that are nearer to each other than a distance.

    Args:
      boxes: `[N, 4]`: least x and y, greatest x and y, on one map.
      distance: `[N]`, in units of the map.

    Returns:
      int `[P, 2]`, each pair in both orders, and each box with itself.
    """
    import shapely

    grown = boxes + np.stack([-distance, -distance, distance, distance], axis=-1) / 2
    shapes = shapely.box(*grown.T)
    # Smaller by a millionth: what lies exactly as far apart as the distance is not nearer.
    slack = 1e-6 * (grown[:, 2:] - grown[:, :2]).min(axis=1)
    inner = shapely.box(*(grown + np.stack([slack, slack, -slack, -slack], axis=-1)).T)
    one, two = shapely.STRtree(shapes).query(inner, predicate="intersects")
    return np.stack([one, two], axis=1)
