"""Images for prediction, opened as training opens them, at another scale or from memory."""

from pathlib import Path

import numpy as np

from tvjax.data.mosaic import Mosaic, Place, open_place, path_of
from tvjax.data.pictures import Raster, open_raster
from tvjax.data.scaling import check_scale, scaled

__all__ = [
    "Mosaic", "Place", "Raster", "check_scale", "from_array", "open_place", "open_raster",
    "path_of", "scaled",
]  # fmt: skip


def from_array(
    image: np.ndarray, valid: np.ndarray | None = None, path: Path = Path("array.png")
) -> Raster:
    """An image in memory, uint8 `[H, W, 3]`, with bool `[H, W]`, where there is data."""
    height, width = image.shape[:2]
    has_data = None if valid is None else lambda t, b, x, y: valid[t:b, x:y]
    return Raster(path, height, width, lambda t, b, x, y: image[t:b, x:y], valid=has_data)
