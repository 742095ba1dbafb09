"""Whether one net is better than another on the same images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from tvjax import interruption

LEAST = 6
"""Images for a p-value and an interval: of fewer, however they differ, the test's smallest p-value
is above 0.05, and their spread tells too little."""
ENOUGH = 20
"""Images from which on a claim about others may be made; of fewer, interval and p-value are told
all the same."""
WHAT = (
    "two runs are compared, not two methods: two seeds of one method differ too, and p-value and "
    "interval know nothing of that"
)
EXACT = 50
"""Differing images up to which the p-value is exact; from there on normal, as scipy's."""


def compare(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """A paired comparison of a score: how much larger the second's is, and how sure that is.

    It speaks of two nets on other images from where these come from, not of two methods: two seeds
    of one config differ as well, and of several pairs of the same two methods p-values may well be
    small in favour of either. A method is compared by several seeds of each.

    Args:
      first: the score of each image.
      second: the other net's, of the same images in the same order.
      confidence: probability of the interval, in (0, 1).
      resamples: how often the images are drawn, with replacement, for the interval.
      seed: seed of the resamples.

    Returns:
      `compares`, in words; `images`; `enough_images`, whether there are `ENOUGH` for a claim;
      `difference`, the mean of second - first; `low` and `high`, its confidence interval
      (see `interval`; within [-1, 1] if the scores are within [0, 1]); `p_value` of Wilcoxon's
      signed-rank test, two-sided, 1 if nothing differs; `second_better` and `first_better`, numbers
      of images. Of fewer than `LEAST` images `low`, `high` and `p_value` are None. Differences that
      only the rounding of the scores tells apart are ties; scores that are float32 numbers, all of
      them, are taken to be rounded to float32.

    Raises:
      ValueError: there is no image, not as many scores in both, a score that is not finite, a
        confidence out of range, or fewer than 100 resamples.

    Example:
      >>> result = compare([0.5, 0.6, 0.4, 0.7, 0.5, 0.6], [0.6, 0.8, 0.5, 0.8, 0.6, 0.7])
      >>> round(result["difference"], 3), result["p_value"] < 0.05
      (0.117, True)
    """
    one, two = np.asarray(first, float), np.asarray(second, float)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"as many scores as images are needed; got {one.shape} and {two.shape}")
    if not np.isfinite([one, two]).all():
        raise ValueError(
            "first and second must be finite numbers; leave out images without a score"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}")
    if resamples < 100:
        raise ValueError(f"resamples={resamples} tell no quantiles; take 100 or more")
    change = two - one
    levels = _levels(change, _rounding(one, two))
    low = high = p_value = None
    if len(change) >= LEAST:
        bound = 1.0 if min(one.min(), two.min()) >= 0 and max(one.max(), two.max()) <= 1 else np.inf
        ends = interval(change, confidence=confidence, resamples=resamples, seed=seed)
        low, high = (float(np.clip(end, -bound, bound)) for end in ends)
        p_value = _signed_rank(levels[levels != 0])
    return {
        "compares": WHAT,
        "images": len(change),
        "enough_images": len(change) >= ENOUGH,
        "difference": float(change.mean()),
        "low": low,
        "high": high,
        "p_value": p_value,
        "second_better": int(np.sum(levels > 0)),
        "first_better": int(np.sum(levels < 0)),
    }


