"""Each claim of the paper, what the results say of it, and the verdict.

A verdict goes by the 95 % interval of a difference, by rules that stand here and not by eye:

    gain        holds: the interval lies above 0 and reaches the paper's figure; smaller: above 0
                and below that figure; does not hold: the figure lies above the interval, which is
                not above 0; else undecided
    equality    holds: the interval lies within the margin; does not hold: it lies outside; else
                undecided
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import results
from experiments.findings import (
    Difference,
    Findings,
    difference,
    of_numbers,
    of_score,
    selection,
)
from experiments.lambda_claims import Study, mean
from experiments.lambda_tables import selection as selection_alone
from experiments.runs import PAPER_LAMBDA

MARGIN = 1.0
"""Points of IoU within which two methods are called equal: half of the paper's gain."""
HOLDS, NOT, SMALLER, OPEN = "holds", "does not hold", "holds, smaller", "undecided"


class Claim(NamedTuple):
    """One claim of the paper and what became of it here."""

    name: str
    paper: str
    here: str
    verdict: str
    basis: str
    """What stands behind it."""


def gains(found: Difference | None, paper: float) -> str:
    """The verdict on a gain of that many points."""
    if found is None:
        return OPEN
    if found.low > 0:
        return HOLDS if found.high >= paper else SMALLER
    return NOT if found.high < paper else OPEN


def equals(found: Difference | None, margin: float = MARGIN) -> str:
    """The verdict on an equality."""
    if found is None:
        return OPEN
    if -margin < found.low and found.high < margin:
        return HOLDS
    return NOT if found.low > margin or found.high < -margin else OPEN


def points(d: Difference | None, digits: int = 1) -> str:
    """`+1.2 [-0.3, +2.7]`."""
    if d is None:
        return "-"
    return f"{d.value:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"


def basis(d: Difference | None) -> str:
    """How many seeds, and what difference they could have shown."""
    return "no pairs" if d is None else f"{d.seeds} pairs of seeds; {d.shown:.1f} points show"


def all_claims(f: Findings, studies: dict[str, Study], leaks: list[dict]) -> list[Claim]:
    """The claims of the abstract, the sections and the conclusion, in this order."""
    makers: list[Callable[..., Claim]] = [
        gain_at_the_papers_weight, gain_of_the_best_weight, gain_over_selection, denoising, layers,
        robustness, cost, learning, printed,
    ]  # fmt: skip
    others = [*compactness(f), *estimators(studies), *map(leak, leaks)]
    return [*(make(f) for make in makers), *others]


def gain_at_the_papers_weight(f: Findings) -> Claim:
    """LU-Net over U-Net at the weight of Table 1."""
    d = difference(f.rows("unet"), f.rows("lunet", PAPER_LAMBDA))
    return Claim(
        "LU-Net over U-Net, lambda = 1e-6", "+2.2 points of test IoU", points(d), gains(d, 2.2),
        basis(d),
    )  # fmt: skip


def _number(f: Findings) -> str:
    """How many weights the sweep has."""
    return str(len(f.weights())) if f.swept() else "several"


def gain_of_the_best_weight(f: Findings) -> Claim:
    """LU-Net over U-Net as the paper measures it: the best of several weights by validation."""
    chosen = f.swept()
    d = difference(f.rows("unet"), chosen)
    return Claim(
        f"the same, the best of {_number(f)} lambdas by validation IoU, as the paper chooses",
        "+2.2 points", points(d), gains(d, 2.2), basis(d),
    )  # fmt: skip


def gain_over_selection(f: Findings) -> Claim:
    """LU-Net chosen among weights over U-Nets chosen among as many seeds."""
    unets, number = list(f.trainings("unet").values()), len(f.weights())
    d = selection(unets, f.swept(), number)
    return Claim(
        f"the same, minus what choosing the best of {_number(f)} plain U-Nets gains",
        "not measured",
        points(d), gains(d, 2.2),
        "too few U-Nets" if d is None else f"{d.seeds} seeds against {len(unets)} U-Nets",
    )  # fmt: skip


def denoising(f: Findings) -> Claim:
    """U-Net + TV against U-Net."""
    d = difference(f.rows("unet"), f.of("denoise"))
    return Claim(
        "U-Net + TV gains next to nothing over U-Net", "+0.2 points", points(d), equals(d), basis(d)
    )


def layers(f: Findings) -> Claim:
    """RU-Net against LU-Net at the weight of Table 1."""
    d = difference(f.rows("runet", PAPER_LAMBDA), f.rows("lunet", PAPER_LAMBDA))
    return Claim(
        "RU-Net and LU-Net perform alike, lambda = 1e-6", "LU-Net +0.3 points", points(d),
        equals(d), basis(d),
    )  # fmt: skip


