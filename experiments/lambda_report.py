"""Tables and the figure of the study of lambda, from its result files alone.

    python -m experiments.lambda_report --results=DIR --out=DIR

`lambda_study.md` holds the tables and `lambda_study.png` the curve of final validation loss over
lambda, with what each estimator learned. What is missing in the results is left out.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from tvjax import program
from tvjax.training import figures

DRAWS = 2000
"""Of a bootstrap over seeds."""


def define_flags() -> None:
    """The flags of the program."""
    flags.DEFINE_string("results", None, "Folder of experiments.lambda_study.", required=True)
    flags.DEFINE_string("out", None, "Folder of the report.", required=True)


class Study:
    """The members of all pieces of one set."""

    def __init__(self, pieces: dict[str, dict], data: str):
        self.data = data
        self.pieces = {name: p for name, p in pieces.items() if name.split("_")[1] == data}

    def members(self, kind: str) -> list[dict[str, Any]]:
        """Those of the pieces `KIND_SET...`."""
        found = [p["members"] for name, p in self.pieces.items() if name.split("_")[0] == kind]
        return [m for group in found for m in group]

    def curve(self) -> tuple[list[float], list[int], dict[tuple[float, int], dict]]:
        """Lambdas, seeds that have all of them, and their members."""
        by = {(m["lam"], m["seed"]): m for m in self.members("curve")}
        lams = sorted({lam for lam, _ in by})
        seeds = sorted({s for _, s in by if all((lam, s) in by for lam in lams)})
        return lams, seeds, by

    def losses(self, split: str = "val", name: str = "bce") -> np.ndarray:
        """`[lambdas, seeds]` of the curve."""
        lams, seeds, by = self.curve()
        return np.array([[by[lam, s][split][name] for s in seeds] for lam in lams])


def interval(values: np.ndarray, rng: Any) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds, by the bootstrap."""
    picks = rng.integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def minimum(losses: np.ndarray, lams: list[float], rng: Any) -> dict[str, Any]:
    """The lambda of the least mean, and how often each is it when seeds are drawn anew."""
    seeds = losses.shape[1]
    picks = rng.integers(0, seeds, (DRAWS, seeds))
    best = losses[:, picks].mean(2).argmin(0)
    shares = np.bincount(best, minlength=len(lams)) / DRAWS
    order = np.sort(best)
    low, high = (lams[order[int(q * (DRAWS - 1))]] for q in (0.025, 0.975))
    return {"best": lams[int(losses.mean(1).argmin())], "low": low, "high": high,
            "shares": dict(zip(lams, shares.tolist(), strict=True))}  # fmt: skip


