"""Runs of a solver: many seeds and outer rates in one compiled scan, tuned, timed and valued."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.bilevel.known import Known, least, projected_norm
from experiments.bilevel.solvers import BATCH, Solver
from tvjax.hypergrad import Bilevel

MARKS = 16
"""Snapshots of a run, log-spaced over its calls."""
TUNING_SEEDS = 100, 101
LAST = 0.01
"""What a rate that decays, by half a cosine, ends at, as a part of the first."""
TOLERANCE = 1e-3
"""How near to the best value is there, as a part of it."""


Run = Callable[..., Any]


class Course(NamedTuple):
    """Snapshots of runs, `[runs, marks, ...]`."""

    hyper: Any
    params: Any


def calls_of(known: Known, solver: Solver) -> int:
    """How many calls a run makes."""
    if solver.batch is None:
        return known.whole_calls
    return max(MARKS, int(known.budget / passes(known, solver)))


def passes(known: Known, solver: Solver) -> float:
    """Forward passes of 64 samples in a call."""
    whole = len(jax.tree.leaves(known.train)[0])
    size = whole if solver.batch is None else min(solver.batch, whole)
    return solver.cost(known.hyper.size) * size / BATCH


def marks(calls: int) -> np.ndarray:
    """Numbers of calls after which a run is looked at, 0 first."""
    return np.unique(np.round(np.geomspace(1, calls, MARKS)).astype(int))


def measure(known: Known, solver: Solver, seeds: int) -> dict[str, Any]:
    """Tunes a solver, runs it with `seeds` other seeds, and says where it ended."""
    calls = calls_of(known, solver)
    run = compiled(known, solver, calls)
    grid = tuned(known, solver, run)
    chosen = min(grid, key=lambda row: float("inf") if row["gap"] is None else row["gap"])
    # Whole sets leave no chance: each seed is the same run.
    lanes = [(chosen["rate"], chosen["move"], i) for i in range(seeds if solver.batch else 1)]
    course = play(known, run, lanes)
    # Seconds of the processor, over all runs side by side: other work on the machine is none.
    began = time.process_time()
    play(known, run, lanes)
    seconds = (time.process_time() - began) / len(lanes) / calls
    h, norms = valued(known, course.hyper)
    gap = h - known.values(known.best[None])[0]
    return {
        "theory": solver.theory,
        "settings": solver.settings(known.scale),
        "calls": calls,
        "passes_per_call": passes(known, solver),
        "seconds_per_call": seconds,
        "grid": grid,
        "chosen": {"rate": chosen["rate"], "move": chosen["move"]},
        "at_calls": marks(calls).tolist(),
        "gap": _floats(gap),
        "gradient_norm": _floats(norms),
        "test_error": None if known.test is None else _floats(_errors(known, course.params)),
        **verdict(known, solver, chosen["rate"], gap[:, -1], course.hyper[0, -1]),
    }


def verdict(
    known: Known, solver: Solver, rate: float, gap: np.ndarray, end: np.ndarray
) -> dict[str, Any]:
    """Where the runs ended, against the best value and against what theory says.

    Where h is not convex theory promises no more than a local minimum: the one to which L-BFGS
    goes on from the end of the first run.
    """
    best = abs(float(known.values(known.best[None])[0][0]))
    mean = local = float(np.mean(gap))
    if not known.is_optimum and np.isfinite(gap[0]):
        below = known.values(least(known.values, [end], known.box, 100)[None])[0][0]
        local = float(known.values(end[None])[0][0] - below)
    found: dict[str, Any] = {
        "final_gap": mean if np.isfinite(mean) else None,
        "final_gap_of_best": mean / best if np.isfinite(mean) else None,
        "local_gap_of_best": local / best if np.isfinite(local) else None,
        "reaches": bool(local <= TOLERANCE * best),
        "should_reach": solver.converges,
        "predicted_gap": None,
    }
    if known.stationary is not None and solver.fixed is not None:
        ends = np.stack([solver.fixed(known, rate, known.scale), known.best])
        predicted, lowest = known.values(ends)[0]
        found["predicted_gap"] = float(predicted - lowest)
    return found


def tuned(known: Known, solver: Solver, run: Run) -> list[dict[str, Any]]:
    """The mean final gap to the best value for each pair of rates; None where a run diverges."""
    rates = known.rates if solver.batch else known.whole_rates
    seeds = TUNING_SEEDS if solver.batch else TUNING_SEEDS[:1]
    # Numbers of the inner rate's size want outer rates of its inverse's.
    pairs = [
        (rate, move / rate if solver.per_step else move) for rate in rates for move in known.moves
    ]
    course = play(known, run, [(rate, move, seed) for rate, move in pairs for seed in seeds])
    h, _ = valued(known, course.hyper[:, -1])
    gaps = np.reshape(h - known.values(known.best[None])[0], (len(pairs), len(seeds))).mean(1)
    return [
        {"rate": rate, "move": move, "gap": float(gap) if np.isfinite(gap) else None}
        for (rate, move), gap in zip(pairs, gaps, strict=True)
    ]


def play(known: Known, run: Run, lanes: Sequence[tuple[float, float, int]]) -> Course:
    """Runs side by side, one for each (inner rate, outer rate, seed)."""
    rates, moves, seeds = (jnp.asarray(column) for column in zip(*lanes, strict=True))
    course = run(known.train, known.validation, rates, moves, seeds)
    return jax.tree.map(np.asarray, course)


def valued(known: Known, hyper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """h and the norm of its projected gradient, for `[..., d]`."""
    flat = hyper.reshape(-1, hyper.shape[-1])
    good = np.all(np.isfinite(flat), axis=-1)
    h, norms = np.full(len(flat), np.inf), np.full(len(flat), np.inf)
    if good.any():
        h[good], gradient = known.values(flat[good])
        norms[good] = projected_norm(flat[good], gradient, known.box)
    return h.reshape(hyper.shape[:-1]), norms.reshape(hyper.shape[:-1])


class Rate(NamedTuple):
    """What gradient descent remembers: its rate is a number of the run, not of the program."""

    rate: Any
    count: Any


def descent(decay: optax.Schedule) -> optax.GradientTransformation:
    """Gradient descent along `decay(count)` times the rate in its state."""

    def init(params):
        return Rate(jnp.zeros(()), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        size = -state.rate * decay(state.count)
        return optax.tree.scale(size, updates), Rate(state.rate, state.count + 1)

    return optax.GradientTransformation(init, update)


def compiled(known: Known, solver: Solver, calls: int) -> Run:
    """`(train, validation, rates, moves, seeds) -> Course`, compiled once per number of lanes."""
    run = functools.partial(_run, known, solver, calls)
    return jax.jit(jax.vmap(run, (None, None, 0, 0, 0)))


def _run(known: Known, solver: Solver, calls: int, train, validation, rate, move, seed):
    estimator = solver.make(known.scale)
    decay = optax.cosine_decay_schedule(1.0, calls, LAST)
    inner = optax.cosine_decay_schedule(1.0, calls * estimator.steps, LAST)
    optimizer = descent(inner if solver.decays else optax.constant_schedule(1.0))
    problem = Bilevel(known.inner_loss, known.outer_loss, optimizer)
    average = optax.ema(solver.smoothing, debias=False) if solver.smoothing else optax.identity()
    state, looks = problem.init(known.params), jnp.asarray(marks(calls))
    state = state._replace(opt_state=state.opt_state._replace(rate=rate))
    course = Course(*(
        jnp.zeros((len(looks), *x.shape), x.dtype) for x in (known.hyper, known.params)
    ))  # fmt: skip

    def call(at, i):
        state, x, averaged, carry, course = at
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), i), 2)
        batches = _draw(keys[0], train, estimator.batches, solver.batch)
        (outer_batch,) = _draw(keys[1], validation, 1, solver.batch)
        estimate = estimator(problem, state, x, batches, outer_batch, carry)
        along, averaged = average.update(estimate.gradient, averaged)
        x = jnp.clip(x - move * decay(i) * along, *known.box)
        # Each call overwrites the place of the next mark, until that is reached.
        place = jnp.searchsorted(looks, i + 1)
        course = jax.tree.map(
            lambda kept, now: kept.at[place].set(now), course, Course(x, estimate.state.params)
        )
        return (estimate.state, x, averaged, estimate.carry, course), None

    start = (
        state, known.hyper, average.init(known.hyper),
        estimator.init(problem, state, known.hyper), course,
    )  # fmt: skip
    return lax.scan(call, start, jnp.arange(calls))[0][-1]


def _draw(key, samples, number: int, size: int | None) -> list:
    """Batches of `size` rows drawn with replacement; None: all rows, each time."""
    n = len(jax.tree.leaves(samples)[0])
    if size is None or size >= n:
        return [samples] * number
    rows = jax.random.randint(key, (number, size), 0, n)
    return [jax.tree.map(lambda x, i=i: x[rows[i]], samples) for i in range(number)]


def _errors(known: Known, params: np.ndarray) -> np.ndarray:
    assert known.test is not None
    found = jax.lax.map(known.test, jnp.asarray(params.reshape(-1, params.shape[-1])))
    return np.asarray(found, float).reshape(params.shape[:-1])


def _floats(x: np.ndarray) -> list:
    """Lists of numbers of 6 digits, None where one is not finite."""
    if x.ndim > 1:
        return [_floats(row) for row in x]
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in x]
