"""Downsampling by area: the mean of the pixels under each new pixel, for any ratio."""

from functools import lru_cache

import numpy as np

MARGIN = 1e-4
"""Far above the rounding error of a mean, so that ties are rounded the same way always."""


def shrink_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The area mean, rounded half up: for 300 -> 100 the mean of each 3x3 box.

    Args:
      image: uint8 `[H, W, C]`.
      size: the new height and width, at most H and W.

    Returns:
      uint8 `[h, w, C]`.
    """
    return np.floor(_mean(image, size) + (0.5 + MARGIN)).astype(np.uint8)


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The majority: 1 where more than half of the new pixel's area is covered.

    Args:
      mask: bool `[H, W]`.
      size: the new height and width, at most H and W.

    Returns:
      uint8 `[h, w, 1]`, 0 or 1; a tie, possible at even ratios only, is 0.
    """
    return (_mean(mask[..., None], size) > 0.5 + MARGIN).astype(np.uint8)


def _mean(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width, channels = values.shape
    # Pillow's box filter would not do: it rounds to 8 bits between its passes, and at fractional
    # ratios it takes or leaves whole pixels.
    rows = _overlaps(height, size[0]) @ values.astype(np.float32).reshape(height, -1)
    sums = _overlaps(width, size[1]) @ rows.reshape(size[0], width, channels)
    return sums / np.float32(height * width / (size[0] * size[1]))


@lru_cache(maxsize=16)
def _overlaps(old: int, new: int) -> np.ndarray:
    """Float32 `[new, old]`: the length of old pixel j in new pixel i; whole if the ratio is."""
    edges = np.arange(new + 1) * old / new
    left, right = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)
    overlap = np.minimum(right, pixels + 1) - np.maximum(left, pixels)
    return np.maximum(overlap, 0).astype(np.float32)
