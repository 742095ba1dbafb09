"""The tables of the study of lambda, as lines of Markdown."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.lambda_claims import (
    FLAT,
    Mean,
    Study,
    chance_of,
    detectable,
    flatness,
    mean,
    minimum,
    reruns,
    selection_gain,
)

PAPER_GAIN = 0.022
"""Test IoU of LU-Net minus U-Net in the paper's Table 1."""


def curve_table(study: Study, rng: Any) -> list[str]:
    """One row per lambda; differences from the least lambda are of the same seeds."""
    lams, seeds, by = study.curve()
    loss, val, test = study.scores(), study.scores("val", "iou"), study.scores("test", "iou")
    lines = [
        f"{len(seeds)} seeds. In brackets the 95 % interval of the mean over seeds (Student's t); "
        f"differences are from lambda = {lams[0]:g} with the same seeds; IoUs in points; "
        "components and TV are of the test masks, in brackets the truth's.",
        "",
        "| lambda | val loss | difference | val IoU | difference | test IoU | difference "
        "| components | TV |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for i, lam in enumerate(lams):
        group = [by[lam, s]["test"] for s in seeds]
        of = lambda name, group=group: np.mean([scores[name] for scores in group])  # noqa: E731
        lines.append(
            f"| {lam:g} | {_bare(mean(loss[i]))} | {_signed(mean(loss[i] - loss[0]))} "
            f"| {100 * val[i].mean():.1f} | {_points(mean(val[i] - val[0]))} "
            f"| {100 * test[i].mean():.1f} | {_points(mean(test[i] - test[0]))} "
            f"| {of('components'):.1f} ({of('true_components'):.1f}) "
            f"| {of('tv'):.0f} ({of('true_tv'):.0f}) |"
        )
    return [*lines, "", *_noise(study, loss, lams, rng)]


def _noise(study: Study, loss: np.ndarray, lams: list[float], rng: Any) -> list[str]:
    """The minimum, and what size of effect the runs could have shown."""
    found = minimum(loss, lams, rng)
    shares = ", ".join(f"{lam:g}: {100 * p:.0f} %" for lam, p in found["shares"].items() if p)
    lines = [
        f"Least mean at {found['best']:g}; 95 % of redrawn seeds: {found['low']:g} to "
        f"{found['high']:g} ({shares})."
    ]
    flat = [i for i, lam in enumerate(lams) if lam <= FLAT]
    if len(flat) > 1:
        parts = ("val", "bce"), ("test", "bce"), ("val", "iou"), ("test", "iou")
        p = {part: flatness(study.scores(*part)[flat])[0] for part in parts}
        rest = flatness(loss[flat])[1]
        n = loss.shape[1]
        lines.append(
            f"Up to {FLAT:g}, do the lambdas differ at all (F test)? p = {p['val', 'bce']:.3f} in "
            f"validation loss, {p['test', 'bce']:.3f} in test loss, {p['val', 'iou']:.3f} in "
            f"validation IoU, {p['test', 'iou']:.3f} in test IoU. What lambda and seed leave "
            f"unexplained of a run's loss: {rest:.4f}; so {n} pairs of runs show a difference of "
            f"{detectable(math.sqrt(2) * rest, n):.4f} (80 % power, 5 % level), "
            f"5 pairs one of {detectable(math.sqrt(2) * rest, 5):.4f}."
        )
    again, degrees = reruns(study)
    if degrees:
        lines.append(
            f"The same seed and lambda in another program, which only rounds otherwise: deviation "
            f"{again:.4f} ({degrees} degrees of freedom). "
            f"Over seeds, lambda = {lams[0]:g}: {loss[0].std(ddof=1):.4f}."
        )
    return lines


def learned_table(study: Study) -> list[str]:
    """What each estimator learned from each start, and what its runs lost by it."""
    lams, seeds, by = study.curve()
    loss = study.scores()
    cheap, best = lams[min(1, len(lams) - 1)], lams[int(loss.mean(1).argmin())]
    fixed = {lam: {s: by[lam, s]["val"]["bce"] for s in seeds} for lam in lams}
    flat = dict(zip(seeds, loss[[lam <= FLAT for lam in lams]].mean(0), strict=True))

    def at(lam):
        return lambda m: fixed[lam][m["seed"]]

    def own(m):
        return fixed.get(m["began"], {}).get(m["seed"], math.nan)

    ious = {s: by[lams[0], s]["test"]["iou"] for s in seeds}
    base = float(np.mean([m["seconds"] for m in by.values()]))
    lines = [
        "Final validation loss minus that of the same seed with lambda held fixed (95 % interval, "
        f"Student's t). Regret: minus that at {best:g}, which is the least by luck as well, so "
        f"that regret is rather too high. Flat part: the mean of the seed's runs up to {FLAT:g}. "
        "Smaller ones: the mean of all starts but the largest, per seed.",
        "",
        f"| estimator | start | seeds | lambda: median [least, most] | val loss "
        f"| minus {lams[0]:g} | minus {cheap:g} | minus the start | regret | minus the flat part "
        f"| test IoU minus {lams[0]:g} | components | cost in plain runs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, starts in study.learned().items():
        rows = {f"{start:g}": group for start, group in sorted(starts.items())}
        if len(rows) > 2:
            rows["smaller ones"] = [m for g in list(rows.values())[:-1] for m in g]
        for start, group in rows.items():
            group = [m for m in group if m["seed"] in seeds and m["val"]["bce"] is not None]
            if not group:
                continue
            less = [
                _signed(mean(_by_seed(group, lambda m, of=of: m["val"]["bce"] - of(m))))
                for of in (at(lams[0]), at(cheap), own, at(best), lambda m: flat[m["seed"]])
            ]
            iou = mean(_by_seed(group, lambda m: m["test"]["iou"] - ious[m["seed"]]))
            ends = [m["final_lambda"] for m in group]
            lines.append(
                f"| {name} | {start} | {len({m['seed'] for m in group})} "
                f"| {np.median(ends):.1e} [{min(ends):.1e}, {max(ends):.1e}] "
                f"| {np.mean([m['val']['bce'] for m in group]):.4f} | {' | '.join(less)} "
                f"| {_points(iou)} | {np.mean([m['test']['components'] for m in group]):.1f} "
                f"| {np.mean([m['seconds'] for m in group]) / base:.1f} |"
            )
    return lines


def _by_seed(group: list[dict], value: Callable[[dict], float]) -> list[float]:
    """The means of each seed's members: a seed is one number, however many runs share it."""
    found: dict[int, list[float]] = defaultdict(list)
    for m in group:
        found[m["seed"]].append(value(m))
    return [float(np.mean(values)) for values in found.values()]


def against_exact(study: Study) -> list[str]:
    """Each estimator's final validation loss minus that of the exact one: same seed, same start."""
    found = study.learned()
    if "exact" not in found:
        return []
    exact = {(start, m["seed"]): m for start, ms in found["exact"].items() for m in ms}
    starts = sorted(found["exact"])
    lines = [
        "Final validation loss minus that of `exact` with the same seed and start. The last column "
        "is the mean of all starts but the largest, per seed.",
        "",
        "| estimator | " + " | ".join(f"from {s:g}" for s in starts) + " | small starts |",
        "|---" * (len(starts) + 2) + "|",
    ]
    for name, groups in found.items():
        less: dict[float, dict[int, float]] = {
            start: {m["seed"]: m["val"]["bce"] - exact[start, m["seed"]]["val"]["bce"] for m in ms}
            for start, ms in groups.items()
        }
        if name == "exact" or set(less) != set(starts):
            continue
        cells = [_signed(mean(less[s].values())) for s in starts]
        small = [float(np.mean([less[s][seed] for s in starts[:-1]])) for seed in less[starts[0]]]
        lines.append(f"| {name} | {' | '.join(cells)} | {_signed(mean(small))} |")
    return lines


def slope_table(study: Study) -> list[str]:
    """Derivatives in log lambda at fixed lambdas: of the curve, of whole runs, of steps."""
    by = study.slopes()
    secants = study.secants()
    lines = [
        "Derivatives in log lambda, means over seeds and their standard errors. Curve: between the "
        "neighbours in the curve. Whole: of the final validation loss of each run, by the tangent "
        "of the whole run. Steps: means of the derivatives of validation batches along the run; "
        "late: over its last quarter.",
        "",
        "| lambda | curve | whole run | least to most | signs (-, +) | 1 step | 1 step, late "
        "| 5 steps, late | 20 steps, late | differences of runs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    nudged = _nudges(study)
    for lam in sorted({lam for _, lam in by}):
        whole = _finite(m["slope"] for m in by.get(("whole", lam), []))
        ends = f"{min(whole):+.1e} to {max(whole):+.1e}" if whole else "-"
        late = [_late(by, h, lam) for h in ("1", "5", "20")]
        one = [m["hypergradient"]["mean"] for m in by.get(("1", lam), [])]
        lines.append(
            f"| {lam:g} | {_pm(secants.get(lam, []))} | {_pm(whole)} | {ends} | {_signs(whole)} "
            f"| {_pm(one)} | {' | '.join(_pm(x) for x in late)} | {_pm(nudged.get(lam, []))} |"
        )
    return lines


def _late(by, horizon: str, lam: float) -> list[float]:
    return [m["hypergradient"]["late_mean"] for m in by.get((horizon, lam), [])]


def _nudges(study: Study) -> dict[float, list[float]]:
    """Central differences of whole runs at each lambda, one per seed."""
    found: dict[float, list[float]] = defaultdict(list)
    members = study.members("nudge")
    for a in members:
        for b in members:
            ratio = b["lam"] / a["lam"]
            if a["seed"] == b["seed"] and 1.01 < ratio < 2:
                lam = float(f"{math.sqrt(a['lam'] * b['lam']):.4g}")
                found[lam].append((b["val"]["bce"] - a["val"]["bce"]) / math.log(ratio))
    return found


def descent_table(study: Study) -> list[str]:
    """Steps of descent by the slope of the whole run."""
    lines = [
        "| start | step | lambda | slope | its signs (-, +) | val loss |",
        "|---|---|---|---|---|---|",
    ]
    for start, steps in study.descent().items():
        for k, group in enumerate(steps):
            slopes = _finite(m["slope"] for m in group)
            lines.append(
                f"| {start:g} | {k} | {group[0]['lam']:.2g} | {_pm(slopes)} | {_signs(slopes)} "
                f"| {np.mean([m['val']['bce'] for m in group]):.4f} |"
            )
    return lines


def selection(study: Study, rng: Any, of: int = 7) -> list[str]:
    """What choosing the best of several equal runs by validation IoU gains on the test split."""
    _, _, by = study.curve()
    runs = [m for (lam, _), m in by.items() if lam == 0] + study.members("select")
    if len(runs) <= of + 1:
        return [f"{len(runs)} plain U-Nets are too few for the best of {of}."]
    val, test = (np.array([m[s]["iou"] for m in runs]) for s in ("val", "test"))
    return [
        f"{len(runs)} plain U-Nets (lambda = 0): test IoU {100 * test.mean():.1f}, standard "
        f"deviation {100 * test.std(ddof=1):.1f} points, correlation with validation IoU "
        f"{np.corrcoef(val, test)[0, 1]:.2f}. The best of {of} by validation IoU gains "
        f"{_points(selection_gain(val, test, of))} points of test IoU over the mean (95 %, "
        f"jackknife), {_points(selection_gain(val, val, of))} of validation IoU. It beats one more "
        f"U-Net by {100 * PAPER_GAIN:.1f} test points or more in "
        f"{100 * chance_of(PAPER_GAIN, val, test, rng, of):.0f} % of draws."
    ]


def _finite(values) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def _signs(slopes: Sequence[float]) -> str:
    return f"{sum(s < 0 for s in slopes)}, {sum(s > 0 for s in slopes)}"


def _bare(m: Mean) -> str:
    return f"{m.value:.4f} [{m.low:.4f}, {m.high:.4f}]"


def _signed(m: Mean) -> str:
    if math.isnan(m.value):
        return "-"
    return f"{m.value:+.4f} [{m.low:+.4f}, {m.high:+.4f}]"


def _points(m: Mean) -> str:
    return f"{100 * m.value:+.1f} [{100 * m.low:+.1f}, {100 * m.high:+.1f}]"


def _pm(values: Sequence[float | None]) -> str:
    good = _finite(values)
    if not good:
        return "-"
    error = np.std(good, ddof=1) / math.sqrt(len(good)) if len(good) > 1 else float("nan")
    return f"{np.mean(good):+.1e} +- {error:.0e}"
