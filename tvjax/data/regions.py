"""The `segmentation` field of a COCO annotation: polygons or a run-length code.

Masks are bool `[H, W]`. `check` is cheap and touches no pixel, `rasterise` fills the pixels; every
`segmentation` that passes the first can be given to the second. Bounding boxes are never read:
those of the crowdAI challenge are wrong in every annotation.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

FAR = 16
"""A coordinate more than this many image sizes outside the image is taken for a mistake."""


def check(segmentation: Any, height: int, width: int) -> None:
    """Raises a ValueError that says what is wrong with a `segmentation`, if anything is.

    Args:
      segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels, or a run-length code
        `{"size": [height, width], "counts": ...}` with a list or a compressed string of counts.
      height: of the image, in pixels.
      width: of the image, in pixels.
    """
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, height, width)
    elif isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
    else:
        raise ValueError("has no segmentation: give polygons or a run-length code")


def rasterise(segmentations: Sequence[Any], height: int, width: int) -> np.ndarray:
    """The union of all regions as a bool mask `[height, width]`, clipped to the image.

    Every segmentation must have passed `check`: on malformed codes pycocotools gives wrong masks.
    """
    mask = np.zeros((height, width), bool)
    for segmentation in segmentations:
        code: Any = segmentation
        if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
            code = coco_mask.frPyObjects(code, height, width)
        for part in code if isinstance(code, list) else [code]:
            mask |= decode(part)
    return mask


def decode(code: Any) -> np.ndarray:
    """A compressed run-length code as a bool mask."""
    with warnings.catch_warnings():
        # pycocotools 2.0.11 does not yet know the copy argument of numpy 2's __array__.
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(code).astype(bool)


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    if not isinstance(polygon, list):
        raise ValueError(f"has a polygon that is no list of numbers: {_short(polygon)}")
    try:
        numbers = np.asarray(polygon)
    except ValueError:
        numbers = np.empty((), object)
    if numbers.size and (numbers.ndim != 1 or numbers.dtype.kind not in "iuf"):
        raise ValueError(f"has a polygon with values that are no numbers: {_short(polygon)}")
    if numbers.size % 2:
        raise ValueError(
            f"has a polygon with an odd count of {numbers.size} numbers; x and y must alternate"
        )
    if numbers.size < 6:
        raise ValueError(
            f"has a polygon with fewer than 3 points ({numbers.size // 2}): {_short(polygon)}"
        )
    points = numbers.reshape(-1, 2)
    limit = FAR * np.array([width, height])
    # Written so that NaN fails too. The rasteriser walks the outline pixel by pixel, so that a
    # coordinate of 1e9 would exhaust the memory; a moderate overhang it clips exactly.
    if not np.all(np.abs(points) <= limit):
        raise ValueError(
            f"has a polygon with a coordinate far outside the {width}x{height} image: "
            f"{_short(polygon)}"
        )


def _check_run_lengths(code: dict[str, Any], height: int, width: int) -> None:
    counts = code.get("counts")
    if code.get("size") != [height, width]:
        raise ValueError(
            f"has a run-length code of size {_short(code.get('size'))}; "
            f"the image's is [{height}, {width}]"
        )
    if isinstance(counts, str):
        counts = _decompress(counts)
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("has a run-length code with counts that are no whole numbers >= 0")
        if sum(counts) != height * width:
            raise ValueError(
                f"has a run-length code of {sum(counts)} pixels; the image has {height * width}"
            )
    else:
        raise ValueError(f"has a run-length code with counts {_short(counts)}")


def _decompress(text: str) -> list[int]:
    """The counts of a compressed run-length code; pycocotools itself would not notice an error.

    Each count is written in groups of 5 bits, lowest first, as printable characters from "0" on,
    with a sixth bit that says whether more follow; from the fourth on it is the difference from
    the count two places before.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        group = ord(character) - ord("0")
        if not 0 <= group < 64:
            raise ValueError(f"has a run-length code with the character {character!r}")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:  # negative
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("has a run-length code that is cut off")
    return counts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
