"""Resizing along one axis, window by window, so that no window depends on where others are cut."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

MOST_COLUMNS = 1024
"""Of new pixels whose weights are made at once."""

STRIP = 1 << 18
"""Pixels of a strip that is worked on at once: what is made of it takes many times its memory."""


def strip_rows(width: int) -> int:
    """The rows of a strip of full width."""
    return max(1, STRIP // width)


class Axis(NamedTuple):
    """From `old` pixels to `new` ones.

    Shrinking takes the mean of the pixels under each new pixel, as `tvjax.data.area` shrinks
    training tiles; enlarging interpolates linearly between the centres of pixels.
    """

    old: int
    new: int

    @classmethod
    def scaled(cls, old: int, scale: float) -> "Axis":
        """To `scale` times as many pixels, at least one."""
        return cls(old, max(1, round(old * scale)))

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """The old pixels `[lo, hi)` on which the new pixels `[start, stop)` depend."""
        if self.new <= self.old:
            return start * self.old // self.new, -(-stop * self.old // self.new)
        first, last = ((k + 0.5) * self.old / self.new - 0.5 for k in (start, stop - 1))
        return max(0, int(np.floor(first))), min(self.old, int(np.floor(last)) + 2)

    def weights(self, start: int, stop: int) -> np.ndarray:
        """Float32 `[stop - start, hi - lo]`: each new pixel as a mean of its sources."""
        low, high = self.source(start, stop)
        pixels = np.arange(low, high)
        if self.new <= self.old:
            edges = np.arange(start, stop + 1) * self.old / self.new
            overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
            weights = np.maximum(overlap, 0) * (self.new / self.old)
        else:
            centres = (np.arange(start, stop) + 0.5) * self.old / self.new - 0.5
            centres = np.clip(centres, 0, self.old - 1)  # beyond the last centre its value holds
            weights = np.maximum(1 - np.abs(centres[:, None] - pixels), 0)
        return weights.astype(np.float32)


def resample(block: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Applies weights of rows `[h, H]` and columns `[w, W]` to `[H, W, C]`; float32 `[h, w, C]`."""
    height, width, channels = block.shape
    half = rows @ block.astype(np.float32).reshape(height, -1)
    return columns @ half.reshape(-1, width, channels)


def resample_strips(
    strips: Iterable[np.ndarray], rows: Axis, columns: Axis
) -> Iterator[np.ndarray]:
    """Resizes an image that comes as strips of full width, `[h, columns.old, C]` from the top.

    Yields:
      Strips `[h', columns.new, C]`; together `rows.new` rows.
    """
    if rows.old == rows.new and columns.old == columns.new:
        yield from strips
        return
    most = strip_rows(max(columns.old, columns.new))
    held, first, done = np.empty((0, columns.old, 1), np.float32), 0, 0
    for strip in strips:
        held = np.concatenate([held, strip]) if len(held) else strip
        known = first + len(held)
        while done < rows.new and rows.source(done, done + 1)[1] <= known:
            stop = min(rows.new, done + most)
            while rows.source(done, stop)[1] > known:
                stop -= 1
            low, high = rows.source(done, stop)
            block = held[low - first : high - first]
            yield _widen(block, rows.weights(done, stop), columns)
            done = stop
        keep = rows.source(done, done + 1)[0] if done < rows.new else known
        held, first = held[keep - first :], keep


def _widen(block: np.ndarray, rows: np.ndarray, columns: Axis) -> np.ndarray:
    """Resamples a strip, some columns at a time: a matrix for all would grow as their square."""
    parts = []
    for start in range(0, columns.new, MOST_COLUMNS):
        stop = min(columns.new, start + MOST_COLUMNS)
        low, high = columns.source(start, stop)
        parts.append(resample(block[:, low:high], rows, columns.weights(start, stop)))
    return np.concatenate(parts, axis=1)
