"""Large images with a place on a map, at the resolution at which they are cut into tiles."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax.data import gdal, mosaic, scaling, vrt
from tvjax.data.mosaic import Mosaic, Place, open_place
from tvjax.data.pictures import Raster
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.data.scaling import Axis
from tvjax.errors import UserError, short

AGREE = 0.02
"""Share by which a map's metres may differ from those on the ground and still be taken for them:
those of UTM and its like, but not Web Mercator's, which are longer the further from the equator."""

EQUAL = 1e-3
"""Share by which resolutions may differ and still be taken for equal."""

EARTH = 6_371_008.8
"""Mean radius of the earth, in metres."""

POLE = 90.0
"""Degrees of the northernmost latitude."""

MOST_LATITUDE = 85.0
"""Degrees beyond which the width of a pixel in degrees changes too fast for one number."""

WHOLE = 3e7
"""Metres from west to east, from which on a map is one of the whole earth."""

BORDER = 33
"""Points along each side of an image by which its outline on another map is found."""


class Scene(NamedTuple):
    """An image with a place on a map."""

    place: Place
    """The file, or the map tiles."""
    name: str
    """The path in the folder that all images have in common."""
    scale: float
    """Pixels of tiles per pixel of the file."""
    height: int
    """Height in pixels at that scale."""
    width: int
    """Width in pixels at that scale."""
    transform: Any
    """`affine.Affine` from (column, row) at that scale to the map."""
    crs: Any
    """`rasterio.crs.CRS` of the map."""
    reading: Reading

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def path(self) -> Path:
        """The path by which it is named."""
        return mosaic.path_of(self.place)

    @contextlib.contextmanager
    def open(self) -> Iterator[Raster]:
        """Opens it at its scale."""
        with open_place(self.place, self.reading) as raster:
            small = scaling.scaled(raster, self.scale)
            if (small.height, small.width) != (self.height, self.width):
                raise UserError(f"{self.path}: was changed while it was read")
            yield small

    def files(self, top: int, bottom: int, left: int, right: int) -> tuple[Path, ...]:
        """The files that a window is read from."""
        if isinstance(self.place, Mosaic):
            rows = Axis.scaled(self.place.height, self.scale).source(top, bottom)
            columns = Axis.scaled(self.place.width, self.scale).source(left, right)
            return tuple(file for _, _, file in self.place.within(*rows, *columns))
        parts = vrt.sources(self.path) if vrt.is_named(self.path) else ()
        return (self.path, *parts, *gdal.beside(self.path))

    def check_antimeridian(self) -> None:
        """Refuses an image across the antimeridian, in degrees or on a map of the whole earth.

        Polygons that lie beyond it have other coordinates there, 360 degrees away.

        Raises:
          UserError: it is one, by more than a pixel.
        """
        border = self.outline(self.crs)
        ends = np.array([[-180.0, 0.0], [180.0, 0.0]])
        if not self.crs.is_geographic:
            from rasterio.crs import CRS

            inner = ends * (1 - 1e-12)
            ends = convert(inner, CRS.from_epsg(4326), self.crs)
        (west, _), (east, _) = ends
        if not self.crs.is_geographic and not east - west > WHOLE:  # a map of one part, or polar
            return
        pixel = abs(self.transform.a) + abs(self.transform.b)
        if border[:, 0].min() < west - pixel or border[:, 0].max() > east + pixel:
            raise UserError(
                f"{self.path}: reaches beyond the antimeridian, where labels have other "
                "coordinates; warp it to a system of its own place, such as UTM"
            )

    def outline(self, crs: Any) -> np.ndarray:
        """Points of its border on another map, `[P, 2]`.

        Raises:
          UserError: it does not lie there.
        """
        steps = np.linspace(0, 1, BORDER)
        zeros, ones = np.zeros(BORDER), np.ones(BORDER)
        across = np.concatenate([steps, steps, zeros, ones]) * self.width
        down = np.concatenate([zeros, ones, steps, steps]) * self.height
        border = apply(self.transform, np.stack([across, down], axis=1))
        points = convert(border, self.crs, crs)
        if not np.isfinite(points).all():
            raise UserError(
                f"{self.path}: does not lie where the coordinate system {crs} is defined; is its "
                "georeference right?"
            )
        return points


def find(images: Sequence[str], *, as_map: bool = True, is_tms: bool = False) -> list[Place]:
    """Images of directories (see `mosaic.images_in`) and file names, each once.

    Raises:
      UserError: one of them is none, or a directory holds none.
    """
    found: dict[str, Place] = {}
    for folder in map(Path, images):
        is_folder = folder.is_dir()
        inside = mosaic.images_in(folder, as_map=as_map, is_tms=is_tms) if is_folder else [folder]
        if not inside:
            raise UserError(f"--images={folder}: holds no images")
        for place in inside:
            found.setdefault(os.path.abspath(mosaic.path_of(place)), place)
    return list(found.values())


def lattices(scenes: Sequence[Scene]) -> list[tuple[int, int, int]]:
    """Places of scenes on lattices of pixels: number of the lattice, and row and column on it.

    Scenes of one map and one size of pixels share a lattice, which the first of them begins.
    """
    firsts: list[Scene] = []
    found = []
    for scene in scenes:
        fits = (k for k, first in enumerate(firsts) if _share_pixels(first, scene))
        number = next(fits, len(firsts))
        if number == len(firsts):
            firsts.append(scene)
        corner = apply(scene.transform, np.zeros((1, 2)))
        column, row = apply(~firsts[number].transform, corner)[0]
        found.append((number, round(row), round(column)))
    return found


