"""What the result files of `experiments.run` hold, and how one method differs from another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import results
from experiments.lambda_claims import Mean, best_of, detectable, mean
from experiments.results import Member
from experiments.runs import Scale
from tvjax.scoring import methods


class Difference(NamedTuple):
    """How much higher one method scores than another, with the 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int
    shown: float
    """The difference that so many seeds with this spread show, 80 % power at the 5 % level."""


class Findings:
    """All results of one scale.

    Raises:
      UserError: a result file is damaged, or no table can hold two of them together.
    """

    def __init__(self, place: Path, scale: Scale, name: str):
        self.scale, self.name, self.folder = scale, name, place / name
        members = {path: results.read(path) for path in sorted(self.folder.glob("*.json"))}
        grids = {"denoise": {"weights": scale.weights}, "noise": {"sigmas": scale.sigmas}}
        for path, member in members.items():
            for key, grid in grids.get(member["run"]["kind"], {}).items():
                results.check(path, member, {key: results.same(list(grid), f"--scale={name}")})
        results.check_alike(members)
        self.files: dict[str, Member] = {path.stem: member for path, member in members.items()}
        found = [f["run"]["data"] for f in self.files.values()]
        self.main = scale.main or next((d for d in found if d != scale.real), "")

    def of(self, kind: str, data: str | None = None, **wanted: Any) -> list[Member]:
        """The files of a kind, on a set, whose runs have these fields."""
        wanted = {"kind": kind, "data": data or self.main, **wanted}
        return [
            content for content in self.files.values()
            if all(content["run"][k] == v for k, v in wanted.items())
        ]  # fmt: skip

    def trainings(
        self, method: str, lam: float | None = None, data: str | None = None, kind: str = "train"
    ) -> dict[int, Member]:
        """The trainings of a method and weight, by seed."""
        found = self.of(kind, data, method=method, lam=lam)
        return {m["run"]["seed"]: m for m in found}

    def rows(
        self, method: str, lam: float | None = None, data: str | None = None, kind: str = "train"
    ) -> list[Member]:
        """The trainings of a method and weight in the order of their seeds."""
        return [member for _, member in sorted(self.trainings(method, lam, data, kind).items())]

    def weights(self) -> list[float]:
        """The weights at which LU-Net was trained with every seed."""
        return [w for w in self.scale.lambdas if len(self.rows("lunet", w)) >= self.scale.seeds]

    def swept(self) -> list[Member]:
        """Each seed's LU-Net with the best validation IoU among these weights (eq. 12)."""
        rows = [self.rows("lunet", w)[: self.scale.seeds] for w in self.weights()]
        return (
            [max(same, key=_val_iou) for same in zip(*rows, strict=True)] if len(rows) > 1 else []
        )


def _val_iou(member: Member) -> float:
    return member["scores"]["val"]["iou"]


def difference(first: Sequence[Member], second: Sequence[Member], confidence: float = 0.95):
    """Test IoU of the second method less the first's, in points, paired by seed.

    Seeds and tiles are both sources of chance; see `tvjax.scoring.methods.compare`.
    """
    first, second = _common(first, second)
    if len(first) < 2:
        return None
    found = methods.compare(_sums(first), _sums(second), paired=True, confidence=confidence)
    if found["low"] is None:
        return None
    each = [b["scores"]["test"]["iou"] - a["scores"]["test"]["iou"]
            for a, b in zip(first, second, strict=True)]  # fmt: skip
    values = (100 * found[k] for k in ("difference", "low", "high"))
    shown = detectable(100 * float(np.std(each, ddof=1)), len(each))
    return Difference(*values, seeds=len(first), shown=shown)


def of_score(
    first: Sequence[Member], second: Sequence[Member], score: str, split: str = "test",
    factor: float = 1.0,
) -> Difference | None:  # fmt: skip
    """Difference of another score, paired by seed; Student's interval over seeds alone."""
    first, second = _common(first, second)
    each = [factor * (b["scores"][split][score] - a["scores"][split][score])
            for a, b in zip(first, second, strict=True)]  # fmt: skip
    return of_numbers(each)


def of_numbers(each: Sequence[float]) -> Difference | None:
    """The mean of differences by seed, with Student's interval; None of fewer than two."""
    if len(each) < 2:
        return None
    shown = detectable(float(np.std(each, ddof=1)), len(each))
    return Difference(*mean(each), seeds=len(each), shown=shown)


def selection(unets: Sequence[Member], chosen: Sequence[Member], of: int) -> Difference | None:
    """What nets gain that were chosen among several weights, less what choosing alone gains.

    (chosen - U-Net, paired by seed) - (expected best of `of` U-Nets by validation IoU - their mean)

    in points of test IoU. The second part's variance is the jackknife's; seeds that only the
    U-Nets have count there alone, so that no side is lucky in its seeds.
    """
    base, picked = _common(unets, chosen)
    if len(unets) <= of or len(picked) < 2:
        return None
    pairs = zip(base, picked, strict=True)
    each = 100 * np.array(
        [b["scores"]["test"]["iou"] - a["scores"]["test"]["iou"] for a, b in pairs]
    )
    val, test = (100 * np.array([m["scores"][s]["iou"] for m in unets]) for s in ("val", "test"))
    n = len(unets)
    everything = np.arange(n)
    left = np.array([_gain(val, test, np.delete(everything, i), of) for i in range(n)])
    spread = (n - 1) / n * float(((left - left.mean()) ** 2).sum())
    parts = [methods.Part(float(each.var(ddof=1)) / len(each), len(each) - 1),
             methods.Part(spread, n - 1)]  # fmt: skip
    found = float(each.mean()) - _gain(val, test, everything, of)
    shown = detectable(float(each.std(ddof=1)), len(each))
    return Difference(found, *methods.interval(found, parts, 0.95), len(each), shown)


def _gain(val: np.ndarray, test: np.ndarray, kept: np.ndarray, of: int) -> float:
    return best_of(val[kept], test[kept], of) - float(test[kept].mean())


def average(members: Sequence[Member], split: str, score: str, factor: float = 1.0) -> Mean | None:
    """The mean of a score over seeds, with Student's interval."""
    values = [m["scores"][split][score] for m in members]
    values = [factor * v for v in values if v is not None]
    return mean(values) if values else None


def _common(first: Sequence[Member], second: Sequence[Member]) -> tuple[list, list]:
    """The members of seeds that both have, in one order."""
    one, two = ({m["run"]["seed"]: m for m in side} for side in (first, second))
    seeds = sorted(one.keys() & two.keys())
    return [one[s] for s in seeds], [two[s] for s in seeds]


def _sums(members: Sequence[Member]) -> np.ndarray:
    ious = np.array([m["test_iou_permille"] for m in members], float) / 1000
    return np.stack([ious, np.ones_like(ious)], axis=-1)
