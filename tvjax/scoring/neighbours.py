"""Which images are neighbours on the ground, so that they are drawn together where chance is told.

Scores of neighbours are alike, and so many of them tell less than as many images from anywhere.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tvjax.data import map_tiles
from tvjax.data.map_tiles import Blocks

LEAST = 20
"""Blocks that map tiles are cut into, if there are as many tiles."""


def find(names: Sequence[str], ids: Sequence[int], clusters: Mapping[int, int]) -> Blocks:
    """Blocks of neighbours: by the names of map tiles, or else by the clusters of prepared tiles.

    Map tiles are cut into the largest blocks, tiles of a lower zoom, of which there are `LEAST`.
    Of other images nothing but their clusters is known, and those in none are blocks by themselves.

    Args:
      names: paths of the images.
      ids: numbers of the images.
      clusters: the cluster of an id, see `arrangement.read_clusters`.
    """
    tiles = map_tiles.read(names)
    if tiles is not None:
        lowest = int(tiles[:, 0].min())
        cuts = (map_tiles.ancestors(tiles, zoom) for zoom in range(lowest + 1))
        found = [cut for cut in cuts if len(np.unique(cut)) >= LEAST]
        labels = found[0] if found else map_tiles.ancestors(tiles, lowest)
        return Blocks(labels, f"{len(np.unique(labels))} blocks of map tiles")
    own = [("cluster", clusters[i]) if i in clusters else ("id", i) for i in ids]
    numbers: dict[tuple[str, int], int] = {}
    labels = np.array([numbers.setdefault(key, len(numbers)) for key in own])
    return Blocks(labels, f"{len(numbers)} blocks of near-duplicates and single images")
