"""Scores of a state on a split."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from tvjax.data.pipeline import eval_batches
from tvjax.data.records import Split
from tvjax.scoring.mask_scores import boundary_pixels, count_narrow, of_images, summarise
from tvjax.training import parallel
from tvjax.training.setup import Setup
from tvjax.training.state import TrainState
from tvjax.training.steps import of_objects


def evaluate(setup: Setup, state: TrainState, split: Split, **options: Any) -> dict[str, Any]:
    """Scores at p > 0.5 with running statistics; padding weighs nothing.

    The arguments are those of `tile_scores`. Sums and counts are added up over batches and divided
    once.

    Returns:
      Means over images of `iou`, `boundary_iou`, `bce`, the number of connected components and the
      total variation of predicted masks (`components`, `tv`) and of true ones (`true_components`,
      `true_tv`); `pooled_iou` and `pooled_f1` over all pixels; `images`, their number;
      `nonempty_iou`, the mean IoU over those that hold objects, None of none, and `empty_images`,
      the number of the others.
    """
    return summarise(add_up(map(sums, tile_scores(setup, state, split, **options))))


def tile_scores(
    setup: Setup,
    state: TrainState,
    split: Split,
    *,
    batch_size: int,
    denoise: float | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Scores of each tile of a split, batch after batch, as `image_scores` has them.

    Args:
      setup: the run's functions.
      state: state of the net.
      split: the tiles.
      batch_size: images in a batch of the evaluation.
      denoise: weight of a TV denoising of the probabilities (eq. 3), or None.
      before_each: called before each batch, by all processes; it may raise.
    """
    layout = setup.layout
    weight = None if denoise is None else layout.replicate(jnp.float32(denoise))
    batches = eval_batches(split, batch_size=batch_size, **layout.share)

    def found() -> Iterator[tuple[jax.Array, ...]]:
        total, disable = -(-len(split) // batch_size), not parallel.is_first()
        words = f"evaluating {split.name}"
        for batch, valid in tqdm(batches, words, total, leave=False, delay=3, disable=disable):
            before_each()
            yield setup.evaluate(state, weight, *layout.shard((tuple(batch), valid)))

    return (image_scores(*jax.device_get(batch)) for batch in parallel.ahead(found()))


def image_scores(
    prediction: np.ndarray, truth: np.ndarray, bce: np.ndarray, valid: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores of the images of a batch that are no padding, `[n]` each.

    Args:
      prediction: bool `[B, H, W, 1]`.
      truth: `[B, H, W, 1]`, 0 or 1.
      bce: cross-entropies `[B]`.
      valid: bool `[B]`, False on padding.
    """
    found = of_images(prediction[valid, ..., 0], truth[valid, ..., 0] > 0)
    empty = found["true_positive"] + found["false_negative"] == 0
    return found | {
        "bce": bce[valid],
        "images": np.ones(len(empty)),
        "empty_images": empty,
        "nonempty_iou": np.where(empty, 0, found["iou"]),
    }


def sums(scores: dict[str, np.ndarray]) -> dict[str, np.float32]:
    """Sums over the images of a batch, as `mask_scores.summarise` takes them."""
    # In float32, one image after the other: so results had it from the first, to the last digit.
    return {
        name: functools.reduce(np.add, scores[name].astype(np.float32), np.float32(0))
        for name in sorted(scores)
    }


def add_up(parts: Iterable[dict[str, np.float32]]) -> dict[str, float]:
    """The sum of sums, in float64: float32 counts no further than 2^24."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + float(value)
    return total


def choose_denoising(
    setup: Setup,
    state: TrainState,
    split: Split,
    weights: Sequence[float],
    *,
    score: str,
    **options: Any,
) -> tuple[float, list[tuple[float, float]]]:
    """The weight of the TV denoising with the best score (eq. 12: "iou"), and each with its score.

    `options` are those of `tile_scores`.
    """
    bar = tqdm(
        weights, "choosing the denoising weight", leave=False, disable=not parallel.is_first()
    )
    found = [
        (weight, evaluate(setup, state, split, denoise=weight, **options)[score]) for weight in bar
    ]
    return max(found, key=lambda pair: pair[1])[0], found


def baselines(split: Split, *, batch_size: int) -> dict[str, float]:
    """The mean IoU of predicting background everywhere, and of predicting object everywhere.

    Pooled over all pixels, the IoU of the former is 0 (of no object at all 1), and that of the
    latter is its mean, since tiles are of one size.
    """
    background, foreground, images = 0.0, 0.0, 0.0
    for batch, valid in eval_batches(split, batch_size=batch_size):
        share = of_objects(batch).mean(axis=(1, 2, 3))
        background += float(np.sum(valid * (share == 0)))  # empty on empty scores 1
        foreground += float(np.sum(valid * share))
        images += float(np.sum(valid))
    return {
        "all_background": background / images,
        "all_foreground": foreground / images,
        "all_background_pooled": float(foreground == 0),
        "all_foreground_pooled": foreground / images,
    }


def describe_boundary(split: Split) -> dict[str, int]:
    """What boundary IoU counts of a split's masks.

    Returns:
      `pixels`, the width of its band; `objects`, the number of connected components; and
      `narrow_objects`, the number of those that lie in the band whole.
    """
    objects, narrow, pixels = 0, 0, boundary_pixels(*split[0]["mask"].shape[:2])
    for k in range(len(split)):
        found = count_narrow(split[k]["mask"][..., 0] > 0, pixels)
        objects, narrow = objects + found[0], narrow + found[1]
    return {"pixels": pixels, "objects": objects, "narrow_objects": narrow}
