"""Whether one net is better than another on the same images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

LEAST = 6
"""Images for a p-value: of fewer, however they differ, the test's smallest is above 0.05."""


def compare(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """A paired comparison of a score: how much larger the second's is, and how sure that is.

    It speaks of other images from where these come from, not of other training runs: two seeds of
    one config differ as well.

    Args:
      first: the score of each image.
      second: the other net's, of the same images in the same order.
      confidence: of the interval.
      resamples: of the images, with replacement, for the interval (percentile bootstrap).
      seed: of the resamples.

    Returns:
      `images`; `difference`, the mean of second - first; `low` and `high`, its confidence interval;
      `p_value` of Wilcoxon's signed-rank test, two-sided (1 if nothing differs; None of fewer than
      `LEAST` images); `second_better` and `first_better`, numbers of images.

    Raises:
      ValueError: there is no image, or not as many scores in both.

    Example:
      >>> result = compare([0.5, 0.6, 0.4, 0.7, 0.5, 0.6], [0.6, 0.8, 0.5, 0.8, 0.6, 0.7])
      >>> round(result["difference"], 3), result["p_value"] < 0.05
      (0.117, True)
    """
    one, two = np.asarray(first, float), np.asarray(second, float)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"as many scores as images are needed; got {one.shape} and {two.shape}")
    change = two - one
    rng = np.random.default_rng(seed)
    means = [np.mean(change[rng.integers(0, len(change), len(change))]) for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    p_value = None if len(change) < LEAST else 1.0
    if p_value and np.any(change):
        p_value = float(stats.wilcoxon(change).pvalue)  # pyright: ignore
    return {
        "images": len(change),
        "difference": float(change.mean()),
        "low": float(low),
        "high": float(high),
        "p_value": p_value,
        "second_better": int(np.sum(change > 0)),
        "first_better": int(np.sum(change < 0)),
    }


def warn_of_data(first: dict[str, Any] | None, second: dict[str, Any] | None) -> str | None:
    """One line if two runs have other data, by their `rundir.read_data`: images of one's split may
    be in the other's training."""
    if first and second and first["sha256"] == second["sha256"]:
        return None
    scored = "both are scored on the same images, and either may have been trained on some of them"
    if not (first and second):
        return f"one of the two runs kept no identity of its data, which may differ; {scored}"
    names = (
        f"{d['sha256'][:12]} of {d['directory'] or 'the embedded set'}" for d in (first, second)
    )
    return f"the two runs were trained on different data ({' and '.join(names)}); {scored}"


def describe(comparison: dict[str, Any], reports: list[dict[str, Any]]) -> str:
    """The comparison for the reader of a terminal."""
    c = comparison
    lines = [
        f"{k}: {r['workdir']}: IoU {r['iou']:.4f}, boundary IoU {r['boundary_iou']:.4f}"
        + ("" if r["ap"] is None else f", AP {r['ap']:.4f}")
        for k, r in enumerate(reports, 1)
    ]
    sure = (
        f"no p-value: {c['images']} images say nothing of others, {LEAST} or more are needed"
        if c["p_value"] is None
        else f"95 % interval {c['low']:+.4f} to {c['high']:+.4f} (bootstrap), "
        f"p = {c['p_value']:.2g} (Wilcoxon)"
    )
    lines.append(
        f"2 - 1: IoU {c['difference']:+.4f}, {sure}; 2 is better on {c['second_better']} "
        f"and 1 on {c['first_better']} of {c['images']} images"
    )
    return "\n".join(lines)
