"""Polygons with the right angles of roofs: walls that are straight and square within a pixel or so.

Outlines are cut where they branch, so that a wall of two objects is handled once and stays theirs.
Each piece becomes a few straight edges (Douglas and Peucker). Edges that run along one of the two
directions of an object, within what a pixel grid can tell, are its walls: the walls' mean fixes one
coordinate of their ends, in the frame of the two directions, so that corners are exactly square.
Other edges stay as they run. A polygon that this would change by more than is allowed, or that has
few right angles, stays as it was traced.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tvjax.inference.polygons import Polygon, require_shapely

MOST_CHANGE = 0.1
"""The share of its area, added and taken away, that a polygon may change by."""

LEAST_SQUARE = 0.5
"""The share of a polygon's outline in walls with a right angle, above which it is made square."""

MOST_STEPS = 1_000_000
"""Pixel edges of the outlines that are worked on together; larger objects stay as they are."""

_TOLERANCE = 1.25
"""How far, in pixels, outlines may leave straight edges: a pixel grid does so by 0.7."""

_FINE, _COARSE = 0.03, 0.07
"""The same as shares of the side of a square of the object's area, where that is more: at first,
and for outlines that have too few right angles by that."""

_ROUNDS = 4
"""How often a group of touching polygons is drawn anew without those that may not change."""


class _Pieces(NamedTuple):
    """Outlines, cut where they branch; each piece once, whatever number of rings it is part of."""

    paths: list[np.ndarray]
    """Int `[N, 2]`: grid points one pixel apart; closed ones lack the repeated first point."""
    is_closed: list[bool]
    owners: list[set[int]]
    rings: list[list[list[tuple[int, bool]]]]
    """Pieces of each ring of each polygon, and whether they run backwards."""


class _Edges(NamedTuple):
    """Straight edges of the pieces, and the middles of the pixel edges that they stand for."""

    piece: np.ndarray
    """Int `[E]`."""
    ends: np.ndarray
    """Int `[E, 2]`: numbers of points."""
    way: np.ndarray
    """Float `[E, 2]`: from one end of the outline to the other."""
    points: np.ndarray
    """Float `[P, 2]`."""
    middles: np.ndarray
    """Float `[M, 2]`, without those near the edges' ends."""
    edge: np.ndarray
    """Int `[M]`, the edge of each middle, rising."""


def regularize(
    polygons: Sequence[Polygon], *, most_change: float = MOST_CHANGE, aspect: float = 1.0
) -> list[Polygon]:
    """The polygons with right angles where their outlines say so.

    A polygon changes by at most `most_change`: the area that it and what was traced do not share,
    over the area traced. It stays as it is if more would be needed, if most of its outline is in
    no walls with right angles (round objects), or if it would touch itself. Walls that polygons
    share stay shared, point by point. Needs shapely (the extra `geo`).

    Args:
      polygons: results of `polygons.trace`, or others whose corners are integers and whose sides
        are parallel to the axes. Those that touch must come together; they get one pair of
        directions.
      most_change: a share in [0, 1].
      aspect: width of a pixel over its height, on the ground, where angles are to be right ones.

    Raises:
      UserError: shapely is missing.
      ValueError: a side is not parallel to an axis, `most_change` is no such share, or `aspect` is
        not positive and finite.

    Example:
      >>> from tvjax.inference.polygons import trace
      >>> y, x = np.mgrid[:40, :40]
      >>> turned = (abs(3 * x + 4 * y - 140) < 75) & (abs(4 * x - 3 * y - 20) < 50)
      >>> (traced,) = trace([turned.astype(float)])
      >>> (roof,) = regularize([traced])
      >>> len(traced.shell), len(roof.shell)
      (116, 4)
    """
    if isinstance(most_change, (bool, str)) or not 0 <= most_change <= 1:
        raise ValueError(f"most_change must be a number in [0, 1]; got {most_change!r}")
    if not 0 < aspect < np.inf:
        raise ValueError(f"aspect must be positive and finite; got {aspect!r}")
    require_shapely()
    number = sum(int(np.abs(np.diff(r, axis=0)).sum()) for p in polygons for r in p.rings)
    if not polygons or number > MOST_STEPS:
        return list(polygons)
    pieces = _cut(polygons)
    side = min(polygon.area for polygon in polygons) ** 0.5
    fine = max(_TOLERANCE, _FINE * side)
    for tolerance in sorted({fine, max(fine, _COARSE * side)}):
        found = _square(polygons, pieces, tolerance, most_change, aspect)
        if found is not None:
            return found
    return list(polygons)


