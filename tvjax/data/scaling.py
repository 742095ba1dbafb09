"""Images at another scale, window by window, so that no window depends on where others are cut.

Training tiles that are cut from large images, and prediction, resize by the same code.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from tvjax.data import area
from tvjax.data.area import banded, overlaps, span
from tvjax.data.pictures import Raster
from tvjax.errors import UserError

LEAST_SCALE, MOST_SCALE = 0.001, 1000.0
"""The range of scales: at others an image would be a pixel, or its work without end."""


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

    def weights(self, start: int, stop: int) -> csr_array:
        """Whole numbers `[stop - start, hi - lo]`, float64: what each source weighs of `total`."""
        if self.new <= self.old:
            return overlaps(self.old, self.new, start, stop)
        low, high = self.source(start, stop)
        # Beyond the last centre its value holds.
        centres = np.clip(self._centre(np.arange(start, stop)), 0, 2 * self.new * (self.old - 1))
        first = centres // (2 * self.new)
        rest = centres - 2 * self.new * first
        return banded(first - low, np.stack([2 * self.new - rest, rest], axis=1), high - low)

    @property
    def total(self) -> int:
        """The sum of a new pixel's weights."""
        return self.old if self.new <= self.old else 2 * self.new

    def _centre(self, new: Any) -> Any:
        """Where the centre of a new pixel lies between those of the old, times `2 new`."""
        return (2 * new + 1) * self.old - self.new


def check_scale(scale: float) -> None:
    """Refuses a scale that no image can have.

    Raises:
      UserError: it is not in [`LEAST_SCALE`, `MOST_SCALE`].
    """
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        raise UserError(f"scale={scale} must be in [{LEAST_SCALE:g}, {MOST_SCALE:g}]")


def scaled(raster: Raster, scale: float) -> Raster:
    """The image at `scale` times its resolution, resized as training tiles were (by area).

    There is data in a new pixel where more than half of what it is made of has some.

    Raises:
      UserError: see `check_scale`.
    """
    check_scale(scale)
    if scale == 1:
        return raster
    rows = Axis.scaled(raster.height, scale)
    columns = Axis.scaled(raster.width, scale)
    total = rows.total * columns.total
    transform = raster.transform
    if transform is not None:
        a, b, c, d, e, f = transform[:6]
        x, y = columns.old / columns.new, rows.old / rows.new
        transform = type(transform)(a * x, b * y, c, d * x, e * y, f)

    def weighted(
        read: Any, top: int, bottom: int, left: int, right: int
    ) -> tuple[np.ndarray, csr_array, csr_array]:
        block = read(*rows.source(top, bottom), *columns.source(left, right))
        return block, rows.weights(top, bottom), columns.weights(left, right)

    def read(*window: int) -> np.ndarray:
        return area.mean(*weighted(raster.read, *window), total)

    def valid(*window: int) -> np.ndarray:
        block, *weights = weighted(raster.valid, *window)
        return 2 * area.weigh(block[..., None], *weights)[..., 0] > total

    return raster._replace(
        height=rows.new, width=columns.new, read=read, transform=transform,
        valid=None if raster.valid is None else valid,
    )  # fmt: skip
