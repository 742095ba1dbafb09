"""How a file's rows and columns are shown: EXIF's and TIFF's orientation tag.

Training and prediction see a picture as viewers and labelling tools show it.
"""

from collections.abc import Callable

import numpy as np

TAG = 0x0112
"""Number of the tag, in EXIF and TIFF alike."""

TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""Whether an orientation makes rows and columns change places, and which it then reverses."""

Read = Callable[[int, int, int, int], np.ndarray]
"""`(top, bottom, left, right) ->` `[h, w, ...]` of an image."""


def shown_size(orientation: int, height: int, width: int) -> tuple[int, int]:
    """Height and width as shown, of those as stored."""
    return (width, height) if orientation >= 5 else (height, width)


def shown(orientation: int, image: np.ndarray) -> np.ndarray:
    """The image `[H, W, ...]` as it is shown."""
    if orientation not in TURNS:
        return image
    swapped, rows, columns = TURNS[orientation]
    image = image.swapaxes(0, 1) if swapped else image
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def shown_windows(orientation: int, height: int, width: int, read: Read) -> Read:
    """Reads windows of the image as it is shown; size and `read` are those of it as stored."""
    if orientation not in TURNS:
        return read
    swapped, rows, columns = TURNS[orientation]
    height, width = shown_size(orientation, height, width)

    def turned(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        if rows:
            top, bottom = height - bottom, height - top
        if columns:
            left, right = width - right, width - left
        stored = (left, right, top, bottom) if swapped else (top, bottom, left, right)
        return shown(orientation, read(*stored))

    return turned
