"""Procedural aerial scenes at about 0.3 m a pixel: suburbs, yards and halls, open land.

`paint` draws one scene and returns its buildings. Everything that is no building but could be
taken for one (patios, parking lots, pools, sheds, containers, courts) is painted in the colours of
roofs as well, and often in the same alignment; see `ground`.
"""

from itertools import pairwise

import numpy as np

from tvjax.data.embedded import ground
from tvjax.data.embedded.paint import Canvas, Frame, blob, rectangle, stroke
from tvjax.data.embedded.roofs import PITCHED, Building, draw_building, paint_roof


def paint(canvas: Canvas) -> list[Building]:
    """Paints a random scene; returns its buildings, some of them partly outside the picture."""
    rng = canvas.rng
    kind = rng.choice(["suburb", "yards", "open"], p=[0.74, 0.14, 0.12])
    climate = str(rng.choice(list(ground.GROUNDS)))
    angle = rng.uniform(-0.08, 0.08) if rng.random() < 0.35 else rng.uniform(0, np.pi)
    street = Frame(rng.uniform(0, canvas.size, 2), angle)
    whole = rectangle(0, 0, canvas.size, canvas.size)
    canvas.fill(whole, canvas.texture(ground.soil(rng, climate), 0.09, 0.12))
    layout = {"suburb": _suburb, "yards": _yards, "open": _open_land}[str(kind)]
    buildings, trees = layout(canvas, street, climate)
    canvas.cast_shadows([(b.outline(), b.height) for b in buildings], canvas.shadow_depth)
    for building in buildings:
        paint_roof(canvas, building)
    ground.plant(canvas, trees, climate)
    return buildings


def _suburb(canvas: Canvas, street: Frame, climate: str):
    """Parallel streets; lots back to back between them, each with a house and a garden."""
    rng, reach = canvas.rng, 1.5 * canvas.size
    half, walk = rng.uniform(9, 16), rng.uniform(2.5, 5)
    depth, lot = rng.uniform(62, 90), rng.uniform(50, 80)
    crossing = rng.uniform(-80, 80) if rng.random() < 0.35 else None
    period = 2 * (half + walk + depth)
    soils = [ground.soil(rng, climate) for _ in range(3)]
    buildings: list[Building] = []
    trees: list[tuple[np.ndarray, float]] = []
    for row in range(-2, 3):
        for side in (-1, 1):
            # In a lot's frame the street is at y = 0 and the house looks at it.
            turn = street.angle + (np.pi if side < 0 else 0)
            start = -reach + rng.uniform(0, lot)
            for position in np.arange(start, reach, lot):
                if crossing is not None and abs(position - crossing) < half + walk + lot / 2:
                    continue
                origin = street((position, row * period + side * (half + walk)))
                frame = Frame(origin, turn)
                if ground.is_visible(canvas, frame((0, depth / 2)), (lot + depth) / 2):
                    _lot(canvas, frame, lot, depth, soils, buildings, trees)
    for row in range(-2, 3):
        middle = street((0, row * period))
        ground.road(canvas, Frame(middle, street.angle), half, walk)
    if crossing is not None:
        ground.road(canvas, Frame(street((crossing, 0)), street.angle + np.pi / 2), half, walk)
    return buildings, trees


def _lot(
    canvas: Canvas,
    frame: Frame,
    lot: float,
    depth: float,
    soils: list[np.ndarray],
    buildings: list[Building],
    trees: list[tuple[np.ndarray, float]],
) -> None:
    rng, edge = canvas.rng, lot / 2
    canvas.fill(
        frame(rectangle(-edge, 0, edge, depth)),
        canvas.texture(ground.pick(rng, soils), 0.1, rng.uniform(0.09, 0.16)),
    )
    if rng.random() < 0.6:  # a fence or a wall, and its shadow's side
        shade = rng.choice([0.25, 0.7])
        corners = frame([(edge, 0.3 * depth), (edge, depth), (-edge, depth)])
        walls = [stroke(start, end, 1.2) for start, end in pairwise(corners)]
        canvas.fill(walls, np.full(3, shade))
    for _ in range(rng.poisson(1.3)):
        trees.append((frame((rng.uniform(-edge, edge), rng.uniform(0, depth))), ground.crown(rng)))
    if rng.random() < 0.15:
        return
    setback = rng.uniform(5, 14)
    length = 0.5 * lot * rng.uniform(0.72, 0.96)
    width = 0.5 * depth * rng.uniform(0.46, 0.7)
    middle = (rng.uniform(-1, 1) * (edge - length), setback + width)
    house = Frame(frame(middle), frame.angle + rng.normal(0, 0.03))
    drive = rng.uniform(-0.7, 0.4) * edge
    paving = ground.pick(rng, (ground.CONCRETE, ground.ASPHALT, PITCHED[6]))
    surface = canvas.texture(paving, 0.05, 0.05)
    canvas.fill(frame(rectangle(drive, -4, drive + rng.uniform(8, 15), setback + 4)), surface)
    if rng.random() < 0.5:
        ground.car(canvas, Frame(frame((drive + 5, setback / 2)), frame.angle + np.pi / 2))
    ground.back_yard(canvas, frame, edge, setback + 2 * width, depth)
    buildings.append(draw_building(rng, house, length, width, flat=0.15))


