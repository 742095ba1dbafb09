"""How often a comparison of methods claims a difference that is not there.

    python -m experiments.false_claims [--sets=2000] [--results=results/lambda]

Simulated are two equal methods, and two whose differences over blocks of neighbouring images have
the mean 0. Each number is the share of sets of scores in which the 95 % interval leaves 0 out: of
`tvjax.scoring.methods`, of a bootstrap over the seeds, and of Welch's t-test. Then the same of real
scores: disjoint draws of the plain U-Nets of different seeds in `--results`, which were scored on
the same test tiles.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from scipy import stats
from tqdm import tqdm

from experiments.lambda_claims import read_pieces
from tvjax import program
from tvjax.errors import UserError
from tvjax.scoring import methods

RUNS = (2, 2), (3, 3), (5, 5), (2, 10), (10, 10)
SEED, BLOCK, NOISE, SKEW = 0.03, 0.2, 0.1, 0.15
"""Standard deviations of seeds, of the methods' difference by block, and of what is left by image
and seed; and how much a seed loses that fails, one in ten where seeds are skewed."""
KINDS = {
    "equal": {},
    "unequal spread": {"spread": 4.0},
    "skewed seeds": {"failing": 0.1},
    "blocks": {"block": BLOCK},
    "blocks, few": {"block": BLOCK, "images": 60},
}
"""What is other than in two equal methods of normal seeds."""


def define_flags() -> None:
    flags.DEFINE_integer("sets", 2000, "Sets of scores per number, e.g. 500.")
    flags.DEFINE_string(
        "results", "results/lambda", "Folder with scores of plain U-Nets, e.g. results/lambda."
    )


def draw(
    rng: np.random.Generator, runs: tuple[int, int], *, images: int = 120, size: int = 3,
    block: float = 0.0, spread: float = 1.0, failing: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Scores of two methods whose expected difference is 0.

    Args:
      rng: draws them.
      runs: trainings of either.
      images: number of images.
      size: number of images in a block of neighbours, which differ alike between the methods.
      block: standard deviation of that difference.
      spread: standard deviation of the second method's seeds over the first's.
      failing: share of the seeds that lose `SKEW`.

    Returns:
      Sums of both, `[S, N, 2]`, and the blocks, `[N]`.
    """
    labels = np.arange(images) // size
    common, differing = rng.beta(3, 2, images), rng.normal(0, block, labels.max() + 1)[labels]
    sides = []
    for number, scale, own in zip(runs, (1.0, spread), (0.0, differing), strict=True):
        seeds = rng.normal(0, SEED * scale, number) - SKEW * (rng.random(number) < failing)
        scores = common + own + seeds[:, None] + rng.normal(0, NOISE, (number, images))
        sides.append(np.stack([scores, np.ones_like(scores)], axis=-1))
    return sides[0], sides[1], labels


def ours(first: np.ndarray, second: np.ndarray, labels: np.ndarray | None, **options: Any) -> bool:
    """Whether the interval leaves 0 out."""
    found = methods.compare(first, second, blocks=labels, resamples=200, **options)
    return not found["low"] <= 0 <= found["high"]


def bootstrap(rng: np.random.Generator, one: np.ndarray, two: np.ndarray) -> bool:
    """Whether the percentile interval over redrawn seeds leaves 0 out; means `[S]`, `[R]`."""
    means = [x[rng.integers(0, len(x), (300, len(x)))].mean(1) for x in (one, two)]
    low, high = np.quantile(means[1] - means[0], [0.025, 0.975])
    return not low <= 0 <= high


def welch(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether Welch's t-test rejects at 5 %."""
    return bool(stats.ttest_ind(one, two, equal_var=False).pvalue < 0.05)  # pyright: ignore


def simulate(sets: int) -> list[dict[str, Any]]:
    """Shares of false claims, a line for each kind and numbers of runs."""
    lines = []
    for (kind, options), runs in tqdm([(k, r) for k in KINDS.items() for r in RUNS], leave=False):
        rng = np.random.default_rng(0)
        counts: dict[str, int] = {"ours": 0, "bootstrap": 0, "welch": 0}
        if runs[0] == runs[1]:
            counts["ours, paired"] = 0
        if "block" in options:
            counts["ours, blocks ignored"] = 0
        for _ in range(sets):
            first, second, labels = draw(rng, runs, **options)
            one, two = (methods.ratio(x.sum(1)) for x in (first, second))
            found = {
                "ours": ours(first, second, labels),
                "bootstrap": bootstrap(rng, one, two), "welch": welch(one, two),
            }  # fmt: skip
            if "ours, paired" in counts:
                found["ours, paired"] = ours(first, second, labels, paired=True)
            if "ours, blocks ignored" in counts:
                found["ours, blocks ignored"] = ours(first, second, None)
            counts = {name: counts[name] + found[name] for name in counts}
        shares = {name: round(count / sets, 4) for name, count in counts.items()}
        lines.append({"kind": kind, "runs": list(runs), **shares})
    return lines


def of_real_seeds(results: Path, sets: int) -> list[dict[str, Any]]:
    """The same of real test IoUs by seed, without the images' part, which would only widen ours."""
    scores = read(results)
    lines = []
    for n in (2, 3, 5, 10):
        rng, counts = np.random.default_rng(0), np.zeros(4)
        for _ in range(sets):
            drawn = scores[rng.permutation(len(scores))[: 2 * n]]
            one, two = drawn[:n], drawn[n:]
            found = []
            for paired in (False, True):
                parts = methods.seed_parts(one, two, paired=paired) or []
                low, high = methods.interval(float(two.mean() - one.mean()), parts, 0.95)
                found.append(not low <= 0 <= high)
            counts += [*found, bootstrap(rng, one, two), welch(one, two)]
        names = "ours", "ours, paired", "bootstrap", "welch"
        shares = {k: round(float(v), 4) for k, v in zip(names, counts / sets, strict=True)}
        lines.append({"kind": f"{len(scores)} U-Nets", "runs": [n, n], **shares})
    return lines


def read(results: Path) -> np.ndarray:
    """Test IoUs of the plain U-Nets of the embedded set, of one seed each.

    Raises:
      UserError: there are fewer than 20, or a file is damaged.
    """
    found: dict[int, float] = {}
    for name, piece in read_pieces(results).items():
        members = piece["members"] if "_embedded" in name else []
        plain = (m for m in members if m.get("lam") == 0 and m.get("estimator") == "plain")
        found |= {m["seed"]: m["test"]["iou"] for m in plain if m["rate"] == 0}
    if len(found) < 20:
        raise UserError(f"--results={results} has {len(found)} plain U-Nets; 20 or more are needed")
    return np.array(list(found.values()))


def main(argv) -> None:
    del argv
    args: Any = flags.FLAGS
    lines = simulate(args.sets) + of_real_seeds(Path(args.results), args.sets)
    names = ["ours", "ours, paired", "ours, blocks ignored", "bootstrap", "welch"]
    print("| scores | runs | " + " | ".join(names) + " |\n" + "|---" * (2 + len(names)) + "|")
    for line in lines:
        shares = (f"{100 * line[n]:.1f}" if n in line else "" for n in names)
        print(f"| {line['kind']} | {line['runs'][0]}, {line['runs'][1]} | {' | '.join(shares)} |")


if __name__ == "__main__":
    define_flags()
    program.run(main)
