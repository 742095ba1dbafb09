"""What boundary IoU counts of a mask: a band of a few pixels, in which small objects lie whole."""

import numpy as np
from scipy import ndimage


def boundary(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The pixels that an erosion by a square of `2 pixels + 1` takes away.

    It is that of `tvjax.scoring.metrics.boundary_iou`, in a time that does not depend on its width.

    Args:
      mask: bool `[H, W]`; beyond it is outside.
      pixels: see `tvjax.scoring.metrics.boundary_pixels`.
    """
    eroded = mask.astype(np.uint8)
    for axis in (0, 1):
        eroded = ndimage.minimum_filter1d(eroded, 2 * pixels + 1, axis, mode="constant")
    return mask & (eroded == 0)


def count_narrow(mask: np.ndarray, pixels: int) -> tuple[int, int]:
    """The number of a mask's 4-connected components, and of those that lie in the band whole."""
    labels, count = ndimage.label(mask)  # pyright: ignore
    wide = np.unique(labels[mask & ~boundary(mask, pixels)])
    return count, count - len(wide)


def describe(pixels: float, objects: float, narrow: float) -> str:
    """The band of a boundary IoU, and a warning where most objects are narrower, in one line."""
    unit = "pixel" if pixels == 1 else "pixels"
    band = f"boundary IoU counts a band of {pixels:.3g} {unit} inside each outline"
    if not 2 * narrow > objects:
        return band
    return (
        f"{band}; warning: {narrow / objects:.0%} of the objects lie in it whole, of which it says "
        f"no more than IoU does"
    )
