"""The figures of the study of lambda."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from experiments.lambda_claims import Study, mean, minimum
from tvjax.training import figures

STYLES = {
    "exact": ("#d62728", "exact, one step"),
    "online": ("#1f77b4", "online, all steps"),
    "sgd_formula": ("#9467bd", "SGD formula"),
    "paper": ("#ff7f0e", "paper, as printed"),
    "whole": ("#2ca02c", "descent by whole runs"),
}
MARKS = ">os<D^v"
"""Markers of the starts, from the least start on."""


def curves(studies: list[Study], path: Path) -> None:
    """Final validation loss over lambda, and what each estimator learned from each start."""
    size = (7.2 * len(studies), 5.8)
    figure, axes = plt.subplots(1, len(studies), figsize=size, squeeze=False, layout="constrained")
    for axis, study in zip(axes[0], studies, strict=True):
        _curve(axis, study)
        _learned(axis, study)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("final validation loss")
    first = studies[0].learned()
    starts = sorted({start for groups in first.values() for start in groups})
    figure.legend(handles=_handles(list(first), starts), loc="outside lower center", ncols=4,
                  fontsize=9, frameon=False)  # fmt: skip
    figures.save(figure, path)


def _curve(axis, study: Study) -> None:
    lams, seeds, _ = study.curve()
    loss = study.scores()
    positive = [lam for lam in lams if lam > 0]
    ends = [m["final_lambda"] for g in study.learned().values() for ms in g.values() for m in ms]
    zero = min([*positive, *(x for x in ends if x)]) / 10
    at = [lam or zero for lam in lams]
    bounds = np.array([mean(row) for row in loss])
    found = minimum(loss, lams, np.random.default_rng(0))
    axis.axvspan(found["low"] or zero, found["high"] or zero, color="#2ca02c", alpha=0.08)
    axis.axvline(found["best"] or zero, color="#2ca02c", alpha=0.5, linestyle=":")
    axis.fill_between(at, bounds[:, 1], bounds[:, 2], alpha=0.25, color="0.4", linewidth=0)
    axis.plot(at, bounds[:, 0], "-", color="0.2", marker=".", linewidth=1.2)
    axis.set(
        xscale="log", yscale="log",
        title=f"{study.data}: {len(seeds)} seeds per lambda; least at {found['best']:g} "
        f"(95 %: {found['low']:g} to {found['high']:g})",
    )  # fmt: skip
    axis.title.set_fontsize(10)
    decades = range(math.ceil(math.log10(zero)) + 1, math.floor(math.log10(max(at))) + 1)
    axis.set_xticks([zero, *(10.0**k for k in decades)])
    axis.set_xticklabels(["0", *(f"$10^{{{k}}}$" for k in decades)])
    axis.minorticks_off()
    least = float(bounds[:, 0].min())
    axis.set_ylim(0.86 * least, 1.5 * least)  # the tables have what lies above
    axis.yaxis.set_major_locator(MultipleLocator(0.02))
    axis.yaxis.set_major_formatter("{x:.2f}")
    axis.set_xlabel("lambda: held fixed (grey), or learned, at the end (colours)")


def _learned(axis, study: Study) -> None:
    """Medians of lambda from the least to the most, means of the loss with their intervals."""
    for k, (name, groups) in enumerate(study.learned().items()):
        color, _ = STYLES.get(name, (f"C{k % 10}", name))
        for mark, (_, group) in zip(MARKS, sorted(groups.items()), strict=False):
            good = [m for m in group if m["val"]["bce"] is not None and m["final_lambda"]]
            if not good:
                continue
            x = [m["final_lambda"] for m in good]
            y = mean(m["val"]["bce"] for m in good)
            middle = float(np.median(x))
            axis.errorbar(
                middle, y.value, fmt=mark, color=color, markersize=7, capsize=2, linewidth=0.8,
                markeredgecolor="white", markeredgewidth=0.6, alpha=0.9,
                xerr=[[middle - min(x)], [max(x) - middle]],
                yerr=[[y.value - y.low], [y.high - y.value]],
            )  # fmt: skip


def _handles(names: list[str], starts: list[float]) -> list[Line2D]:
    handles = [
        Line2D([], [], color="0.2", marker=".", label="lambda held fixed, 95 % interval"),
        Line2D([], [], color="#2ca02c", linestyle=":", label="its minimum; 95 % of redrawn seeds"),
    ]
    for k, name in enumerate(names):
        color, label = STYLES.get(name, (f"C{k % 10}", name))
        handles.append(Line2D([], [], color=color, linewidth=4, label=label))
    handles += [
        Line2D([], [], color="0.4", marker=mark, linestyle="none", label=f"from {start:.0e}")
        for mark, start in zip(MARKS, starts, strict=False)
    ]
    return handles


def slopes(studies: list[Study], path: Path) -> None:
    """Derivatives in log lambda at fixed lambda, on an axis that is linear around 0."""
    size = (7.2 * len(studies), 4.6)
    figure, axes = plt.subplots(1, len(studies), figsize=size, squeeze=False, layout="constrained")
    for axis, study in zip(axes[0], studies, strict=True):
        by, secants = study.slopes(), study.secants()
        lams = sorted({lam for _, lam in by})
        kinds = {
            "curve, between neighbours": ("0.2", 0.9, [secants.get(lam, []) for lam in lams]),
            "whole run, each seed": (
                "#2ca02c", 1.0, [[m["slope"] for m in by.get(("whole", lam), [])] for lam in lams]
            ),
            "one step, mean of a run": (
                "#d62728", 1.11,
                [[m["hypergradient"]["mean"] for m in by.get(("1", lam), [])] for lam in lams],
            ),
        }  # fmt: skip
        for label, (color, shift, rows) in kinds.items():
            for lam, row in zip(lams, rows, strict=True):
                row = [v for v in row if v is not None]
                axis.plot([lam * shift] * len(row), row, "o", color=color, markersize=4, alpha=0.6)
                axis.plot([lam * shift], [np.mean(row)] if row else [np.nan], "_", color=color,
                          markersize=16, markeredgewidth=2.5)  # fmt: skip
            axis.plot([], [], "o", color=color, label=label)
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.set(xscale="log", xlabel="lambda, held fixed", title=f"{study.data}: bars are means")
        axis.set_yscale("symlog", linthresh=1e-6, linscale=0.5)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, frameon=False, loc="upper left")
    axes[0, 0].set_ylabel("derivative of the validation loss in log lambda")
    figures.save(figure, path)
