"""What a set of tiles is made of: whole images with labels in pixels, or what else is an `Origin`.

`Images` are a COCO file, three of them, or a directory of masks; `tvjax.data.vector.Scenes` large
images with polygons on a map.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tvjax.data import coco, local, masks, pictures, scenes, yolo
from tvjax.data.faults import Faults
from tvjax.data.pictures import Loaded
from tvjax.data.places import Places
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.errors import UserError


class Tile(Protocol):
    """An image with its mask, not yet decoded."""

    @property
    def id(self) -> int:
        """Number of the tile in the set."""
        ...

    @property
    def file(self) -> Path:
        """The image file."""
        ...

    @property
    def height(self) -> int:
        """Height in pixels."""
        ...

    @property
    def width(self) -> int:
        """Width in pixels."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """What `load` reads."""
        ...

    def load(self) -> Loaded | None:
        """The decoded tile; None: nothing is to be seen there."""
        ...

    def number(self) -> np.ndarray:
        """Which object each pixel belongs to, int `[H, W]`, 0 of none; not where
        `Origin.has_outlines` is False."""
        ...


class Origin(Protocol):
    """Where the tiles of a set come from."""

    labels: Path
    """The file or directory of labels, for messages."""
    root: Path
    """The folder that names are relative to."""
    folders: list[Path]
    """All folders of images."""
    gives_splits: bool = False
    """Whether the labels say which tile is in which split."""
    has_outlines: bool
    """Whether the labels tell objects that touch apart."""
    is_apart: bool
    """Whether each tile stands by itself, so that another process may load it."""
    splits: dict[str, int] | None = None
    """The splits that the labels give, by names, once they have been read; None: none."""

    def describe(self) -> dict[str, Any]:
        """What is asked for, as it is stored and compared."""
        ...

    def listed(self) -> Iterable[Path]:
        """All files that count, sound or not, unless the labels name them."""
        ...

    def read(
        self,
        faults: Faults,
        fractions: Sequence[float],
        limit: int | None,
        named: Mapping[str, int] | None,
    ) -> list[Any]:
        """The tiles, not decoded.

        Args:
          faults: takes the images that cannot be used.
          fractions: shares of the splits.
          limit: number of tiles that will be drawn.
          named: the splits by name as `given.read` has them, or None, where they are not given.
        """
        ...

    def name(self, tile: Any) -> str:
        """Name of a tile in `splits.csv`."""
        ...

    def places(self, tiles: Sequence[Any]) -> Places | None:
        """Where tiles lie; None: it is not known."""

    def metres(self, tile: Any) -> float | None:
        """Metres on the ground per pixel of a tile before it is shrunk; None: it is not known."""

    def close(self) -> None:
        """Closes what was opened."""


class Images(Origin):
    """Whole images, each a tile, of COCO files or with masks.

    Args:
      annotations: the COCO file or three of them, or the directory of masks or of YOLO polygons.
      images: the directory of images, or three.
      categories: what is object: categories of a COCO file, see `coco.read`; numbers or colours
        of masks, see `mask_files.read_mask`; classes of YOLO polygons.
      reading: how images are read.
      is_yolo: whether the directory is one of YOLO polygons.
    """

    def __init__(
        self,
        annotations: str | Path | Sequence[str | Path],
        images: str | Path | Sequence[str | Path],
        categories: Sequence[Any] = (),
        reading: Reading = AS_NAMED,
        *,
        is_yolo: bool = False,
    ):
        self._files, self.folders = _listed(annotations), _listed(images)
        self.labels, self.root = self._files[0], _root(self._files, self.folders)
        self._categories, self._reading = categories, reading
        self._of_folder = yolo if is_yolo else masks
        self.gives_splits, self.is_apart = len(self._files) > 1, True
        self.has_outlines = is_yolo or not self.labels.is_dir()

    def describe(self) -> dict[str, Any]:
        """What is asked for; masks are files, which `sources` compares."""
        chosen = {"categories": _stored(self._categories), "reading": self._reading.as_json()}
        if self.labels.is_dir():
            return {"labels": "masks" if self._of_folder is masks else "YOLO polygons", **chosen}
        digests = list(map(local.sha256, self._files))
        if len(digests) == 1:
            return {"labels": "COCO file", "annotations_sha256": digests[0], **chosen}
        return {"labels": "COCO files", "annotations_sha256": digests, **chosen}

    def listed(self) -> Iterable[Path]:
        """All images and labels; of a COCO file none but those that it names count."""
        is_folder = self.labels.is_dir()
        return self._of_folder.listed(self.root, self.labels) if is_folder else ()

    def name(self, tile: Tile) -> str:
        """The path of the image in the folder of all."""
        return os.path.relpath(tile.file, self.root)

    def metres(self, tile: Tile) -> float | None:
        """Asks the georeference of the image, if it has one; see `Origin.metres`."""
        with contextlib.suppress(UserError), pictures.open_raster(tile.file, self._reading) as own:
            if own.transform is not None and own.crs:
                return scenes.metres_per_pixel(own)
        return None

    def read(
        self,
        faults: Faults,
        fractions: Sequence[float],
        limit: int | None,
        named: Mapping[str, int] | None,
    ) -> list[Any]:
        """The tiles of all files, see `Origin.read`."""
        del fractions, limit
        chosen = faults, self._categories, self._reading
        if self.labels.is_dir():
            tiles = self._of_folder.read(self.folders[0], self.labels, *chosen)
            if self._of_folder is yolo and named is None:
                self.splits = yolo.splits_of(list(map(self.name, tiles)))
            return tiles
        if len(self._files) == 1:
            return coco.read(self.labels, self.folders[0], *chosen)
        found, own, classes = [], {}, {}
        for k, file in enumerate(self._files):
            tiles = coco.read(file, self.folders[k % len(self.folders)], *chosen, classes)
            for tile in tiles:
                name = self.name(tile)
                if own.setdefault(name, k) != k:
                    raise UserError(
                        f"{tile.file}: is in {self._files[own[name]]} and in {file}; an image has "
                        "one split"
                    )
            found += tiles
        self.splits = own
        return found


def _listed(places: str | Path | Sequence[str | Path]) -> list[Path]:
    one = isinstance(places, (str, Path))
    return [Path(place) for place in ([places] if one else places)]


def _stored(categories: Sequence[Any]) -> list[Any]:
    """Numbers and colours, each once and in order, in the form that comes back."""
    numbers = sorted({value for value in categories if isinstance(value, int)})
    colors = sorted({value for value in categories if not isinstance(value, int)})
    return [*numbers, *map(list, colors)]


def _root(files: list[Path], folders: list[Path]) -> Path:
    """The folder that tiles' names are relative to."""
    if len(files) not in (1, 3) or len(folders) not in (1, len(files)):
        raise UserError(
            f"{len(files)} annotations and {len(folders)} directories of images: give one of each, "
            "or three COCO files (of train, val and test) with one directory or three"
        )
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
