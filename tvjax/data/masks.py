"""A directory of images and one of masks as tiles: files of the same stem belong together.

In a mask, 0 is background and one other value is object, whichever: 1, 255, a palette's index or a
colour. Where masks hold more values (classes, numbers of instances, soft edges), or code otherwise,
it must be said which numbers or colours are objects. Alpha does not count. See `mask_files`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tvjax import interruption
from tvjax.data import listing, mask_files, pictures, pillow
from tvjax.data.faults import Faults
from tvjax.data.pictures import Loaded
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.errors import UserError

MASK_SUFFIXES = (".png",)
"""Endings of masks' names: lossless, or their edges would be object."""


class Tile(NamedTuple):
    """One image and its mask, not yet decoded."""

    id: int
    """The position among the stems in order."""
    file: Path
    """The image file."""
    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    mask: Path
    """The mask file."""
    objects: tuple[mask_files.Value, ...]
    """The values that are object; none: the only one besides 0."""
    met: mask_files.Met
    """Values of all masks of the set that have been loaded, with their numbers of pixels."""
    reading: Reading = AS_NAMED
    """How the image is read."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What `load` reads."""
        return self.file, self.mask

    def load(self) -> Loaded:
        """Decodes the tile, as `coco.Tile.load` does.

        Raises:
          UserError: one of the files cannot be decoded, or it cannot be told which of the mask's
            values are object.
        """
        with pictures.open_raster(self.file, self.reading) as raster:
            image, valid = pictures.read_whole(raster)
        return Loaded(image, mask_files.read_mask(self.mask, self.objects, self.met), valid)

    def number(self) -> np.ndarray:
        """A mask does not tell objects that touch apart."""
        raise NotImplementedError("the builder asks `Origin.has_outlines` first")


def read(
    images: str | Path,
    masks: str | Path,
    faults: Faults | None = None,
    objects: Sequence[mask_files.Value] = (),
    reading: Reading = AS_NAMED,
) -> list[Tile]:
    """Pairs the files and compares their sizes; nothing is decoded.

    Args:
      images: the directory of images.
      masks: the directory of masks, PNG files.
      faults: takes the images without a mask, the masks without an image, and pairs that differ in
        size or cannot be read, which are then left out; None: they are an error.
      objects: the values that are object; none: the only one besides 0.
      reading: how images are read.

    Returns:
      The tiles, by stem in order.

    Raises:
      UserError: a directory is missing or empty, a stem occurs twice, or, without `faults`, an
        image is faulty. The message names the file.
    """
    collected = Faults() if faults is None else faults
    images, masks = Path(images), Path(masks)
    pictures_by_stem = listing.by_name(images, "images", pictures.SUFFIXES, below=False)
    masks_by_stem = listing.by_name(masks, "masks", MASK_SUFFIXES, below=False)
    listing.note_below(images, "images", pictures.SUFFIXES)
    for stem, file in sorted(pictures_by_stem.items()):
        if stem not in masks_by_stem:
            collected.add(file, f"{file}: has no mask {masks / (stem + '.png')}")
    for stem, file in sorted(masks_by_stem.items()):
        if stem not in pictures_by_stem:
            collected.add(file, f"{file}: is the mask of no image in {images}", is_label=True)
    tiles, met = [], Counter()
    for number, (stem, file) in enumerate(sorted(pictures_by_stem.items())):
        interruption.check()
        if file in collected.reasons:
            continue
        try:
            mask = masks_by_stem[stem]
            size = _common_size(file, mask, reading)
            tiles.append(Tile(number, file, *size, mask, tuple(objects), met, reading))
        except UserError as error:
            collected.add(file, error)
    if faults is None:
        collected.check(len(pictures_by_stem.keys() | masks_by_stem.keys()))
    return tiles


def _common_size(file: Path, mask: Path, reading: Reading) -> tuple[int, int]:
    (height, width), size = pictures.read_size(file, reading), pillow.read_size(mask)
    if size != (height, width):
        raise UserError(
            f"{mask}: is {size[1]}x{size[0]} pixels, but its image {file} is {width}x{height}"
        )
    return height, width


def listed(images: Path, masks: Path) -> list[Path]:
    """All files of the two directories that count, sound or not."""
    found = listing.files(images, "images", pictures.SUFFIXES, below=False)
    return found + listing.files(masks, "masks", MASK_SUFFIXES, below=False)
