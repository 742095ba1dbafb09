"""Where roofs nearly touch: what a net learns beside the roofs, to tell neighbours apart.

`contact` are the pixels of a roof along its outline, and the pixels between two roofs that are
close. A roof without its contact is its core, and no two cores touch.
"""

from typing import Any

import numpy as np
from scipy import ndimage

PIXELS = 4
"""Roofs closer than this are close, unless another number is asked for."""


def contact(labels: np.ndarray, pixels: int) -> np.ndarray:
    """Pixels along the roofs' outlines, on their inner side, and between roofs that are close.

    A pixel of a roof counts if one of its four neighbours is none of that roof; beyond the image
    nothing is known. A pixel of no roof counts if its distances from the two nearest roofs add up
    to at most `pixels`: straight across, if fewer than `pixels` pixels lie between these.

    Args:
      labels: int `[H, W]`, the number of the roof that a pixel belongs to; 0: none.
      pixels: see above; at least 1.

    Returns:
      Bool `[H, W]`.
    """
    first, second = np.full((2, *labels.shape), np.inf)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        place = tuple(slice(max(0, s.start - pixels), s.stop + pixels) for s in box)
        far: Any = ndimage.distance_transform_edt(labels[place] != number)
        second[place] = np.minimum(second[place], np.maximum(first[place], far))
        first[place] = np.minimum(first[place], far)
    return _outlines(labels) | ((labels == 0) & (first + second <= pixels))


def _outlines(labels: np.ndarray) -> np.ndarray:
    found = np.zeros(labels.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = labels[a] != labels[b]
        found[a] |= differ
        found[b] |= differ
    return found & (labels > 0)


def shrink(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Numbers of the roofs at the size of a mask that was shrunk.

    Each pixel of the mask gets the roof in its middle, or, where there is none, the nearest one.

    Args:
      labels: int `[H, W]`, as in `contact`.
      mask: bool `[h, w]`, the roofs, shrunk.

    Returns:
      Int `[h, w]`, above 0 in the mask and nowhere else.
    """
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(mask.shape, labels.shape, strict=True)
    )
    found = np.where(mask, labels[np.ix_(rows, columns)], 0)
    if not found.any():
        return ndimage.label(mask)[0]  # pyright: ignore
    nearest: Any = ndimage.distance_transform_edt(
        found == 0, return_distances=False, return_indices=True
    )
    return np.where(mask, found[tuple(nearest)], 0)
