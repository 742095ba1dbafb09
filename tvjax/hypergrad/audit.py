"""Estimators side by side against a reference: error, sign, spread, time and memory."""

import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.special import stdtr

from tvjax.hypergrad.adam import is_first_adam_step
from tvjax.hypergrad.checks import arrays, check_floats, check_least, check_not_negative, check_real
from tvjax.hypergrad.dependence import kind
from tvjax.hypergrad.problem import Bilevel, Estimator, InnerState
from tvjax.types import PyTree

SURE = 0.975
"""Confidence in a sign from which on it counts as known."""


class Record(NamedTuple):
    """One estimator and one hyperparameter. `_asdict()` is ready for JSON; None: not known."""

    estimator: str
    element: str
    """The path of the hyperparameter within `hyper`; empty for a scalar."""
    step: int
    """The inner steps taken before."""
    value: float | None
    """The estimate; None if it is not finite."""
    reference: float | None
    relative_error: float | None
    """|value - reference| / |reference|."""
    sign_agrees: bool | None
    """Whether the signs agree; None if there is no reference, or its sign is not known."""
    horizon: str
    """What the estimator sees of the training: "1 step", "10 steps", "whole run", "optimum"."""
    reference_horizon: str | None
    reference_error: float | None
    """The reference's standard error: over the draws, or as it was given."""
    mean: float | None
    """The mean over the draws of mini-batches."""
    standard_error: float | None
    """The standard error of the mean."""
    sign_confidence: float | None
    """1 - p / 2, p that of Student's t-test of mean 0, for independent normal draws: of means that
    are 0, whose sign is a coin toss, one in twenty gets more than 0.975."""
    seconds: float
    """Median of repeated calls of the compiled estimate."""
    flops: float | None
    """XLA's count of operations; None for a program with a loop, whose body it would count once."""
    bytes: int | None
    """Peak memory: arguments, results and temporaries of the compiled estimate."""


