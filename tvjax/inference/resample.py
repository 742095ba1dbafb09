"""Resizing along one axis, window by window, so that no window depends on where others are cut."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tvjax.data.area import overlaps, span, weigh

MOST_COLUMNS = 1024
"""Columns of new pixels whose weights are made at once."""

STRIP = 1 << 18
"""Pixels of a strip that is worked on at once: what is made of it takes many times its memory."""


def strip_rows(width: int) -> int:
    """The rows of a strip of full width."""
    return max(1, STRIP // width)


class Axis(NamedTuple):
    """Makes `new` pixels of `old` ones by weights that are whole numbers: sums have no rounding.

    Shrinking takes the mean of the pixels under each new pixel, as `tvjax.data.area` shrinks
    training tiles; enlarging interpolates linearly between the centres of pixels.
    """

    old: int
    new: int

    @classmethod
    def scaled(cls, old: int, scale: float) -> "Axis":
        """The axis to `scale` times as many pixels, at least one."""
        return cls(old, max(1, round(old * scale)))

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """The old pixels `[lo, hi)` on which the new pixels `[start, stop)` depend."""
        if self.new <= self.old:
            return span(self.old, self.new, start, stop)
        first, last = (self._centre(k) // (2 * self.new) for k in (start, stop - 1))
        return max(0, first), min(self.old, last + 2)

    def weights(self, start: int, stop: int) -> np.ndarray:
        """Whole numbers `[stop - start, hi - lo]`, float64: what each source weighs of `total`."""
        if self.new <= self.old:
            return overlaps(self.old, self.new, start, stop)
        low, high = self.source(start, stop)
        # Beyond the last centre its value holds.
        centres = np.clip(
            self._centre(np.arange(start, stop)[:, None]), 0, 2 * self.new * (self.old - 1)
        )
        shared = 2 * self.new - np.abs(centres - 2 * self.new * np.arange(low, high))
        return np.maximum(shared, 0).astype(np.float64)

    @property
    def total(self) -> int:
        """The sum of a new pixel's weights."""
        return self.old if self.new <= self.old else 2 * self.new

    def _centre(self, new: Any) -> Any:
        """Where the centre of a new pixel lies between those of the old, times `2 new`."""
        return (2 * new + 1) * self.old - self.new


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
            yield _resize(block, rows, (done, stop), columns)
            done = stop
        keep = rows.source(done, done + 1)[0] if done < rows.new else known
        held, first = held[keep - first :], keep


def _resize(block: np.ndarray, rows: Axis, span: tuple[int, int], columns: Axis) -> np.ndarray:
    """New rows of a strip, some columns at a time: a matrix for all would grow as their square."""
    parts, weights = [], rows.weights(*span)
    for start in range(0, columns.new, MOST_COLUMNS):
        stop = min(columns.new, start + MOST_COLUMNS)
        low, high = columns.source(start, stop)
        sums = weigh(block[:, low:high], weights, columns.weights(start, stop))
        parts.append((sums / (rows.total * columns.total)).astype(np.float32))
    return np.concatenate(parts, axis=1)
