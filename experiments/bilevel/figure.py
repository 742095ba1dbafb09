"""Courses of the solvers, drawn from a result file."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from tvjax.training import figures

STYLES = {
    "soba": ("#4c78a8", "-"), "ma_soba": ("#4c78a8", "--"), "amigo": ("#f58518", "-"),
    "stocbio": ("#e45756", "-"), "f2sa": ("#54a24b", "-"), "f2sa_growing": ("#54a24b", "--"),
    "bome": ("#b279a2", "-"), "cg": ("#222222", "-"), "exact": ("#9d755d", "-"),
    "reverse_10": ("#9d755d", "--"), "forward_online": ("#9d755d", ":"),
}  # fmt: skip


def draw(results: dict[str, Any], path: Path) -> None:
    """Gap to the best value, gradient's norm and test error; means and ranges of the seeds."""
    found = {k: v for k, v in results["solvers"].items() if "left_out" not in v}
    best, tested = abs(results["best_value"]), any(v["test_error"] for v in found.values())
    panels = [
        ("gap", 1 / best, "passes_per_call", "forward passes of 64 samples"),
        ("gap", 1 / best, "seconds_per_call", "seconds of one core"),
        ("gradient_norm", 1, "passes_per_call", "forward passes of 64 samples"),
    ]
    if tested:
        panels.append(("test_error", 100, "passes_per_call", "forward passes of 64 samples"))
    shape = (2, 2) if tested else (1, 3)
    figure, axes = plt.subplots(
        *shape, figsize=(4.6 * shape[1], 3.8 * shape[0]), layout="constrained"
    )
    titles = {"gap": "(h - best) / |best|", "gradient_norm": "|projected gradient of h|",
              "test_error": "test error, %"}  # fmt: skip
    for axis, (key, scale, per_call, label) in zip(axes.flat, panels, strict=True):
        for name, solver in found.items():
            _course(axis, solver, key, scale, per_call, name)
        axis.set(xscale="log", xlabel=label, title=titles[key])
        axis.set_yscale("linear" if key == "test_error" else "log")
        if key == "gap":
            first = (results["first_value"] - results["best_value"]) / best
            axis.axhline(results["config"]["tolerance"], color="0.5", linestyle=":", linewidth=1)
            axis.set_ylim(max(axis.get_ylim()[0], 1e-7), 3 * first)
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(
        f"{results['config']['problem']}: best value {results['best_value']:.4g} "
        f"({results['best_is']}), first {results['first_value']:.4g}; "
        f"{results['config']['seeds']} seeds, bands: least to greatest", fontsize=10,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def _course(axis, solver: dict[str, Any], key: str, scale: float, per_call: str, name: str) -> None:
    rows = scale * np.array(solver[key], float)
    x = np.array(solver["at_calls"]) * solver[per_call]
    color, line = STYLES[name]
    axis.plot(x, rows.mean(0), color=color, linestyle=line, linewidth=1.6, label=name)
    axis.fill_between(x, rows.min(0), rows.max(0), color=color, alpha=0.12, linewidth=0)