def curve_table(study: Study, rng: Any) -> list[str]:
    """One row a lambda; differences from lambda = 0 are of the same seeds."""
    lams, seeds, by = study.curve()
    losses = study.losses()
    lines = [
        f"{len(seeds)} seeds; in brackets the 95 % interval of the mean, or of the mean difference "
        "from lambda = 0 with the same seeds.",
        "",
        "| lambda | val loss | - lambda 0 | train loss | test loss | val IoU | pooled | test IoU "
        "| components (true) | TV (true) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for i, lam in enumerate(lams):
        of = lambda split, name, lam=lam: np.mean([by[lam, s][split][name] for s in seeds])  # noqa: E731
        low, high = interval(losses[i], rng)
        change = losses[i] - losses[0]
        c_low, c_high = interval(change, rng)
        lines.append(
            f"| {lam:g} | {losses[i].mean():.4f} [{low:.4f}, {high:.4f}] "
            f"| {change.mean():+.4f} [{c_low:+.4f}, {c_high:+.4f}] "
            f"| {of('train', 'bce'):.4f} | {of('test', 'bce'):.4f} | {of('val', 'iou'):.4f} "
            f"| {of('val', 'pooled_iou'):.4f} | {of('test', 'iou'):.4f} "
            f"| {of('test', 'components'):.2f} ({of('test', 'true_components'):.2f}) "
            f"| {of('test', 'tv'):.1f} ({of('test', 'true_tv'):.1f}) |"
        )
    found = minimum(losses, lams, rng)
    shares = ", ".join(f"{lam:g}: {100 * p:.0f} %" for lam, p in found["shares"].items() if p)
    paired = (losses - losses[0]).std(axis=1, ddof=1)[1:] / math.sqrt(len(seeds))
    lines += [
        "",
        f"Least mean at {found['best']:g}; 95 % of redrawn seeds: {found['low']:g} to "
        f"{found['high']:g} ({shares}).",
        f"Standard deviation over seeds at lambda 0: {losses[0].std(ddof=1):.4f}; of a paired mean "
        f"difference: {paired.min():.4f} to {paired.max():.4f}, so that differences from some "
        f"{2.8 * np.median(paired):.4f} up would have been found (80 % power, 5 % level).",
    ]
    return lines


def learned(study: Study) -> dict[str, list[dict]]:
    """Members of each estimator."""
    prefix = f"learn_{study.data}_"
    return {
        name.removeprefix(prefix): p["members"]
        for name, p in study.pieces.items() if name.startswith(prefix)
    }  # fmt: skip


def regret_table(study: Study, rng: Any) -> list[str]:
    """What each estimator learned, and how far above the curve it ended.

    Regret: the final validation loss minus the least of the curve for the same seed (which the
    noise of as many runs as there are lambdas makes low), and minus that of the curve's best
    lambda.
    """
    lams, seeds, by = study.curve()
    losses = study.losses()
    best = lams[int(losses.mean(1).argmin())]
    least = dict(zip(seeds, losses.min(0), strict=True))
    plain = {s: by[best, s]["val"]["bce"] for s in seeds}
    base = np.mean([m["seconds"] for m in by.values()])
    lines = [
        f"Regret is against the same seed at the curve's best lambda, {best:g}; and against the "
        "least of the seed's curve.",
        "",
        "| estimator | start | lambda: median [least, most] | val loss | regret [95 %] "
        "| above the least | test IoU | seconds a run, of plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in learned(study).items():
        starts = defaultdict(list)
        for m in found:
            starts[m["lam"]].append(m)
        for start, group in sorted(starts.items()):
            group = [m for m in group if m["seed"] in plain and m["val"]["bce"] is not None]
            if not group:
                continue
            ends = [m["final_lambda"] for m in group if m["final_lambda"] is not None]
            regret = np.array([m["val"]["bce"] - plain[m["seed"]] for m in group])
            above = np.mean([m["val"]["bce"] - least[m["seed"]] for m in group])
            low, high = interval(regret, rng)
            spread = f"{np.median(ends):.2g} [{min(ends):.2g}, {max(ends):.2g}]" if ends else "-"
            lines.append(
                f"| {name} | {start:g} | {spread} "
                f"| {np.mean([m['val']['bce'] for m in group]):.4f} "
                f"| {regret.mean():+.4f} [{low:+.4f}, {high:+.4f}] | {above:+.4f} "
                f"| {np.mean([m['test']['iou'] for m in group]):.4f} "
                f"| {np.mean([m['seconds'] for m in group]) / base:.1f} |"
            )
    return lines


def slope_table(study: Study) -> list[str]:
    """Derivatives in log lambda at fixed lambdas: of the whole run, and of short horizons."""
    by: dict[tuple[str, float], list[dict]] = defaultdict(list)
    for name, piece in study.pieces.items():
        kind, _, *rest = name.split("_")
        if kind == "slope":
            for m in piece["members"]:
                by[rest[0], m["lam"]].append(m)
    nudged = _nudges(study)
    lines = [
        "Means over seeds and their standard errors. Whole: of the final validation loss. Late "
        "means: of the derivatives of validation batches over the last quarter of a run.",
        "",
        "| lambda | whole run | its signs (-, +) | whole, late | 1 step, late | 5 steps | 20 steps "
        "| differences of runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for lam in sorted({lam for _, lam in by}):
        slopes = [m["slope"] for m in by["whole", lam] if m["slope"] is not None]
        signs = f"{sum(s < 0 for s in slopes)}, {sum(s > 0 for s in slopes)}"
        late = [
            _pm([m["hypergradient"]["late_mean"] for m in by[h, lam]]) for h in
            ("whole", "1", "5", "20")
        ]  # fmt: skip
        lines.append(
            f"| {lam:g} | {_pm(slopes)} | {signs} | {' | '.join(late)} "
            f"| {_pm(nudged.get(lam, []))} |"
        )
    return lines


def _nudges(study: Study) -> dict[float, list[float]]:
    """Central differences of whole runs at each lambda, one a seed."""
    found: dict[float, list[float]] = defaultdict(list)
    members = study.members("nudge")
    for a in members:
        for b in members:
            ratio = b["lam"] / a["lam"]
            if a["seed"] == b["seed"] and 1.01 < ratio < 2:
                lam = float(f"{math.sqrt(a['lam'] * b['lam']):.6g}")
                found[lam].append((b["val"]["bce"] - a["val"]["bce"]) / math.log(ratio))
    return found


def descent_table(study: Study) -> list[str]:
    """Steps of descent by the slope of the whole run."""
    lines = [
        "| step | start | lambda | mean slope | its signs (-, +) | val loss |",
        "|---|---|---|---|---|---|",
    ]
    for name, piece in sorted(study.pieces.items()):
        if not name.startswith("whole"):
            continue
        groups = defaultdict(list)
        for m in piece["members"]:
            groups[m["start"]].append(m)
        for start, group in groups.items():
            slopes = [m["slope"] for m in group if m["slope"] is not None]
            lines.append(
                f"| {int(name.split('_')[-1])} | {start} | {group[0]['lam']:.3g} | {_pm(slopes)} "
                f"| {sum(s < 0 for s in slopes)}, {sum(s > 0 for s in slopes)} "
                f"| {np.mean([m['val']['bce'] for m in group]):.4f} |"
            )
    return lines


def selection(study: Study, rng: Any, of: int = 7) -> list[str]:
    """What choosing the best of several equal runs by validation IoU gains on the test split."""
    _, _, by = study.curve()
    runs = [m for (lam, _), m in by.items() if lam == 0] + study.members("select")
    val, test = (np.array([m[s]["iou"] for m in runs]) for s in ("val", "test"))
    picks = np.array([rng.permutation(len(runs))[:of] for _ in range(10 * DRAWS)])
    chosen = picks[np.arange(len(picks)), val[picks].argmax(1)]
    gain = test[chosen] - test.mean()
    return [
        f"{len(runs)} plain U-Nets: test IoU {test.mean():.4f}, standard deviation "
        f"{test.std(ddof=1):.4f}, correlation with validation {np.corrcoef(val, test)[0, 1]:.2f}. "
        f"The best of {of} by validation IoU gains {100 * gain.mean():.2f} points of test IoU in "
        f"the mean (its 5th to 95th percentile {100 * np.percentile(gain, 5):.2f} to "
        f"{100 * np.percentile(gain, 95):.2f})."
    ]


def draw(studies: list[Study], path: Path, rng: Any) -> None:
    """The curves with intervals, and where estimators ended."""
    shape = {"squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(studies), figsize=(7 * len(studies), 4.6), **shape)
    for axis, study in zip(axes[0], studies, strict=True):
        lams, seeds, _ = study.curve()
        losses = study.losses()
        at = [lam or lams[1] / 10 for lam in lams]
        bounds = np.array([interval(row, rng) for row in losses])
        axis.fill_between(at, bounds[:, 0], bounds[:, 1], alpha=0.2, color="0.4")
        axis.plot(at, losses.mean(1), "o-", color="0.3", markersize=3, label="held fixed")
        for k, (name, found) in enumerate(learned(study).items()):
            ends = [(m["final_lambda"], m["val"]["bce"]) for m in found if m["val"]["bce"]]
            ends = [(x, y) for x, y in ends if x]
            axis.plot(*zip(*ends, strict=True), "x^sDv*+1234"[k % 11], markersize=4, alpha=0.7,
                      color=f"C{k % 10}", label=name, linestyle="none")  # fmt: skip
        top = losses.mean(1).min() + 4 * (losses.mean(1)[0] - losses.mean(1).min() + 0.02)
        axis.set(xscale="log", xlabel="lambda (leftmost: 0)", ylabel="final validation loss",
                 title=f"{study.data}, {len(seeds)} seeds", ylim=(None, top))  # fmt: skip
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figures.save(figure, path)


def _pm(values: Sequence[float | None]) -> str:
    good = [v for v in values if v is not None and math.isfinite(v)]
    if not good:
        return "-"
    error = np.std(good, ddof=1) / math.sqrt(len(good)) if len(good) > 1 else float("nan")
    return f"{np.mean(good):+.2e} +- {error:.1e}"


def main(argv) -> None:
    """Writes the report."""
    del argv
    args: Any = flags.FLAGS
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(args.results).glob("*_*.json"))
    pieces = {file.stem: json.loads(file.read_text()) for file in files}
    rng = np.random.default_rng(0)
    names = list(dict.fromkeys(name.split("_")[1] for name in pieces if name.startswith("curve")))
    studies = [Study(pieces, name) for name in names]
    text = ["# Which estimator finds lambda", ""]
    for study in studies:
        text += [f"## {study.data}", "", "### Final loss over lambda", "", *curve_table(study, rng)]
        for title, lines in (
            ("What each estimator learned", regret_table(study, rng)),
            ("Derivatives at fixed lambda", slope_table(study)),
            ("Descent by the slope of the whole run", descent_table(study)),
            ("Selection alone", selection(study, rng)),
        ):
            text += ["", f"### {title}", "", *lines]
        text.append("")
    (out / "lambda_study.md").write_text("\n".join(text) + "\n")
    draw(studies, out / "lambda_study.png", rng)
    print(f"{out}/lambda_study.md, {out}/lambda_study.png")


if __name__ == "__main__":
    define_flags()
    program.run(main)
