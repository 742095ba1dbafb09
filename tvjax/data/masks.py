"""A directory of images and one of masks as tiles: files of the same stem belong together."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tvjax.data import pictures
from tvjax.data.faults import Faults
from tvjax.errors import UserError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of images; other files are passed over, as are hidden ones."""
MASK_SUFFIXES = (".png",)
"""Of masks: lossless, or their edges would be object."""


class Tile(NamedTuple):
    """One image and its mask, not yet decoded."""

    id: int
    """Its position among the stems in order."""
    file: Path
    """The image file."""
    height: int
    """In pixels."""
    width: int
    """In pixels."""
    mask: Path
    """The mask file: 0 is background, anything else object."""

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Decodes the tile, as `coco.Tile.load` does.

        Raises:
          UserError: one of the files cannot be decoded.
        """
        return pictures.read_image(self.file), pictures.read_mask(self.mask)


def read(images: str | Path, masks: str | Path, faults: Faults | None = None) -> list[Tile]:
    """Pairs the files and compares their sizes; nothing is decoded.

    Args:
      images: the directory of images.
      masks: the directory of masks, PNG files.
      faults: takes the images without a mask, the masks without an image, and pairs that differ in
        size or cannot be read, which are then left out; None: they are an error.

    Returns:
      The tiles, by stem in order.

    Raises:
      UserError: a directory is missing or empty, a stem occurs twice, or, without `faults`, an
        image is faulty. The message names the file.
    """
    collected = Faults() if faults is None else faults
    images, masks = Path(images), Path(masks)
    pictures_by_stem = _by_stem(images, "images", SUFFIXES)
    masks_by_stem = _by_stem(masks, "masks", MASK_SUFFIXES)
    for stem, file in sorted(pictures_by_stem.items()):
        if stem not in masks_by_stem:
            collected.add(file, f"{file}: has no mask {masks / (stem + '.png')}")
    for stem, file in sorted(masks_by_stem.items()):
        if stem not in pictures_by_stem:
            collected.add(file, f"{file}: is the mask of no image in {images}")
    tiles = []
    for number, (stem, file) in enumerate(sorted(pictures_by_stem.items())):
        if file in collected.reasons:
            continue
        try:
            tiles.append(_pair(number, file, masks_by_stem[stem]))
        except UserError as error:
            collected.add(file, error)
    if faults is None:
        collected.check(len(pictures_by_stem.keys() | masks_by_stem.keys()))
    return tiles


def _pair(number: int, file: Path, mask: Path) -> Tile:
    (height, width), size = pictures.read_size(file), pictures.read_size(mask)
    if size != (height, width):
        raise UserError(
            f"{mask}: is {size[1]}x{size[0]} pixels, but its image {file} is {width}x{height}"
        )
    return Tile(number, file, height, width, mask)


def digest(masks: Path) -> str:
    """SHA-256 over the names and contents of all masks."""
    found = hashlib.sha256()
    for stem, file in sorted(_by_stem(masks, "masks", MASK_SUFFIXES).items()):
        found.update(stem.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def _by_stem(directory: Path, kind: str, suffixes: Iterable[str]) -> dict[str, Path]:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory of {kind}")
    found: dict[str, Path] = {}
    for file in sorted(directory.iterdir()):
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        if file.stem in found:
            raise UserError(f"{file}: {found[file.stem].name} has the same stem; rename one")
        found[file.stem] = file
    if not found:
        raise UserError(f"{directory}: holds no {kind} ({', '.join(suffixes)})")
    return found
