"""Map tiles, z/x/y or NAME-x-y-z, as large images on the map that they are cut from.

The map is Web Mercator (EPSG:3857), a square of 2^z by 2^z tiles. x counts from the west, y from
the north, or in the scheme TMS from the south. Tiles that touch make one image; where one is
missing there is no data. Of a pyramid the finest zoom counts.
"""

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax.data import gdal, listing, map_tiles, pictures, pillow
from tvjax.data.pictures import Raster
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.errors import UserError, escaped, require

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
"""Endings of map tiles' names."""

HALF = math.pi * 6_378_137
"""Half of the map's side, in metres of the map."""

MOST_SIDE = 4096
"""Pixels of a tile's side; 256 and 512 are usual."""

KEPT = 1 << 26
"""Bytes of decoded tiles that are kept for the next windows."""

NEEDS_RASTERIO = (
    "map tiles are placed on the map by rasterio: pip install 'tvjax[geo]', or take each as a "
    "picture by --nomap_tiles"
)


class Mosaic(NamedTuple):
    """Map tiles of one zoom that touch."""

    path: Path
    """Where the image would lie, for names: FOLDER/NAME-x-y-z of its first tile."""
    zoom: int
    left: int
    """Number of the first column of tiles on the map, as `top` is of the first row."""
    top: int
    columns: int
    rows: int
    side: int
    """Pixels of a tile's side."""
    tiles: dict[tuple[int, int], Path]
    """Files by column and row on the map, rows from the north."""

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.rows * self.side

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.columns * self.side

    def within(
        self, top: int, bottom: int, left: int, right: int
    ) -> Iterator[tuple[int, int, Path]]:
        """The tiles of a window, with the row and column in pixels where each begins."""
        side = self.side
        for row in range(top // side, -(-bottom // side)):
            for column in range(left // side, -(-right // side)):
                file = self.tiles.get((self.left + column, self.top + row))
                if file is not None:
                    yield row * side, column * side, file

    @contextlib.contextmanager
    def open(self, reading: Reading = AS_NAMED) -> Iterator[Raster]:
        """The image, of which no more tiles are decoded than a window needs.

        Raises:
          UserError: there is no rasterio; or, from its windows, a tile cannot be decoded.
        """
        rasterio = require("rasterio", f"{self.path.parent}: {NEEDS_RASTERIO}")
        size = 2 * HALF / 2**self.zoom
        pixel = size / self.side
        corner = self.left * size - HALF, HALF - self.top * size
        most = max(4, KEPT // (4 * self.side**2))
        get = lru_cache(most)(lambda file: _decode(file, self.side, reading))
        read = partial(self._assemble, get, 0, (3,), np.uint8)
        valid = partial(self._assemble, get, 1, (), bool)
        yield Raster(
            self.path, self.height, self.width, read,
            rasterio.Affine(pixel, 0, corner[0], 0, -pixel, corner[1]),
            rasterio.crs.CRS.from_epsg(3857), valid,
        )  # fmt: skip

    def _assemble(
        self, get: Any, which: int, end: tuple[int, ...], kind: Any, *window: int
    ) -> np.ndarray:
        top, bottom, left, right = window
        out = np.zeros((bottom - top, right - left, *end), kind)
        for row, column, file in self.within(top, bottom, left, right):
            part = get(file)[which]
            first = max(top, row), max(left, column)
            last = min(bottom, row + self.side), min(right, column + self.side)
            rows = slice(first[0] - row, last[0] - row)
            columns = slice(first[1] - column, last[1] - column)
            out[first[0] - top : last[0] - top, first[1] - left : last[1] - left] = (
                part[rows, columns] if part is not None else True
            )
        return out


def _decode(file: Path, side: int, reading: Reading) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels of a tile, and where there is data."""
    try:
        with pictures.open_raster(file, reading) as raster:
            if (raster.height, raster.width) != (side, side):
                raise UserError(
                    f"{file}: is {raster.width}x{raster.height} pixels, other map tiles beside it "
                    f"are {side}x{side}"
                )
            return pictures.read_whole(raster)
    except UserError as error:
        raise UserError(f"{error}; where a map tile is missing there is no data") from error


def _readable(files: Sequence[Path]) -> Path:
    """The first file that is a picture, which speaks for all; of the others their windows tell."""
    for file in files:
        with contextlib.suppress(UserError):
            pillow.read_size(file)
            return file
    return files[0]


def find(folder: Path, *, is_tms: bool = False) -> tuple[list[Mosaic], str] | None:
    """The mosaics of a folder, and one line that says so; None: it holds no map tiles.

    Args:
      folder: holds folders z/x/y.png, or is one of these z, or holds nothing but files with names
        of map tiles and without a georeference of their own.
      is_tms: whether y counts from the south.

    Raises:
      UserError: its tiles are no squares.
    """
    files = _nested(folder)
    names = [os.path.abspath(file) for file in files]
    if not files:
        files = _flat(folder)
        names = [file.name for file in files]  # folders above may be numbers too
    tiles = map_tiles.read(names) if files else None
    if tiles is None or _has_georeference(_readable(files)):
        return None
    zooms = np.unique(tiles[:, 0]).tolist()
    fine = tiles[:, 0] == zooms[-1]
    files, tiles = [f for f, is_fine in zip(files, fine, strict=True) if is_fine], tiles[fine]
    if is_tms:
        tiles[:, 2] = 2 ** zooms[-1] - 1 - tiles[:, 2]
    height, width = pillow.read_size(_readable(files))
    if height != width or height > MOST_SIDE:
        raise UserError(
            f"{files[0]}: is {width}x{height} pixels; map tiles are squares of at most {MOST_SIDE}"
        )
    labels = map_tiles.touching(tiles)
    found = []
    for label in np.unique(labels):
        here = labels == label
        own = [files[k] for k in np.flatnonzero(here)]
        found.append(_mosaic(folder, own, tiles[here], height))
    coarse = f", coarser zooms ({', '.join(map(str, zooms[:-1]))}) left out" * (len(zooms) > 1)
    return found, (
        f"{folder}: {len(files)} map tiles of zoom {zooms[-1]}, y from the "
        f"{'south' if is_tms else 'north'}, are {len(found)} "
        f"image{'s' * (len(found) > 1)} in Web Mercator{coarse}; --nomap_tiles takes each as a "
        "picture"
    )


def _mosaic(folder: Path, files: list[Path], tiles: np.ndarray, side: int) -> Mosaic:
    zoom, places = int(tiles[0, 0]), tiles[:, 1:]
    low, high = places.min(axis=0).tolist(), places.max(axis=0).tolist()
    named: dict[tuple[int, int], Path] = {}
    for (x, y), file in zip(places.tolist(), files, strict=True):
        other = named.setdefault((x, y), file)
        if other != file:
            raise UserError(f"{other} and {file} are the same map tile; remove one")
    x, y = min(named, key=lambda place: place[::-1])
    name = f"{Path(os.path.abspath(folder)).name}-{x}-{y}-{zoom}"
    columns, rows = high[0] - low[0] + 1, high[1] - low[1] + 1
    return Mosaic(folder / name, zoom, low[0], low[1], columns, rows, side, named)


def _nested(folder: Path) -> list[Path]:
    """The files z/x/y of a folder, or x/y of a folder z, in order."""
    is_zoom = Path(os.path.abspath(folder)).name.isdecimal()
    zooms = _numbered(folder)
    found = [file for zoom in zooms for x in _numbered(zoom) for file in _pictures(x)]
    if not found and is_zoom:
        found = [file for x in zooms for file in _pictures(x)]
    return found


def _numbered(folder: Path) -> list[Path]:
    inside = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(inside, key=lambda path: (len(path.name), path.name))


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.stem.partition("@")[0].isdecimal()
    )


def _flat(folder: Path) -> list[Path]:
    """The pictures of a folder, if no image is among them that is no picture."""
    images = _images(folder)
    return images if all(path.suffix.lower() in SUFFIXES for path in images) else []


def _images(folder: Path) -> list[Path]:
    return listing.files(folder, "images", pictures.SUFFIXES, below=False)


def _has_georeference(file: Path) -> bool:
    with gdal.opening(file) as dataset:
        return dataset is not None and gdal.georeference(file, dataset)[0] is not None


Place = Path | Mosaic
"""An image: a file, or map tiles."""


def path_of(place: Place) -> Path:
    """The path by which an image is named."""
    return place.path if isinstance(place, Mosaic) else place


def images_in(folder: Path, *, as_map: bool, is_tms: bool) -> Sequence[Place]:
    """The images of a folder: map tiles, unless each is to be a picture, or else files.

    Args:
      folder: holds map tiles, see `find`, or image files.
      as_map: whether map tiles are images on the map.
      is_tms: whether their y counts from the south.
    """
    found = find(folder, is_tms=is_tms) if as_map else None
    if found is None:
        listing.note_below(folder, "images", pictures.SUFFIXES)
        return _images(folder)
    print(f"note: {escaped(found[1])}", file=sys.stderr)
    return found[0]


@contextlib.contextmanager
def open_place(place: Place, reading: Reading = AS_NAMED) -> Iterator[Raster]:
    """Opens an image, as `pictures.open_raster` and `Mosaic.open` do."""
    is_mosaic = isinstance(place, Mosaic)
    with place.open(reading) if is_mosaic else pictures.open_raster(place, reading) as raster:
        yield raster
