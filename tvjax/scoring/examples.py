"""Images with their truth, of a split or a COCO file, one at a time."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax import interruption
from tvjax.data import coco, pictures
from tvjax.data.pictures import Raster
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.data.records import Split
from tvjax.inference import polygons, separation
from tvjax.inference.scales import Scales


class Example(NamedTuple):
    """An image with its truth."""

    id: int
    name: str
    """Path of its file in the folder of images."""
    image: np.ndarray
    """Uint8 `[H, W, 3]`."""
    mask: np.ndarray
    """Uint8 `[H, W, 1]`, 0 or 1: the union of the objects."""
    objects: tuple[Any, ...]
    """COCO segmentations, one an object. A split keeps no more than masks: there they are the
    mask's 4-connected components, and roofs that touch count as one, unless it keeps contact
    (see `tvjax.data.touching`), by which they are parted as predictions are."""
    crowds: tuple[bool, ...]
    """Whether each of them is a region of many objects, where COCO counts none."""
    valid: np.ndarray | None = None
    """Bool `[H, W]`, where the image has data; None: everywhere."""


class Examples(NamedTuple):
    """A sequence that decodes an example when it is asked for."""

    sizes: Sequence[tuple[int, int]]
    """Heights and widths."""
    get: Callable[[int], Example]
    open: Callable[[int], contextlib.AbstractContextManager[Raster]] | None = None
    """Opens the file of an image; None: they are tiles, which nets see as they are."""

    @classmethod
    def of_split(cls, split: Split) -> "Examples":
        """The tiles of a split."""

        def get(k: int) -> Example:
            record = split[k]
            size = record["mask"].shape[:2]
            maps = [record[name] for name in ("mask", "contact") if name in record]
            found = separation.trace([np.concatenate(maps, axis=-1)])
            objects = tuple(polygons.run_lengths(polygon, *size) for polygon in found)
            names = record["id"], record["file"]
            crowds = (False,) * len(objects)
            return Example(*names, record["image"], record["mask"], objects, crowds)

        size = split[0]["mask"].shape[:2]
        return cls([size] * len(split), get)

    @classmethod
    def of_coco(
        cls,
        annotations: str | Path,
        images: str | Path,
        categories: Sequence[int] = (),
        reading: Reading = AS_NAMED,
    ) -> "Examples":
        """The images of a COCO file, in their own size; see `tvjax.data.coco`.

        Raises:
          UserError: the file or an image is malformed.
        """
        found = coco.read(annotations, images, categories=categories, reading=reading)

        def get(k: int) -> Example:
            tile = found[k]
            loaded = tile.load()
            mask = loaded.objects[..., None].astype(np.uint8)
            names = tile.id, os.path.relpath(tile.file, images)
            return Example(
                *names, loaded.image, mask, tile.segmentations, tile.crowds, loaded.valid
            )

        sizes = [(tile.height, tile.width) for tile in found]
        return cls(sizes, get, lambda k: pictures.open_raster(found[k].file, reading))

    def scales(self, scaling: Scales) -> tuple[list[float], list[str]]:
        """The scale of each image for a net, and what to tell of them, see `Scales.describe`.

        Raises:
          UserError: see `Scales.of`.
        """
        if self.open is None:
            return [scaling.scale] * len(self.sizes), []
        scales, by_map = [], []
        for k in range(len(self.sizes)):
            interruption.check()
            with self.open(k) as raster:
                scales.append(scaling.of(raster))
                by_map.append(scaling.by_map(raster))
        return scales, scaling.describe(by_map)
