"""What the benchmarks of training steps share: the U-Net, random tiles, and timing in turn."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from tvjax import hypergrad, interruption
from tvjax.hypergrad import Bilevel
from tvjax.models import make_model
from tvjax.training import parallel, state, steps
from tvjax.types import Batch


def unet(
    *,
    width: int,
    size: int,
    depth: int = 2,
    rate: float = 1e-3,
    lam: float = 1e-6,
    head: str = "sigmoid",
    head_iterations: int | None = 1,
    place: str = "loss",
    dtype: str = "float32",
    precision: str = "highest",
    decay: float | None = None,
) -> tuple[Bilevel, steps.Regularizer, Callable[..., state.TrainState]]:
    """The problem, its regulariser, and `(estimator, optimizer of hyper) -> first state`.

    With `decay` AdamW's weight decay is learned beside lambda.
    """
    net, made = make_model(
        name="unet", head=head, head_iterations=head_iterations, head_kind="anisotropic",
        width=width, depth=depth, momentum=0.9, dtype=dtype, precision=precision,
    )  # fmt: skip
    regularizer = steps.Regularizer(place, "anisotropic", "sum", "log")

    def optimizer(hyper):
        return hypergrad.adamw(rate, weight_decay=jnp.exp(hyper["weight_decay"]))

    chosen = hypergrad.adam(rate) if decay is None else optimizer
    problem = steps.make_problem(net, made, chosen, regularizer)
    hyper: Any = jnp.log(jnp.float32(lam))
    if decay is not None:
        hyper = {"lambda": hyper, "weight_decay": jnp.log(jnp.float32(decay))}

    def start(*learning):
        draw = parallel.compile_drawing(partial(net.init, train=False))
        variables = draw(jax.random.key(0), jnp.zeros((1, size, size, 3)))
        model_state = {"batch_stats": variables["batch_stats"]}
        return state.create(problem, variables["params"], model_state, hyper, *learning)

    return problem, regularizer, start


def random_batches(number: int, *, batch: int, size: int) -> list[Batch]:
    """Noise, with a mask that can be read off it."""
    rng = np.random.default_rng(0)

    def one():
        image = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        return Batch(jnp.asarray(image), jnp.asarray(image[..., :1] > 128, dtype=jnp.uint8))

    return [one() for _ in range(number)]


def size_flags() -> tuple[flags.FlagHolder[int], ...]:
    """`--width`, `--size` and `--batch`, of the programs that time the U-Net."""
    return (
        flags.DEFINE_integer("width", 16, "Filters of the U-Net's first block."),
        flags.DEFINE_integer("size", 100, "Height and width of the images, in pixels."),
        flags.DEFINE_integer("batch", 16, "Images in a batch."),
    )


def median_seconds(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call in `seconds_in_turn`."""
    found = seconds_in_turn(calls, rounds)
    return {name: float(np.median(times)) for name, times in found.items()}


def seconds_in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, timed in turn, round after round: a drift of speed hits all.

    The calls are to be compiled already.
    """
    seconds = {name: [] for name in calls}
    for _ in tqdm(range(rounds), "timing rounds"):
        for name, call in calls.items():
            interruption.check()
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    return seconds
