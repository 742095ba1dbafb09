"""What stands between buildings: roads, cars, parking lots, yards, gardens, trees.

Much of it is painted in the colours of roofs and in line with them, so that it can be taken for a
building.
"""

from collections.abc import Sequence

import numpy as np

from tvjax.data.embedded.paint import Canvas, Frame, blob, rectangle, stroke
from tvjax.data.embedded.roofs import FLAT, PITCHED

GROUNDS = {
    "arid": ((0.49, 0.45, 0.38), (0.43, 0.40, 0.35), (0.54, 0.50, 0.44), (0.36, 0.38, 0.27)),
    "green": ((0.30, 0.36, 0.22), (0.25, 0.33, 0.19), (0.38, 0.40, 0.27), (0.44, 0.40, 0.32)),
}
CONCRETE, ASPHALT = (0.58, 0.56, 0.53), (0.30, 0.30, 0.31)
CARS = (
    (0.85, 0.85, 0.85),
    (0.12, 0.12, 0.13),
    (0.5, 0.5, 0.52),
    (0.42, 0.16, 0.14),
    (0.2, 0.26, 0.4),
)
POOL = (0.25, 0.60, 0.66)
MARKING, GLASS = np.array((0.83, 0.82, 0.76)), np.array((0.12, 0.14, 0.17))


def back_yard(canvas: Canvas, frame: Frame, edge: float, near: float, far: float) -> None:
    """A patio, a pool, a shed: shaped and coloured like small roofs."""
    rng = canvas.rng
    for kind, chance in (("patio", 0.4), ("pool", 0.25), ("shed", 0.4)):
        if rng.random() > chance or far - near < 8:
            continue
        w, h = {"patio": (14, 9), "pool": (9, 6), "shed": (5, 4)}[kind] * rng.uniform(0.7, 1.4, 2)
        x = rng.uniform(-edge, max(edge - w, -edge + 1))
        y = near if kind == "patio" else rng.uniform(near, max(far - h, near + 1))
        shape = frame(rectangle(x, y, x + w, min(y + h, far)))
        if kind == "pool":
            canvas.fill(frame(rectangle(x - 2, y - 2, x + w + 2, y + h + 2)), np.array(CONCRETE))
            canvas.fill(shape, canvas.texture(POOL, 0.03, 0.03))
            continue
        if kind == "shed":
            canvas.cast_shadows([(shape, 5)], canvas.shadow_depth)
        canvas.fill(shape, canvas.texture(pick(rng, PITCHED + FLAT), 0.05, 0.05))


def parking(canvas: Canvas, block: Frame, wide: float, deep: float) -> None:
    """Paints a lot with rows of bays and cars; it fills a block of the given sides."""
    rng = canvas.rng
    lot = rectangle(-wide / 2, -deep / 2, wide / 2, deep / 2)
    canvas.fill(block(lot), canvas.texture(pick(rng, (ASPHALT, CONCRETE, FLAT[2])), 0.06, 0.04))
    full = rng.uniform(0.1, 0.8)
    rows = np.arange(-deep / 2 + 2, deep / 2 - 16, 34)
    bays = [(x, y) for y in rows for x in np.arange(-wide / 2 + 2, wide / 2 - 8, 8.5)]
    lines = [stroke(block((x, y)), block((x, y + 16)), 0.7) for x, y in bays]
    canvas.fill(lines, MARKING, opacity=0.7)
    for x, y in bays:
        if rng.random() < full:
            car(canvas, Frame(block((x + 4.2, y + 8)), block.angle + np.pi / 2))


def storage(canvas: Canvas, block: Frame, wide: float, deep: float) -> None:
    """Containers and trailers: as bright and straight as roofs, and too small for houses."""
    rng = canvas.rng
    lot = rectangle(-wide / 2, -deep / 2, wide / 2, deep / 2)
    canvas.fill(block(lot), canvas.texture(pick(rng, (CONCRETE, (0.5, 0.45, 0.38))), 0.1, 0.06))
    for _ in range(rng.integers(3, 14)):
        x, y = rng.uniform(-0.45, 0.35, 2) * (wide, deep)
        box = rectangle(x, y, x + rng.uniform(18, 38), y + rng.uniform(7, 9))
        box = block(box if rng.random() < 0.7 else box[:, ::-1])
        canvas.cast_shadows([(box, 6)], canvas.shadow_depth)
        colours = (*FLAT, *PITCHED[:3], (0.2, 0.32, 0.5), (0.25, 0.4, 0.3))
        canvas.fill(box, canvas.texture(pick(rng, colours), 0.04, 0.04))