def under_noise(f: Findings, method: str, lam: float | None) -> dict[int, np.ndarray]:
    """Test IoU in points of each seed, `[sigmas]`, means over noise seeds."""
    found = f.of("noise", method=method, lam=lam)
    return {
        m["run"]["seed"]: 100 * np.array([np.mean(row) for row in m["iou"]])
        for m in found
    }  # fmt: skip


def noise_gains(f: Findings, lam: float) -> list[Difference | None]:
    """LU-Net minus U-Net at each sigma, paired by seed; intervals hold for all of them at once."""
    one, two = under_noise(f, "unet", None), under_noise(f, "lunet", lam)
    seeds = sorted(one.keys() & two.keys())
    number = len(f.scale.sigmas)
    found = []
    for k in range(number):
        d = of_numbers([two[s][k] - one[s][k] for s in seeds])
        found.append(None if d is None else _widened(d, number))
    return found


def _widened(d: Difference, looks: int) -> Difference:
    """The interval of Bonferroni for so many looks."""
    from scipy import stats

    ratio = stats.t.ppf(1 - 0.025 / looks, d.seeds - 1) / stats.t.ppf(0.975, d.seeds - 1)
    return d._replace(
        low=d.value - ratio * (d.value - d.low), high=d.value + ratio * (d.high - d.value)
    )


def robustness(f: Findings) -> Claim:
    """The largest gain of LU-Net over U-Net under noise."""
    found = noise_gains(f, PAPER_LAMBDA)
    pairs = [(s, d) for s, d in zip(f.scale.sigmas, found, strict=True) if d is not None and s > 0]
    if not pairs:
        return Claim("LU-Net under noise", "up to +3.6 points", "-", OPEN, "no pairs")
    sigma, best = max(pairs, key=lambda pair: pair[1].value)
    highest, lowest = max(d.high for _, d in pairs), max(d.low for _, d in pairs)
    verdict = HOLDS if lowest > 0 else NOT if highest < 3.6 else OPEN
    noises = f.scale.noise_seeds
    return Claim(
        "LU-Net over U-Net under noise, at best (lambda = 1e-6)", "up to +3.6 points (sigma 0.04)",
        f"{points(best)} (sigma {sigma:g})", verdict,
        f"{best.seeds} pairs, {noises} noise seeds, intervals for all {len(pairs) + 1} sigmas",
    )  # fmt: skip


def cost_ratios(f: Findings, base: str = "unet") -> dict[str, tuple[float, float, float]]:
    """Time of each method's step over another's in the same round: mean ratio and its interval."""
    found = f.of("cost")
    if not found:
        return {}
    seconds = {k: np.array(v) for k, v in found[0]["seconds_per_step"].items()}
    logs = {k: mean(np.log(v / seconds[base])) for k, v in seconds.items()}
    return {k: tuple(math.exp(x) for x in m) for k, m in logs.items()}  # pyright: ignore


def cost(f: Findings) -> Claim:
    """A step of LU-Net against one of RU-Net."""
    found = cost_ratios(f, "runet").get("lunet")
    if found is None:
        return Claim("LU-Net costs less than RU-Net", "no figure", "-", OPEN, "not timed")
    value, low, high = found
    verdict = HOLDS if high < 1 else NOT if low > 1 else OPEN
    return Claim(
        "LU-Net costs less than RU-Net", "no figure",
        f"a training step takes {value:.2f} [{low:.2f}, {high:.2f}] of RU-Net's", verdict,
        f"{f.scale.rounds} rounds in turn",
    )  # fmt: skip


def learning(f: Findings) -> Claim:
    """Lambda learned by the exact hypergradient against the sweep."""
    name = "lambda learned by gradients, from 1e-6, replaces the sweep (exact hypergradient)"
    return _replaces(f, name, "exact")


def printed(f: Findings) -> Claim:
    """Lambda learned by Algorithm 1 as printed against the sweep."""
    return _replaces(f, "the same by Algorithm 1 as printed", "printed")


def _replaces(f: Findings, name: str, method: str) -> Claim:
    swept = f.swept()
    d = difference(swept or f.rows("lunet", PAPER_LAMBDA), f.rows(method, PAPER_LAMBDA))
    if swept:
        return Claim(name, "no figure", f"{points(d)} of the swept LU-Net", equals(d), basis(d))
    # Learning begins at the weight of this rival: to be its equal is no feat.
    here = f"{points(d)} of LU-Net at {PAPER_LAMBDA:g}, where learning begins"
    return Claim(name, "no figure", here, OPEN, f"{basis(d)}; no sweep yet")


