"""What may be claimed of two methods, or of two runs, by their scores on the same images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvjax.scoring import comparison, methods, sides
from tvjax.scoring.neighbours import Blocks

NAMES = {"iou": "mean IoU", "pooled_iou": "pooled IoU"}
"""The scores that are compared, by their names in reports."""
SUMS = {"iou": methods.mean_iou, "pooled_iou": methods.pooled_iou}
MORE = "give several seeds of each: --workdir=A1,A2,A3 --against=B1,B2,B3"


def compare(
    first: Sequence[sides.Run],
    second: Sequence[sides.Run],
    rows: Sequence[Sequence[dict[str, Any]]],
    *,
    blocks: Blocks,
    score: str,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Compares two methods by several runs of each, or two runs by image.

    Args:
      first: the runs of a method.
      second: the runs of the other method.
      rows: the scores of each image, of the runs of the first and then of the second.
      blocks: which images are neighbours.
      score: the name of the score that claims are made by.
      confidence: how often the intervals cover, in (0, 1).

    Returns:
      `compares`, in words; of each of `NAMES` what `methods.compare` found; `claim` with `higher`,
      "first", "second" or None, and `words`; and of two runs also what `comparison.compare` found.
    """
    order = sides.paired(first, second)
    number, last = len(first), [len(first) + k for k in order or range(len(second))]
    found: dict[str, Any] = {}
    for name, sums in SUMS.items():
        values = np.stack([sums(found) for found in rows])
        found[name] = methods.compare(
            values[:number], values[last], blocks=blocks.labels, paired=order is not None,
            confidence=confidence,
        )  # fmt: skip
    result = {
        "compares": _what(first, second, found["iou"], blocks), "images": len(blocks.labels),
        "seeds": [[run.seed for run in side] for side in (first, second)], "score": score,
        **found, "claim": claim(found[score], score),
    }  # fmt: skip
    if max(len(first), len(second)) == 1:
        ious = ([row["iou"] for row in image] for image in rows)
        result |= comparison.compare(*ious, confidence=confidence)
    return result


def _what(first, second, found: dict[str, Any], blocks: Blocks) -> str:
    pairs = ", paired by seed" if found["paired"] else ""
    return (
        f"two methods are compared, by {len(first)} and {len(second)} runs{pairs}, on "
        f"{len(blocks.labels)} images in {blocks.words}"
    )


def claim(found: dict[str, Any], score: str) -> dict[str, Any]:
    """What `methods.compare` found for a score allows to claim.

    Returns:
      `higher`, "first", "second" or None; and `words`, a sentence.
    """
    name, low, high = NAMES[score], found["low"], found["high"]
    nothing = "No claim can be made"
    if min(found["runs"]) < 2:
        return _none(f"{nothing} of methods: two runs of each or more are needed; {MORE}")
    if found["blocks"] < methods.ENOUGH:
        return _none(
            f"{nothing}: {found['blocks']} blocks of images are too few, {methods.ENOUGH} or more "
            "are needed"
        )
    if low <= 0 <= high:
        return _none(
            f"{nothing}: by {name} the methods are not told apart; a difference of "
            f"{(high - low) / 2:.4f} would have been, and more seeds tell smaller ones"
        )
    higher, ends = ("second", (low, high)) if low > 0 else ("first", (-high, -low))
    words = (
        f"The {higher} method's {name} is higher, by {ends[0]:.4f} to {ends[1]:.4f}, over seeds "
        f"and on images like these (confidence {100 * found['confidence']:g} %)"
    )
    return {"higher": higher, "words": words}


def _none(words: str) -> dict[str, Any]:
    return {"higher": None, "words": words}


def describe(result: dict[str, Any], reports: Sequence[dict[str, Any]]) -> str:
    """The result of `compare` for the reader of a terminal; its first line says what is compared.

    The reports are those of the runs, of the first method first.
    """
    if max(map(len, result["seeds"])) == 1:
        lines = [comparison.describe(result, list(reports))]
        if result["iou"]["blocks"] < result["images"]:
            lines.append(
                f"The {result['images']} images lie in {result['iou']['blocks']} blocks of "
                "neighbours, which p-value and interval of the mean IoU take for independent."
            )
    else:
        numbers = [
            name
            for name, seeds in zip(("first", "second"), result["seeds"], strict=True)
            for _ in seeds
        ]
        lines = [f"{result['compares'][0].upper()}{result['compares'][1:]}."]
        for number, report in zip(numbers, reports, strict=True):
            scores = ", ".join(f"{words} {report[name]:.4f}" for name, words in NAMES.items())
            lines.append(f"{number}: {report['workdir']}: seed {report['seed']}, {scores}")
        lines += [_line(name, result[name]) for name in NAMES]
    return "\n".join([*lines, f"{result['claim']['words']}."])


def _line(name: str, found: dict[str, Any]) -> str:
    words = f"second minus first: {NAMES[name]} {found['difference']:+.4f}"
    if found["low"] is None:
        return words
    return (
        f"{words}, {100 * found['confidence']:g} % interval {found['low']:+.4f} to "
        f"{found['high']:+.4f} (standard errors: {found['seed_error']:.4f} of seeds, "
        f"{found['image_error']:.4f} of images)"
    )
