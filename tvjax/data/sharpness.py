"""How sharp the images of prepared tiles were, so that prediction can tell images that are not."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from tvjax.data.origins import Origin, Tile

SAMPLED = 64
"""About as many tiles are looked at for the resolution of their images."""

ALIKE = 1.1
"""How many times as long a side of the coarsest image's pixels may be as one of the finest's, where
their geometric mean stands for all."""


def advise(scales: Sequence[float]) -> str:
    """What to do with images for which no scale was chosen, where tiles were shrunk to `scales`."""
    least, most = (f"{scale:.4g}" for scale in scales)
    told = least if least == most else f"{least} to {most}"
    return (
        f"the run's tiles were shrunk to {told} of their images' sides, and your images are taken "
        f"as they are; give --scale={told} if they are as sharp as the run's were before, and "
        "--scale=1 if they are already like its tiles"
    )


def describe(origin: Origin, tiles: Sequence[Tile], height: int) -> dict[str, Any]:
    """What is known of tiles that were shrunk to `height` pixels, as `source.json` keeps it.

    `scale`: the least and the most of pixels of records per pixel of the images, by side, unless
    nothing was shrunk. `resolution`: metres per pixel of the records, where all images lie on a map
    and are about alike.
    """
    heights = [tile.height for tile in tiles]
    scales = [height / max(heights), height / min(heights)]
    known: dict[str, Any] = {} if scales == [1, 1] else {"scale": scales}
    sides = []
    for tile in tiles[:: math.ceil(len(tiles) / SAMPLED)]:
        metres = origin.metres(tile)
        if metres is None:
            return known
        sides.append(metres * tile.height / height)
    if max(sides) <= ALIKE * min(sides):
        return known | {"resolution": math.exp(sum(map(math.log, sides)) / len(sides))}
    print(
        f"note: tiles have {min(sides):.3g} to {max(sides):.3g} metres per pixel on the ground, so "
        "that predict cannot scale other images to theirs (where images are cut, --resolution "
        "makes all tiles alike)",
        file=sys.stderr,
    )
    return known
