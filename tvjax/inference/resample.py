"""Resizing of images that come as strips, by the axes of `tvjax.data.scaling`."""

from collections.abc import Iterable, Iterator

import numpy as np

from tvjax.data.area import weigh
from tvjax.data.scaling import Axis

MOST_COLUMNS = 1024
"""Columns of new pixels whose weights are made at once."""

STRIP = 1 << 18
"""Pixels of a strip that is worked on at once: what is made of it takes many times its memory."""


def strip_rows(width: int) -> int:
    """The rows of a strip of full width."""
    return max(1, STRIP // width)


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
    held, first, done = np.empty(0, np.float32), 0, 0
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
