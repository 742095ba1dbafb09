"""The polygons of a mask's objects, traced strip by strip, none cut at a border.

Objects are the 4-connected components of the mask. A strip gives the corners of their outlines; an
object is complete, and leaves the memory, in the first strip that it does not touch the end of. So
memory is one strip and the outlines of the objects that are still open, whatever the image's
size, and the answer does not depend on how the image is cut into strips.

An outline is rectilinear, so that its corners determine it: sorted along a row, they are the ends
of its horizontal edges by pairs, and sorted along a column, of its vertical ones. Where an object
touches itself at a corner, the outline is linked so that the background there is not crossed:
rings never touch themselves, and shells with holes are valid for OGC tools.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from tvjax.data.splits import join
from tvjax.errors import require

STRIP = 1 << 18
"""Pixels that are worked on at once: labels take several times their memory."""

MOST_CODED = 2**32 - 1
"""Pixels of the largest image that COCO's run-length codes can tell of: they count in 32 bits."""


class Polygon(NamedTuple):
    """The outline of one object; coordinates are pixel edges, `(x, y)` from the top left."""

    shell: np.ndarray
    """Int `[N, 2]`, a closed ring without the repeated first point."""
    holes: tuple[np.ndarray, ...]
    score: float
    """Mean probability of its pixels."""
    area: int
    """Area in pixels."""

    @property
    def rings(self) -> tuple[np.ndarray, ...]:
        """The shell and the holes."""
        return (self.shell, *self.holes)


class _Corners(NamedTuple):
    """Corners of outlines, `[N]` each. At a point where an object touches itself there are two,
    which `along_row` and `along_column` tell apart: which comes first there."""

    label: np.ndarray
    y: np.ndarray
    x: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray


def trace(
    strips: Iterable[np.ndarray], *, threshold: float = 0.5, min_area: int = 1
) -> Iterator[Polygon]:
    """The objects of an image that comes as strips of probabilities.

    Args:
      strips: `[h, W]` from the top, in [0, 1].
      threshold: a pixel belongs to an object above it, not at it.
      min_area: objects of fewer pixels are left out.

    Yields:
      Objects, those that end first first.

    Example:
      >>> ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
      >>> (found,) = trace([ring[:2], ring[2:]])
      >>> found.shell.tolist(), found.holes[0].tolist(), found.area
      ([[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 1], [1, 2], [2, 2], [2, 1]], 8)
    """
    yield from Tracer(threshold, min_area).run(strips)


