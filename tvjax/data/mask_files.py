"""What mask files hold: numbers, or colours.

Numbers are those that are stored: the indices of a palette, a grey level. Colours are those that
are shown: a palette's own, and a grey level as red, green and blue alike. Alpha never counts: what
is transparent has the number or colour that is stored there.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tvjax.data import pillow
from tvjax.errors import UserError, some

Value = int | tuple[int, int, int]
"""A number, or red, green and blue."""


class Other(NamedTuple):
    """A mask that holds other values besides background, but none of those that are object."""

    file: str
    """The mask file."""
    values: str
    """The values of the mask, see `describe`."""


Met = Counter[int | str | tuple[int, str] | Other]
"""Numbers of pixels by value, and of masks with a palette by index and colour; and masks that lack
the objects' values, each once."""

BACKGROUND = {0, "#000000 (0, 0, 0)"}
"""Values of masks that are background where nothing else is said."""

FULL = {1, 255, 65535, "#FFFFFF (255, 255, 255)"}
"""Values that mean object in masks of two values, whatever their depth."""

TOGETHER = 1 << 22
"""Pixels that are counted at once."""

SHOWN = 8
"""Values that a message lists."""

COLORS = 256
"""Colours of a mask, at most; a photograph has more."""


def parse_object(text: str) -> Value:
    """Reads "3" as a number and "#3C1098" as a colour.

    Raises:
      UserError: the text is neither.
    """
    color = re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text)
    if color:
        red, green, blue = (int(part, 16) for part in color.groups())
        return red, green, blue
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise UserError(f'--object={text}: give a number such as 3, or a colour such as "#3C1098"')
    return int(text)


def read_mask(file: Path, objects: Sequence[Value] = (), met: Met | None = None) -> np.ndarray:
    """Decodes a mask, as it is shown.

    Args:
      file: a picture, grey, of a palette or of colours.
      objects: the numbers, or the colours, that are object, and all others are background; none:
        the only number besides 0, or the only colour besides black.
      met: counts the pixels of each value, those of files before included.

    Returns:
      bool `[H, W]`.

    Raises:
      UserError: the file is truncated or no image, or it has several values besides 0 and it was
        not said which are object.
    """
    colors = [value for value in objects if isinstance(value, tuple)]
    values = pillow.read_colors(file) if colors else pillow.read_values(file)
    if objects and not colors and values.ndim == 3:  # grey, perhaps, though stored in colours
        if np.any(values != values[..., :1]):
            raise UserError(
                f"{file}: has colours, not numbers of which --object names some; name colours, "
                'such as --object="#3C1098"'
            )
        values = values[..., 0]
    found = _count(values)
    if met is not None:
        met.update(found)
        if values.ndim == 2 and pillow.has_palette(file):
            met.update(_shown(values, pillow.read_colors(file)))
    if values.ndim == 3 and len(found) > COLORS:
        raise UserError(
            f"{file}: has {len(found)} colours, as photographs have and masks have not; are "
            "--masks and --images swapped? Or was it stored with loss?"
        )
    lacks = bool(objects) and not found.keys() & set(map(name, objects))
    if met is not None and lacks and found.keys() - BACKGROUND:
        met[Other(str(file), describe(found))] = 1
    if colors:
        return np.isin(_codes(values), [_code(color) for color in colors])
    if objects:
        return np.isin(values, objects)
    if len(found.keys() - BACKGROUND) > 1:
        example = "VALUE" if values.ndim == 2 else '"#RRGGBB"'
        raise UserError(
            f"{file}: has several values besides 0; of its values, {describe(found)}, say which "
            f"are objects by --object={example}, once for each, or write masks of 0 and 255"
        )
    return values != 0 if values.ndim == 2 else np.any(values != 0, axis=-1)


def has_alpha(file: Path) -> bool:
    """Whether pixels of a picture may be transparent."""
    header = pillow.read_header(file)
    return header is not None and header.has_alpha


def describe(met: Met) -> str:
    """Values and their shares of the pixels, the most frequent first."""
    found = Counter(
        {value: number for value, number in met.items() if not isinstance(value, tuple)}
    )
    total = found.total()
    shares = [f"{value} ({number / total:.2%})" for value, number in found.most_common()]
    return some(shares, SHOWN)


def values_of(met: Met) -> set[int | str]:
    """The values, without what palettes make of them."""
    return {value for value in met if not isinstance(value, tuple)}


def others(met: Met) -> list[Other]:
    """Lists the masks that hold other values but none of the objects', by file in order."""
    return sorted(value for value in met if isinstance(value, Other))


def two_colors(met: Met) -> tuple[int, list[str]] | None:
    """An index that is of several colours in several palettes, and these; None: there is none."""
    found: dict[int, list[str]] = {}
    pairs = (x for x in met if isinstance(x, tuple) and not isinstance(x, Other))
    for index, color in pairs:
        found.setdefault(index, []).append(color)
    return next(((k, sorted(found[k])) for k in sorted(found) if len(found[k]) > 1), None)


def _shown(values: np.ndarray, colors: np.ndarray) -> Counter[tuple[int, str]]:
    """Numbers of pixels by index and colour."""
    codes = values.astype(np.int64) << 24 | _codes(colors)
    pairs = zip(*np.unique(codes, return_counts=True), strict=True)
    return Counter({(int(c) >> 24, str(name(_color(int(c))))): int(n) for c, n in pairs})


def _count(values: np.ndarray) -> Met:
    """Numbers of pixels by value; a colour is named by its channels.

    Some rows at a time: to count takes many times the memory of what is counted.
    """
    found: Met = Counter()
    rows = max(1, TOGETHER // values.shape[1])
    for top in range(0, len(values), rows):
        part = _codes(values[top : top + rows])
        for number, count in zip(*np.unique(part, return_counts=True), strict=True):
            code = int(number)
            found[code if values.ndim == 2 else name(_color(code))] += int(count)
    return found


def name(value: Value) -> int | str:
    """A value as messages have it: a number, or `#3C1098 (60, 16, 152)`."""
    return value if isinstance(value, int) else f"#{_code(value):06X} {value}"


def _codes(values: np.ndarray) -> np.ndarray:
    """One whole number per pixel, of numbers `[H, W]` themselves or of colours `[H, W, 3]`."""
    values = values.astype(np.int64)
    return values if values.ndim == 2 else values @ np.array([1 << 16, 1 << 8, 1])


def _code(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _color(code: int) -> tuple[int, int, int]:
    return code >> 16 & 255, code >> 8 & 255, code & 255