def interval(
    change: np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """A confidence interval of the mean of independent numbers, by the studentised bootstrap.

        mean - c_low s / sqrt(n),  mean + c_high s / sqrt(n)

    with `c` the largest of three: Student's quantile; the quantile of `T* = (mean* - mean) sqrt(n)
    / s*` over resamples, on the side that belongs to it; and that of `|T*|`. The second knows
    skewness, the others keep what it loses of few numbers and of ties. (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, section 12.5.) Resamples without spread are left out.

    It covers the mean about as often as it says where the spread shows in the numbers;
    `docs/results.md` has measured shares. What never occurred among them it cannot know: numbers
    that are all equal give that number twice, and few numbers of which most are equal, or with rare
    outliers, are covered less often.

    The numbers are `[n]`, n >= 2; all else is as in `compare`.
    """
    n, mean, spread = len(change), float(change.mean()), float(change.std(ddof=1))
    least = 8 * np.finfo(float).eps * np.abs(change).max()  # below it spread is rounding
    if spread <= least:
        return mean, mean
    rng, rows = np.random.default_rng(seed), max(1, (1 << 20) // n)
    found = []
    for start in range(0, resamples, rows):
        interruption.check()
        drawn = change[rng.integers(0, n, (min(rows, resamples - start), n))]
        spreads = drawn.std(axis=1, ddof=1)
        kept = spreads > least
        found.append((drawn.mean(axis=1)[kept] - mean) / spreads[kept])
    ratios, tail = np.concatenate(found) * n**0.5, (1 - confidence) / 2
    either = max(special.stdtrit(n - 1, 1 - tail), np.quantile(np.abs(ratios), confidence))
    below, above = np.quantile(ratios, [tail, 1 - tail])
    error = spread / n**0.5
    return mean - max(either, above) * error, mean + max(either, -below) * error


def _rounding(one: np.ndarray, two: np.ndarray) -> float:
    """How far differences of such scores may be apart though they are equal."""
    both = np.concatenate([one, two])
    with np.errstate(over="ignore"):
        single = np.all(both == both.astype(np.float32))
    return 8 * np.finfo(np.float32 if single else np.float64).eps * np.abs(both).max()


def _levels(change: np.ndarray, rounding: float) -> np.ndarray:
    """Signed whole numbers in the order of the differences, 0 for none, equal for equal ones."""
    sizes, levels = np.abs(change), np.zeros(len(change), int)
    level, start = 0, 0.0
    for k in np.argsort(sizes):
        if sizes[k] - start > rounding:
            level, start = level + 1, sizes[k]
        levels[k] = level
    return levels * np.sign(change).astype(int)


def _signed_rank(levels: np.ndarray) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test of differences, none of which is 0."""
    from scipy import stats  # slow to load, and of use to comparisons alone

    if len(levels) > EXACT:
        return float(stats.wilcoxon(levels).pvalue)  # pyright: ignore
    # The chance of each sum of positive ranks if signs are fair coins; ranks twice, to be whole.
    ranks = (2 * stats.rankdata(np.abs(levels))).astype(int)
    chances = np.zeros(ranks.sum() + 1)
    chances[0] = 1
    for rank in ranks:
        moved = np.concatenate([np.zeros(rank), chances[: len(chances) - rank]])
        chances = (chances + moved) / 2
    total = ranks[levels > 0].sum()
    return float(min(1, 2 * min(chances[: total + 1].sum(), chances[total:].sum())))


def describe(comparison: dict[str, Any], reports: list[dict[str, Any]]) -> str:
    """What `compare` found, for the reader of a terminal; its first line says what is compared.

    `pooled_iou`, if it is there, is what `methods.compare` gives for the pooled IoU. The reports
    are the scores of the two runs.
    """
    c = comparison
    lines = [f"{c['compares'][0].upper()}{c['compares'][1:]}."]
    names = ("first", "second")
    lines += [
        f"{k}: {r['workdir']}: {describe_run(r)}" for k, r in zip(names, reports, strict=True)
    ]
    sure = (
        f"no p-value: {c['images']} images say nothing of others, {LEAST} or more are needed"
        if c["p_value"] is None
        else f"95 % interval {c['low']:+.4f} to {c['high']:+.4f} (bootstrap), "
        f"p = {c['p_value']:.2g} (Wilcoxon)"
    )
    differ = c["second_better"] + c["first_better"]
    if c["p_value"] is not None and 0 < differ < LEAST:
        sure += f" (only {differ} of the images differ: the interval may well be too narrow)"
    lines.append(
        f"second minus first: mean IoU {c['difference']:+.4f}, {sure}; of {c['images']} images the "
        f"second is better on {c['second_better']} and the first on {c['first_better']}"
    )
    pooled = reports[1]["pooled_iou"] - reports[0]["pooled_iou"]
    lines.append(f"second minus first: pooled IoU {pooled:+.4f}{_ends(c.get('pooled_iou'))}")
    if pooled * c["difference"] < 0:
        lines[-1] += (
            ", which says the contrary: by image empty ones count as much as full ones, and small "
            "objects as large ones"
        )
    if not c["enough_images"]:
        lines.append(
            f"No claim can be made: {c['images']} images are too few, {ENOUGH} or more are needed"
        )
    return "\n".join(lines)


def _ends(pooled: dict[str, Any] | None) -> str:
    if pooled is None or pooled["low"] is None:
        return ""
    return f", 95 % interval {pooled['low']:+.4f} to {pooled['high']:+.4f} (bootstrap)"


def describe_run(report: dict[str, Any]) -> str:
    """The scores of one run, in a line: pooled, over images, and over those that hold objects."""
    nonempty, ap = report["nonempty_iou"], report["ap"]
    others = "" if nonempty is None else f", {nonempty:.4f} over the others"
    return (
        f"pooled IoU {report['pooled_iou']:.4f}; mean IoU {report['iou']:.4f} over "
        f"{report['images']} images ({report['empty_images']} of them without objects{others}); "
        f"boundary IoU {report['boundary_iou']:.4f}" + ("" if ap is None else f", AP {ap:.4f}")
    )
