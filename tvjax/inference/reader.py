"""Images for prediction, opened as training opens them, at another scale or from memory."""

from pathlib import Path

import numpy as np

from tvjax.data import area
from tvjax.data.pictures import Raster, open_raster
from tvjax.errors import UserError
from tvjax.inference.resample import Axis

__all__ = ["Raster", "check_scale", "from_array", "open_raster", "scaled"]


LEAST_SCALE, MOST_SCALE = 0.001, 1000.0
"""The range of scales: at others an image would be a pixel, or its work without end."""


def check_scale(scale: float) -> None:
    """Refuses a scale that no image can have.

    Raises:
      UserError: it is not in [`LEAST_SCALE`, `MOST_SCALE`].
    """
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        raise UserError(f"scale={scale} must be in [{LEAST_SCALE:g}, {MOST_SCALE:g}]")


def scaled(raster: Raster, scale: float) -> Raster:
    """The image at `scale` times its resolution, resized as training tiles were (by area).

    Raises:
      UserError: see `check_scale`.
    """
    check_scale(scale)
    if scale == 1:
        return raster
    rows = Axis.scaled(raster.height, scale)
    columns = Axis.scaled(raster.width, scale)

    def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        block = raster.read(*rows.source(top, bottom), *columns.source(left, right))
        weights = rows.weights(top, bottom), columns.weights(left, right)
        return area.mean(block, *weights, rows.total * columns.total)

    return raster._replace(height=rows.new, width=columns.new, read=read, valid=None)


def from_array(
    image: np.ndarray, valid: np.ndarray | None = None, path: Path = Path("array.png")
) -> Raster:
    """An image in memory, uint8 `[H, W, 3]`, with bool `[H, W]`, where there is data."""
    height, width = image.shape[:2]
    has_data = None if valid is None else lambda t, b, x, y: valid[t:b, x:y]
    return Raster(path, height, width, lambda t, b, x, y: image[t:b, x:y], valid=has_data)
