"""Slopes of the validation loss in the weights of training tiles, through whole short trainings."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from tvjax import hypergrad
from tvjax.data import pipeline
from tvjax.data.records import Split
from tvjax.hypergrad import InnerState, Loop
from tvjax.training import pretrained
from tvjax.training.interrupt import Stop
from tvjax.training.setup import Functions, make_functions
from tvjax.types import Batch, Config, NumberedBatch


class Run(NamedTuple):
    """A short training whose end is differentiated."""

    rows: np.ndarray
    """Int `[n]`: places of its tiles among the training tiles."""
    epochs: int
    """Passes over them; a pass drops the remainder of its batches."""
    seed: int
    """Seed of the first parameters and of the order."""
    most: int
    """Most validation tiles, which are drawn."""


def make_weighted(config: Config, split: Split, optimizer: Mapping[str, Any]) -> Functions:
    """The functions of trainings in which each tile of `split` has a weight, at first 1.

    In `optimizer` are the fields of `config.optimizer` that are other.

    Raises:
      UserError: naming the field that cannot be so.
    """
    config = config.copy_and_resolve_references()
    config.optimizer.update(optimizer)
    config.schedule.update(name="constant", warmup=0)
    config.hypergrad.update(method="reverse", learn=("tile_weights",))
    return make_functions(config, split[0]["image"].shape[:2], tiles=len(split))


def batches_of(
    run: Run, splits: Mapping[str, Split], batch_size: int
) -> tuple[list[NumberedBatch], Batch]:
    """The training batches of a run's steps, and its validation batch, on the device."""
    train, val = splits["train"], splits["val"]
    sizes = min(batch_size, len(run.rows)), min(len(val), run.most)
    order = pipeline.TrainIndices(len(run.rows), batch_size=sizes[0], seed=run.seed)
    steps = (run.rows[order[t]] for t in range(run.epochs * order.steps_per_epoch))
    inner = [NumberedBatch(*pipeline.gather(train, k), k.astype(np.int32)) for k in steps]
    outer = pipeline.TrainIndices(len(val), batch_size=sizes[1], seed=run.seed)[0]
    return jax.device_put((inner, pipeline.gather(val, outer)))


def first(functions: Functions, config: Config, run: Run) -> InnerState:
    """The state before a run's first step."""
    state = functions.create(run.seed, functions.net.hyper)
    return pretrained.put(config.model, state).inner


def through(
    functions: Functions,
    state: InnerState,
    batches: tuple[list[NumberedBatch], Batch],
    *,
    stop: Stop,
    label: str,
) -> np.ndarray:
    """`dL_val(theta_K) / dh`, float `[N]`, where the weight of tile i is 2 / (1 + exp(-h_i)).

    The first three arguments are what `make_weighted`, `first` and `batches_of` returned, K steps
    of them; `label` stands on the progress bar.

    Raises:
      Interrupted: nothing is kept.
    """
    steps = len(batches[0])
    with tqdm(total=2 * steps, desc=label, unit="step") as bar:
        estimator = hypergrad.reverse(steps, loop=_watched(stop, bar))
        estimate = estimator(functions.problem, state, functions.net.hyper, *batches, ())
    return np.asarray(estimate.gradient["tile_weights"], float)


def _watched(stop: Stop, bar: tqdm) -> Loop:
    """A loop of the host that shows how far it is, and ends where that is asked for."""

    def scan(f, carry, *xs, **options):
        def seen(carry, *x):
            stop.check()
            bar.update()
            return f(carry, *x)

        return hypergrad.UNROLLED.scan(seen, carry, *xs, **options)

    return hypergrad.UNROLLED._replace(scan=scan)
