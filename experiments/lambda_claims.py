"""What the result files of the study of lambda allow to say: the arithmetic of its claims."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from experiments import kept, results
from tvjax.errors import UserError

DRAWS = 4000
"""Draws of a bootstrap over seeds."""
FLAT = 1e-5
"""Up to it lambda changes the final loss by less than seeds do (seen before this study)."""


class Mean(NamedTuple):
    """A mean over seeds and its 95 % interval by Student's t; of one number no interval."""

    value: float
    low: float
    high: float


def mean(values: Iterable[float]) -> Mean:
    """The mean of independent, roughly normal numbers, with its interval."""
    x = np.asarray(list(values), float)
    if len(x) < 2:
        return Mean(float(x.mean()), math.nan, math.nan)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Mean(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def detectable(deviation: float, count: int) -> float:
    """The mean that `count` numbers of this deviation show at the 5 % level in 80 % of cases."""
    quantiles = stats.t.ppf(0.975, count - 1) + stats.t.ppf(0.8, count - 1)
    return float(quantiles * deviation / math.sqrt(count))


def read_pieces(folder: Path) -> dict[str, dict]:
    """The result files of `experiments.lambda_study` in a folder, by name.

    Raises:
      UserError: one is damaged, or of other sizes than the first, or of other tiles of its set.
    """
    pieces, sizes, tiles, truths = {}, {}, {}, {}
    for path in (path for path in sorted(folder.glob("*.json")) if PIECE.fullmatch(path.stem)):
        piece, data = _read_piece(path), path.stem.split("_")[1]
        sizes = {k: v for k, v in piece["config"].items() if k != "piece"} | sizes
        if results.DIGEST in piece:
            tiles.setdefault(data, {results.DIGEST: piece[results.DIGEST]})
        kept.check_same(path, piece, sizes | tiles.get(data, {}), "results")
        for split in ("val", "test"):  # earlier versions kept no digest of the tiles
            masks = [m[split]["true_tv"] for m in piece["members"]]
            first = truths.setdefault((data, split), masks[0])
            if not np.allclose(masks, first, rtol=1e-3):
                raise UserError(
                    f"{path} was made of other tiles than the pieces before: the masks of {split} "
                    f"have a TV of {masks[0]:.6g} each, and theirs {first:.6g}; move it away"
                )
        pieces[path.stem] = piece
    return pieces


PIECE = re.compile("(curve|select|single)_[^_]+(_.+)?|(learn|slope|whole)_[^_]+_.+")
"""Names of the pieces, KIND_SET and what tells them apart."""
HELD = {"config": results.OBJECT, "versions": results.OBJECT, "hardware": results.TEXT,
        "python": results.TEXT, "members": results.OBJECTS}  # fmt: skip
HELD |= {
    f"config.{name}": results.NUMBER
    for name in ("width", "depth", "size", "steps", "batch", "warmup", "rate")
}
SCORES = "bce", "iou", "components", "true_components", "tv", "true_tv"
MEMBER = {name: results.NUMBER for name in ("seed", "lam", "rate", "seconds")}
MEMBER |= {f"{split}.{name}": results.MAYBE for split in ("val", "test") for name in SCORES}
MEMBER |= {"final_lambda": results.MAYBE, "slope": results.MAYBE}
OF_KIND = {
    "learn": {"hypergradient.mean": results.MAYBE, "hypergradient.late_mean": results.MAYBE},
    "whole": {"start": results.NUMBER},
}
"""What is read of the members of a piece of this kind alone."""


def _read_piece(path: Path) -> dict:
    piece, kind = results.read_object(path), path.stem.split("_")[0]
    starts = {"config.starts": results.NUMBERS} if kind == "whole" else {}
    results.check(path, piece, HELD | starts)
    for member in piece["members"]:
        results.check(path, member, MEMBER | OF_KIND.get(kind, {}))
    return piece


class Study:
    """The members of all pieces of one set."""

    def __init__(self, pieces: dict[str, dict], data: str):
        self.data = data
        self.pieces = {name: p for name, p in pieces.items() if name.split("_")[1] == data}

    def members(self, kind: str) -> list[dict[str, Any]]:
        """The members of the pieces `KIND_SET...`."""
        found = [p["members"] for name, p in self.pieces.items() if name.split("_")[0] == kind]
        return [m for group in found for m in group]

    def curve(self) -> tuple[list[float], list[int], dict[tuple[float, int], dict]]:
        """Lambdas, seeds that have all of them, and their members."""
        by = {(m["lam"], m["seed"]): m for m in self.members("curve")}
        lams = sorted({lam for lam, _ in by})
        seeds = sorted({s for _, s in by if all((lam, s) in by for lam in lams)})
        return lams, seeds, by

    def scores(self, split: str = "val", name: str = "bce") -> np.ndarray:
        """`[lambdas, seeds]` of the curve."""
        lams, seeds, by = self.curve()
        return np.array([[by[lam, s][split][name] for s in seeds] for lam in lams])

    def learned(self) -> dict[str, dict[float, list[dict]]]:
        """Members by estimator and start (`began`); `whole` is the last step of the descent."""
        found: dict[str, dict[float, list[dict]]] = {}
        for name, piece in self.pieces.items():
            if name.startswith("learn_"):
                groups = found.setdefault(name.split("_", 2)[2], defaultdict(list))
                for m in piece["members"]:
                    groups[m["lam"]].append({**m, "began": m["lam"]})
        walk = self.descent()
        if walk:
            found["whole"] = {start: _last(start, steps) for start, steps in walk.items()}
        return found

    def descent(self) -> dict[float, list[list[dict]]]:
        """The members of each outer step, by start."""
        names = sorted(name for name in self.pieces if name.startswith("whole_"))
        walk: dict[float, list[list[dict]]] = {}
        for name in names:
            piece = self.pieces[name]
            for k, start in enumerate(piece["config"]["starts"]):
                group = [m for m in piece["members"] if m["start"] == k]
                walk.setdefault(start, []).append(group)
        return walk

    def slopes(self) -> dict[tuple[str, float], list[dict]]:
        """Members of the derivatives at fixed lambda, by horizon and lambda."""
        by: dict[tuple[str, float], list[dict]] = defaultdict(list)
        for name, piece in self.pieces.items():
            kind, _, *rest = name.split("_")
            for m in piece["members"] if kind == "slope" else []:
                by[rest[0], m["lam"]].append(m)
        return dict(by)

    def secants(self) -> dict[float, list[float]]:
        """The slope of each seed's curve in log lambda between each lambda's two neighbours."""
        lams, _, _ = self.curve()
        loss = self.scores()
        return {
            lams[i]: list((loss[i + 1] - loss[i - 1]) / math.log(lams[i + 1] / lams[i - 1]))
            for i in range(1, len(lams) - 1)
            if lams[i - 1] > 0
        }


def _last(start: float, steps: list[list[dict]]) -> list[dict]:
    """The members of the last step, with the time of all."""
    seconds = sum(np.mean([m["seconds"] for m in group]) for group in steps)
    return [{**m, "began": start, "seconds": seconds} for m in steps[-1]]


def minimum(losses: np.ndarray, lams: list[float], rng: Any) -> dict[str, Any]:
    """The lambda of the least mean, and how often each is it when seeds are drawn anew."""
    seeds = losses.shape[1]
    picks = rng.integers(0, seeds, (DRAWS, seeds))
    best = np.sort(losses[:, picks].mean(2).argmin(0))
    shares = np.bincount(best, minlength=len(lams)) / DRAWS
    low, high = (lams[best[int(q * (DRAWS - 1))]] for q in (0.025, 0.975))
    return {"best": lams[int(losses.mean(1).argmin())], "low": low, "high": high,
            "shares": dict(zip(lams, shares.tolist(), strict=True))}  # fmt: skip


def flatness(losses: np.ndarray) -> tuple[float, float]:
    """`(p, deviation)`: whether rows of `[lambdas, seeds]` differ, and what is left of each run.

    The F test of two-way analysis of variance without interaction; the deviation is that of one
    run once its lambda's and its seed's means are taken out.
    """
    rows, seeds = losses.shape
    rest = losses - losses.mean(0) - losses.mean(1, keepdims=True) + losses.mean()
    left = (rest**2).sum() / ((rows - 1) * (seeds - 1))
    ratio = seeds * losses.mean(1).var(ddof=1) / left
    return float(stats.f.sf(ratio, rows - 1, (rows - 1) * (seeds - 1))), math.sqrt(left)


def reruns(study: Study) -> tuple[float, int]:
    """`(deviation, degrees)` of the final loss among runs that only rounding tells apart.

    Members with the same seed and lambda held fixed take the same batches from the same start in
    every program; programs differ in the order of their sums. The same program twice counts once.
    """
    same = defaultdict(set)
    for piece in study.pieces.values():
        for m in piece["members"]:
            if m["rate"] == 0 and m["lam"] <= FLAT and m["val"]["bce"] is not None:
                same[m["lam"], m["seed"]].add(m["val"]["bce"])
    groups = [np.array(list(values)) for values in same.values() if len(values) > 1]
    degrees = sum(len(g) - 1 for g in groups)
    if not degrees:
        return math.nan, 0
    return math.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / degrees), degrees


