"""What may differ between backends, against float64, closed forms and the CPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import tvjax
from experiments.accelerator.report import Job, Report, bounded
from experiments.benchmarks import workload
from tvjax import hypergrad
from tvjax.data.records import open_split
from tvjax.hypergrad import InnerState
from tvjax.models.layers import BatchNorm
from tvjax.types import Batch, PyTree

RATE, STEPS = 1e-3, 50
PIXEL_WEIGHT = 0.1
"""What TV weighs per pixel against cross-entropy, about as at the paper's optimum."""


def measure(report: Report, job: Job) -> None:
    """Adds one finding per question; on an accelerator they are compiled side by side."""
    with ThreadPoolExecutor(1 if job.tiny else 8) as pool:
        made = {name: pool.submit(find) for name, find in questions(job).items()}
        for name, future in made.items():
            report.add(name, future.result)


def questions(job: Job) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is asked, and how it is found out."""
    tiny, depth = job.tiny, job.depth
    small = load_batches(job, *((16, 4) if tiny else (32, 8)))
    # At the tiny scale all are of one shape, and what one has compiled serves the others.
    width, *sizes = (4, 16, 4) if tiny else (16, 64, 16)
    net = load_batches(job, *sizes)
    norms = {f"batch_norm_mean_over_std_{r}": partial(batch_norm, r, tiny) for r in (1, 5, 30, 100)}
    nets = {
        "float64_hypergradient_is_finite_difference": partial(derivative, small, depth),
        "hypergradient_against_float64": partial(precisions, net, width, depth),
        "float32_step_is_that_of_the_cpu": partial(step_on_cpu, small, depth, jnp.float32, 2e-3),
        "float64_step_is_that_of_the_cpu": partial(step_on_cpu, small, depth, jnp.float64, 1e-9),
    }
    if tiny:  # it is the CPU, and compiling in float64 takes half a minute
        del nets["float64_step_is_that_of_the_cpu"]
    return (
        {
            "total_variation": total_variation,
            "rof": partial(rof, 16 if tiny else 128),
            "tv_softmax": partial(tv_softmax, 16 if tiny else 64),
        }
        | norms
        | nets
    )


def load_batches(job: Job, size: int, batch: int) -> tuple[Batch, Batch]:
    """A training and a validation batch of crops of the prepared tiles."""

    def load(name: str) -> Batch:
        split = open_split(job.data, name)
        records = [split[i % len(split)] for i in range(batch)]
        rows = slice(0, size)
        return Batch(*(np.stack([r[k][rows, rows] for r in records]) for k in ("image", "mask")))

    return load("train"), load("val")


def total_variation() -> dict[str, Any]:
    """Value and gradient in float32 against float64 of the same numbers; 0 at ties."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for offset, scale in ((0.0, 1.0), (1000.0, 1e-3)):
        x = np.asarray(offset + scale * rng.standard_normal((4, 33, 29, 2)), np.float32)
        d = [np.diff(x.astype(np.float64), axis=axis) for axis in (1, 2)]
        wanted = sum(np.abs(part).sum((1, 2, 3)) for part in d)
        slope = sum(_adjoint_of_difference(np.sign(part), axis, x.shape)
                    for axis, part in zip((1, 2), d, strict=True))  # fmt: skip
        value = jax.jit(tvjax.total_variation)(x)
        found = jax.jit(jax.grad(lambda x: jnp.sum(tvjax.total_variation(x))))(x)
        worst = max(worst, float(np.max(np.abs(np.asarray(value) / wanted - 1))))
        worst = max(worst, float(np.max(np.abs(np.asarray(found) - slope))))
    flat = jax.jit(jax.grad(lambda x: tvjax.total_variation(x)))(jnp.full((9, 9, 1), 0.3))
    return bounded(max(worst, float(jnp.max(jnp.abs(flat)))), 1e-5)


def _adjoint_of_difference(sign: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape)
    low = [slice(None)] * len(shape)
    high = list(low)
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    out[tuple(high)] += sign
    out[tuple(low)] -= sign
    return out