def _yards(canvas: Canvas, street: Frame, climate: str):
    """Blocks of halls, parking lots and storage yards."""
    rng = canvas.rng
    wide, deep, aisle = rng.uniform(80, 140), rng.uniform(60, 100), rng.uniform(12, 26)
    whole = rectangle(0, 0, canvas.size, canvas.size)
    paving = ground.pick(rng, (ground.ASPHALT, ground.CONCRETE))
    canvas.fill(whole, canvas.texture(paving, 0.07, 0.04))
    buildings: list[Building] = []
    trees: list[tuple[np.ndarray, float]] = []
    for i in range(-3, 4):
        for j in range(-4, 5):
            block = Frame(street((i * (wide + aisle), j * (deep + aisle))), street.angle)
            if not ground.is_visible(canvas, block.origin, 100):
                continue
            use = rng.choice(["hall", "parking", "storage", "green"], p=[0.55, 0.22, 0.15, 0.08])
            if use == "hall":
                a, b = wide / 2 * rng.uniform(0.7, 1.0), deep / 2 * rng.uniform(0.6, 1.0)
                buildings.append(draw_building(rng, block, a, b, flat=0.75))
            elif use == "parking":
                ground.parking(canvas, block, wide, deep)
            elif use == "storage":
                ground.storage(canvas, block, wide, deep)
            else:
                lawn = rectangle(-wide / 2, -deep / 2, wide / 2, deep / 2)
                canvas.fill(block(lawn), canvas.texture(ground.soil(rng, climate), 0.1, 0.1))
            for x in np.arange(-wide / 2, wide / 2, 18):
                if rng.random() < 0.25:
                    trees.append((block((x, -deep / 2 - aisle / 2)), ground.crown(rng)))
    return buildings, trees


def _open_land(canvas: Canvas, street: Frame, climate: str):
    """Fields, water, a track, a court, and now and then a farm."""
    rng, size = canvas.rng, canvas.size
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(-size, size, 2)
        field = street(rectangle(x, y, x + rng.uniform(90, 260), y + rng.uniform(90, 260)))
        tilled = canvas.texture(ground.soil(rng, climate), 0.1, 0.08)
        canvas.fill(field, tilled)
    if rng.random() < 0.25:
        shore = blob(rng, rng.uniform(0, size, 2), rng.uniform(40, 110))
        canvas.fill(shore, canvas.texture((0.14, 0.24, 0.28), 0.05, 0.02))
    if rng.random() < 0.7:
        ground.road(canvas, street, rng.uniform(4, 12), rng.uniform(0.5, 3))
    if rng.random() < 0.4:  # a court: a coloured rectangle with lines
        court = Frame(rng.uniform(30, size - 30, 2), street.angle)
        colour = ground.pick(rng, ((0.25, 0.42, 0.34), (0.55, 0.32, 0.24), (0.25, 0.35, 0.5)))
        canvas.fill(court(rectangle(-40, -20, 40, 20)), canvas.texture(colour, 0.04, 0.03))
        lines = [stroke(court((-32, y)), court((32, y)), 0.8) for y in (-14, 0, 14)]
        canvas.fill(lines, ground.MARKING, opacity=0.8)
    count = rng.poisson(rng.choice([3, 12, 40]))
    trees = [(rng.uniform(0, size, 2), ground.crown(rng)) for _ in range(count)]
    buildings = []
    for _ in range(rng.choice([0, 1, 2], p=[0.45, 0.35, 0.2])):
        yard = Frame(rng.uniform(20, size - 20, 2), street.angle + rng.normal(0, 0.2))
        half = rng.uniform(14, 32), rng.uniform(9, 16)
        canvas.fill(
            blob(rng, yard.origin, 1.6 * half[0]), canvas.texture((0.5, 0.45, 0.38)), opacity=0.8
        )
        buildings.append(draw_building(rng, yard, *half, flat=0.2))
    return buildings, trees