def _square(
    polygons: Sequence[Polygon],
    pieces: _Pieces,
    tolerance: float,
    most_change: float,
    aspect: float,
) -> list[Polygon] | None:
    """The polygons, as many as possible with right angles; None if that is none."""
    ground = np.array([aspect**0.5, aspect**-0.5])  # of a pixel, whose area stays 1
    edges = _straighten(pieces, tolerance)
    points, middles = edges.points * ground, edges.middles * ground
    edges = edges._replace(way=edges.way * ground, points=points, middles=middles)
    edges = _with_corners(pieces, edges, tolerance)
    kept: set[int] = set()
    for _ in range(_ROUNDS):
        is_free = np.any(_pinned(pieces, edges, kept)[edges.ends], axis=1)
        walls = _find_walls(edges, np.asarray(is_free), tolerance)
        # A neighbour that stays as it is must not make a polygon round: the next one would follow.
        worse = set() if kept else _few_corners(pieces, edges, walls)
        if len(kept | worse) == len(polygons):
            break
        drawn = _draw(polygons, pieces, edges, walls, kept, ground)
        pairs = enumerate(zip(polygons, drawn, strict=True))
        worse |= {k for k, (old, new) in pairs if not _is_near(old, new, most_change)}
        if worse <= kept:
            return drawn if _are_apart(drawn) else None
        kept |= worse
    return None


def _cut(polygons: Sequence[Polygon]) -> _Pieces:
    """Outlines as pieces between the points where they branch."""
    paths = [[steps(ring) for ring in polygon.rings] for polygon in polygons]
    branching = _branching([path for rings in paths for path in rings])
    known: dict[bytes, int] = {}
    found = _Pieces([], [], [], [])
    for owner, rings in enumerate(paths):
        cut = []
        for path in rings:
            here = []
            for piece, is_closed in _parts(path, branching):
                ways = piece, np.roll(piece[::-1], 1, 0) if is_closed else piece[::-1]
                one, two = (np.ascontiguousarray(way).tobytes() for way in ways)
                number = known.setdefault(min(one, two), len(found.paths))
                if number == len(found.paths):
                    found.paths.append(ways[int(two < one)])
                    found.is_closed.append(is_closed)
                    found.owners.append(set())
                found.owners[number].add(owner)
                here.append((number, two < one))
            cut.append(here)
        found.rings.append(cut)
    return found


def steps(ring: np.ndarray) -> np.ndarray:
    """The ring's points one pixel apart, int `[N, 2]`."""
    sides = np.roll(ring, -1, axis=0) - ring
    lengths = np.abs(sides).sum(1)
    if not np.issubdtype(ring.dtype, np.integer) or (np.abs(sides).min(1) > 0).any():
        raise ValueError("polygons must have integer corners and sides parallel to the axes")
    along = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(ring, lengths, axis=0) + along[:, None] * np.repeat(np.sign(sides), lengths, 0)


def _codes(points: np.ndarray) -> np.ndarray:
    """A number for each point, equal for equal ones, that rises along x, then along y."""
    return points[:, 0].astype(np.int64) * (1 << 32) + points[:, 1]


def _branching(paths: list[np.ndarray]) -> np.ndarray:
    """Codes of the points where more than two pixel edges meet, sorted."""
    ends = [np.stack([_codes(path), _codes(np.roll(path, -1, axis=0))], 1) for path in paths]
    edges = np.unique(np.sort(np.concatenate(ends), axis=1), axis=0)
    codes, counts = np.unique(edges, return_counts=True)
    return codes[counts > 2]


