"""Fewer corners for polygons that share walls, which stay shared."""

import itertools
from collections.abc import Sequence

import numpy as np

from tvjax.inference import polygons
from tvjax.inference.polygons import Polygon, require_shapely
from tvjax.inference.regularize import steps

_ROUNDS = 8
"""How often polygons are drawn anew without simplifying those that would cross."""

_AREA = 1e-6
"""Area, in pixels, that rounding may make two polygons share."""

_Piece = tuple[np.ndarray, bool]
"""Points of an outline as complex numbers, and whether the ring runs through them backwards."""


def simplify(group: Sequence[Polygon], tolerance: float) -> list[Polygon]:
    """The polygons with fewer corners, none further than `tolerance` pixels from the outline.

    Outlines are cut where more than two of their sides meet, so that a wall that two polygons share
    is simplified once, by Douglas and Peucker's algorithm. A polygon that would then cross itself
    or another one stays as it was traced. Needs shapely (the extra `geo`).

    Args:
      group: polygons that touch, of `polygons.trace` or `regularize.regularize`.
      tolerance: pixels, at least 0.
    """
    if len(group) == 1:
        return [polygons.simplify(group[0], tolerance)]
    outlines = [[_dense(ring) for ring in polygon.rings] for polygon in group]
    branching = _branching([path for paths in outlines for path in paths])
    cut = [[_cut(path, branching) for path in paths] for paths in outlines]
    exact: set[bytes] = set()
    for _ in range(_ROUNDS):
        found = []
        for polygon, rings in zip(group, cut, strict=True):
            shell, *holes = (_ring(pieces, tolerance, exact) for pieces in rings)
            found.append(polygon._replace(shell=shell, holes=tuple(holes)))
        crossing = _crossing(found)
        if not crossing:
            return found
        exact |= {way.tobytes() for k in crossing for pieces in cut[k] for way, _ in pieces}
    return list(group)


def _dense(ring: np.ndarray) -> np.ndarray:
    """Points of a ring as complex numbers: of one that was traced all on the grid, where others may
    branch off."""
    points = steps(ring) if np.issubdtype(ring.dtype, np.integer) else ring
    return points @ np.array([1, 1j])


def _branching(paths: list[np.ndarray]) -> np.ndarray:
    """The points where more than two sides meet."""
    ends = np.concatenate([np.stack([path, np.roll(path, -1)], 1) for path in paths])
    points, counts = np.unique(np.unique(np.sort(ends, axis=1), axis=0), return_counts=True)
    return points[counts > 2]


def _cut(path: np.ndarray, branching: np.ndarray) -> list[_Piece]:
    """A ring's pieces from one branching point to the next, the same whichever way it runs."""
    cuts = np.flatnonzero(np.isin(path, branching))
    cuts = cuts if len(cuts) else np.array([np.lexsort((np.imag(path), np.real(path)))[0]])
    path = np.roll(path, -cuts[0])
    path = np.concatenate([path, path[:1]])
    bounds = [*(cuts - cuts[0]).tolist(), len(path) - 1]
    found = []
    for start, stop in itertools.pairwise(bounds):
        way, back = path[start : stop + 1], path[start : stop + 1][::-1]
        is_backwards = back.tobytes() < way.tobytes()
        found.append((back if is_backwards else way, is_backwards))
    return found


def _ring(pieces: list[_Piece], tolerance: float, exact: set[bytes]) -> np.ndarray:
    """The ring, float `[N, 2]`, each of its pieces simplified but for the exact ones."""
    shapely = require_shapely()
    parts = []
    for way, is_backwards in pieces:
        line = shapely.LineString(np.stack([np.real(way), np.imag(way)], axis=1))
        most = 0.0 if way.tobytes() in exact else tolerance
        points = shapely.get_coordinates(shapely.simplify(line, most, preserve_topology=False))
        parts.append((points[::-1] if is_backwards else points)[:-1])
    return np.concatenate(parts)


def _crossing(found: Sequence[Polygon]) -> set[int]:
    """The polygons that are not valid, and those that overlap others."""
    shapely = require_shapely()
    rings = [p.rings if min(map(len, p.rings)) > 2 else () for p in found]
    shapes = np.array([shapely.Polygon(r[0], r[1:]) if r else shapely.Polygon() for r in rings])
    sound = np.flatnonzero(shapely.is_valid(shapes) & ~shapely.is_empty(shapes))
    one, two = sound[shapely.STRtree(shapes[sound]).query(shapes[sound])]
    one, two = one[one < two], two[one < two]
    overlap = shapely.area(shapely.intersection(shapes[one], shapes[two])) > _AREA
    return (set(range(len(found))) - set(sound.tolist())) | {*one[overlap], *two[overlap]}
