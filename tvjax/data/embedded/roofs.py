"""Procedural buildings: their outlines, and their roofs as a painter sees them from above."""

from typing import NamedTuple

import numpy as np

from tvjax.data.embedded.paint import Canvas, Frame, Texture, rectangle, stroke

PITCHED = (
    (0.68, 0.38, 0.26),  # terracotta
    (0.72, 0.50, 0.38),  # pale clay
    (0.50, 0.24, 0.20),  # dark red
    (0.42, 0.29, 0.23),  # brown
    (0.62, 0.55, 0.46),  # tan shingle
    (0.51, 0.51, 0.53),  # grey shingle
    (0.36, 0.38, 0.43),  # slate
)
FLAT = (
    (0.84, 0.84, 0.83),  # white membrane
    (0.68, 0.67, 0.64),  # gravel
    (0.49, 0.49, 0.50),  # old bitumen
    (0.60, 0.66, 0.74),  # metal
    (0.68, 0.60, 0.52),  # dusty
)


class Building(NamedTuple):
    """A main block with wings on its far side, in the frame of the building."""

    frame: Frame
    """Origin at the centre of the main block, first axis along its ridge."""
    length: float
    """Half of the main block, along the ridge, in pixels."""
    width: float
    """Half of the main block, across the ridge, in pixels."""
    wings: tuple[tuple[float, float, float], ...]
    """Each wing's left end and right end along the ridge, and depth beyond the main block."""
    height: float
    """Height of the walls, in pixels."""
    style: str
    """"gable", "hip" or "flat"."""
    colour: np.ndarray
    """Colour of the roof, RGB in [0, 1]."""

    def outline(self) -> np.ndarray:
        """The corners in the image, float `[K, 2]`."""
        a, b = self.length, self.width
        corners = [(-a, b), (-a, -b), (a, -b), (a, b)]
        for left, right, depth in sorted(self.wings, reverse=True):
            corners += [(right, b), (right, b + depth), (left, b + depth), (left, b)]
        return self.frame(corners)


def draw_building(
    rng: np.random.Generator, frame: Frame, length: float, width: float, *, flat: float
) -> Building:
    """Draws shape, style and colour of a building that fills a block, its roof flat by chance.

    The frame has its origin in the block's centre; length and width are half of the block, along
    the first axis and across, in pixels; `flat` is the probability of a flat roof.
    """
    style = "flat" if rng.random() < flat else str(rng.choice(["gable", "hip"]))
    shape = rng.choice(["block", "L", "T", "U"], p=[0.4, 0.32, 0.18, 0.1])
    wings: list[tuple[float, float, float]] = []
    if shape != "block" and width > 8:
        depth = width * rng.uniform(0.5, 0.9)  # taken from the block's width
        width, centre = width - depth / 2, -depth / 2
        widest = min(1.9 * width, 0.95 * length)
        wing = widest * rng.uniform(0.7, 1.0)
        sides = {"L": (-1,), "T": (0,), "U": (-1, 1)}[str(shape)]
        for side in sides:
            start = -wing / 2 + side * (length - wing / 2)
            wings.append((start, start + wing, depth))
        frame = Frame(frame((0, centre)), frame.angle)
    palette = FLAT if style == "flat" else PITCHED
    colour = np.array(palette[rng.integers(len(palette))]) * rng.normal(1, [0.06, 0.03, 0.03])
    colour = colour * rng.uniform(0.8, 1.15)
    height = rng.uniform(7, 14)
    return Building(frame, length, width, tuple(wings), height, style, colour)


def paint_roof(canvas: Canvas, building: Building) -> None:
    """Paints the roof with its facets lit by the sun, and what stands on it."""
    texture = canvas.texture(building.colour, 0.02, canvas.rng.uniform(0.02, 0.05))
    if building.style == "flat":
        _paint_flat(canvas, building, texture)
    else:
        _paint_pitched(canvas, building, texture)
    _paint_fittings(canvas, building)


def _paint_flat(canvas: Canvas, building: Building, texture: Texture) -> None:
    outline = building.outline()
    canvas.fill(outline, texture, light=canvas.rng.uniform(1.0, 1.2))  # the parapet
    centre = outline.mean(0)
    shrink = 1 - 2.5 / max(building.length, building.width)
    if building.wings:
        canvas.fill(outline, texture, opacity=0.8)
    else:
        canvas.fill(centre + shrink * (outline - centre), texture)
    for _ in range(canvas.rng.integers(0, 4)):  # repairs
        a, b = building.length, building.width
        x, y = canvas.rng.uniform(-0.8, 0.5, 2) * (a, b)
        patch = rectangle(x, y, x + 0.4 * a, y + 0.4 * b)
        canvas.fill(building.frame(patch), texture, opacity=0.6, light=canvas.rng.uniform(0.8, 1.2))


def _paint_pitched(canvas: Canvas, building: Building, texture: Texture) -> None:
    a, b, frame = building.length, building.width, building.frame
    pitch = canvas.rng.uniform(0.2, 0.45)
    inset = min(b, 0.9 * a) if building.style == "hip" else 0.0

    def facet(points: list[tuple[float, float]], normal: tuple[float, float]) -> None:
        lit = 1 + pitch * float(np.asarray(normal) @ frame.axes @ canvas.sun)
        canvas.fill(frame(points), texture, light=lit)

    left, right = (-a + inset, 0.0), (a - inset, 0.0)
    canvas.fill(building.outline(), texture)
    facet([(-a, -b), (a, -b), right, left], (0, -1))
    facet([(-a, b), (a, b), right, left], (0, 1))
    if inset:
        facet([(-a, -b), (-a, b), left], (-1, 0))
        facet([(a, -b), (a, b), right], (1, 0))
    ridges = [(left, right)]
    for x0, x1, depth in building.wings:
        # With equal pitch, a wing of half-width w meets the main slope at w from the eaves.
        middle, w, tip = (x0 + x1) / 2, min((x1 - x0) / 2, b), b + depth
        far = (middle, tip - (min(w, depth) if inset else 0.0))
        near = (middle, b - w)
        facet([(x0, b), (x0, tip), far, near], (-1, 0))
        facet([(x1, b), (x1, tip), far, near], (1, 0))
        if inset:
            facet([(x0, tip), (x1, tip), far], (0, 1))
        ridges.append((near, far))
    lines = [stroke(frame(start), frame(end), 1.2) for start, end in ridges]
    canvas.fill(lines, building.colour * 1.15, opacity=0.5)


def _paint_fittings(canvas: Canvas, building: Building) -> None:
    """Chimneys, skylights, air conditioners and solar panels."""
    rng, a, b = canvas.rng, building.length, building.width
    for _ in range(rng.integers(0, 4 if building.style == "flat" else 3)):
        x, y = rng.uniform(-0.75, 0.75, 2) * (a, b)
        side = rng.uniform(1.2, 3.5 if building.style == "flat" else 2.2)
        box = building.frame(rectangle(x - side, y - side, x + side, y + side))
        canvas.cast_shadows([(box, 3.0)], canvas.shadow_depth)
        canvas.fill(box, np.full(3, rng.uniform(0.2, 0.85)))
    if rng.random() < 0.12:
        panel = building.frame(rectangle(-0.6 * a, 0.2 * b, 0.3 * a, 0.75 * b))
        canvas.fill(panel, np.array([0.13, 0.16, 0.26]))
