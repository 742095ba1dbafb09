"""The pictures of a run: learning curves, lambda over time, and predictions beside the truth."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A training job has no screen; and a notebook's backend, which may not be here, ends the import.
os.environ["MPLBACKEND"] = "agg"

import matplotlib

matplotlib.use("Agg")  # where it was imported before

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from tvjax import files

COLORS = {"train": "#4c78a8", "val": "#f58518", "lambda": "#54a24b", "truth": "#00d0ff"}


LABELS = {"pooled_iou": "pooled IoU", "iou": "mean IoU", "bce": "cross-entropy"}


def learning_curves(metrics: Sequence[dict[str, Any]], path: Path, *, score: str) -> None:
    """Loss and a score over steps, from the lines of `metrics.jsonl`."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, name in zip(axes, ("bce", score), strict=True):
        for kind in ("train", "val"):
            steps, values = _series(metrics, kind, name)
            style = {"marker": "o", "markersize": 3} if kind == "val" else {"alpha": 0.8}
            axis.plot(steps, values, color=COLORS[kind], label=kind, **style)
        axis.set(xlabel="step", ylabel=LABELS[name])
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    save(figure, path)


def learned_over_time(metrics: Sequence[dict[str, Any]], names: Sequence[str], path: Path) -> None:
    """One row per learned quantity: its value (of tile weights the mean), and its hypergradient."""
    figure, rows = plt.subplots(
        len(names), 2, figsize=(9, 0.6 + 2.6 * len(names)), squeeze=False, layout="constrained"
    )
    for (left, right), name in zip(rows, names, strict=True):
        left.plot(*_series(metrics, "train", name), color=COLORS["lambda"])
        left.set(xlabel="step", ylabel=name.replace("_", " "))
        gradient = "hypergradient" if name == "lambda" else f"hypergradient_{name}"
        right.plot(*_series(metrics, "train", gradient), color=COLORS["lambda"], alpha=0.8)
        right.axhline(0, color="0.5", linewidth=0.8)
        right.set(xlabel="step", ylabel="hypergradient")
        lambdas = [x for x in left.lines[0].get_ydata() if x and name == "lambda"]
        if lambdas and min(lambdas) > 0:
            left.set_yscale("log")
        for axis in (left, right):
            axis.grid(alpha=0.3, which="both")
    save(figure, path)


def sweep(scores: Sequence[tuple[float, float]], path: Path) -> None:
    """Validation IoU over the weight of the denoising (as Figure 6a), the best one marked."""
    weights, values = zip(*scores, strict=True)
    figure, axis = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
    axis.plot(weights, values, color=COLORS["val"], marker="o", markersize=3)
    axis.axvline(weights[int(np.argmax(values))], color="0.5", linewidth=0.8, linestyle="--")
    axis.set(xlabel="weight of the denoising", ylabel="validation IoU")
    axis.grid(alpha=0.3)
    save(figure, path)


def sweep_of_seeds(lines: Sequence[dict[str, Any]], path: Path, *, score: str) -> None:
    """Validation loss and score at the end over lambda: a dot a run, a line through the means.

    The lines are those of `tvjax.sweep`, with `lambda` and `splits`; one without a score is left
    out of its half.
    """
    lambdas = sorted({line["lambda"] for line in lines})
    positive = [lam for lam in lambdas if lam > 0] or [1.0]
    at = {lam: lam if lam > 0 else min(positive) / 10 for lam in lambdas}  # 0 has no logarithm
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, name in zip(axes, ("bce", score), strict=True):
        values: dict[float, list[float]] = {}
        for line in sorted(lines, key=lambda line: line["lambda"]):
            lam, scores = line["lambda"], line["splits"]["val"]
            if scores.get(name) is not None:  # earlier runs lack some scores
                values.setdefault(lam, []).append(scores[name])
        for lam, found in values.items():
            axis.plot([at[lam]] * len(found), found, ".", color=COLORS["val"], alpha=0.5)
        means = [float(np.mean(found)) for found in values.values()]
        axis.plot([at[lam] for lam in values], means, color=COLORS["val"])
        axis.set(xlabel="lambda", ylabel=f"validation {LABELS[name]}", xscale="log")
        if 0 in at:
            axis.axvline(at[0], color="0.5", linewidth=0.8, linestyle=":")
            _name_lambdas(axis, at)
        axis.grid(alpha=0.3)
    save(figure, path)


