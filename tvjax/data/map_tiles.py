"""Map tiles: which of them show the same ground, by their names.

A tile z/x/y is one of `2^z` by `2^z` that cover the world; each has four children at zoom z + 1,
(2x, 2y) to (2x + 1, 2y + 1). Its name is `z/x/y`, `NAME-x-y-z` or `NAME_z_x_y`, where NAME may be
missing. Whether y counts from the north or the south does not matter here.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tvjax.data.splits import are_many, join

_PATH = re.compile(r"(?:^|/)(\d+)/(\d+)/(\d+)(?:@\dx)?$", re.ASCII)
_STEM = re.compile(r"(?:^|[^0-9])(\d+)([-_])(\d+)\2(\d+)(?:@\dx)?$", re.ASCII)
MOST = 30
"""The largest zoom that is taken for one."""


class Blocks(NamedTuple):
    """Images or tiles that stay together."""

    labels: np.ndarray
    """Int `[N]`, equal for those of one block."""
    words: str
    """What they are, for messages."""


def read(names: Sequence[str]) -> np.ndarray | None:
    """Zoom, x and y of each tile, int `[N, 3]`; None unless all names read so.

    Of three numbers that may stand in either order, zoom is the one with fewer values, and where
    both have as many, the last one between hyphens and the first one between underscores.
    """
    stems = [name.rpartition(".")[0] or name for name in names]
    found = [[int(n) for n in m.groups()] for s in stems if (m := _PATH.search(s))]
    if len(found) == len(stems):
        return _sound(found)
    parts = [m.groups() for s in stems if (m := _STEM.search(s.rpartition("/")[2]))]
    if len(parts) < len(stems) or not parts:
        return None
    numbers = [(int(a), int(b), int(c)) for a, _, b, c in parts]
    orders = [_sound(numbers), _sound([(z, x, y) for x, y, z in numbers])]
    if parts[0][1] == "-":
        orders.reverse()
    fits = [order for order in orders if order is not None]
    return min(fits, key=lambda tiles: len(np.unique(tiles[:, 0])), default=None)


def _sound(tiles: Sequence[Sequence[int]]) -> np.ndarray | None:
    """The tiles, if they exist."""
    if not tiles or not all(z <= MOST and max(x, y) < 2**z for z, x, y in tiles):
        return None
    return np.array(tiles, np.int64)


def ground(tiles: np.ndarray, fractions: Sequence[float]) -> Blocks:
    """Labels tiles whose ground overlaps or touches, also across zooms.

    Where that leaves too little for validation and test (a whole town, tile beside tile), pieces
    larger than the smallest split are cut into square blocks, tiles of a lower zoom: the largest of
    which none holds more than half of that split, or else those of the lowest zoom of the set. Then
    ground overlaps in no two splits, but touches where blocks meet. Tiles are as `read` gives them.
    """
    zooms, most = np.unique(tiles[:, 0]).tolist(), min(fractions) * len(tiles)
    of = f"map tiles of zoom {', '.join(map(str, zooms))}"
    pieces = touching(tiles)
    number = len(np.unique(pieces))
    if are_many(pieces, fractions):
        return Blocks(
            pieces, f"{of}: ground that overlaps or touches stays together, in {number} pieces"
        )
    fine = (z for z in range(zooms[0]) if _largest(ancestors(tiles, z)) <= most / 2)
    zoom = next(fine, zooms[0])
    blocks = ancestors(tiles, zoom)
    # A piece of ground that lies in several blocks is cut where they meet, others stay whole.
    cut = [_largest(pieces[pieces == label]) > most for label in pieces]
    labels = np.where(cut, blocks, blocks.max() + 1 + pieces)
    return Blocks(
        labels,
        f"{of} touch in pieces too large for the splits, which are cut into blocks of zoom {zoom}: "
        "ground overlaps in no two splits, but touches where blocks meet",
    )


def _largest(labels: np.ndarray) -> int:
    return int(np.unique(labels, return_counts=True)[1].max())


def ancestors(tiles: np.ndarray, zoom: int) -> np.ndarray:
    """Labels tiles by the one of a lower zoom in which they lie."""
    shift = tiles[:, 0] - zoom
    places = np.stack([tiles[:, 1] >> shift, tiles[:, 2] >> shift], axis=1)
    return np.unique(places, axis=0, return_inverse=True)[1].ravel()


def touching(tiles: np.ndarray) -> np.ndarray:
    """Labels the pieces of ground: connected by overlap, or by a common edge or corner.

    Each tile looks, at its own zoom and at each lower one, for tiles in the squares that touch its
    own; those at higher zooms look for it.
    """
    first: dict[tuple[int, int, int], int] = {}
    for k, (z, x, y) in enumerate(tiles.tolist()):
        first.setdefault((z, x, y), k)
    zooms, pairs = np.unique(tiles[:, 0]).tolist(), []
    for k, (z, x, y) in enumerate(tiles.tolist()):
        for lower in (zoom for zoom in zooms if zoom <= z):
            side = 2 ** (z - lower)
            for column in range((x - 1) // side, (x + 1) // side + 1):
                for row in range((y - 1) // side, (y + 1) // side + 1):
                    other = first.get((lower, column, row))
                    if other is not None and other != k:
                        pairs.append((k, other))
    return join(len(tiles), pairs)