def rof(size: int) -> dict[str, Any]:
    """The certificate of `denoise_tv`: P(u) of float32 lies within the gap of float64's optimum."""
    f = np.random.default_rng(0).random((2, size, size, 1), dtype=np.float32)
    lam, found = 0.1, {}

    def objective(u) -> np.ndarray:
        u = np.asarray(u, np.float64)
        tv = sum(np.abs(np.diff(u, axis=axis)).sum((1, 2, 3)) for axis in (1, 2))
        return 0.5 * ((u - f) ** 2).sum((1, 2, 3)) + lam * tv

    solve = partial(tvjax.denoise_tv, lam=lam, max_iterations=20_000)
    with jax.enable_x64(True):
        best = objective(solve(jnp.asarray(f, jnp.float64), tolerance=1e-8).image)
    for method in ("fista", "primal_dual"):
        result = solve(jnp.asarray(f), method=method, tolerance=1e-4 * float(best.min()))
        excess = objective(result.image) - best
        # What is left over the certificate, relative to the objective: rounding.
        found[method] = float(np.max((excess - np.asarray(result.gap)) / best))
    spike = np.zeros((9, 9, 1), np.float32)
    spike[4, 4] = 1
    peak = solve(jnp.asarray(spike), tolerance=1e-7).image[4, 4, 0]
    return bounded(max(*found.values(), abs(float(peak) - (1 - 4 * lam))), 1e-5, excess=found)


def tv_softmax(size: int) -> dict[str, Any]:
    """Two classes: the sigmoid of ROF of the logits' difference; and the closed form of a spike."""
    logits = np.random.default_rng(0).standard_normal((size, size, 2)).astype(np.float32)
    lam = 0.2
    with jax.enable_x64(True):
        o = jnp.asarray(logits, jnp.float64)
        wanted = jax.nn.sigmoid(
            tvjax.denoise_tv(o[..., 1:] - o[..., :1], 2 * lam, tolerance=1e-10).image
        )
        double = tvjax.tv_softmax(o, lam, num_iterations=None)[..., 1:]
        in_double = float(jnp.max(jnp.abs(double - wanted)))
    single = tvjax.tv_softmax(jnp.asarray(logits), lam, num_iterations=None)[..., 1:]
    error = float(np.max(np.abs(np.asarray(single) - np.asarray(wanted))))
    spike = np.zeros((9, 9, 2), np.float32)
    spike[4, 4, 1] = 4
    peak = tvjax.tv_softmax(jnp.asarray(spike), 0.25, num_iterations=None)[4, 4, 1]
    off = abs(float(peak) - 0.8807970779778823)
    return bounded(max(error, off), 2e-3, float64=in_double, float32=error, spike=off)