def compactness(f: Findings) -> Iterator[Claim]:
    """Components of the masks: LU-Net against U-Net, at the paper's weight and at the largest."""
    for lam in dict.fromkeys((PAPER_LAMBDA, max(f.scale.lambdas))):
        d = of_score(f.rows("unet"), f.rows("lunet", lam), "components")
        verdict = OPEN if d is None else HOLDS if d.high < 0 else NOT if d.low > 0 else OPEN
        yield Claim(
            f"TV in the loss makes masks more compact, lambda = {lam:g}", "in words",
            f"{points(d)} components per mask", verdict,
            "no pairs" if d is None else f"{d.seeds} pairs of seeds",
        )  # fmt: skip


def learned_loss(study: Study, name: str) -> tuple[list[float], list[float]]:
    """Final lambdas of an estimator, and per seed its loss less that of lambda = 0.

    All starts but the largest count, whose runs began on the cliff.
    """
    starts = study.learned()[name]
    lams, _, by = study.curve()
    group = [m for start in sorted(starts)[:-1] for m in starts[start]]
    group = [m for m in group if m["val"]["bce"] is not None and (lams[0], m["seed"]) in by]
    each: dict[int, list[float]] = {}
    for m in group:
        each.setdefault(m["seed"], []).append(
            m["val"]["bce"] - by[lams[0], m["seed"]]["val"]["bce"]
        )
    return [m["final_lambda"] for m in group], [float(np.mean(v)) for v in each.values()]


def estimators(studies: dict[str, Study]) -> Iterator[Claim]:
    """What the study of lambda found of the loss that learning lambda leads to."""
    study = studies.get("embedded")
    for title, name in {"exact": "exact", "Algorithm 1 as printed": "paper"}.items():
        if study is None or name not in study.learned():
            continue
        lams, each = learned_loss(study, name)
        d = mean(each)
        yield Claim(
            f"lambda learned ({title}) lowers the validation loss of a finished training",
            "supposed",
            f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}] against lambda = 0, at lambda "
            f"{np.median(lams):.1e}",
            HOLDS if d.high < 0 else NOT if d.low > 0 else OPEN,
            f"{len(each)} seeds, width 16, 400 steps (`results/lambda`)",
        )  # fmt: skip


def winners_curse(studies: dict[str, Study]) -> str:
    """What choosing the best of seven equal U-Nets gains at the sizes of the study."""
    study = studies.get("embedded")
    if study is None or not study.members("select"):
        return ""
    return selection_alone(study, np.random.default_rng(0))[0]


def leak(found: dict) -> Claim:
    """What test tiles with a twin in training do to a score, of one result of the leakage study."""
    config, share = found["config"], found["share"]
    planted = ", twins planted" if config.get("planted") else ""
    shares = (
        f"{100 * share['random']:.0f} % of test tiles have a twin in training by random splits, "
        f"{100 * share['clustered']:.0f} % by clustered ones"
    )
    d = found.get("difference", {}).get("test_iou")
    name = f"a leak from training to test lifts test IoU ({config['data']}{planted})"
    paper = "feared: hence tiles of the challenge's validation set alone"
    if not d:
        return Claim(name, paper, shares, OPEN, "no nets trained both ways")
    value, low, high = (100 * d[k] for k in ("mean", "low", "high"))
    verdict = HOLDS if low > 0 else NOT if high < 0 else OPEN
    here = f"{value:+.1f} [{low:+.1f}, {high:+.1f}] by a leak; {shares}"
    return Claim(name, paper, here, verdict, f"{d['pairs']} pairs of seeds")


def read_leaks(folder: Path) -> list[dict]:
    """The results of `experiments.leakage` in a folder or one of its own.

    Raises:
      UserError: one is damaged.
    """
    return [_read_leak(path) for path in _leak_files(folder)]


def _read_leak(path: Path) -> dict:
    found = results.read_object(path)
    needed = {"config.data": results.TEXT}
    needed |= {f"share.{name}": results.SHARE for name in ("random", "clustered")}
    if results.value(found, "difference.test_iou"):
        names = "mean", "low", "high", "pairs"
        needed |= {f"difference.test_iou.{name}": results.NUMBER for name in names}
    results.check(path, found, needed)
    return found


def _leak_files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("leak*/result.json"))
    yield from sorted(folder.glob("leak*/*/result.json"))


def leak_pictures(folder: Path) -> list[Path]:
    """The sheets of twins beside these results."""
    sheets = [path.with_name("pairs.png") for path in _leak_files(folder)]
    return [sheet for sheet in sheets if sheet.exists()]
