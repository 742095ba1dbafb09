"""Whether one net is better than another on the same images."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def compare(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
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
      `p_value` of Wilcoxon's signed-rank test, two-sided (1 if nothing differs); `second_better`
      and `first_better`, numbers of images.

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
    differs = bool(np.any(change != 0))
    return {
        "images": len(change),
        "difference": float(change.mean()),
        "low": float(low),
        "high": float(high),
        "p_value": float(stats.wilcoxon(change).pvalue) if differs else 1.0,  # pyright: ignore
        "second_better": int(np.sum(change > 0)),
        "first_better": int(np.sum(change < 0)),
    }