class Tracer:
    """The open objects, numbered from 1: `row` holds their numbers in the last row; see `trace`."""

    def __init__(self, threshold: float, min_area: int):
        self._threshold, self._min_area = threshold, min_area
        self._y = 0
        self._row = np.empty(0, int)
        self._held: list[Any] = [_Corners(*(np.empty(0, int) for _ in _Corners._fields))]
        self._sums = np.zeros((2, 0))  # pixels and probabilities of each open object

    def run(self, strips: Iterable[np.ndarray]) -> Iterator[Any]:
        """The objects of an image that comes as strips from the top."""
        shape: tuple[int, ...] = ()
        for strip in strips:
            if not shape:
                shape = strip.shape[1:]
                self._row = np.zeros(shape[0], int)
            rows = max(1, STRIP // shape[0])
            for k in range(0, len(strip), rows):
                yield from self._add(np.asarray(strip[k : k + rows]))
        if shape:
            yield from self._add(np.zeros((1, *shape)))

    def _probabilities(self, strip: np.ndarray) -> np.ndarray:
        """The probabilities of a strip, `[h, W]`."""
        return strip

    def _find(self, labels: np.ndarray, strip: np.ndarray) -> list[Any]:
        """What is held of each open object until it is complete, of the rows of a strip.

        Named tuples of arrays of which `label` tells the object. The labels are those of the rows
        and of the one above.
        """
        del strip
        return [_find_corners(labels, self._y)]

    def _add(self, strip: np.ndarray) -> Iterator[Polygon]:
        whole, strip = strip, self._probabilities(strip)
        known = self._sums.shape[1]
        labels, new = ndimage.label(strip > self._threshold)  # pyright: ignore
        labels = np.where(labels > 0, labels.astype(int) + known, 0)
        found = self._find(np.concatenate([self._row[None], labels]), whole)
        self._y += len(strip)
        counts = np.bincount(labels.ravel(), minlength=known + new + 1)[1:]
        weights = np.bincount(labels.ravel(), strip.ravel(), minlength=known + new + 1)[1:]
        sums = np.stack([counts, weights]).astype(float)
        sums[:, :known] += self._sums
        # Objects that meet across the border become one.
        names = _united(known + new, self._row, labels[0])
        number = names.max(initial=0) + 1
        total = np.stack([np.bincount(names[1:], each, minlength=number) for each in sums])
        last = names[labels[-1]]
        is_open = np.zeros(total.shape[1], bool)
        is_open[last] = True
        is_open[0] = False
        is_closed = ~is_open & (total[0] >= self._min_area)
        renumbered = np.cumsum(is_open) * is_open
        closed = []
        for k, (before, more) in enumerate(zip(self._held, found, strict=True)):
            both = before._make(map(np.concatenate, zip(before, more, strict=True)))
            both = both._replace(label=names[both.label])
            closed.append(of(both, is_closed))
            kept = of(both, is_open)
            self._held[k] = kept._replace(label=renumbered[kept.label])
        self._row, self._sums = renumbered[last], total[:, is_open]
        yield from self._polygons(closed, total)

    def _polygons(self, closed: list[Any], sums: np.ndarray) -> Iterator[Any]:
        """The objects that are complete, by what was held of them."""
        for _, polygon in self._whole(closed[0], sums):
            yield polygon

    def _whole(self, corners: _Corners, sums: np.ndarray) -> Iterator[tuple[int, Polygon]]:
        for label, (shell, *holes) in _link(corners):
            area, weight = sums[:, label]
            yield label, Polygon(shell, tuple(holes), float(weight / area), int(area))


def of(held: Any, is_chosen: np.ndarray) -> Any:
    """What is held of the chosen objects."""
    rows = is_chosen[held.label]
    return held._make(field[rows] for field in held)


def _find_corners(labels: np.ndarray, y: int) -> _Corners:
    """Corners at the upper edges of all rows but the first, which has been seen before."""
    padded = np.pad(labels, ((0, 0), (1, 1)))
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    number = (nw > 0).astype(np.int8) + (ne > 0) + (sw > 0) + (se > 0)
    falling = (number == 2) & (nw > 0) & (se > 0)
    rising = (number == 2) & (ne > 0) & (sw > 0)
    any_of = np.maximum(np.maximum(nw, ne), np.maximum(sw, se))
    parts = []
    # What a point contributes: the label, and its rank along the row and along the column.
    for where, label, along_row, along_column in (
        ((number == 1) | (number == 3), any_of, 0, 0),
        (falling, nw, 0, 1),
        (falling, se, 1, 0),
        (rising, sw, 0, 0),
        (rising, ne, 1, 1),
    ):
        rows, columns = np.nonzero(where)
        ranks = (np.full(len(rows), rank) for rank in (along_row, along_column))
        parts.append((label[rows, columns], rows + y, columns, *ranks))
    return _Corners(*map(np.concatenate, zip(*parts, strict=True)))


def _united(number: int, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """New names `[number + 1]` of labels of which some touch; 0, which nothing touches, stays 0."""
    touching = (above > 0) & (below > 0)
    return join(number + 1, np.stack([above[touching], below[touching]], axis=1))


def _link(corners: _Corners) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The rings of each object."""
    order = np.lexsort((corners.along_row, corners.x, corners.y, corners.label))
    corners = _Corners(*(field[order] for field in corners))
    down = np.lexsort((corners.along_column, corners.y, corners.x, corners.label))
    vertical = np.empty_like(down)
    vertical[down[::2]], vertical[down[1::2]] = down[1::2], down[::2]
    vertical = vertical.tolist()
    points = np.stack([corners.x, corners.y], axis=1)
    ends = np.flatnonzero(np.diff(corners.label, append=-1)) + 1
    seen = bytearray(len(points))
    start = 0
    for end in ends.tolist():
        rings = []
        for first in range(start, end, 2):
            if seen[first]:
                continue
            ring, k = [], first
            while not seen[k]:
                seen[k] = seen[k ^ 1] = 1  # the horizontal partner
                ring += [k, k ^ 1]
                k = vertical[k ^ 1]
            rings.append(points[ring])
        yield int(corners.label[start]), _oriented(rings)
        start = end


def _oriented(rings: list[np.ndarray]) -> list[np.ndarray]:
    """The shell with a positive area on the screen, and holes with a negative one.

    The shell holds the least point, which comes first.
    """
    signs = [1, *[-1] * (len(rings) - 1)]
    return [
        ring if _signed_area(ring) * sign > 0 else np.roll(ring[::-1], 1, axis=0)
        for ring, sign in zip(rings, signs, strict=True)
    ]


def _signed_area(ring: np.ndarray) -> float:
    """Positive if the ring runs clockwise on the screen (y down)."""
    x, y = ring[:, 0].astype(float), ring[:, 1].astype(float)
    return float(np.dot(x, _after(y)) - np.dot(y, _after(x))) / 2


def _after(ring: np.ndarray) -> np.ndarray:
    """What comes after each point of a ring; `np.roll` takes ten times as long of few."""
    return np.concatenate([ring[1:], ring[:1]])


def run_lengths(polygon: Polygon, height: int, width: int) -> dict[str, Any]:
    """The object's pixels as COCO's compressed run-length code, holes left out.

    The image of this size has at most `MOST_CODED` pixels.
    """
    crossings = []
    for ring in polygon.rings:
        for (x0, y0), (x1, y1) in zip(ring.tolist(), _after(ring).tolist(), strict=True):
            if y0 == y1:
                left, right = min(x0, x1), max(x0, x1)
                crossings.append(np.arange(left * height + y0, right * height + y0, height))
    # Down each column the outline is crossed in and out by turns; COCO counts column after column.
    ends = np.concatenate([[0], np.sort(np.concatenate(crossings)), [height * width]])
    lengths = ends[1:] - ends[:-1]
    code: Any = {"size": [height, width], "counts": lengths.tolist()}
    made = coco_mask.frPyObjects(code, height, width)
    return {"size": [height, width], "counts": made["counts"].decode()}


def coco_result(
    polygon: Polygon, height: int, width: int, image_id: int, category: int = 1
) -> dict[str, Any]:
    """The object as an entry of a COCO results file."""
    (left, top), (right, bottom) = polygon.shell.min(0).tolist(), polygon.shell.max(0).tolist()
    return {
        "image_id": image_id,
        "category_id": category,
        "segmentation": run_lengths(polygon, height, width),
        "bbox": [left, top, right - left, bottom - top],
        "area": polygon.area,
        "score": round(polygon.score, 6),
    }


def require_shapely() -> Any:
    """The package shapely, or a `UserError` where there is none."""
    return require("shapely", "--simplify and --regularize need shapely; pip install 'tvjax[geo]'")


def simplify(polygon: Polygon, tolerance: float) -> Polygon:
    """The polygon with fewer corners, none further than `tolerance` pixels from the outline.

    Douglas and Peucker's algorithm in the form that keeps every ring and the polygon valid; needs
    shapely (the extra `geo`).
    """
    shapely = require_shapely()
    shape = shapely.Polygon(polygon.shell, polygon.holes).simplify(tolerance)
    rings = [np.asarray(ring.coords)[:-1] for ring in (shape.exterior, *shape.interiors)]
    pairs = zip(polygon.rings, rings, strict=True)
    if not all(_is_near_start(old, new, tolerance) for old, new in pairs):
        closed = shapely.MultiLineString([[*ring, ring[0]] for ring in polygon.rings])
        lines = shapely.get_parts(closed.simplify(tolerance))  # lines keep their first point
        rings = [np.asarray(line.coords)[:-1] for line in lines]
    shell, *holes = _oriented(rings)
    return polygon._replace(shell=shell, holes=tuple(holes))


def _is_near_start(ring: np.ndarray, simple: np.ndarray, tolerance: float) -> bool:
    """Whether the outline around a ring's first corner is near enough to the simpler ring.

    GEOS leaves out the first corner last, and does not look at those that it left out beside it.
    """
    shapely = require_shapely()
    kept = np.flatnonzero(np.isin(ring @ (1, 1j), simple @ (1, 1j)))
    first, last = int(kept[0]), int(kept[-1])
    left_out = np.concatenate([ring[last + 1 :], ring[:first]])
    side = shapely.LineString(ring[[last, first]])
    distances = shapely.distance(shapely.points(left_out), side)
    return bool(np.max(distances, initial=0) <= tolerance * (1 + 1e-9))


def feature(polygon: Polygon, transform: Any = None) -> dict[str, Any]:
    """The object as a GeoJSON feature.

    Args:
      polygon: the object.
      transform: `affine.Affine` from pixels to map coordinates; None leaves pixels, y down.

    Returns:
      A feature whose geometry has its shell counterclockwise where y points up (RFC 7946).
    """
    # Clockwise on the screen (y down) is counterclockwise to who reads y as up.
    turns = transform is not None and transform.determinant < 0
    rings = []
    for ring in polygon.rings:
        points = ring[::-1].astype(float) if turns else ring.astype(float)
        if transform is not None:
            matrix = np.array([[transform.a, transform.d], [transform.b, transform.e]])
            points = points @ matrix + (transform.c, transform.f)
        rings.append([*points.tolist(), points[0].tolist()])
    return {
        "type": "Feature",
        "properties": {"score": round(polygon.score, 6), "pixels": polygon.area},
        "geometry": {"type": "Polygon", "coordinates": rings},
    }
