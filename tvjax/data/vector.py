"""Large images and polygons on a map as tiles.

Images are cut at the resolution that is asked for, polygons reprojected to each image's coordinate
system. A pixel is object where its centre lies in a polygon, and background elsewhere: so polygons
must be complete wherever tiles are kept. An extent says where they are; without one, tiles that
no polygon touches are left out unless it is said that they are background.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax import interruption
from tvjax.data import given, local, mosaic, places, scenes, splits, vector_files
from tvjax.data.faults import Faults
from tvjax.data.mosaic import Mosaic
from tvjax.data.origins import Origin
from tvjax.data.pictures import Loaded
from tvjax.data.places import Places
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.data.scenes import Scene
from tvjax.data.vector_files import Layer, Wanted
from tvjax.errors import UserError

LEAST_DATA = 0.5
"""Share of a tile's pixels that must have data, or the tile is left out."""

MARGIN = 0.05
"""Share of an image's size by which polygons are sought around it: its outline is curved on their
map."""

MOST_DEGREES = 540
"""Degrees that longitudes stay below, also of maps that go around the earth once and a half."""

MOST_TILES = 1 << 22
"""Tiles of an image."""


class Request(NamedTuple):
    """What is asked for."""

    images: Sequence[str]
    """Image files, and directories of such."""
    labels: Path
    """File of polygons, see `vector_files`."""
    tile: int
    """Side of the tiles, in pixels."""
    resolution: float | None = None
    """Metres per pixel of the tiles; None: each image's own."""
    gap: int = 32
    """Pixels between tiles of one image that may fall into different splits."""
    where: Sequence[str] = ()
    """Conditions that polygons must meet, see `vector_files.parse_where`."""
    layer: str | None = None
    """Name of the layer of a GeoPackage."""
    extent: Path | None = None
    """File of polygons in which the labels are complete."""
    keep_empty: bool = False
    """Whether tiles without any polygon are background where there is no extent."""
    as_map: bool = True
    """Whether map tiles are images on the map, see `tvjax.data.mosaic`."""
    is_tms: bool = False
    """Whether the y of map tiles counts from the south."""
    reading: Reading = AS_NAMED
    """How images are read."""


class Labels(NamedTuple):
    """The polygons of objects, and those within which they are complete."""

    layer: Layer
    extent: Layer | None