def _share_pixels(one: Scene, two: Scene) -> bool:
    first, second = (np.array(scene.transform[:6])[[0, 1, 3, 4]] for scene in (one, two))
    return one.crs == two.crs and bool(np.abs(first - second).max() <= 1e-6 * np.abs(first).max())


def look(place: Place, name: str, resolution: float | None, reading: Reading = AS_NAMED) -> Scene:
    """What is known of an image without its pixels.

    Args:
      place: the file, or the map tiles.
      name: see `Scene.name`.
      resolution: metres per pixel of tiles; None: the file's own.
      reading: how it is read.

    Raises:
      UserError: it cannot be read, or has no place on a map of the earth.
    """
    path = mosaic.path_of(place)
    with open_place(place, reading) as raster:
        if raster.transform is None:
            raise UserError(
                f"{path}: has no georeference, so that labels on a map cannot be placed in it; "
                "give a GeoTIFF, or labels in pixels (--annotations, --masks)"
            )
        if not raster.crs:
            raise UserError(
                f"{path}: its georeference names no coordinate system; give it one "
                "(rio edit-info --crs=EPSG:NUMBER FILE; a .prj beside it is not read)"
            )
        check_latitude(raster)
        times = 1.0 if resolution is None else scale(raster, resolution)
        try:
            small = scaling.scaled(raster, times)
        except UserError as error:
            raise UserError(f"{path}: at --resolution={resolution} its {error}") from error
        size = small.height, small.width
        return Scene(place, name, times, *size, small.transform, small.crs, reading)


def scale(raster: Raster, resolution: float) -> float:
    """Pixels of `resolution` metres per pixel of an image on a map; 1 if they are as good as equal.

    Raises:
      UserError: the image does not lie on the earth.
    """
    times = metres_per_pixel(raster) / resolution
    return 1.0 if abs(times - 1) < EQUAL else times


def check_latitude(raster: Raster | Scene) -> None:
    """Refuses an image on a map whose middle lies beyond a pole.

    Raises:
      UserError: naming the image and the latitude.
    """
    if raster.transform is None or not raster.crs or not raster.crs.is_geographic:
        return
    latitude = _middle(raster)[1]
    if not abs(latitude) <= POLE:
        raise UserError(
            f"{raster.path}: its georeference is of latitude {latitude:g}, and there are none "
            f"beyond {POLE:g}; correct it (are longitude and latitude exchanged?), or remove it"
        )


def _middle(raster: Raster | Scene) -> np.ndarray:
    """The image's middle on its map, `[2]`."""
    return apply(raster.transform, np.array([[raster.width / 2, raster.height / 2]]))[0]


def metres_per_pixel(raster: Raster | Scene) -> float:
    """Side of a pixel on the ground, the geometric mean of its two sides, in the image's middle.

    By the map's own unit where that agrees with the ground within `AGREE`.

    Raises:
      UserError: the image does not lie on the earth.
    """
    from rasterio.crs import CRS

    check_latitude(raster)
    middle = np.array([raster.width / 2, raster.height / 2])
    corners = middle + np.array([[0, 0], [1, 0], [0, 1]])
    try:
        points = convert(apply(raster.transform, corners), raster.crs, CRS.from_epsg(4326))
    except UserError as error:
        raise UserError(f"{raster.path}: its {error}") from error
    lon, lat = np.radians(points).T
    east = (lon[1:] - lon[0] + np.pi) % (2 * np.pi) - np.pi  # a step over the antimeridian, too
    across = np.stack([east * np.cos(lat[0]), lat[1:] - lat[0]]) * EARTH
    ground = abs(np.linalg.det(across)) ** 0.5
    if not 0 < ground < np.inf:
        raise UserError(f"{raster.path}: its georeference is of no place on the earth")
    if raster.crs.is_projected:
        own = abs(raster.transform.determinant) ** 0.5 * raster.crs.linear_units_factor[1]
        if abs(own / ground - 1) < AGREE:
            return own
    return float(ground)


def aspect(raster: Raster) -> float:
    """Width of a pixel over its height on the ground, in the image's middle; 1 without a map."""
    if raster.transform is None or not raster.crs:
        return 1.0
    x, y = raster.transform[:6][0::3], raster.transform[:6][1::3]  # steps to the right, and down
    sides = np.array([x, y])
    if raster.crs.is_geographic:
        latitude = _middle(raster)[1]
        if abs(latitude) > MOST_LATITUDE:
            return 1.0
        sides[:, 0] *= np.cos(np.radians(latitude))
    width, height = np.hypot(*sides.T)
    return float(width / height)


def apply(transform: Any, points: np.ndarray) -> np.ndarray:
    """Points `[P, 2]`, moved by an `affine.Affine`."""
    a, b, c, d, e, f = transform[:6]
    return points @ np.array([[a, d], [b, e]]) + (c, f)


def convert(points: np.ndarray, source: Any, target: Any) -> np.ndarray:
    """Coordinates `[P, 2]` on another map, longitude before latitude; infinite where undefined."""
    if source == target:
        return points
    from rasterio._err import CPLE_BaseError  # which systems of no place on the earth raise
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        x, y = transform(source, target, points[:, 0].tolist(), points[:, 1].tolist())[:2]
    except (RasterioError, CPLE_BaseError, ValueError) as error:
        raise UserError(
            f"coordinates cannot be converted from {short(str(source))} to {short(str(target))} "
            f"({str(error)[:80]})"
        ) from error
    return np.stack([np.array(x, float), np.array(y, float)], axis=1)