def best_of(choice: np.ndarray, score: np.ndarray, k: int) -> float:
    """The expected `score` of the run with the largest `choice` among k of these n runs.

        sum over ranks i of score_(i) C(i - 1, k - 1) / C(n, k),  in increasing order of choice

    all subsets of k runs being equally likely. For normal runs with score = choice, k = 7, it lies
    1.35 standard deviations above the mean.
    """
    n = len(choice)
    ranks = np.arange(1, n + 1)
    weight = special.comb(ranks - 1, k - 1) / special.comb(n, k)
    return float(weight @ np.asarray(score)[np.argsort(choice, kind="stable")])


def selection_gain(choice: np.ndarray, score: np.ndarray, k: int = 7) -> Mean:
    """How far choosing the best of k equal runs lifts the score above the mean of all.

    The interval is the jackknife's: n pseudo-values, `n g - (n - 1) g_(without i)`.
    """
    n = len(choice)

    def gain(kept):
        return best_of(choice[kept], score[kept], k) - score[kept].mean()

    everything = np.arange(n)
    without = [gain(np.delete(everything, i)) for i in range(n)]
    whole = gain(everything)
    found = mean(n * whole - (n - 1) * np.array(without))
    return Mean(whole, whole - (found.value - found.low), whole + (found.high - found.value))


def chance_of(gain: float, choice: np.ndarray, score: np.ndarray, rng: Any, k: int = 7) -> float:
    """How often the best of k runs by `choice` scores that much above one further run."""
    picks = np.array([rng.permutation(len(choice))[: k + 1] for _ in range(5 * DRAWS)])
    chosen = picks[np.arange(len(picks)), choice[picks[:, :k]].argmax(1)]
    return float(np.mean(score[chosen] - score[picks[:, k]] >= gain))