def _parts(path: np.ndarray, branching: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    """A ring's pieces from one branching point to the next, or the closed ring itself."""
    codes = _codes(path)
    cuts = np.flatnonzero(np.isin(codes, branching))
    if not len(cuts):
        return [(np.roll(path, -int(codes.argmin()), axis=0), True)]
    path = np.roll(path, -cuts[0], axis=0)
    path = np.concatenate([path, path[:1]])
    bounds = [*(cuts - cuts[0]).tolist(), len(path) - 1]
    return [(path[a : b + 1], False) for a, b in itertools.pairwise(bounds)]


def _straighten(pieces: _Pieces, tolerance: float) -> _Edges:
    """Straight edges of all pieces, none further than `tolerance` from the outline."""
    shapely = require_shapely()
    numbers: dict[int, int] = {}  # of the points where pieces meet
    points, middles, edge, piece, ends = [], [], [], [], []
    for number, path in enumerate(pieces.paths):
        if pieces.is_closed[number]:
            path = np.concatenate([path, path[:1]])
        centres = (path[:-1] + path[1:]) / 2
        line = np.concatenate([path[:1], centres, path[-1:]])
        simple = shapely.simplify(shapely.LineString(line), tolerance, preserve_topology=False)
        chosen = _indices(line, shapely.get_coordinates(simple))
        own = []
        for k in chosen.tolist():
            if k in (0, len(line) - 1):
                code = int(_codes(path[:1] if k == 0 else path[-1:])[0])
                place = numbers.setdefault(code, len(points))
            else:
                place = len(points)
            if place == len(points):
                points.append(line[k])
            own.append(place)
        for (a, b), (one, two) in zip(
            itertools.pairwise(chosen.tolist()), itertools.pairwise(own), strict=True
        ):
            within = centres[max(a - 1, 0) : b]
            margin = min(2, len(within) // 4)
            within = within[margin : len(within) - margin]
            middles.append(within)
            edge.append(np.full(len(within), len(ends)))
            ends.append((one, two))
            piece.append(number)
    places, numbered = np.array(points, float), np.array(ends)
    return _Edges(
        np.array(piece), numbered, places[numbered[:, 1]] - places[numbered[:, 0]], places,
        np.concatenate(middles), np.concatenate(edge),
    )  # fmt: skip


def _indices(line: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where the points of a simplified line are in the line, whose inner points differ."""
    codes = _codes(np.rint(2 * line[1:-1]))
    order = np.argsort(codes)
    inner = np.searchsorted(codes, _codes(np.rint(2 * chosen[1:-1])), sorter=order)
    return np.array([0, *(order[inner] + 1).tolist(), len(line) - 1])


def _with_corners(pieces: _Pieces, edges: _Edges, tolerance: float) -> _Edges:
    """The edges without short ones that cut the corner of two walls, which meet in its place."""
    line, across, _ = _fitted(edges, np.zeros(len(edges.piece), bool), tolerance)
    before, after = _neighbours(pieces, edges)
    length = np.hypot(*edges.way.T)
    shorter = 0.7 * np.minimum(length[before], length[after])
    is_cut = (line < 0) & (length <= np.clip(shorter, 2 * tolerance, 2 * tolerance + 3.5))
    between = (before >= 0) & (after >= 0) & (line[before] >= 0) & (line[after] >= 0)
    cuts = is_cut & between & (across[before] != across[after])
    names = _joined(len(edges.points), edges.ends[cuts])
    number = np.cumsum(~cuts) - 1
    stays = ~cuts[edges.edge]
    return edges._replace(
        piece=edges.piece[~cuts], ends=names[edges.ends[~cuts]], way=edges.way[~cuts],
        middles=edges.middles[stays], edge=number[edges.edge[stays]],
    )  # fmt: skip


def _neighbours(pieces: _Pieces, edges: _Edges) -> tuple[np.ndarray, np.ndarray]:
    """The edges before and after each in its piece, -1 for none."""
    numbers = np.arange(len(edges.piece))
    first = np.searchsorted(edges.piece, np.arange(len(pieces.paths)))
    last = np.searchsorted(edges.piece, np.arange(len(pieces.paths)), "right") - 1
    is_closed = np.array(pieces.is_closed)
    before, after = numbers - 1, numbers + 1
    before[first] = np.where(is_closed, last, -1)
    after[last] = np.where(is_closed, first, -1)
    return before, after


class _Walls(NamedTuple):
    """Edges that run along one of the two directions."""

    frame: np.ndarray
    """Float `[2, 2]`: the directions, as rows."""
    line: np.ndarray
    """Int `[E]`: edges of one number are on one line; -1: no wall."""
    across: np.ndarray
    """Int `[E]`: the coordinate in the frame that is the same along the wall."""
    value: np.ndarray
    """Float `[E]`: that coordinate."""


def _find_walls(edges: _Edges, is_free: np.ndarray, tolerance: float) -> _Walls:
    """Walls among the edges that are not free, bool `[E]`, with those that make right angles."""
    line, across, frame = _fitted(edges, is_free, tolerance)
    means = _means(line[edges.edge], edges.middles @ frame.T)
    line[~_are_square(edges, line, across)] = -1
    value = np.take_along_axis(means[line], across[:, None], 1)[:, 0]
    return _Walls(frame, line, across, value)


def _fitted(
    edges: _Edges, is_free: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `_lines` gives in the frame that fits best, and that frame."""
    frame = _main_directions(edges, is_free)
    for _ in range(2):
        line, across = _lines(edges, frame, is_free, tolerance)
        frame = _aligned(edges, line, across, frame)
    return *_lines(edges, frame, is_free, tolerance), frame


def _lines(
    edges: _Edges, frame: np.ndarray, is_free: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The line that each edge is on, -1 for none, and which coordinate stays the same along it."""
    across, is_wall = _classes(edges, frame, tolerance)
    line = np.full(len(across), -1)
    for axis in (0, 1):
        mine = is_wall & ~is_free & (across == axis)
        names = 2 * _joined(len(edges.points), edges.ends[mine]) + axis
        line[mine] = names[edges.ends[mine, 0]]
    named = line[edges.edge]
    places = edges.middles @ frame.T
    off = np.abs(places - _means(named, places)[named])[np.arange(len(named)), across[edges.edge]]
    line[np.isin(line, named[off > 1.5 * tolerance])] = -1
    return line, across


def _joined(count: int, pairs: np.ndarray) -> np.ndarray:
    """What `data.splits.join` gives, without its setting up, for pairs that make short chains."""
    names = np.arange(count)
    while True:
        lower = names.copy()
        np.minimum.at(lower, pairs, names[pairs].min(1, keepdims=True))
        lower = lower[lower]
        if np.array_equal(lower, names):
            return names
        names = lower


def _means(named: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Means `[most + 2, 2]` of the places of each name in -1, 0, ..., most; -1 is the last."""
    most = int(named.max(initial=0)) + 2
    count = np.maximum(np.bincount(named % most, minlength=most), 1)
    return np.stack([np.bincount(named % most, x, most) / count for x in places.T], 1)


def _are_square(edges: _Edges, line: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Which edges are on a line that has a right angle."""
    meets = np.zeros((2, len(edges.points)), bool)
    for axis in (0, 1):
        meets[axis, edges.ends[(line >= 0) & (across == axis)]] = True
    has_corner = np.any(np.all(meets, axis=0, keepdims=True)[0, edges.ends], axis=1)
    return np.isin(line, line[has_corner]) & (line >= 0)


def _main_directions(edges: _Edges, is_free: np.ndarray) -> np.ndarray:
    """The two directions, float `[2, 2]`, that the longest edges have."""
    length, (x, y) = np.hypot(*edges.way.T) * ~is_free, edges.way.T
    turn = np.sum(length**2 * np.exp(4j * np.arctan2(y, x)))
    return _rotation(float(np.angle(turn)) / 4)


def _aligned(edges: _Edges, line: np.ndarray, across: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The frame, turned to where the outline is nearest to its lines by least squares."""
    named = line[edges.edge]
    places = edges.middles @ frame.T
    on_line = np.flatnonzero(named >= 0)
    spread = (places - _means(named, places)[named])[on_line]
    is_steep = across[edges.edge][on_line, None] == 0
    x, y = np.where(is_steep, spread[:, ::-1] * (1, -1), spread).T
    return _rotation(float(np.arctan2(2 * x @ y, x @ x - y @ y)) / 2) @ frame


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def _classes(edges: _Edges, frame: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Which coordinate changes less along each edge, and whether it changes as little as the
    pixel grid can be the reason of."""
    way = np.abs(edges.way @ frame.T)
    across = way.argmin(1)
    return across, way.min(1) <= np.minimum(2 * tolerance, 0.7 * way.max(1))


def _pinned(pieces: _Pieces, edges: _Edges, kept: set[int]) -> np.ndarray:
    """Bool `[P]`: the points of polygons that stay as they were traced."""
    as_traced = np.array([bool(owners & kept) for owners in pieces.owners])
    pinned = np.zeros(len(edges.points), bool)
    pinned[edges.ends[as_traced[edges.piece]]] = True
    return pinned


def _few_corners(pieces: _Pieces, edges: _Edges, walls: _Walls) -> set[int]:
    """The polygons that are mostly no walls with right angles."""
    length = np.hypot(*edges.way.T)
    total, square = (
        np.bincount(edges.piece, weights, len(pieces.paths))
        for weights in (length, length * (walls.line >= 0))
    )
    own = [[number for ring in rings for number, _ in ring] for rings in pieces.rings]
    return {
        k for k, parts in enumerate(own) if square[parts].sum() <= LEAST_SQUARE * total[parts].sum()
    }


def _draw(
    polygons: Sequence[Polygon],
    pieces: _Pieces,
    edges: _Edges,
    walls: _Walls,
    kept: set[int],
    ground: np.ndarray,
) -> list[Polygon]:
    """The polygons with straight walls, but those in `kept` as they were traced."""
    pinned, is_wall = _pinned(pieces, edges, kept), walls.line >= 0
    placed = edges.points @ walls.frame.T
    placed[edges.ends[is_wall], walls.across[is_wall, None]] = walls.value[is_wall, None]
    placed = np.where(pinned[:, None], edges.points, placed @ walls.frame) / ground
    first = np.searchsorted(edges.piece, np.arange(len(pieces.paths) + 1))
    paths = []
    for number, path in enumerate(pieces.paths):
        own = slice(first[number], first[number + 1])
        if not pieces.owners[number] & kept:
            path = _path(placed, edges.ends[own], walls.line[own], pieces.is_closed[number])
        paths.append(path)
    drawn = []
    for k, (polygon, rings) in enumerate(zip(polygons, pieces.rings, strict=True)):
        if k not in kept:
            shell, *holes = (_ring(paths, pieces, ring) for ring in rings)
            polygon = polygon._replace(shell=shell, holes=tuple(holes))
        drawn.append(polygon)
    return drawn


def _path(placed: np.ndarray, ends: np.ndarray, line: np.ndarray, is_closed: bool) -> np.ndarray:
    """A piece's corners without those within a wall; closed ones lack the repeated first point."""
    before = np.roll(line, 1)
    is_corner = (line < 0) | (line != before)
    if is_closed:
        return placed[ends[is_corner, 0]]
    is_corner[0] = True
    return placed[[*ends[is_corner, 0], ends[-1, 1]]]


def _ring(paths: list[np.ndarray], pieces: _Pieces, ring: list[tuple[int, bool]]) -> np.ndarray:
    parts = []
    for number, is_backwards in ring:
        path = paths[number][::-1] if is_backwards else paths[number]
        parts.append(path if pieces.is_closed[number] else path[:-1])
    return np.concatenate(parts)


def _is_near(old: Polygon, new: Polygon, most_change: float) -> bool:
    """Whether the new polygon is valid and near enough to the old one."""
    if old is new:
        return True
    if min(map(len, new.rings)) < 3:
        return False
    shapely = require_shapely()
    traced, drawn = (shapely.Polygon(p.shell, p.holes) for p in (old, new))
    if not drawn.is_valid:
        return False
    return traced.symmetric_difference(drawn).area <= most_change * traced.area


def _are_apart(polygons: Sequence[Polygon]) -> bool:
    """Whether no two polygons overlap."""
    if len(polygons) < 2:
        return True
    shapely = require_shapely()
    shapes = [shapely.Polygon(p.shell, p.holes) for p in polygons]
    total = sum(shape.area for shape in shapes)
    return abs(shapely.union_all(shapes).area - total) <= 1e-6 * total
