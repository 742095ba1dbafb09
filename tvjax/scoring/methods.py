"""Whether one method scores higher than another: several trainings of each, on the same images.

Two seeds of one method differ, so the training is the unit. Other images would tell otherwise too,
so blocks of neighbouring images are drawn anew, the same ones for all trainings.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from tvjax import interruption

LEAST = 6
"""Blocks of images for an interval: the spread of fewer tells too little."""
ENOUGH = 20
"""Blocks from which on a claim about other images may be made."""


class Part(NamedTuple):
    """One independent source of chance in a difference: an estimate of its variance."""

    variance: float
    degrees: int
    """Degrees of freedom of the estimate."""


def mean_iou(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Sums whose ratio is the mean IoU over images, `[N, 2]`; rows as in `scores.Scores`."""
    return np.array([[row["iou"], 1.0] for row in rows])


def pooled_iou(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Sums whose ratio is the IoU over all pixels, `[N, 2]`; rows as in `scores.Scores`."""
    names = "true_positive", "false_positive", "false_negative"
    return np.array([[row[names[0]], sum(row[name] for name in names)] for row in rows])


def ratio(sums: np.ndarray) -> np.ndarray:
    """`[..., 2] -> [...]`: the first by the second; 1 of nothing, as two empty masks agree."""
    part, whole = sums[..., 0], sums[..., 1]
    return np.where(whole == 0, 1.0, part / np.where(whole == 0, 1, whole))


def compare(
    first: np.ndarray,
    second: np.ndarray,
    *,
    blocks: np.ndarray | None = None,
    paired: bool = False,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""How much higher the second method scores, and how sure that is.

        score of a training = sum_i a_i / sum_i b_i over images i
        difference = mean of the second's scores - mean of the first's
        interval = difference -+ sqrt(sum_k t_k^2 v_k)

    The sources k of chance are the seeds, with the variance `v_k = s^2 / n` of a side's mean (of
    the mean of the differences by seed, if paired) at n - 1 degrees of freedom, and the images,
    whose `v_k` is the variance of the difference over resamples of whole blocks, times
    m / (m - 1), at m - 1 degrees for m blocks. `t_k` is Student's quantile.

    For independent normal sources the interval covers at least as often as it says, whatever their
    variances (Banerjee, Sankhya 22, 1960): given the estimates the chance to cover is a concave
    function of a weighted mean of the t_k^2 v_k / (their variance), and each of them alone covers
    exactly as often. Welch's approximate degrees of freedom have no such bound: of 2 against 10
    equal runs they claim a difference in 10 % of cases at the level of 5 %, and a bootstrap over
    the seeds of 2 against 2 does in a third.

    Args:
      first: sums `[S, N, 2]` of each training and image, see `mean_iou` and `pooled_iou`.
      second: the other method's, `[R, N, 2]`, of the same images in the same order.
      blocks: labels `[N]`, equal for images that are drawn together; None: each one by itself.
      paired: whether training s of either has the same seed and data.
      confidence: probability of the interval, in (0, 1).
      resamples: how often the blocks are drawn, with replacement.
      seed: seed of the resamples.

    Returns:
      `difference`; `low` and `high`, the interval; `seed_error` and `image_error`, the standard
      errors by seeds and by images; `runs`, `blocks`, `paired`, `confidence`. What is not known is
      None: the seeds' error with one training of a method, the images' with fewer than `LEAST`
      blocks, and then the interval. Of one training against one it is the interval of these two,
      by images alone, and not of their methods.

    Raises:
      ValueError: the arrays are no such sums, not of the same images, or cannot be paired.

    Example:
      >>> first = np.stack([np.full((30, 2), [s, 1.0]) for s in (0.50, 0.52, 0.51)])
      >>> found = compare(first, first + [0.1, 0], paired=True)
      >>> round(found["difference"], 3), found["low"] > 0
      (0.1, True)
    """
    first, second = _sums("first", first), _sums("second", second)
    images = first.shape[1]
    labels = np.arange(images) if blocks is None else np.asarray(blocks)
    if second.shape[1] != images or labels.shape != (images,):
        raise ValueError(
            f"the same images are needed; got {first.shape}, {second.shape}, {labels.shape}"
        )
    if paired and len(first) != len(second):
        raise ValueError(f"{len(first)} trainings cannot be paired with {len(second)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}")
    if resamples < 100:
        raise ValueError(f"resamples={resamples} tell no variance; take 100 or more")
    one, two = ratio(first.sum(1)), ratio(second.sum(1))
    found = float(two.mean() - one.mean())
    by_seed = seed_parts(one, two, paired=paired)
    by_image = image_part(first, second, labels, resamples=resamples, seed=seed)
    low = high = None
    if by_image is not None and (by_seed is not None or len(first) == len(second) == 1):
        low, high = interval(found, [*(by_seed or []), by_image], confidence)
    return {
        "difference": found,
        "low": low,
        "high": high,
        "seed_error": None if by_seed is None else sum(p.variance for p in by_seed) ** 0.5,
        "image_error": None if by_image is None else by_image.variance**0.5,
        "runs": [len(first), len(second)],
        "blocks": len(np.unique(labels)),
        "paired": paired,
        "confidence": confidence,
    }


def interval(difference: float, parts: Sequence[Part], confidence: float) -> tuple[float, float]:
    """The confidence interval of a difference with these sources of chance; see `compare`."""
    tail = (1 + confidence) / 2
    half = sum(float(special.stdtrit(p.degrees, tail)) ** 2 * p.variance for p in parts) ** 0.5
    return difference - half, difference + half


def seed_parts(first: np.ndarray, second: np.ndarray, *, paired: bool) -> list[Part] | None:
    """What chance the seeds of the means `[S]` and `[R]` bring; None of fewer than two."""
    if min(len(first), len(second)) < 2:
        return None
    samples = [second - first] if paired else [first, second]
    return [Part(float(x.var(ddof=1)) / len(x), len(x) - 1) for x in samples]


def image_part(
    first: np.ndarray, second: np.ndarray, blocks: np.ndarray, *, resamples: int, seed: int
) -> Part | None:
    """What chance the images bring, for the same trainings; None of fewer than `LEAST` blocks."""
    labels = np.unique(blocks, return_inverse=True)[1].ravel()
    number = int(labels.max()) + 1
    if number < LEAST:
        return None
    sums = np.zeros((number, len(first) + len(second), 2))
    np.add.at(sums, labels, np.concatenate([first, second]).swapaxes(0, 1))
    rng, drawn = np.random.default_rng(seed), []
    rows = max(1, (1 << 22) // number)
    for start in range(0, resamples, rows):
        interruption.check()
        times = rng.multinomial(number, np.full(number, 1 / number), min(rows, resamples - start))
        scores = ratio(np.tensordot(times.astype(float), sums, axes=1))
        drawn.append(scores[:, len(first) :].mean(1) - scores[:, : len(first)].mean(1))
    variance = float(np.concatenate(drawn).var(ddof=1)) * number / (number - 1)
    return Part(variance, number - 1)


def _sums(name: str, value: Any) -> np.ndarray:
    found = np.asarray(value, float)
    if found.ndim != 3 or found.shape[-1] != 2 or 0 in found.shape:
        raise ValueError(f"{name} must be sums [trainings, images, 2]; got {found.shape}")
    if not np.isfinite(found).all() or (found[..., 1] < 0).any():
        raise ValueError(f"{name} must be finite numbers, and no whole below 0")
    return found
