"""Scores of a state on a split."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from tvjax.data.pipeline import eval_batches
from tvjax.data.records import Split
from tvjax.scoring import boundaries
from tvjax.scoring.metrics import Counts, boundary_pixels
from tvjax.training import parallel
from tvjax.training.setup import Setup
from tvjax.training.state import TrainState


def evaluate(
    setup: Setup,
    state: TrainState,
    split: Split,
    *,
    batch_size: int,
    denoise: float | None = None,
    before_each: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Scores at p > 0.5 with running statistics; padding weighs nothing.

    Sums and counts are added up over batches and divided once.

    Args:
      setup: the run's functions.
      state: state of the net.
      split: the tiles.
      batch_size: images in a batch of the evaluation.
      denoise: weight of a TV denoising of the probabilities (eq. 3), or None.
      before_each: called before each batch, by all processes; it may raise.

    Returns:
      Means over images of `iou`, `boundary_iou`, `bce`, the number of connected components and the
      total variation of predicted masks (`components`, `tv`) and of true ones (`true_components`,
      `true_tv`); `pooled_iou` and `pooled_f1` over all pixels; `images`, their number;
      `nonempty_iou`, the mean IoU over those that hold objects, None of none, and `empty_images`,
      the number of the others.
    """
    layout = setup.layout
    weight_of_tv = None if denoise is None else layout.replicate(jnp.float32(denoise))
    batches = eval_batches(split, batch_size=batch_size, **layout.share)

    def sums() -> Iterator[dict[str, jax.Array]]:
        for batch, weight in _bar(batches, split, batch_size):
            if before_each is not None:
                before_each()
            yield setup.evaluate(state, weight_of_tv, *layout.shard((tuple(batch), weight)))

    return scores_of(add_up(sums()))


def add_up(parts: Iterable[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    """The sum of sums, in float64: float32 counts no further than 2^24.

    Each is fetched when the next is under way, so that the device is not idle.
    """
    total: dict[str, np.ndarray] = {}
    pending = {}
    for part in itertools.chain(parts, [{}]):
        for name, value in jax.device_get(pending).items():
            total[name] = total.get(name, np.zeros(())) + np.asarray(value, np.float64)
        pending = part
    return total


def scores_of(sums: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate` returns, from the sums of `steps.evaluation_step` over all images."""
    total = {k: float(v) for k, v in sums.items()}
    counts = Counts(*(jnp.asarray(total.pop(name)) for name in Counts._fields))
    images, empty = total.pop("images"), total.pop("empty_images")
    nonempty = total.pop("nonempty_iou")
    return {
        **{name: value / images for name, value in total.items()},
        "pooled_iou": float(counts.iou),
        "pooled_f1": float(counts.f1),
        "nonempty_iou": nonempty / (images - empty) if images > empty else None,
        "images": images,
        "empty_images": empty,
    }


def choose_denoising(
    setup: Setup,
    state: TrainState,
    split: Split,
    weights: Sequence[float],
    *,
    score: str,
    **options: Any,
) -> tuple[float, dict[str, float]]:
    """The weight of the TV denoising with the best score (eq. 12: "iou"), and the score of each.

    `options` are those of `evaluate`.
    """
    bar = tqdm(
        weights, "choosing the denoising weight", leave=False, disable=not parallel.is_first()
    )
    ious = {
        str(weight): evaluate(setup, state, split, denoise=weight, **options)[score]
        for weight in bar
    }
    return float(max(ious, key=lambda weight: ious[weight])), ious


def baselines(split: Split, *, batch_size: int) -> dict[str, float]:
    """The mean IoU of predicting background everywhere, and of predicting object everywhere.

    Pooled over all pixels, the IoU of the former is 0 (of no object at all 1), and that of the
    latter is its mean, since tiles are of one size.
    """
    background, foreground, images = 0.0, 0.0, 0.0
    for batch, weight in eval_batches(split, batch_size=batch_size):
        share = batch.mask.mean(axis=(1, 2, 3))
        background += float(np.sum(weight * (share == 0)))  # empty on empty scores 1
        foreground += float(np.sum(weight * share))
        images += float(np.sum(weight))
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
        found = boundaries.count_narrow(split[k]["mask"][..., 0] > 0, pixels)
        objects, narrow = objects + found[0], narrow + found[1]
    return {"pixels": pixels, "objects": objects, "narrow_objects": narrow}


def _bar(batches: Iterable[Any], split: Split, batch_size: int) -> Iterable[Any]:
    total = -(-len(split) // batch_size)
    disable = not parallel.is_first()
    return tqdm(batches, f"evaluating {split.name}", total, leave=False, delay=3, disable=disable)
