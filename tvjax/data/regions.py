"""The `segmentation` field of a COCO annotation: polygons or a run-length code.

Masks are bool `[H, W]`. `check` is cheap and touches no pixel, `rasterise` fills the pixels; every
`segmentation` that passes the first can be given to the second. Bounding boxes are never read:
those of the crowdAI challenge are wrong in every annotation.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tvjax.errors import short

FAR = 16
"""A coordinate more than this many image sizes outside the image is taken for a mistake."""

MOST_OUTLINE = 1 << 21
"""Pixels that the outline of a polygon may be long. pycocotools walks along it in fifths of a pixel
and needs some 40 bytes for each pixel: 85 MB. An outline of 10,000 buildings has half of it."""

MOST_OUTLINES = 1 << 24
"""Pixels that all outlines of an image may be long: a second's work. A city of 50,000 buildings has
half of it."""

TOGETHER = 64
"""Regions that are united before their pixels are filled."""

GROUPS = 7
"""Characters of a count of a run-length code: the 32 bits of pycocotools's counts need as many."""


def check(segmentation: Any, height: int, width: int) -> int:
    """Checks a `segmentation`, in a time that its own length and the image's size bound.

    Args:
      segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels, or a run-length code
        `{"size": [height, width], "counts": ...}` with a list or a compressed string of counts.
      height, width: size of the image, in pixels.

    Returns:
      Pixels that its outlines are long; see `MOST_OUTLINES`.

    Raises:
      ValueError: says what is wrong with it.
    """
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, height, width)
        return 0
    if isinstance(segmentation, list) and segmentation:
        return sum(_check_polygon(polygon, height, width) for polygon in segmentation)
    raise ValueError("has no segmentation: give polygons or a run-length code")


def rasterise(segmentations: Sequence[Any], height: int, width: int) -> np.ndarray:
    """The union of all regions as a bool mask `[height, width]`, clipped to the image.

    Every segmentation must have passed `check`: on malformed codes pycocotools gives wrong masks.
    """
    mask = np.zeros((height, width), bool)
    parts = itertools.chain.from_iterable(codes(s, height, width) for s in segmentations)
    while group := list(itertools.islice(parts, TOGETHER)):
        mask |= decode(coco_mask.merge(group))
    return mask


def number(segmentations: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Which region each pixel belongs to, int32 `[height, width]`: its place from 1, 0 of none.

    Where regions overlap, the later one counts. Each must have passed `check`.
    """
    flat = np.zeros(width * height, np.int32)  # column after column, as codes count
    for place, segmentation in enumerate(segmentations, 1):
        for code in codes(segmentation, height, width):
            counts = code["counts"]
            text = counts.decode() if isinstance(counts, bytes) else counts
            ends = np.cumsum(_decompress(text)).tolist()
            for start, stop in zip(ends[::2], ends[1::2], strict=False):
                flat[start:stop] = place
    return flat.reshape(width, height).T


def decode(code: Any) -> np.ndarray:
    """A compressed run-length code as a bool mask."""
    with warnings.catch_warnings():
        # pycocotools 2.0.11 does not yet know the copy argument of numpy 2's __array__.
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(code).astype(bool)


def codes(segmentation: Any, height: int, width: int) -> Iterator[Any]:
    """Compressed run-length codes of the parts of a segmentation that passed `check`."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            yield from coco_mask.frPyObjects([polygon], height, width)
        return
    code: Any = {"size": [height, width], "counts": segmentation["counts"]}
    is_plain = isinstance(code["counts"], list)
    yield coco_mask.frPyObjects(code, height, width) if is_plain else code


def _check_polygon(polygon: Any, height: int, width: int) -> int:
    if not isinstance(polygon, list):
        raise ValueError(f"has a polygon that is no list of numbers: {short(polygon)}")
    if not set(map(type, polygon)) <= {int, float}:
        raise ValueError(f"has a polygon with values that are no numbers: {short(polygon)}")
    if len(polygon) % 2:
        raise ValueError(
            f"has a polygon with an odd count of {len(polygon)} numbers; x and y must alternate"
        )
    if len(polygon) < 6:
        raise ValueError(
            f"has a polygon with fewer than 3 points ({len(polygon) // 2}): {short(polygon)}"
        )
    try:
        points = np.array(polygon, float).reshape(-1, 2)
    except OverflowError:  # a whole number of hundreds of digits
        points = np.full((1, 2), np.inf)
    across, down = np.abs(points).max(axis=0)
    # Written so that NaN fails too. A moderate overhang the rasteriser clips exactly.
    if not (across <= FAR * width and down <= FAR * height):
        raise ValueError(
            f"has a polygon with a coordinate far outside the {width}x{height} image: "
            f"{short(polygon)}"
        )
    length = int(np.abs(points[1:] - points[:-1]).max(axis=1).sum())
    length += int(np.abs(points[0] - points[-1]).max())
    if length > MOST_OUTLINE:
        raise ValueError(
            f"has a polygon whose outline is {length} pixels long; at most {MOST_OUTLINE} are "
            "taken, write it as a run-length code"
        )
    return length


def _check_run_lengths(code: dict[str, Any], height: int, width: int) -> None:
    counts, size = code.get("counts"), code.get("size")
    if size != [height, width]:
        raise ValueError(
            f"has a run-length code of size {short(size)}; the image's is [{height}, {width}]"
        )
    if not isinstance(counts, (str, list)):
        raise ValueError(f"has a run-length code with counts {short(counts)}")
    # No count but the first needs to be 0.
    most = (height * width + 1) * (GROUPS if isinstance(counts, str) else 1)
    if len(counts) > most:
        raise ValueError(
            f"has a run-length code of length {len(counts)}, longer than the image of "
            f"{height * width} pixels can need"
        )
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("has a run-length code with counts that are no whole numbers >= 0")
    total = sum(counts)
    if total != height * width:
        raise ValueError(
            f"has a run-length code of {short(total)} pixels; the image has {height * width}"
        )


def _decompress(text: str) -> list[int]:
    """The counts of a compressed run-length code; pycocotools itself would not notice an error.

    Each count is written in groups of 5 bits, lowest first, as printable characters from "0" on,
    with a sixth bit that says whether more follow; from the fourth on it is the difference from
    the count two places before.
    """
    if not text:
        return []
    groups = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) - ord("0")
    wrong = np.flatnonzero(groups >= 64)  # smaller characters are larger numbers without a sign
    if len(wrong):
        raise ValueError(f"has a run-length code with the character {text[wrong[0]]!r}")
    ends = np.flatnonzero((groups & 32) == 0)
    if not len(ends) or ends[-1] != len(groups) - 1:
        raise ValueError("has a run-length code that is cut off")
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends + 1 - starts
    if lengths.max() > GROUPS:
        raise ValueError(f"has a run-length code with a count of more than {5 * GROUPS} bits")
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups.astype(np.int64) & 31) << 5 * places, starts)
    values -= np.where(groups[ends] & 16, np.int64(1) << 5 * lengths, 0)  # a sign
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values.tolist()