def audit(
    problem: Bilevel,
    estimators: Mapping[str, Estimator],
    state: InnerState,
    hyper: PyTree,
    inner_batches: Sequence[PyTree],
    outer_batch: PyTree,
    *,
    reference: PyTree | Estimator | None = None,
    reference_error: PyTree | None = None,
    reference_horizon: str | None = None,
    draws: Sequence[tuple[Sequence[PyTree], PyTree]] = (),
    carries: Mapping[str, PyTree] | None = None,
    step: int = 0,
    repeats: int = 3,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> list[Record]:
    """Calls every estimator from the same state and compares what they return.

    The reference decides what a wrong sign means. To test whether a derivative is right, take one
    of the same horizon found by another way: `exact(mode="reverse")` for one step,
    `finite_difference(K)` or `reverse(K)` for K, `cg` at the optimum. To ask whether an estimator
    leads a training well, take one that sees the rest of it: `forward(K)` with all the steps to
    come, `forward_online` with its carry, or differences of whole runs. An exact estimator may then
    have the other sign and still be exact: it answers another question.

    Agreement at one state does not make a good training. It says nothing of other states, of the
    noise (see `sign_confidence`) or of the rate by which `hyper` moves, and a reference of few
    steps shares the short horizon's bias (see `exact`).

    A sign is judged where that of the reference is known. An estimator of the reference's horizon
    has the same truth on the same batches, and differs by error alone. One of another horizon is
    judged only if over the draws the reference's mean differs from 0 with a confidence above
    0.975 (Student's t), and numbers only if they are more than twice `reference_error` from 0:
    else `sign_agrees` is None, and `?` in the table.

    Args:
      problem: the bilevel problem, on one device (`axis_name` None).
      estimators: the estimators, by the names that they get in the records.
      state: where all begin; no estimator changes it for the next.
      hyper: the hyperparameters, n elements in all.
      inner_batches: one per inner step; begun again by estimators of more steps than batches.
      outer_batch: batch of the outer loss.
      reference: the true hypergradient, like `hyper`; or an estimator that stands for it.
      reference_error: the standard error of a reference of numbers, like `hyper`; None: exact.
      reference_horizon: horizon of a reference of numbers, in the words of `Record.horizon`.
      draws: pairs `(inner_batches, outer_batch)` of mini-batches, for mean and standard error.
      carries: what estimators remember, by name; their first carry where it is not given. A
        reference that is one of the estimators has the same.
      step: written to the records.
      repeats: timed calls of each estimator.
      progress: wraps the names while they are walked along, such as `tqdm`.

    Returns:
      one record per estimator and element of `hyper`, in the order of `estimators`.

    Raises:
      ValueError: for a problem with `axis_name`, no batches, `repeats` below 1, a reference that is
        not like `hyper` or has no such error, and where `Estimator` raises it.

    Warns:
      UserWarning: at Adam's first step, through which every derivative is all but zero.
    """
    check_least(1, repeats=repeats)
    _check_state(problem, state, hyper)
    state, hyper = arrays((state, hyper))
    unknown = sorted((carries or {}).keys() - estimators.keys())
    if unknown:
        raise ValueError(f"carries must have the names of estimators, and {unknown[0]!r} is none")
    begun = {k: e.init(problem, state, hyper) for k, e in estimators.items()} | dict(carries or {})
    has_numbers = not (reference is None or isinstance(reference, Estimator))
    if not has_numbers and not (reference_error is None and reference_horizon is None):
        raise ValueError("reference_error and reference_horizon need a reference of numbers")
    if not isinstance(reference, Estimator):
        truth = _numbers(reference, reference_error, reference_horizon, hyper)
    else:
        named = [begun[k] for k, e in estimators.items() if e == reference]
        carry = named[0] if named else reference.init(problem, state, hyper)
        truth = _estimated(
            problem, reference, state, hyper, carry, inner_batches, outer_batch, draws
        )
    records = []
    for name in progress(list(estimators)):
        estimator, carry = estimators[name], begun[name]
        program = _program(problem, estimator)

        def arguments(inner, outer, estimator=estimator, carry=carry):
            return state, hyper, _take(inner, estimator.batches), outer, carry

        value, cost = _measure(program, arguments(inner_batches, outer_batch), repeats)
        drawn = [arguments(inner, outer) for inner, outer in draws]
        samples = [_flat(program(args)(*args)) for args in drawn]
        records += [
            Record(
                estimator=name,
                element=element,
                step=step,
                **_compare(value[i], estimator.sees, truth, i),
                **_spread([sample[i] for sample in samples]),
                **cost,
            )
            for i, element in enumerate(_element_names(hyper))
        ]
    return records


def _check_state(problem: Bilevel, state: InnerState, hyper: PyTree) -> None:
    if problem.axis_name is not None:
        raise ValueError("audit runs on one device: use the problem with axis_name=None")
    check_floats(params=state.params, hyper=hyper)
    if is_first_adam_step(state.opt_state):
        warnings.warn(
            "the state is before Adam's first step, which is the sign of the gradient: the "
            "derivative through it is all but zero. Audit a later state.",
            stacklevel=3,
        )


_COLUMNS: dict[str, Callable[[Record], str]] = {
    "estimator": lambda r: r.estimator + (r.element and f" {r.element}"),
    "value": lambda r: _text(r.value, ".4e"),
    "rel. error": lambda r: _text(r.relative_error, ".1e"),
    "sign": lambda r: _sign(r),
    "horizon": lambda r: _horizon(r),
    "mean": lambda r: _text(r.mean, ".3e"),
    "std. error": lambda r: _text(r.standard_error, ".1e"),
    "P(sign)": lambda r: _text(r.sign_confidence, ".3f"),
    "ms": lambda r: _text(r.seconds * 1e3, ".2f"),
    "MFLOP": lambda r: _text(r.flops, ".3f", 1e6),
    "MB": lambda r: _text(r.bytes, ".3f", 1e6),
}


def table(records: Sequence[Record]) -> str:
    """The records as text: a heading, and one line each.

    Where the reference is of another horizon, `horizon` names both, as in "1 step vs optimum";
    "?" under `sign` means that the reference's sign is not known well enough to call it wrong.
    """
    rows = [list(_COLUMNS), *([cell(r) for cell in _COLUMNS.values()] for r in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


@functools.lru_cache(maxsize=64)
def _program(problem: Bilevel, estimator: Estimator) -> Callable[[tuple], Any]:
    """A function from arguments to the program for their shapes, compiled at the first ones."""

    @jax.jit
    def gradient(state, hyper, inner_batches, outer_batch, carry):
        return estimator(problem, state, hyper, inner_batches, outer_batch, carry).gradient

    compiled = {}

    def program(args):
        key = kind(*args)
        if key not in compiled:
            compiled[key] = gradient.lower(*args).compile()
        return compiled[key]

    return program


def _measure(program: Any, args: tuple, repeats: int) -> tuple[list[float], dict[str, Any]]:
    compiled = program(args)
    value = _flat(compiled(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    loops = " while(" in compiled.as_text()
    flops = None if loops else (compiled.cost_analysis() or {}).get("flops")
    memory = compiled.memory_analysis()  # None where a backend does not tell
    peak = None
    if memory is not None:
        kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak = kept - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return value, {"seconds": statistics.median(seconds), "flops": flops, "bytes": peak}


class _Truth(NamedTuple):
    """The reference, element by element."""

    values: Sequence[float | None]
    errors: Sequence[float | None]
    is_sign_known: list[bool]
    horizon: str | None
    is_of_batches: bool
    """Whether it is an estimate on the batches of the others."""


def _estimated(problem, estimator, state, hyper, carry, inner_batches, outer_batch, draws):
    program = _program(problem, estimator)

    def gradient(inner, outer):
        args = state, hyper, _take(inner, estimator.batches), outer, carry
        return _flat(program(args)(*args))

    values = gradient(inner_batches, outer_batch)
    samples = list(zip(*(gradient(*draw) for draw in draws), strict=True)) or [()] * len(values)
    found = [_spread(sample) for sample in samples]
    known = [
        (s["sign_confidence"] or 0) > SURE and (s["mean"] or 0) * value > 0
        for s, value in zip(found, values, strict=True)
    ]
    return _Truth(values, [s["standard_error"] for s in found], known, estimator.sees, True)


def _numbers(reference, error, horizon, hyper: PyTree) -> _Truth:
    n = optax.tree.size(hyper)
    if reference is None:
        return _Truth([None] * n, [None] * n, [False] * n, None, False)
    check_real(reference=reference)
    _check_like(hyper, reference=reference)
    errors: list[Any] = [None] * n
    if error is not None:
        _check_like(hyper, reference_error=error)
        errors = _flat(error)
        check_not_negative(reference_error=errors)
    flat = _flat(reference)
    known = [abs(x) > 2 * e if e else True for x, e in zip(flat, errors, strict=True)]
    return _Truth(flat, errors, known, horizon, False)


def _check_like(hyper: PyTree, **trees: PyTree) -> None:
    """Raises ValueError unless all have the structure and the shapes of `hyper`."""
    n = optax.tree.size(hyper)
    for name, tree in trees.items():
        if (got := optax.tree.size(tree)) != n:
            raise ValueError(f"{name} must be like hyper, of {n} elements; got {got}")
        kinds = [jax.tree.map(np.shape, x) for x in (hyper, tree)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{name} must be like hyper, {kinds[0]}; got {kinds[1]}")


def _compare(value: float, horizon: str, reference: _Truth, i: int) -> dict[str, Any]:
    truth = reference.values[i]
    found = {
        "value": _finite(value), "horizon": horizon, "reference": _finite(truth),
        "reference_horizon": reference.horizon, "reference_error": _finite(reference.errors[i]),
    }  # fmt: skip
    if truth is None or None in (found["value"], found["reference"]):
        return found | {"relative_error": None, "sign_agrees": None}
    error = abs(value - truth) / abs(truth) if truth else None
    is_alike = reference.is_of_batches and horizon == reference.horizon
    is_known = reference.is_sign_known[i] or is_alike
    agrees = bool(np.sign(value) == np.sign(truth)) if is_known else None
    return found | {"relative_error": error, "sign_agrees": agrees}


def _spread(samples: Sequence[float]) -> dict[str, float | None]:
    """Mean, its standard error, and the confidence in its sign."""
    if len(samples) < 2 or not all(map(math.isfinite, samples)):
        return {"mean": None, "standard_error": None, "sign_confidence": None}
    mean, error = statistics.fmean(samples), statistics.stdev(samples) / math.sqrt(len(samples))
    t = abs(mean) / error if error else math.inf if mean else 0.0
    confidence = float(stdtr(len(samples) - 1, t))
    return {"mean": mean, "standard_error": error, "sign_confidence": confidence}


def _take(batches: Sequence[PyTree], steps: int) -> list[PyTree]:
    if len(batches) == 0:
        raise ValueError("inner_batches must be at least one batch, and the list is empty")
    return [batches[i % len(batches)] for i in range(steps)]


def _flat(tree: PyTree) -> list[float]:
    return np.asarray(ravel_pytree(tree)[0], np.float64).tolist()


def _element_names(hyper: PyTree) -> list[str]:
    return [
        jax.tree_util.keystr(path) + (f"[{i}]" if np.size(leaf) > 1 else "")
        for path, leaf in jax.tree_util.tree_leaves_with_path(hyper)
        for i in range(np.size(leaf))
    ]


def _finite(x: float | None) -> float | None:
    return float(x) if x is not None and math.isfinite(x) else None


def _sign(record: Record) -> str:
    if record.sign_agrees is None:
        return "-" if record.relative_error is None else "?"
    return "ok" if record.sign_agrees else "WRONG"


def _horizon(record: Record) -> str:
    other = record.reference_horizon
    return record.horizon + (f" vs {other}" if other not in (None, record.horizon) else "")


def _text(x: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if x is None else format(x / unit, form)