def road(canvas: Canvas, frame: Frame, half: float, walk: float) -> None:
    """Paints a straight road along the frame's first axis: half its width, and its pavement."""
    rng, reach = canvas.rng, 2.0 * canvas.size
    distance = abs(float((canvas.size / 2 - frame.origin) @ frame.axes[1]))
    if distance > half + walk + canvas.size / np.sqrt(2):
        return
    pavement = canvas.texture(CONCRETE, 0.05, 0.05)
    canvas.fill(frame(rectangle(-reach, -half - walk, reach, half + walk)), pavement)
    asphalt = canvas.texture(np.array(ASPHALT) * rng.uniform(0.8, 1.3), 0.06, 0.04)
    canvas.fill(frame(rectangle(-reach, -half, reach, half)), asphalt)
    patches = [
        frame(rectangle(x, -half, x + 20, half * rng.uniform(-0.5, 1)))
        for x in rng.uniform(-canvas.size, canvas.size, rng.integers(0, 4))
    ]
    canvas.fill(patches, asphalt, opacity=0.7, light=0.85)
    if rng.random() < 0.5:
        starts = np.arange(-reach, reach, 18)
        dashes = [stroke(frame((x, 0)), frame((x + 9, 0)), 0.9) for x in starts]
        canvas.fill(dashes, MARKING, opacity=0.8)
    for x in np.arange(-canvas.size, canvas.size, 22):
        if rng.random() < 0.2 and half > 8:
            y = rng.choice([-1, 1]) * (half - 4.5)
            car(canvas, Frame(frame((x, y)), frame.angle))


def car(canvas: Canvas, frame: Frame) -> None:
    """Paints a car along the frame's first axis."""
    if not is_visible(canvas, frame.origin, 12):
        return
    body = frame(rectangle(-7, -3, 7, 3))
    canvas.cast_shadows([(body, 3)], canvas.shadow_depth)
    canvas.fill(body, np.array(pick(canvas.rng, CARS)))
    windows = [frame(rectangle(x, -2.4, x + 2.2, 2.4)) for x in (-4.5, 1.5)]
    canvas.fill(windows, GLASS, opacity=0.85)


def plant(canvas: Canvas, trees: list[tuple[np.ndarray, float]], climate: str) -> None:
    """Paints trees, given as centre and radius, with their shadows."""
    rng = canvas.rng
    trees = [(centre, radius) for centre, radius in trees if is_visible(canvas, centre, 25)]
    shadows = [(blob(rng, centre, radius), 1.2 * radius) for centre, radius in trees]
    canvas.cast_shadows(shadows, canvas.shadow_depth)
    leaf = np.array((0.20, 0.27, 0.16) if climate == "green" else (0.23, 0.26, 0.19))
    for centre, radius in trees:
        canvas.tree(centre, radius, leaf * rng.normal(1, 0.12, 3).clip(0.7, 1.3))


def crown(rng: np.random.Generator) -> float:
    """Draws the radius of a tree, in pixels."""
    return float(rng.uniform(3, 7) if rng.random() < 0.6 else rng.uniform(7, 14))


def is_visible(canvas: Canvas, point: np.ndarray, margin: float) -> bool:
    """Whether a point is inside the picture or at most `margin` pixels outside."""
    return bool(np.all(point > -margin) and np.all(point < canvas.size + margin))


def pick(rng: np.random.Generator, colours: Sequence) -> np.ndarray:
    """Draws one of several colours, and varies it a little."""
    return np.array(colours[int(rng.integers(len(colours)))]) * rng.normal(1, 0.04, 3)


def soil(rng: np.random.Generator, climate: str) -> np.ndarray:
    """Draws the colour of open ground."""
    return pick(rng, GROUNDS[climate])
