"""The figures of the report that are drawn from numbers."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments import tables
from experiments.claims import noise_gains, under_noise
from experiments.findings import Findings, Member
from experiments.lambda_claims import mean
from experiments.runs import PAPER_LAMBDA
from tvjax.training import figures

STYLES = {
    "U-Net": "#4c78a8", "RU-Net": "#f58518", "LU-Net": "#e45756", "LU-Net at 1e-5": "#b279a2",
}  # fmt: skip
SPLITS = {"train": "#4c78a8", "val": "#f58518", "test": "#54a24b"}


def outliers(member: Member, path: Path) -> None:
    """Figure 1: a 10x10 prediction with and without denoising, the truth outlined."""
    truth, images = np.array(member["truth"], float), member["images"]
    titles = {
        "prediction": "(a) prediction", "exact": "(b) denoised, exact",
        "lbfgs": "(b) denoised, L-BFGS on a smoothed objective",
    }  # fmt: skip
    figure, axes = plt.subplots(1, len(images), figsize=(3.2 * len(images), 3.4), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis, (name, values) in zip(axes[0], images.items(), strict=True):
        axis.imshow(np.array(values), cmap="gray", vmin=0, vmax=1)
        axis.contour(truth, [0.5], colors="#2ca02c", linewidths=1.5)
        score = f"IoU {100 * member['iou'][name]:.0f} %, {member['components'][name]} components"
        axis.set_title(f"{titles[name]}\n{score}", fontsize=8)
        axis.set(xticks=[], yticks=[])
    figures.save(figure, path)


def courses(f: Findings, path: Path) -> None:
    """Figure 5: training and validation IoU over epochs."""
    kinds = {"U-Net": ("unet", None), "RU-Net": ("runet", PAPER_LAMBDA),
             "LU-Net": ("lunet", PAPER_LAMBDA)}  # fmt: skip
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for name, (method, lam) in kinds.items():
        members = f.rows(method, lam)
        if not members:
            continue
        total = members[0]["course"]["step"][-1]
        epochs = [s * f.scale.epochs / total for s in members[0]["course"]["step"]]
        for axis, key in zip(axes, ("train_iou", "val_iou"), strict=True):
            _band(axis, epochs, [m["course"][key] for m in members], STYLES[name], name)
    for axis, title in zip(axes, ("training batches", "validation"), strict=True):
        axis.set(xlabel="epoch", title=title)
    axes[0].set_ylabel("mean IoU, %")
    _save(figure, path)


def sweeps(f: Findings, path: Path) -> None:
    """Figure 6: IoU over the weight for the three models."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    members = f.of("denoise")
    for split, color in SPLITS.items():
        if members:
            rows = [m["iou"][split] for m in members]
            _band(axes[0], list(f.scale.weights), rows, color, split)
    axes[0].set_title("(a) U-Net + TV", fontsize=10)
    for axis, method, weights, title in (
        (axes[1], "runet", (PAPER_LAMBDA, *f.scale.active), "(b) RU-Net"),
        (axes[2], "lunet", f.scale.lambdas, "(c) LU-Net"),
    ):
        weights = [w for w in weights if f.rows(method, w)]
        for split, color in SPLITS.items():
            rows = [[m["scores"][split]["iou"] for m in f.rows(method, w)] for w in weights]
            _bars(axis, weights, rows, color, split)
        axis.set_xscale("log")
        axis.set_title(title, fontsize=10)
    base = f.rows("unet")
    for axis in axes:
        if base:
            level = 100 * float(np.mean([m["scores"]["test"]["iou"] for m in base]))
            axis.axhline(level, color="0.4", linestyle=":", linewidth=1, label="U-Net, test")
        axis.set_xlabel("lambda")
    axes[0].set_ylabel("mean IoU, %")
    _save(figure, path)


def robustness(f: Findings, path: Path) -> None:
    """Figure 8: test IoU under noise, and LU-Net's gain over U-Net."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    sigmas = list(f.scale.sigmas)
    for name, (method, lam) in tables.noisy(f).items():
        by = list(under_noise(f, method, lam).values())
        if by:
            _band(axes[0], sigmas, by, STYLES[name], name, scale=1)
    axes[0].set(xlabel="sigma of the noise", ylabel="mean test IoU, %")
    for lam, color in ((PAPER_LAMBDA, STYLES["LU-Net"]), (1e-5, STYLES["LU-Net at 1e-5"])):
        found = noise_gains(f, lam)
        good = [(s, d) for s, d in zip(sigmas, found, strict=True) if d is not None]
        if good:
            x, d = [s for s, _ in good], [d for _, d in good]
            errors = [[v.value - v.low for v in d], [v.high - v.value for v in d]]
            axes[1].errorbar(x, [v.value for v in d], yerr=errors, color=color, capsize=3,
                             marker="o", markersize=3, label=f"lambda = {lam:g}")  # fmt: skip
    axes[1].axhline(0, color="0.5", linewidth=0.8)
    axes[1].plot([0.04], [3.6], "k*", label="paper")
    axes[1].set(xlabel="sigma of the noise", ylabel="LU-Net minus U-Net, points")
    _save(figure, path, legends=2)


def compactness(f: Findings, path: Path) -> None:
    """Components of the test masks over lambda, beside the truth."""
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    weights = [w for w in f.scale.lambdas if f.rows("lunet", w)]
    rows = [[m["scores"]["test"]["components"] for m in f.rows("lunet", w)] for w in weights]
    _bars(axis, weights, rows, STYLES["LU-Net"], "LU-Net", scale=1)
    base = f.rows("unet")
    if base:
        mean_of = {k: float(np.mean([m["scores"]["test"][k] for m in base]))
                   for k in ("components", "true_components")}  # fmt: skip
        axis.axhline(mean_of["components"], color=STYLES["U-Net"], label="U-Net")
        axis.axhline(mean_of["true_components"], color="0.3", linestyle="--", label="truth")
    axis.set(xscale="log", xlabel="lambda", ylabel="components per test mask")
    _save(figure, path)


def _save(figure, path: Path, legends: int = 1) -> None:
    """Writes a figure with grids, and with legends in its first axes."""
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    for axis in figure.axes[:legends]:
        axis.legend(frameon=False, fontsize=8)
    figures.save(figure, path)


def _band(axis, x: Sequence[float], rows, color: str, label: str, scale: float = 100) -> None:
    """A line through the means of `rows`, one per seed, in a band of their 95 % intervals."""
    means = [mean(scale * np.array(column)) for column in zip(*rows, strict=True)]
    axis.plot(x, [m.value for m in means], color=color, marker="o", markersize=3, label=label)
    low, high = [m.low for m in means], [m.high for m in means]
    axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _bars(axis, x: Sequence[float], rows, color: str, label: str, scale: float = 100) -> None:
    """A point per weight with the 95 % interval over seeds; series stand a little apart."""
    x = [v * 1.04 ** len(axis.containers) for v in x]
    means = [mean(scale * np.array(row)) for row in rows]
    half = np.nan_to_num([m.high - m.value for m in means])
    axis.errorbar(x, [m.value for m in means], yerr=half, color=color, capsize=2, marker="o",
                  markersize=3, label=label)  # fmt: skip
