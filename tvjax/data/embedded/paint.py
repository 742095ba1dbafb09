"""A canvas for procedural aerial scenes: textured polygons, shadows, tree crowns, the camera.

Points are float `[K, 2]` in pixels, x to the right and y down; colours are in [0, 1].
"""

from math import ceil
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_ANGLES = np.arange(12) * (np.pi / 6)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
OVERSAMPLING = 2
"""Polygons are drawn at this multiple of the resolution, for smooth edges."""


def noise(rng: np.random.Generator, size: int, scales: tuple[float, ...]) -> np.ndarray:
    """Smooth noise of unit variance, float32 `[size, size]`: octaves of the given feature sizes."""
    total = np.zeros((size, size), np.float32)
    for octave, scale in enumerate(scales):
        cells = ceil(size / scale) + 3
        grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        box = (1, 1, 1 + size / scale, 1 + size / scale)
        smooth = np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC, box=box))
        total += 0.75**octave * smooth
    return (total - total.mean()) / (total.std() + 1e-6)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """The corners of an axis-parallel rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


class Frame:
    """A rotated coordinate system, say of a street or of a house."""

    def __init__(self, origin: Any, angle: float):
        self.origin, self.angle = np.asarray(origin, float), angle
        cos, sin = np.cos(angle), np.sin(angle)
        self.axes = np.array([(cos, sin), (-sin, cos)])

    def __call__(self, points: Any) -> np.ndarray:
        """Image coordinates of points given in this frame."""
        return np.asarray(points, float) @ self.axes + self.origin


class Texture(NamedTuple):
    """A colour with mottling; it is worked out only where it is painted."""

    colour: np.ndarray
    """RGB, in [0, 1]."""
    coarse: np.ndarray
    """Relative strength of the coarse mottling, per channel."""
    fine: float
    """Relative strength of the fine mottling."""


class Canvas:
    """The picture while it is painted, with the textures and the light of its scene."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng, self.size = rng, size
        self.pixels = np.zeros((size, size, 3), np.float32)
        self.coarse = noise(rng, size, (48, 21, 9))[..., None]
        self.fine = noise(rng, size, (5, 2.3, 1.2))[..., None]
        self.sun = Frame((0, 0), rng.uniform(0, 2 * np.pi)).axes[0]
        self.shadow_length = rng.uniform(0.6, 1.5)
        """Length of the shadow of an object of height 1."""
        self.shadow_depth = rng.choice([0.3, 0.5, 0.6, 0.7], p=[0.1, 0.2, 0.4, 0.3])

    def texture(self, colour: Any, coarse: float = 0.06, fine: float = 0.05) -> Texture:
        """A colour with mottling of the given relative strengths."""
        tint = np.asarray(self.rng.normal(1, 0.2, 3), np.float32)
        return Texture(np.asarray(colour, np.float32), coarse * tint, fine)

    def fill(
        self,
        shape: np.ndarray | list[np.ndarray],
        paint: Any,
        *,
        opacity: float = 1.0,
        light: float = 1.0,
    ) -> None:
        """Paints a polygon, or the union of several, with a colour or a `Texture`.

        `light` is a factor of the colour's brightness.
        """
        found = stencil(shape if isinstance(shape, list) else [shape], self.size)
        if found is None:
            return
        window, alpha = found
        if isinstance(paint, Texture):
            mottling = 1 + paint.coarse * self.coarse[window] + paint.fine * self.fine[window]
            paint = paint.colour * mottling
        region = self.pixels[window]
        region += opacity * alpha * (light * paint - region)

    def cast_shadows(self, outlines: list[tuple[np.ndarray, float]], depth: float) -> None:
        """Darkens where objects, given as outline and height in pixels, hide the sun."""
        copies = [
            outline - self.sun * height * self.shadow_length * step
            for outline, height in outlines
            for step in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
        ]
        found = stencil(copies, self.size)
        if found is not None:
            window, alpha = found
            # The blue of the sky remains.
            self.pixels[window] *= 1 - alpha * depth * np.array([1.0, 0.96, 0.86], np.float32)

    def tree(self, centre: np.ndarray, radius: float, colour: np.ndarray) -> None:
        """Paints a crown: dark underneath, lit lumps towards the sun."""
        leaves = self.texture(colour, 0.1, 0.3)
        self.fill(blob(self.rng, centre, radius), leaves, light=0.6)
        lumps = centre + self.rng.normal(0, 0.45 * radius, (int(4 + radius), 2))
        towards = (lumps - centre) @ self.sun
        for light, chosen in ((0.8, towards <= 0), (1.15, towards > 0)):
            radii = radius * self.rng.uniform(0.2, 0.42, len(lumps))
            shapes = [
                blob(self.rng, lump, r)
                for lump, r in zip(lumps[chosen], radii[chosen], strict=True)
            ]
            self.fill(shapes, leaves, opacity=0.75, light=light)