class Outlines(NamedTuple):
    """Polygons in the pixels of a scene."""

    polygons: np.ndarray
    tree: Any

    @classmethod
    def of(cls, layer: Layer, scene: Scene) -> "Outlines":
        """The polygons of a layer that may lie in a scene."""
        import shapely

        scene.check_antimeridian()
        border = scene.outline(layer.crs)
        low, high = border.min(axis=0), border.max(axis=0)
        margin = MARGIN * (high - low)
        chosen = layer.tree.query(shapely.box(*(low - margin), *(high + margin)))
        inverse = ~scene.transform

        def pixels(points: np.ndarray) -> np.ndarray:
            there = scenes.convert(points, layer.crs, scene.crs)
            return scenes.apply(inverse, there)

        found = shapely.transform(layer.polygons[np.sort(chosen)], pixels)
        if not np.isfinite(shapely.bounds(found)).all():
            raise UserError(
                f"{scene.path}: a polygon near it reaches to where its coordinate system "
                f"{scene.crs} is not defined; cut the polygon"
            )
        return cls(found, shapely.STRtree(found))

    def number(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Int32 `[h, w]`: which polygon the centre of each pixel of a window lies in, 0 of none.

        They count from 1, and where they overlap the later one counts.
        """
        import shapely
        from rasterio import Affine
        from rasterio.features import rasterize

        box = shapely.box(left, top, right, bottom)
        found = self.polygons[np.sort(self.tree.query(box, predicate="intersects"))]
        size = bottom - top, right - left
        if not len(found):
            return np.zeros(size, np.int32)
        shapes = ((polygon, place) for place, polygon in enumerate(found, 1))
        corner = Affine.translation(left, top)
        return np.asarray(rasterize(shapes, size, transform=corner, dtype=np.int32))


class Shelf:
    """The scene that is open; another is opened in its place when a tile of it is read."""

    def __init__(self, labels: Labels):
        self._labels = labels
        self._stack = contextlib.ExitStack()
        self._scene: Scene | None = None
        self._opened: Any = None

    def get(self, scene: Scene) -> tuple[scenes.Raster, Outlines]:
        """The scene's pixels and its polygons."""
        if scene is not self._scene:
            self.close()
            raster = self._stack.enter_context(scene.open())
            self._opened = raster, Outlines.of(self._labels.layer, scene)
            self._scene = scene
        return self._opened

    def close(self) -> None:
        """Closes the file."""
        self._scene = self._opened = None
        self._stack.close()


class Tile(NamedTuple):
    """A window of a scene, not yet decoded."""

    id: int
    """Number of the tile in the set."""
    scene: Scene
    top: int
    left: int
    height: int
    width: int
    block: tuple[int, int, int]
    """Numbers of the scene or lattice that is cut, and of the block's row and column."""
    shelf: Shelf

    @property
    def file(self) -> Path:
        """The image file."""
        return self.scene.path

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Top, bottom, left and right in the pixels of the scene."""
        return self.top, self.top + self.height, self.left, self.left + self.width

    @property
    def files(self) -> tuple[Path, ...]:
        """What `load` reads."""
        return self.scene.files(*self.window)

    def load(self) -> Loaded | None:
        """Decodes the tile, as `coco.Tile.load` does; None: too little of it has data.

        Raises:
          UserError: the image cannot be decoded.
        """
        raster, outlines = self.shelf.get(self.scene)
        valid = None if raster.valid is None else raster.valid(*self.window)
        if valid is not None and valid.mean() < LEAST_DATA:
            return None
        mask = outlines.number(*self.window) > 0
        return Loaded(raster.read(*self.window), mask, valid)

    def number(self) -> np.ndarray:
        """Which polygon each pixel belongs to, see `Outlines.number`."""
        return self.shelf.get(self.scene)[1].number(*self.window)


class Scenes(Origin):
    """Images and polygons that a set is made of; `read` finds its tiles."""

    def __init__(self, request: Request):
        if request.tile < 1:
            raise UserError(f"--tile={request.tile}: a positive number of pixels is needed")
        if request.gap < 0:
            raise UserError(f"--gap={request.gap}: must not be negative")
        if request.resolution is not None and not 0 < request.resolution < np.inf:
            raise UserError(f"--resolution={request.resolution}: must be positive and finite")
        if request.extent is not None and request.keep_empty:
            raise UserError(
                f"--keep_empty takes labels for complete everywhere, and --extent={request.extent} "
                "says where they are; leave one out"
            )
        self._request = request
        self.labels = request.labels
        self._places = scenes.find(request.images, as_map=request.as_map, is_tms=request.is_tms)
        paths = map(mosaic.path_of, self._places)
        folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
        self.root = Path(os.path.commonpath(folders))
        self.folders, self.has_outlines = [self.root], True
        self.is_apart = False  # tiles of one image share the open file
        self._where = vector_files.parse_where(request.where)
        self._shelf: Shelf | None = None

    def listed(self) -> Iterable[Path]:
        """All files that tiles are cut from."""
        for place in self._places:
            yield from place.tiles.values() if isinstance(place, Mosaic) else (place,)

    def name(self, tile: Tile) -> str:
        """Name of a tile in `splits.csv`: its image, and its left and top pixel."""
        return f"{tile.scene.name}@x{tile.left}y{tile.top}"

    def describe(self) -> dict[str, Any]:
        """What is asked for, as it is stored and compared."""
        asked = self._request
        extent = None if asked.extent is None else vector_files.files(asked.extent)
        return {
            "labels": "polygons on a map",
            "annotations_sha256": list(map(local.sha256, vector_files.files(asked.labels))),
            "extent_sha256": extent and list(map(local.sha256, extent)),
            "resolution": asked.resolution,
            "gap": asked.gap,
            "where": sorted(asked.where),
            "layer": asked.layer,
            "keep_empty": asked.keep_empty,
            "tms": asked.is_tms,
            "reading": asked.reading.as_json(),
        }

    def read(
        self,
        faults: Faults,
        fractions: Sequence[float],
        limit: int | None,
        named: Mapping[str, int] | None,
    ) -> list[Tile]:
        """Finds the tiles, see `Origin.read`; the smallest split bounds the size of a block.

        Given splits of whole images need no gaps; those of tiles are of a set that was cut with
        gaps, and are cut so again.

        Raises:
          UserError: the polygons cannot be read, or none lies in an image.
        """
        asked = self._request
        layer = vector_files.read(asked.labels, Wanted(self._where, asked.layer))
        extent = asked.extent and vector_files.read(asked.extent, Wanted(flag="extent"))
        labels = Labels(layer, extent)
        self._shelf = Shelf(labels)
        found: list[tuple[Scene, np.ndarray]] = []
        for place in self._places:
            interruption.check()
            path = mosaic.path_of(place)
            try:
                name = os.path.relpath(path, self.root)
                scene = scenes.look(place, name, asked.resolution, asked.reading)
                rows, columns = (places.cut(n, asked.tile, 0, None) for n in scene.size)
                found.append((scene, self._kept(scene, labels, rows, columns)))
            except UserError as error:
                faults.add(path, error)
        number = sum(len(kept) for _, kept in found)
        side = places.block_side(min(number, limit or number), fractions)
        useful = [scene for scene, kept in found if len(kept)]
        whole = named is not None and not given.is_of_tiles(named)
        gap = 0 if whole else asked.gap
        cuts = [[places.cut(n, asked.tile, gap, side) for n in scene.size] for scene in useful]
        tiles = self._cut(useful, labels, range(len(useful)), cuts)
        if tiles and not whole and not splits.are_many(self.places(tiles).near, fractions):
            # Images side by side, too small to be cut up by themselves.
            spots = scenes.lattices(useful)
            cuts = [
                [
                    places.cut_by_lattice(n, offset, asked.tile, gap, side)
                    for n, offset in zip(scene.size, spot[1:], strict=True)
                ]
                for scene, spot in zip(useful, spots, strict=True)
            ]
            others = self._cut(useful, labels, [spot[0] for spot in spots], cuts)
            if others and splits.are_many(self.places(others).near, fractions):
                tiles = others
        if len(tiles) < number:
            print(
                f"note: {number - len(tiles)} of {number} tiles are left out, so that tiles of "
                f"different splits are {asked.gap} pixels apart (--gap); splits are drawn by "
                f"blocks of {side}x{side} tiles",
                file=sys.stderr,
            )
        if not tiles and not faults.reasons:
            raise UserError(self._nothing(labels, [scene for scene, _ in found]))
        return tiles

    def _cut(
        self, found: Sequence[Scene], labels: Labels, groups: Sequence[int], cuts: Sequence[Any]
    ) -> list[Tile]:
        """The tiles of all scenes, where `cuts` are the rows and columns of each."""
        tiles: list[Tile] = []
        side = self._request.tile
        for scene, group, (rows, columns) in zip(found, groups, cuts, strict=True):
            if not rows or not columns:
                continue
            for top, left, row, column in self._kept(scene, labels, rows, columns).tolist():
                block = group, row, column
                assert self._shelf is not None
                tiles.append(Tile(len(tiles), scene, top, left, side, side, block, self._shelf))
        return tiles

    def places(self, tiles: Sequence[Tile]) -> Places:
        """Where the tiles lie."""
        number = np.array([tile.block for tile in tiles])
        blocks = np.unique(number, axis=0, return_inverse=True)[1].ravel()
        boxes, distances = self._boxes(tiles)
        one, two = places.near(boxes, distances).T
        # Blocks of one image or lattice are as far apart as they shall be, on its own map.
        is_near = (number[one, 0] != number[two, 0]) | (blocks[one] == blocks[two])
        pairs = np.stack([one, two], axis=1)[is_near]
        joined = splits.join(len(tiles), np.concatenate([splits.edges(blocks), pairs]))
        return Places(joined, number[:, 0], pairs)

    def metres(self, tile: Tile) -> float | None:
        """Asks the georeference of the image that the tile is cut from, at its scale."""
        return scenes.metres_per_pixel(tile.scene)

    def _boxes(self, tiles: Sequence[Tile]) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of all tiles on the first one's map, `[N, 4]`, and there the length of the gap."""
        crs = tiles[0].scene.crs
        boxes, gaps = np.empty((len(tiles), 4)), np.empty(len(tiles))
        for k, tile in enumerate(tiles):
            interruption.check()
            top, bottom, left, right = tile.window
            corners = np.array([(left, top), (right, top), (left, bottom), (right, bottom)], float)
            there = scenes.apply(tile.scene.transform, corners)
            there = scenes.convert(there, tile.scene.crs, crs)
            boxes[k] = *there.min(axis=0), *there.max(axis=0)
            gaps[k] = self._request.gap * np.ptp(there, axis=0).max() / tile.width
        if not np.isfinite(boxes).all():
            raise UserError(
                f"{tiles[0].file}: the other images do not lie where its coordinate system {crs} "
                "is defined; prepare them apart"
            )
        return boxes, gaps

    def _kept(
        self,
        scene: Scene,
        labels: Labels,
        rows: list[tuple[int, int]],
        columns: list[tuple[int, int]],
    ) -> np.ndarray:
        """Top, left, and numbers of block row and column of the tiles of a scene, int `[N, 4]`."""
        import shapely

        tile = self._request.tile
        if not rows or not columns:
            raise UserError(
                f"{scene.path}: is {scene.width}x{scene.height} pixels"
                f"{' at this resolution' * (scene.scale != 1)}, smaller than --tile={tile}"
            )
        if len(rows) * len(columns) > MOST_TILES:
            raise UserError(
                f"{scene.path}: makes {len(rows) * len(columns)} tiles, more than {MOST_TILES}; "
                "take larger ones (--tile) or a coarser --resolution"
            )
        grid = np.array([(r, c, i, j) for r, i in rows for c, j in columns])
        if labels.extent is not None:
            # Told by pixels' centres: two files seldom agree to the last digit.
            known = Outlines.of(labels.extent, scene)
            corners = grid[:, :2].tolist()
            return grid[[known.number(r, r + tile, c, c + tile).all() for r, c in corners]]
        if self._request.keep_empty:
            return grid
        boxes = shapely.box(grid[:, 1], grid[:, 0], grid[:, 1] + tile, grid[:, 0] + tile)
        outlines = Outlines.of(labels.layer, scene)
        return grid[np.unique(outlines.tree.query(boxes, predicate="intersects")[0])]

    def _nothing(self, labels: Labels, found: Sequence[Scene]) -> str:
        """Why there is no tile, in one line."""
        import shapely

        asked, crs = self._request, labels.layer.crs
        if not found:
            return f"--images={asked.images[0]}: holds no image that can be cut into tiles"
        if not len(labels.layer.polygons):
            return f"{asked.labels}: has no polygon that is not empty"
        span = shapely.total_bounds(labels.layer.polygons)
        border = found[0].outline(crs)
        there = (*border.min(axis=0), *border.max(axis=0))
        what = "no polygon lies in any image"
        if asked.extent is not None:
            what = f"no tile of {asked.tile} pixels lies in {asked.extent} whole"
        return (
            f"{asked.labels}: {what}; in {crs} the polygons span {_span(span)}, and "
            f"{found[0].path} {_span(there)}"
            + "; these are no degrees, and a GeoJSON that names no crs is taken to be in degrees: "
            "name it there, or write it in degrees"
            * (crs.is_geographic and bool(np.abs(span).max() > MOST_DEGREES))
            + "; --tms turns the y of map tiles around" * isinstance(found[0].place, Mosaic)
        )

    def close(self) -> None:
        """Closes the file that was read last."""
        if self._shelf is not None:
            self._shelf.close()


def _span(bounds: Iterable[float]) -> str:
    left, low, right, high = (f"{x:.10g}" for x in bounds)
    return f"x {left} to {right}, y {low} to {high}"