def _name_lambdas(axis: Any, at: dict[float, float]) -> None:
    """Marks a logarithmic axis at the lambdas alone: the place that stands for 0 is no power of 10.

    Names that would stand closer than an eighth of the axis are left out.
    """
    places = np.log10(list(at.values()))
    names, last = [], -np.inf
    for lam, place in zip(at, places, strict=True):
        is_clear = place - last > np.ptp(places) / 8
        names.append(f"{lam:g}" if is_clear else "")
        last = place if is_clear else last
    axis.set_xticks(list(at.values()), names)
    axis.minorticks_off()


def predictions(
    images: Sequence[np.ndarray] | np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray,
    probabilities: Sequence[np.ndarray] | np.ndarray,
    *,
    labels: Sequence[str] = (),
) -> Figure:
    """One row a tile: image, truth, probability, and both contours on the image.

    Args:
      images: uint8 `[H, W, 3]` each.
      masks: `[H, W, 1]`, 0 or 1.
      probabilities: `[H, W, 1]` in [0, 1].
      labels: labels of the rows, if any.
    """
    titles = ("image", "truth", "probability", "contour (truth dashed)")
    figure, axes = plt.subplots(
        len(images), 4, figsize=(8, 2.05 * len(images) + 0.2), squeeze=False, layout="constrained"
    )
    for row, image, mask, probability in zip(axes, images, masks, probabilities, strict=True):
        row[0].imshow(image)
        row[1].imshow(mask[..., 0], cmap="gray", vmin=0, vmax=1)
        row[2].imshow(probability[..., 0], cmap="magma", vmin=0, vmax=1)
        _outlined(row[3], image, mask, probability)
        for axis in row:
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for axis, label in zip(axes[:, 0], labels, strict=False):
        axis.text(
            -0.04, 0.5, label, transform=axis.transAxes, rotation=90, ha="right", va="center",
            fontsize=9,
        )  # fmt: skip
    return figure


def sheet_of_labels(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
    titles: Sequence[str],
) -> Figure:
    """Tiles side by side: the image, and on it the outlines of label (dashed) and net.

    Arrays are those of `predictions`; each tile has a title of one line.
    """
    rows = max(-(-len(images) // 3), 1)
    figure, axes = plt.subplots(
        rows, 6, figsize=(10.2, 1.9 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    pairs = axes.reshape(-1, 2)
    for pair, image, mask, probability, title in zip(
        pairs, images, masks, probabilities, titles, strict=False
    ):
        pair[0].imshow(image)
        pair[0].set_title(title, fontsize=7, loc="left", pad=3)
        _outlined(pair[1], image, mask, probability)
    return figure


def _outlined(axis: Any, image: np.ndarray, mask: np.ndarray, probability: np.ndarray) -> None:
    """Draws an image and on it the outlines of the truth (dashed) and of a prediction."""
    axis.imshow(image)
    for field, style, color in ((mask, "--", COLORS["truth"]), (probability, "-", "#ff2d55")):
        if field.min() <= 0.5 < field.max():  # else there is no contour to draw
            axis.contour(field[..., 0], [0.5], colors=color, linestyles=style, linewidths=1.2)


def save(figure: Figure, path: Path) -> None:
    """Writes and closes a figure; an earlier one stays whole until the new one is."""
    try:
        with files.replacing(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    finally:
        plt.close(figure)


def pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 `[H, W, 3]`."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # pyright: ignore


def _series(metrics: Sequence[dict[str, Any]], kind: str, name: str):
    lines = [m for m in metrics if m["kind"] == kind and m.get(name) is not None]
    return [m["step"] for m in lines], [m[name] for m in lines]
