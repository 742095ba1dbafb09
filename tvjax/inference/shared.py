"""Fewer corners for polygons that share walls, which stay shared."""

import itertools
from collections.abc import Sequence

import numpy as np

from tvjax.inference import polygons
from tvjax.inference.polygons import Polygon, require_shapely
from tvjax.inference.regularize import are_apart, steps

_HALVES = 3
"""How often a tolerance by which polygons would cross is halved, before they stay as they are."""


def simplify(group: Sequence[Polygon], tolerance: float) -> list[Polygon]:
    """The polygons with fewer corners, none further than `tolerance` pixels from the outline.

    Outlines are cut where more than two of their sides meet, so that a wall that two polygons share
    is simplified once, by Douglas and Peucker's algorithm. Where polygons would then cross
    themselves or each other, the tolerance is less. Needs shapely (the extra `geo`).

    Args:
      group: polygons that touch, of `polygons.trace` or `regularize.regularize`.
      tolerance: pixels, at least 0.
    """
    if len(group) == 1:
        return [polygons.simplify(group[0], tolerance)]
    outlines = [[_dense(ring) for ring in polygon.rings] for polygon in group]
    branching = _branching([path for rings in outlines for path in rings])
    for half in range(_HALVES):
        drawn = [
            [_simplified(path, branching, tolerance / 2**half) for path in rings]
            for rings in outlines
        ]
        found = [
            polygon._replace(shell=rings[0], holes=tuple(rings[1:]))
            for polygon, rings in zip(group, drawn, strict=True)
        ]
        if all(map(_is_valid, found)) and are_apart(found):
            return found
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


def _simplified(path: np.ndarray, branching: np.ndarray, tolerance: float) -> np.ndarray:
    """A ring of which each piece between branching points is simplified, float `[N, 2]`."""
    cuts = np.flatnonzero(np.isin(path, branching))
    cuts = cuts if len(cuts) else np.array([np.lexsort((np.imag(path), np.real(path)))[0]])
    path = np.roll(path, -cuts[0])
    path = np.concatenate([path, path[:1]])
    bounds = [*(cuts - cuts[0]).tolist(), len(path) - 1]
    pieces = [_line(path[a : b + 1], tolerance)[:-1] for a, b in itertools.pairwise(bounds)]
    return np.concatenate(pieces)


def _line(piece: np.ndarray, tolerance: float) -> np.ndarray:
    """A piece with fewer points, the same whichever way it runs."""
    shapely = require_shapely()
    is_backwards = piece[::-1].tobytes() < piece.tobytes()
    way = piece[::-1] if is_backwards else piece
    line = shapely.LineString(np.stack([np.real(way), np.imag(way)], axis=1))
    found = shapely.get_coordinates(shapely.simplify(line, tolerance, preserve_topology=False))
    return found[::-1] if is_backwards else found


def _is_valid(polygon: Polygon) -> bool:
    shapely = require_shapely()
    if min(map(len, polygon.rings)) < 3:
        return False
    return bool(shapely.Polygon(polygon.shell, polygon.holes).is_valid)
