"""Downsampling by area: the mean of the pixels under each new pixel, for any ratio, exactly.

Lengths are whole numbers of `1 / new` pixels, so that sums over areas are whole numbers too, which
float64 holds exactly up to 2^53: no result depends on the order of a sum or on the processor.
Products are sparse, by rows then columns: a new pixel lies over few old ones, and the threads of a
dense product would wait for each other on busy cores.
"""

from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array


def shrink_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The area mean, rounded half up: for 300 -> 100 the mean of each 3x3 box.

    Args:
      image: uint8 `[H, W, C]`.
      size: the new height and width, at most H and W.

    Returns:
      uint8 `[h, w, C]`.
    """
    weights = (_whole(old, new) for old, new in zip(image.shape[:2], size, strict=True))
    return mean(image, *weights, total=image.shape[0] * image.shape[1])


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The majority: 1 where more than half of the new pixel's area is covered.

    Args:
      mask: bool `[H, W]`.
      size: the new height and width, at most H and W.

    Returns:
      uint8 `[h, w, 1]`, 0 or 1; a tie, exactly half of the area, is 0.
    """
    return (2 * sums(mask[..., None], size) > mask.size).astype(np.uint8)


def sums(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sums over the area under each new pixel, H W times the mean, exact.

    Args:
      values: bool or uint8 `[H, W, C]`.
      size: the new height and width `h, w`.

    Returns:
      Float64 whole numbers `[h, w, C]`, at most 255 H W.
    """
    height, width = values.shape[:2]
    return weigh(values, _whole(height, size[0]), _whole(width, size[1]))


def mean(image: np.ndarray, rows: csr_array, columns: csr_array, total: int) -> np.ndarray:
    """Weighted sums of uint8 pixels divided by `total`, rounded half up, uint8; see `weigh`."""
    # A quotient of whole numbers that is none itself is further from the next one than rounding
    # goes: the floor is exact.
    return np.floor((weigh(image, rows, columns) + total / 2) / total).astype(np.uint8)


def weigh(values: np.ndarray, rows: csr_array, columns: csr_array) -> np.ndarray:
    """Sums with weights of rows `[h, H]` and columns `[w, W]`: `[H, W, C]` -> float64 `[h, w, C]`.

    Exact if values and weights are whole numbers and the sums below 2^53.
    """
    # Pillow's box filter would not do: it rounds to 8 bits between its passes, and at fractional
    # ratios it takes or leaves whole pixels.
    height, width, channels = values.shape
    number = len(rows.indptr) - 1
    most = 255 * rows.sum() / number  # all rows have one sum
    small = values.dtype.itemsize == 1 and most < 1 << 24
    kind = np.float32 if small else np.float64  # both exact, and float32 the quicker
    half = rows.astype(kind) @ values.reshape(height, -1).astype(kind)
    half = half.reshape(-1, width, channels).swapaxes(0, 1).reshape(width, -1)
    found = columns @ half.astype(np.float64)  # one product for all rows, not one for each
    return found.reshape(-1, number, channels).swapaxes(0, 1)


def banded(first: np.ndarray, weights: np.ndarray, size: int) -> csr_array:
    """The matrix `[N, size]` of which row i holds `weights[i]`, `[N, K]`, from column `first[i]`.

    Columns beyond the last are left out.
    """
    columns = first[:, None] + np.arange(weights.shape[1])
    inside = columns < size
    ends = np.append(0, np.cumsum(inside.sum(axis=1)))
    parts = weights[inside].astype(np.float64), columns[inside], ends
    return csr_array(parts, shape=(len(first), size))


def overlaps(old: int, new: int, start: int, stop: int) -> csr_array:
    """How much of the new pixels `[start, stop)` lies over each old pixel.

    Returns:
      Float64 whole numbers `[stop - start, hi - lo]`: the length of old pixel j in new pixel i,
      times `new`, for the old pixels `[lo, hi)` that `span` gives. Each row sums to `old`.
    """
    low, high = span(old, new, start, stop)
    starts = np.arange(start, stop) * old
    first, last = starts // new, -(-(starts + old) // new)
    pixels = (first[:, None] + np.arange(np.max(last - first))) * new
    shared = np.minimum((starts + old)[:, None], pixels + new)
    shared -= np.maximum(starts[:, None], pixels)
    return banded(first - low, np.maximum(shared, 0), high - low)


def span(old: int, new: int, start: int, stop: int) -> tuple[int, int]:
    """The old pixels `[lo, hi)` under the new pixels `[start, stop)`."""
    return start * old // new, -(-stop * old // new)


@lru_cache(maxsize=16)
def _whole(old: int, new: int) -> csr_array:
    return overlaps(old, new, 0, new)
