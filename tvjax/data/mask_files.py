"""What mask files hold."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvjax.data import pillow
from tvjax.errors import UserError

BACKGROUND = {0, "(0, 0, 0)"}
"""Values of masks that are background where nothing else is said."""

TOGETHER = 1 << 22
"""Pixels that are counted at once."""

SHOWN = 4
"""Values that a message lists."""

COLORS = 256
"""Colours of a mask, at most; a photograph has more."""


def read_mask(
    file: Path, objects: Sequence[int] = (), met: Counter[int | str] | None = None
) -> np.ndarray:
    """Decodes a mask, as it is shown; of a palette file the indices count, alpha does not.

    Args:
      file: a picture, grey, of a palette or of colours.
      objects: the values that are object; none: the only one besides 0, or the only colour besides
        black.
      met: counts the pixels of each value, those of files before included.

    Returns:
      bool `[H, W]`.

    Raises:
      UserError: the file is truncated or no image, or it has several values besides 0 and it was
        not said which are object.
    """
    values = pillow.read_values(file)
    found = _count(values)
    if met is not None:
        met.update(found)
    if objects:
        if values.ndim == 3:
            raise UserError(f"{file}: has colours, not numbers of which --category names some")
        return np.isin(values, objects)
    if values.ndim == 3 and len(found) > COLORS:
        raise UserError(
            f"{file}: has {len(found)} colours, as photographs have and masks have not; are "
            "--masks and --images swapped?"
        )
    if len(found.keys() - BACKGROUND) > 1:
        raise UserError(
            f"{file}: has several values besides 0, which are {describe(found)}; say which are "
            "objects by --category=VALUE, once for each, or write masks of 0 and 255"
        )
    return values != 0 if values.ndim == 2 else np.any(values != 0, axis=-1)


def read_size(file: Path) -> tuple[int, int]:
    """Height and width of a picture as it is shown, from its header.

    Raises:
      UserError: the file is no picture.
    """
    return pillow.read_size(file)


def has_alpha(file: Path) -> bool:
    """Whether pixels of a picture may be transparent."""
    header = pillow.read_header(file)
    return header is not None and header.has_alpha


def describe(found: Counter[int | str]) -> str:
    """Values and their shares of the pixels, the most frequent first."""
    total, most = sum(found.values()), found.most_common(SHOWN)
    listed = ", ".join(f"{value} ({number / total:.2%})" for value, number in most)
    return listed + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _count(values: np.ndarray) -> Counter[int | str]:
    """Numbers of pixels by value; a colour is named by its channels.

    Some rows at a time: to count takes many times the memory of what is counted.
    """
    found: Counter[int | str] = Counter()
    rows = max(1, TOGETHER // values.shape[1])
    for top in range(0, len(values), rows):
        part = values[top : top + rows].astype(np.int64)
        if part.ndim == 3:  # below 256
            part = part @ np.array([1 << 16, 1 << 8, 1])
        for number, count in zip(*np.unique(part, return_counts=True), strict=True):
            code = int(number)
            color = (code >> 16, code >> 8 & 255, code & 255)
            found[code if values.ndim == 2 else str(color)] += int(count)
    return found
