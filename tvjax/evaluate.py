"""Scores of a state on a split."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from tvjax.data.pipeline import eval_batches
from tvjax.data.records import Split
from tvjax.metrics import Counts
from tvjax.training.setup import Setup
from tvjax.training.state import TrainState


def evaluate(setup: Setup, state: TrainState, split: Split, *, batch_size: int) -> dict[str, float]:
    """Mean IoU per image, pooled IoU and F1, and cross-entropy; running statistics, p > 0.5.

    Sums and counts are added up over batches and divided once; padding weighs nothing.
    """
    total = None
    for batch, weight in _bar(eval_batches(split, batch_size=batch_size), split, batch_size):
        sums = setup.evaluate(state, None, tuple(batch), weight)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    total = {k: float(v) for k, v in jax.device_get(total).items()}
    pooled = Counts(*(jnp.asarray(total[name]) for name in Counts._fields))
    return {
        "iou": total["iou"] / total["images"],
        "pooled_iou": float(pooled.iou),
        "pooled_f1": float(pooled.f1),
        "bce": total["bce"] / total["images"],
        "images": total["images"],
    }


def baselines(split: Split, *, batch_size: int) -> dict[str, float]:
    """The mean IoU of predicting background everywhere, and of predicting object everywhere."""
    background, foreground, images = 0.0, 0.0, 0.0
    for batch, weight in eval_batches(split, batch_size=batch_size):
        share = batch.mask.mean(axis=(1, 2, 3))
        background += float(np.sum(weight * (share == 0)))  # empty on empty scores 1
        foreground += float(np.sum(weight * share))
        images += float(np.sum(weight))
    return {"all_background": background / images, "all_foreground": foreground / images}


def _bar(batches: Iterable[Any], split: Split, batch_size: int) -> Iterable[Any]:
    total = -(-len(split) // batch_size)
    return tqdm(batches, f"evaluating {split.name}", total, leave=False, delay=3)
