"""The scores of a net on examples: of each image, of all, and of the objects in them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from tvjax import files, interruption
from tvjax.errors import UserError
from tvjax.inference import polygons, reader, tiles
from tvjax.inference.resample import Axis
from tvjax.scoring import boundaries
from tvjax.scoring.average_precision import average_precision
from tvjax.scoring.examples import Example, Examples
from tvjax.scoring.metrics import Counts, boundary_pixels


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
        columns = {key: np.array([row[key] for row in self.images]) for key in self.images[0]}
        counts = Counts(*(jnp.asarray(columns.pop(name).sum()) for name in Counts._fields))
        names = [name for name in columns if name not in ("id", "name")]
        holding = columns["true_components"] > 0
        return {
            **{name: float(columns[name].mean()) for name in names},
            "pooled_iou": float(counts.iou),
            "pooled_f1": float(counts.f1),
            "nonempty_iou": float(columns["iou"][holding].mean()) if holding.any() else None,
            "empty_images": int(np.sum(~holding)),
            **self.average_precision,
            "images": len(self.images),
        }


def probabilities(
    example: Example, net: tiles.Net, tiling: tiles.Tiling, *, scale: float = 1.0
) -> np.ndarray:
    """Probabilities of one image, `[H, W, 1]`."""
    raster = reader.from_array(example.image, example.valid)
    strips = tiles.probabilities(raster, net, tiling, scale)
    return np.concatenate(list(strips))


def score(
    examples: Examples,
    net: tiles.Net,
    tiling: tiles.Tiling,
    *,
    scale: float = 1.0,
    category: int = 1,
) -> Scores:
    """Scores a net at p > 0.5.

    Args:
      examples: the images.
      net: tiles to probabilities; a `Predictor`.
      tiling: a tiling that suits the images.
      scale: scale of the images for the net; what is scored has their own size.
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
        found = probabilities(example, net, tiling, scale=scale)
        height, width = size = example.mask.shape[:2]
        mask, pixels = example.mask[..., 0] > 0, boundary_pixels(height, width)
        values = of_image(found[..., 0] > 0.5, mask)
        band = {
            "boundary_pixels": pixels,
            "narrow_components": boundaries.count_narrow(mask, pixels)[1],
        }
        rows.append({"id": example.id, "name": example.name, **values, **band})
        for polygon in polygons.trace([found[..., 0]]):
            results.append(polygons.coco_result(polygon, height, width, example.id, category))
        truth.append((example.id, size, example.objects, example.crowds))
    return Scores(rows, results, average_precision(truth, results))


def of_image(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The scores of one image, of masks bool `[H, W]`.

    They are those of `tvjax.training.steps.per_image_scores`, which training computes on the
    device; compiled for each size, it would not do for images of many sizes.

    Raises:
      ValueError: the masks are not bool, or not of one shape.
    """
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != bool or mask.ndim != 2:
            raise ValueError(f"{name} must be bool [H, W]; got {mask.dtype} {mask.shape}")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction {prediction.shape} must have the shape of truth {truth.shape}"
        )
    hits = _count(prediction & truth)
    misses = _count(truth) - hits
    false_alarms = _count(prediction) - hits
    one, two = (boundaries.boundary(m, boundary_pixels(*m.shape)) for m in (prediction, truth))
    values = {
        "iou": _share(hits, hits + false_alarms + misses),
        "boundary_iou": _share(_count(one & two), _count(one | two)),
        "components": ndimage.label(prediction)[1],  # pyright: ignore
        "true_components": ndimage.label(truth)[1],  # pyright: ignore
        "tv": _total_variation(prediction),
        "true_tv": _total_variation(truth),
        "true_positive": hits,
        "false_positive": false_alarms,
        "false_negative": misses,
    }
    return {name: float(value) for name, value in values.items()}


def scaled_sizes(examples: Examples, scale: float) -> set[tuple[int, int]]:
    """The sizes at which a net sees the images."""
    return {
        (Axis.scaled(height, scale).new, Axis.scaled(width, scale).new)
        for height, width in examples.sizes
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


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _share(part: int, whole: int) -> float:
    """The share of a whole; 1 if there is nothing: two empty masks agree."""
    return part / whole if whole else 1.0


def _total_variation(mask: np.ndarray) -> int:
    rows, columns = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    return _count(rows) + _count(columns)
