"""The scores of a net on examples: of each image, of all, and of the objects in them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from tvjax import files, interruption
from tvjax.data import pictures
from tvjax.errors import UserError
from tvjax.inference import polygons, separation, tiles
from tvjax.inference.resample import Axis
from tvjax.scoring.average_precision import average_precision
from tvjax.scoring.examples import Example, Examples
from tvjax.scoring.mask_scores import boundary_pixels, count_narrow, of_images, summarise


class Scores(NamedTuple):
    """What an evaluation found."""

    images: list[dict[str, Any]]
    """A row per image: `id`, `name`, `iou`, `boundary_iou`, `components`, `true_components`, `tv`,
    `true_tv`, `true_positive`, `false_positive`, `false_negative`; of its boundary IoU
    `boundary_pixels`, the width of the band, and `narrow_components`, the number of true ones that
    lie in it whole."""
    results: list[dict[str, Any]]
    """The objects that were found, as COCO results."""
    average_precision: dict[str, float | None]

    @property
    def summary(self) -> dict[str, Any]:
        """Means over images, pooled scores over all pixels, and COCO's scores of objects.

        `nonempty_iou` is the mean IoU over the images that hold objects, None of none;
        `empty_images` is the number of the others.
        """
        names = [name for name in self.images[0] if name not in ("id", "name")]
        columns = {name: np.array([row[name] for row in self.images]) for name in names}
        holding = columns["true_components"] > 0
        number = {"images": len(holding), "empty_images": int(np.sum(~holding))}
        sums = {name: column.sum() for name, column in columns.items()}
        found = summarise(sums | number | {"nonempty_iou": columns["iou"][holding].sum()})
        return found | self.average_precision


def probabilities(
    example: Example, net: tiles.Net, tiling: tiles.Tiling, *, scale: float = 1.0
) -> np.ndarray:
    """Probabilities of one image, `[H, W, C]`, as `tiles.probabilities` has them."""
    raster = pictures.from_array(example.image, example.valid)
    strips = tiles.probabilities(raster, net, tiling, scale)
    return np.concatenate(list(strips))


def score(
    examples: Examples,
    net: tiles.Net,
    tiling: tiles.Tiling,
    *,
    scales: Sequence[float] | None = None,
    category: int = 1,
) -> Scores:
    """Scores a net at p > 0.5.

    Args:
      examples: the images.
      net: tiles to probabilities; a `Predictor`.
      tiling: a tiling that suits the images.
      scales: scale of each image for the net, see `Examples.scales`; None: 1. What is scored has
        the image's own size.
      category: category of the objects in the results.

    Raises:
      UserError: there is no image, or the net gives no probabilities.
    """
    if not len(examples.sizes):
        raise UserError("there is no image to score")
    rows, results, truth = [], [], []
    for k in tqdm(range(len(examples.sizes)), "evaluating", leave=False, delay=3):
        interruption.check()
        example = examples.get(k)
        found = probabilities(example, net, tiling, scale=1.0 if scales is None else scales[k])
        height, width = size = example.mask.shape[:2]
        mask, pixels = example.mask[..., 0] > 0, boundary_pixels(height, width)
        values = of_images(found[None, ..., 0] > 0.5, mask[None])
        rows.append({
            "id": example.id, "name": example.name,
            **{name: float(value[0]) for name, value in values.items()},
            "boundary_pixels": pixels, "narrow_components": count_narrow(mask, pixels)[1],
        })  # fmt: skip
        for polygon in separation.trace([found]):
            results.append(polygons.coco_result(polygon, height, width, example.id, category))
        truth.append((example.id, size, example.objects, example.crowds))
    return Scores(rows, results, average_precision(truth, results))


def scaled_sizes(examples: Examples, scales: Sequence[float]) -> set[tuple[int, int]]:
    """The sizes at which a net sees the images."""
    return {
        (Axis.scaled(height, scale).new, Axis.scaled(width, scale).new)
        for (height, width), scale in zip(examples.sizes, scales, strict=True)
    }


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the scores of each image, a line an image."""
    with files.replacing(path) as temporary, _open_csv(temporary) as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def _open_csv(path: Path) -> TextIO:
    # A file's name may hold bytes that are no characters.
    return open(path, "w", newline="", encoding="utf-8", errors="backslashreplace")


def extremes(rows: Sequence[dict[str, Any]], number: int = 2) -> dict[str, list[int]]:
    """Places of the images of best, median and worst IoU, at most `number` each, each once."""
    order = sorted(range(len(rows)), key=lambda k: -rows[k]["iou"])
    number = max(1, min(number, len(rows) // 3))
    middle = (len(rows) - number) // 2
    chosen = {"best": order[:number], "median": order[middle : middle + number]}
    return chosen | {"worst": order[-number:]} if len(rows) > 2 else {"best": order}
