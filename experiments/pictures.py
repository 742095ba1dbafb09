"""The figures that show tiles: each is drawn where the tiles are, beside its result file."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from tvjax import denoise_tv
from tvjax.data import noise
from tvjax.scoring.mask_scores import components
from tvjax.scoring.metrics import iou
from tvjax.training import figures
from tvjax.types import Batch

TRUTH, FOUND = figures.COLORS["truth"], "#ff2d55"


def outliers() -> dict[str, Any]:
    """Figure 1: values of a 10x10 prediction with outliers, and of its denoisings.

    The exact solution is fista's; L-BFGS, the paper's way, smooths the objective.
    """
    truth = np.zeros((10, 10), np.float32)
    truth[2:8, 3:8] = 1
    rng = np.random.default_rng(0)
    p = np.clip(0.15 + 0.7 * truth + rng.normal(0, 0.1, truth.shape), 0, 1).astype(np.float32)
    for y, x in ((0, 8), (5, 1), (9, 4), (4, 5), (6, 7)):  # three false alarms, two holes
        p[y, x] = 0.9 - 0.8 * truth[y, x]
    found = {"prediction": p}
    for name, method in (("exact", "fista"), ("lbfgs", "lbfgs")):
        try:
            image = denoise_tv(p[..., None], 0.25, method=method, tolerance=1e-6).image
            found[name] = np.asarray(image[..., 0])
        except ImportError:  # of the extra for L-BFGS
            continue
    scores = {k: float(iou(v[..., None], truth[..., None])) for k, v in found.items()}
    pieces = {k: int(components(v[None] > 0.5)[0]) for k, v in found.items()}
    return {
        "truth": truth.astype(int), "images": {k: np.round(v, 3) for k, v in found.items()},
        "iou": scores, "components": pieces, "lambda": 0.25,
    }  # fmt: skip


def downsampled(lab, run, path: Path) -> dict[str, Any]:
    """Figure 2: a tile in its own size and in the net's, with the outline of its mask."""
    tiles = lab.trainer(run.data).tiles["test"]
    number = _with_most_roof(tiles.mask[:60])
    image = tiles.image[number]
    shown = [x for x in (lab.original(run.data, number), image, image) if x is not None]
    figure, axes = plt.subplots(1, len(shown), figsize=(3 * len(shown), 3.2), layout="constrained")
    for axis, picture in zip(axes, shown, strict=True):
        axis.imshow(picture)
        axis.set_title(f"{picture.shape[0]} x {picture.shape[1]} pixels", fontsize=9)
        axis.set_axis_off()
    _outline(axes[-1], tiles.mask[number, ..., 0], TRUTH)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)
    return {"picture": path.name, "tile": number, "sizes": [list(x.shape[:2]) for x in shown]}


def masks(tiles: Batch, found: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Figure 4: masks of several nets on two test tiles.

    One is that on which the last net gains most IoU over the first, as the paper's example does;
    the other that whose gain is the median of all.
    """
    ious = {name: np.asarray(iou(p, tiles.mask)) for name, p in found.items()}
    first, last = (ious[name] for name in (next(iter(ious)), list(ious)[-1]))
    holding = np.flatnonzero(tiles.mask.any(axis=(1, 2, 3)))
    order = holding[np.argsort((last - first)[holding], kind="stable")]
    chosen = {"largest gain": int(order[-1]), "median gain": int(order[len(order) // 2])}
    figure, axes = plt.subplots(
        2, len(found) + 1, figsize=(2.5 * (len(found) + 1), 5.4), layout="constrained"
    )
    for row, (rule, k) in zip(axes, chosen.items(), strict=True):
        row[0].imshow(tiles.image[k])
        row[0].set_title(f"test tile {k}: {rule}", fontsize=8)
        for axis, (name, p) in zip(row[1:], found.items(), strict=True):
            axis.imshow(p[k, ..., 0] > 0.5, cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{name}: IoU {100 * ious[name][k]:.0f} %", fontsize=8)
        for axis in row:
            _outline(axis, tiles.mask[k, ..., 0], TRUTH)
            axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)
    return {
        "picture": path.name, "tiles": chosen,
        "iou": {rule: {n: float(ious[n][k]) for n in ious} for rule, k in chosen.items()},
    }  # fmt: skip


def noisy(tiles: Batch, path: Path, sigma: float = 0.05) -> dict[str, Any]:
    """Figure 7: a tile without and with noise."""
    k = _with_most_roof(tiles.mask[:60])
    image = tiles.image[k].astype(np.float32) / 255
    figure, axes = plt.subplots(1, 2, figsize=(6, 3.2), layout="constrained")
    for axis, level in zip(axes, (0.0, sigma), strict=True):
        axis.imshow(noise.add_noise(image, level, seed=0, clip=True))
        axis.set_title(f"sigma = {level:g}", fontsize=9)
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)
    return {"picture": path.name, "tile": k, "sigma": sigma}


def contours(tiles: Batch, probabilities: np.ndarray, path: Path) -> dict[str, Any]:
    """Outlines of truth and prediction on the best, median and worst tiles; no imagery."""
    ious = np.asarray(iou(probabilities, tiles.mask))
    holding = np.flatnonzero(tiles.mask.any(axis=(1, 2, 3)))
    order = holding[np.argsort(ious[holding], kind="stable")]
    middle = len(order) // 2
    groups = {"best": order[-3:], "median": order[middle - 1 : middle + 2], "worst": order[:3]}
    figure, axes = plt.subplots(3, 3, figsize=(6.6, 7), layout="constrained")
    for row, (name, group) in zip(axes, groups.items(), strict=True):
        for axis, k in zip(row, group, strict=False):
            axis.imshow(np.full((*tiles.mask.shape[1:3], 3), 255, np.uint8))
            _outline(axis, tiles.mask[k, ..., 0], "#1f77b4")
            _outline(axis, probabilities[k, ..., 0], FOUND)
            axis.set_title(f"{name}: IoU {100 * ious[k]:.0f} %", fontsize=8)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)
    return {"picture": path.name}


def _outline(axis, field: np.ndarray, color: str) -> None:
    if field.min() <= 0.5 < field.max():  # else there is no contour to draw
        axis.contour(field, [0.5], colors=color, linewidths=1.2)


def _with_most_roof(masks: np.ndarray) -> int:
    """The tile whose share of roof is nearest to 0.3: neither empty nor one roof."""
    return int(np.argmin(np.abs(masks.mean(axis=(1, 2, 3)) - 0.3)))
