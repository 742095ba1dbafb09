"""The solvers of the benchmark, each with its settings, its cost and what theory says of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.bilevel.known import Known
from tvjax import hypergrad
from tvjax.hypergrad import SCANNED, UNROLLED, Estimator

BATCH = 64


class Solver(NamedTuple):
    """A way of solving bilevel problems."""

    make: Callable[[float], Estimator]
    """The estimator, given the step size on its linear system."""
    cost: Callable[[int], int]
    """Forward passes of a call, as the estimator's docstring counts them, for so many numbers x."""
    theory: str
    """Where it goes with ever smaller outer steps."""
    batch: int | None = BATCH
    """Samples in each batch; None: the whole sets."""
    smoothing: float = 0.0
    """Decay of the moving average along which x moves; 0: x moves along each direction."""
    decays: bool = True
    """Whether inner steps shrink along with the outer ones."""
    per_step: bool = False
    """Whether its numbers are of the inner rate's size, so that outer rates are divided by it."""
    converges: bool = True
    """Whether theory has it at the optimum in the limit."""
    fixed: Callable[[Known, float, float], np.ndarray] | None = None
    """The x at which theory has it end on the quadratic, given the inner rate and that size."""
    refuses: Callable[[Known], str | None] = lambda known: None
    """Why it is left out of a problem."""

    def settings(self, scale: float) -> dict[str, Any]:
        """What a result file says of it."""
        estimator = self.make(scale)
        return {
            "batch": self.batch or "whole sets", "inner steps": estimator.steps,
            "inner batches": estimator.batches, "smoothing": self.smoothing,
            "inner rate decays": self.decays, "outer rate is divided by inner": self.per_step,
        }  # fmt: skip


SIGMA, TERMS, STEPS = 10.0, 10, 5


def _truncated(terms: int, by_rate: bool) -> Callable[[Known, float, float], np.ndarray]:
    """The end of a method whose inverse Hessian is size sum_{j < terms} (I - size A)^j."""

    def fixed(known: Known, rate: float, scale: float) -> np.ndarray:
        assert known.stationary is not None

        def inverse(a):
            one = np.eye(len(a))
            left = np.linalg.matrix_power(one - (rate if by_rate else scale) * a, terms)
            return np.linalg.solve(a, one - left)

        return known.stationary(inverse)

    return fixed


def _pulled(known: Known, rate: float, scale: float) -> np.ndarray:
    assert known.pulled is not None
    return known.pulled(SIGMA)


def _too_many(known: Known) -> str | None:
    n = known.hyper.size
    return f"it keeps a tangent for each of {n} hyperparameters" if n > 100 else None


SOLVERS: dict[str, Solver] = {
    "soba": Solver(
        hypergrad.soba, lambda n: 15, "converges",
    ),
    "ma_soba": Solver(
        hypergrad.soba, lambda n: 15, "converges", smoothing=0.9,
    ),
    "amigo": Solver(
        lambda scale: hypergrad.amigo(STEPS, scale, steps=STEPS, loop=SCANNED),
        lambda n: 12 * STEPS + 8, "converges",
    ),
    "stocbio": Solver(
        lambda scale: hypergrad.stocbio(TERMS, scale, steps=STEPS, loop=SCANNED),
        lambda n: 3 * STEPS + 9 * TERMS + 8,
        f"biased by the truncation of its series after {TERMS} products", converges=False,
        fixed=_truncated(TERMS + 1, by_rate=False),
    ),
    "f2sa": Solver(
        lambda scale: hypergrad.f2sa(SIGMA, steps=STEPS, loop=SCANNED),
        lambda n: 9 * STEPS + 10, f"biased by 1/sigma, sigma = {SIGMA:g}", converges=False,
        fixed=_pulled,
    ),
    "f2sa_growing": Solver(
        lambda scale: hypergrad.f2sa(lambda calls: 1 + calls / 10, steps=STEPS, loop=SCANNED),
        lambda n: 9 * STEPS + 10, "converges as sigma = 1 + calls/10 grows",
    ),
    "bome": Solver(
        lambda scale: hypergrad.bome(0.5, scale, steps=10, loop=SCANNED),
        lambda n: 46, "biased by the size of its steps, and by noise", batch=256, converges=False,
    ),
    "cg": Solver(
        lambda scale: hypergrad.cg(10, warm_start=True, steps=STEPS, loop=UNROLLED),
        lambda n: 6 * 10 + 23 + 3 * STEPS, "converges", batch=None,
    ),
    "exact": Solver(
        lambda scale: hypergrad.exact(mode="reverse"), lambda n: 8,
        "biased: sees one inner step", decays=False, per_step=True, converges=False,
        fixed=_truncated(1, by_rate=True),
    ),
    "reverse_10": Solver(
        lambda scale: hypergrad.reverse(10, loop=SCANNED), lambda n: 12 * 10 + 3,
        "biased: sees 10 inner steps", decays=False, converges=False,
        fixed=_truncated(10, by_rate=True),
    ),
    "forward_online": Solver(
        lambda scale: hypergrad.forward_online(), lambda n: 12 + 8 * (n - 1),
        "sees the whole run, of an x that moves", decays=False, converges=False,
        refuses=_too_many,
    ),
}  # fmt: skip
