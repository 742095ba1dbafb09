"""`contact.png` beside the records: random tiles with their labels drawn in.

A shift between images and labels is seen there before anything is trained.
"""

from pathlib import Path

import numpy as np
from PIL import Image

FILE = "contact.png"

ACROSS = 4
"""Tiles side by side, and one below the other."""

SIDE = 240
"""Pixels that a tile is at least enlarged to, by a whole number."""

LINE, FRAME = (255, 232, 0), 6
"""Colour of outlines, and pixels between tiles."""

CONTACT = (255, 0, 160)
"""Colour that contact is tinted with, see `touching`."""


def write(directory: Path, arrays: np.ndarray, seed: int) -> None:
    """Draws sixteen of the tiles, uint8 `[N, H, W, 4]` or with contact `[N, H, W, 5]`, or all."""
    number = min(len(arrays), ACROSS**2)
    chosen = np.sort(np.random.default_rng([seed, len(arrays)]).choice(len(arrays), number, False))
    drawn = [draw(tinted(arrays[k]), arrays[k, :, :, 3] > 0) for k in chosen]
    height, width = (side + FRAME for side in drawn[0].shape[:2])
    rows = -(-number // ACROSS)
    sheet = np.full((rows * height + FRAME, ACROSS * width + FRAME, 3), 255, np.uint8)
    for k, tile in enumerate(drawn):
        top, left = k // ACROSS * height + FRAME, k % ACROSS * width + FRAME
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    Image.fromarray(sheet).save(directory / FILE)


def tinted(pixels: np.ndarray) -> np.ndarray:
    """The image of a tile `[H, W, 4 or 5]`, half of each pixel of contact in its colour."""
    image, is_contact = pixels[..., :3], pixels[..., 4:].any(-1, keepdims=True)
    return np.where(is_contact, image // 2 + np.array(CONTACT, np.uint8) // 2, image)


def draw(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image, enlarged, with a line along the inside of the mask's outline, uint8."""
    times = max(1, -(-SIDE // max(mask.shape)))
    large = image.repeat(times, 0).repeat(times, 1)
    inside = np.pad(mask.repeat(times, 0).repeat(times, 1), 1)
    around = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return np.where((inside[1:-1, 1:-1] & ~around)[..., None], np.array(LINE, np.uint8), large)