def batch_norm(ratio: float, tiny: bool) -> dict[str, Any]:
    """The layer's output in float32 against float64, at this mean over standard deviation."""
    rng = np.random.default_rng(0)
    shape = (4, 16, 16, 8) if tiny else (16, 100, 100, 64)
    x = np.asarray(ratio + rng.standard_normal(shape), np.float32)
    net = BatchNorm()
    variables = net.init(jax.random.key(0), x, train=True)
    y, _ = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))(variables, x)
    wide = x.astype(np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    wanted = (wide - mean) / np.sqrt(var + net.epsilon)
    # The input itself knows its distance from the mean to eps * ratio.
    return bounded(np.max(np.abs(np.asarray(y) - wanted)), 1e-5 + 2e-6 * ratio)


def derivative(batches: tuple[Batch, Batch], depth: int) -> dict[str, Any]:
    """The exact hypergradient of Adam's step in float64 against a central difference of it."""
    with jax.enable_x64(True):
        problem, state, alpha = _problem(jnp.float64, width=4, size=_size(batches), depth=depth)
        state = _trained(problem, state, alpha, batches, 3)
        exact = _hypergradient(hypergrad.exact(), problem, state, alpha, batches)
        near = hypergrad.finite_difference(1, width=1e-4)
        difference = _hypergradient(near, problem, state, alpha, batches)
    return bounded(abs(exact / difference - 1), 1e-5, exact=exact, difference=difference)


def step_on_cpu(
    batches: tuple[Batch, Batch], depth: int, dtype: Any, bound: float
) -> dict[str, Any]:
    """One exact bilevel step here and on the CPU: hypergradient and parameters' update."""

    def step() -> tuple[float, np.ndarray]:
        problem, state, alpha = _problem(dtype, width=4, size=_size(batches), depth=depth)
        take = _estimate(hypergrad.exact(), problem, alpha, batches)
        for _ in range(3):
            before = state
            gradient, state = take(before)
        move = jax.tree.map(lambda a, b: a - b, state.params, before.params)
        return float(gradient), np.asarray(ravel_pytree(move)[0])

    with jax.enable_x64(dtype == jnp.float64):
        here, moved = step()
        with jax.default_device(jax.devices("cpu")[0]):
            there, wanted = step()
    parameters = float(np.linalg.norm(moved - wanted) / np.linalg.norm(wanted))
    error = abs(here / there - 1)
    return bounded(max(error, parameters), bound, hypergradient=error, parameters=parameters)


PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "highest"},
    "bfloat16": {"precision": "default", "dtype": "bfloat16"},
    "float32, high": {"precision": "high"},
    "float32, default": {"precision": "default"},
}
"""Fields of the model; on a GPU the default precision of float32 is TF32's."""


def precisions(batches: tuple[Batch, Batch], width: int, depth: int) -> dict[str, Any]:
    """The hypergradient at one state of a training, by dtype and by the products' precision."""
    net: dict[str, Any] = {"width": width, "depth": depth, "size": _size(batches)}
    problem, state, alpha = _problem(jnp.float32, **net)
    state = _trained(problem, state, alpha, batches, STEPS)
    with jax.enable_x64(True):
        problem, _, _ = _problem(jnp.float64, **net)
        wide = jax.tree.map(_to(jnp.float64), state)
        true = _hypergradient(
            hypergrad.exact(), problem, wide, jnp.asarray(alpha, jnp.float64), batches
        )
    errors = {}
    for name, fields in list(PRECISIONS.items())[: 2 if depth == 1 else None]:
        problem, _, _ = _problem(jnp.float32, **net, **fields)
        found = _hypergradient(hypergrad.exact(), problem, state, alpha, batches)
        errors[name] = abs(found / true - 1)
    return bounded(errors["float32"], 5e-4, hypergradient=true, relative_errors=errors)


def _problem(all_in: Any, *, width: int, size: int, depth: int, **fields: Any):
    """`(problem, first state, alpha)` with everything in this dtype."""
    lam = PIXEL_WEIGHT / (16 * size * size)
    options: dict[str, Any] = {"dtype": None if all_in == jnp.float64 else "float32"} | fields
    problem, _, start = workload.unet(
        width=width, size=size, depth=depth, rate=RATE, lam=lam, **options
    )
    begun = start(None, hypergrad.adam(0.0))
    return problem, jax.tree.map(_to(all_in), begun.inner), jnp.asarray(np.log(lam), all_in)


def _to(dtype: Any):
    def cast(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return cast


def _size(batches: tuple[Batch, Batch]) -> int:
    return batches[0].image.shape[1]


def _trained(problem, state: InnerState, alpha, batches, steps: int) -> InnerState:
    step = jax.jit(lambda *arguments: problem.inner_step(*arguments)[0])
    for _ in range(steps):
        state = step(state, alpha, batches[0])
    return state


def _hypergradient(estimator, problem, state: PyTree, alpha, batches) -> float:
    return float(_estimate(estimator, problem, alpha, batches)(state)[0])


def _estimate(estimator, problem, alpha, batches) -> Callable[[PyTree], tuple[jax.Array, PyTree]]:
    """`state -> (hypergradient, state after the step)`, compiled."""

    @jax.jit
    def estimate(state, alpha, train, val):
        found = estimator(problem, state, alpha, [train], val)
        return found.gradient, found.state

    return lambda state: estimate(state, alpha, *batches)