def stroke(start: Any, end: Any, width: float) -> np.ndarray:
    """The outline of a straight line of the given width."""
    (x0, y0), (x1, y1) = start, end
    length = np.hypot(x1 - x0, y1 - y0) + 1e-9
    dx, dy = width * (y0 - y1) / (2 * length), width * (x1 - x0) / (2 * length)
    corners = ((x0 - dx, y0 - dy), (x1 - dx, y1 - dy), (x1 + dx, y1 + dy), (x0 + dx, y0 + dy))
    return np.array(corners)


def blob(rng: np.random.Generator, centre: np.ndarray, radius: float) -> np.ndarray:
    """A round, irregular outline."""
    return centre + radius * rng.uniform(0.75, 1.15, (len(_CIRCLE), 1)) * _CIRCLE


def stencil(polygons: list[np.ndarray], size: int) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """The coverage of the union of polygons, float32 `[h, w, 1]`, and the window it applies to.

    None if the polygons miss the canvas.
    """
    if not polygons:
        return None
    xs, ys = np.concatenate(polygons).T
    left, right = max(int(xs.min()), 0), min(int(xs.max()) + 2, size)
    top, bottom = max(int(ys.min()), 0), min(int(ys.max()) + 2, size)
    if left >= right or top >= bottom:
        return None
    image = Image.new("L", (OVERSAMPLING * (right - left), OVERSAMPLING * (bottom - top)))
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        # Pillow addresses pixels by their centres.
        corners = OVERSAMPLING * (polygon - (left, top)) - 0.5
        draw.polygon(corners.ravel().tolist(), fill=255)
    alpha = np.asarray(image.reduce(OVERSAMPLING), np.float32)[..., None] / np.float32(255)
    return (slice(top, bottom), slice(left, right)), alpha


def photograph(canvas: Canvas) -> Image.Image:
    """The canvas as a camera sees it: haze, exposure, colour cast, blur and sensor noise."""
    rng, pixels = canvas.rng, canvas.pixels
    haze = rng.uniform(0.0, 0.2)
    pixels = (1 - haze) * pixels + haze * np.array([0.42, 0.47, 0.54], np.float32)
    grey = pixels.mean(-1, keepdims=True)
    pixels = grey + rng.uniform(0.65, 0.95) * (pixels - grey)
    cast = np.asarray(rng.normal((0.97, 1.0, 1.02), 0.035), np.float32)
    exposure, contrast = rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.15)
    pixels = ((pixels * exposure * cast - 0.4) * contrast + 0.4).clip(0, 1)
    image = Image.fromarray((255 * pixels).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0)))
    grain = rng.normal(0, rng.uniform(1, 4), (canvas.size, canvas.size, 1))
    colour_grain = rng.normal(0, 1.5, (canvas.size, canvas.size, 3))
    noisy = np.asarray(image, np.float32) + grain + colour_grain
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
