"""Seconds per training step: estimators, precisions, steps per dispatch, and PyTorch beside them.

Each variant is training's own compiled step fed by training's own batches; all are timed in turn.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import lunet_bilevel
from experiments.accelerator.report import Job, Report
from tvjax.data.records import open_split
from tvjax.training.feeds import dispatches
from tvjax.training.setup import make_setup
from tvjax.types import Config

HIGHEST = {"model.precision": "highest"}
TF32 = {"model.precision": "default"}
BFLOAT16 = {"model.precision": "default", "model.dtype": "bfloat16"}
PLAIN, EXACT = {"hypergrad.method": "none"}, {"hypergrad.method": "exact"}
TEN = {"hypergrad.method": "forward", "hypergrad.steps": 10, "hypergrad.every": 10}
GROUPS: tuple[dict[str, dict[str, Any]], ...] = (
    {"plain": HIGHEST | PLAIN, "exact": HIGHEST | EXACT},
    {"plain, TF32": TF32 | PLAIN, "exact, TF32": TF32 | EXACT},
    {"plain, bfloat16": BFLOAT16 | PLAIN, "exact, bfloat16": BFLOAT16 | EXACT},
    {
        "plain, 16 steps per dispatch": HIGHEST | PLAIN | {"train.steps_per_dispatch": 16},
        "exact, 16 steps per dispatch": HIGHEST | EXACT | {"train.steps_per_dispatch": 16},
    },
    {
        "printed": HIGHEST | {"hypergrad.method": "paper"},
        "online": HIGHEST | {"hypergrad.method": "forward_online"},
    },
    {"ten steps": HIGHEST | TEN},
)
"""Fields of the config by variant, the most telling group first. "ten steps" are ten per update."""
TINY: tuple[dict[str, dict[str, Any]], ...] = (
    {
        "plain": GROUPS[0]["plain"],
        "exact, 16 steps per dispatch": GROUPS[3]["exact, 16 steps per dispatch"],
    },
)


def measure(report: Report, job: Job) -> None:
    """Adds the ceilings of the device, our variants, and PyTorch's plain step where it is.

    A group is compiled side by side and then timed in turn, with the plain step of the first group
    again, so that what a cut-off piece has found stands by itself.
    """
    report.add("ceilings", partial(ceilings, 256 if job.tiny else 8192))
    plain: dict[str, Callable[[int], float]] = {}
    for k, group in enumerate(TINY if job.tiny else GROUPS):
        report.add(" and ".join(group), partial(time_group, job, group, plain))
        if k == 0:
            report.add("torch, eager", partial(torch_steps, job, compiled=False))
    if not job.tiny:  # it takes minutes
        report.add("torch, compiled", partial(torch_steps, job, compiled=True))


def time_group(
    job: Job, group: dict[str, dict[str, Any]], plain: dict[str, Callable[[int], float]]
) -> dict[str, Any]:
    """Compiles and times the variants; keeps the plain step in `plain` for the groups to come."""
    with ThreadPoolExecutor(1 if job.tiny else len(group)) as pool:
        made = dict(zip(group, pool.map(partial(_compiled, job), group.values()), strict=True))
    calls = plain | {name: run for name, (run, _) in made.items()}
    plain.update({name: run for name, run in calls.items() if name == "plain"})
    seconds = {name: seconds for name, (_, seconds) in made.items()}
    return {"seconds_with_compiling": seconds} | timed(calls, job.tiny)


def ceilings(side: int) -> dict[str, Any]:
    """TFLOP/s of a large product by precision, and GB/s of a large copy (read and written)."""
    found = {}
    key = jax.random.key(0)
    for name, dtype, precision in (
        ("float32", jnp.float32, "highest"),
        ("tf32", jnp.float32, "default"),
        ("bfloat16", jnp.bfloat16, "default"),
    ):
        a = jax.random.normal(key, (side, side), dtype)
        product = jax.jit(partial(jnp.matmul, precision=precision))
        found[f"{name}_tflops"] = 2 * side**3 / _seconds(product, a, a) / 1e12
    x = jax.random.normal(key, (side * side * 8,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return found | {"copy_gb_per_s": 2 * x.nbytes / _seconds(copy, x) / 1e9}


def _seconds(function: Callable, *arguments: jax.Array) -> float:
    """The median of ten calls, each of several that are under way together."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready([function(*arguments) for _ in range(4)])
        times.append((time.perf_counter() - began) / 4)
    return float(np.median(times))


def _config(job: Job, fields: dict[str, Any]) -> Config:
    config = lunet_bilevel.get_config("paper")
    fields = {"train.steps_per_dispatch": 1} | fields | job.fields
    fields |= {"hypergrad.warmup": 1, "train.steps": 10**6, "evaluation.every": 10**6}
    fields |= {"checkpoint.every": 10**6, "data.directory": str(job.data)}
    config.update_from_flattened_dict(fields)
    return config


def _compiled(job: Job, fields: dict[str, Any]) -> tuple[Callable[[int], float], float]:
    """`steps -> seconds` of that many of them, already compiled; and the seconds of compiling."""
    began = time.perf_counter()
    config = _config(job, fields)
    splits = {name: open_split(job.data, name) for name in ("train", "val")}
    setup = make_setup(config, splits["train"][0]["image"].shape[:2])
    state = setup.create()
    # From the first step on after the warm-up, so that all are of one kind.
    feed: Iterator = dispatches(config, setup, splits, 1)

    def run(steps: int) -> float:
        nonlocal state
        done, before, metrics = 0, time.perf_counter(), None
        while done < steps:
            dispatch = next(feed)
            take = setup.bilevel if dispatch.bilevel else setup.plain
            state, metrics = take(state, *dispatch.arguments)
            done += dispatch.size * dispatch.count
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - before) / done

    run(1)
    run(1)  # a dispatch of several steps may begin with fewer
    return run, time.perf_counter() - began


def timed(calls: dict[str, Callable[[int], float]], tiny: bool) -> dict[str, Any]:
    """Medians over rounds, milliseconds per step (or update), and over the plain step's."""
    rounds, steps = (2, 2) if tiny else (5, 16)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, run in calls.items():
            times[name].append(run(steps))
    medians = {name: float(np.median(found)) for name, found in times.items()}
    return {
        "ms_per_step": {name: 1000 * value for name, value in medians.items()},
        "spread_ms": {name: [1000 * min(t), 1000 * max(t)] for name, t in times.items()},
        "over_plain": {name: value / medians["plain"] for name, value in medians.items()},
    }


def torch_steps(job: Job, *, compiled: bool) -> dict[str, Any]:
    """PyTorch's plain step on the same net and sizes, by precision."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {"left_out": "PyTorch is not installed"}
    from experiments.accelerator import torch_steps

    record = open_split(job.data, "train")[0]["image"]
    width, batch = (4, 4) if job.tiny else (64, 16)
    shape = batch, *record.shape[:2]
    steps = 2 if job.tiny else 20
    found = torch_steps.measure(width=width, shape=shape, steps=steps, compiled=compiled)
    return {"version": torch.__version__} | found
