"""Images with their truth, of a split or a COCO file, one at a time."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax.data import coco, pictures, sharpness
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.inference import polygons, separation, writing
from tvjax.training import rundir


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

        return cls([(tile.height, tile.width) for tile in found], get)


def note_scale(workdir: Path, examples: Examples, images: Path) -> None:
    """Tells of images that may be of another scale than the run's tiles."""
    shrunk, (reading, resolution) = rundir.read_scale_of(workdir), rundir.read_images_of(workdir)
    if resolution is not None and examples.sizes:
        first, scale = examples.get(0).name, 1.0
        # Of an image that lies nowhere on the earth there is nothing to tell; it is scored.
        with (
            contextlib.suppress(UserError),
            pictures.open_raster(images / first, reading) as raster,
        ):
            scale = writing.Options(resolution=resolution).scale_of(raster)
        if scale != 1:
            print(
                f"note: the run's tiles have {resolution:.3g} metres per pixel, and {first} is "
                f"scored as it is; predict would take --scale={scale:.4g} for it: give that too",
                file=sys.stderr,
            )
            return
    if shrunk is not None:
        print(f"note: {sharpness.advise(shrunk)}", file=sys.stderr)
