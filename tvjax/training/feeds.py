"""What each step gets: its batches, laid out on the devices one step ahead.

Positions in the data are functions of the step: one training batch a step, one validation batch an
update of lambda. Nothing else is needed to resume. Batches that an estimator takes beyond those of
its steps are those of the steps that follow, read ahead.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from tvjax.data import pipeline
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.training import learned, parallel
from tvjax.training.setup import HyperPlan, Setup
from tvjax.types import Config, NumberedBatch, PyTree


class Dispatch(NamedTuple):
    """Steps of one kind that are one call of a compiled function."""

    before: int
    """Steps taken before it."""
    size: int
    """Steps between two lines of its metrics: K for an update of lambda, else 1."""
    count: int
    """Lines of metrics."""
    bilevel: bool
    arguments: tuple[Any, ...] = ()
    """What the function takes after the state."""

    @property
    def after(self) -> int:
        """Steps taken after it."""
        return self.before + self.size * self.count


def dispatches(
    config: Config, setup: Setup, splits: dict[str, Split], start: int
) -> Iterator[Dispatch]:
    """All that is left to do from a step on, the next one always laid out on the devices.

    Raises:
      UserError: a batch does not suit its split, or the devices.
    """
    resident_train, train = _feed(config, setup, splits["train"], "train", start)
    resident_val, val, further = (), iter(()), 0
    if setup.plan.estimator is not None:
        updates = setup.plan.updates(start)
        resident_val, val = _feed(config, setup, splits["val"], "hypergrad", updates)
        further = setup.plan.estimator.further
    resident, taken = (resident_train, resident_val), _read_ahead(train)

    def lay_out(dispatch: Dispatch) -> Dispatch:
        more = further if dispatch.bilevel else 0
        inner = [taken(dispatch.size, more) for _ in range(dispatch.count)]
        outer = [next(val) for _ in range(dispatch.count)] if dispatch.bilevel else []
        if setup.most == 1:
            return dispatch._replace(arguments=(resident, *setup.layout.shard((inner[0], *outer))))
        rows = [_padded(np.moveaxis(np.asarray(inner), -1, 0), setup.most)]
        if dispatch.bilevel:
            rows.append(_padded(np.moveaxis(np.asarray(outer), -1, 0), setup.most))
        count = setup.layout.replicate(np.int32(dispatch.count))
        return dispatch._replace(arguments=((resident, count), *setup.layout.shard(tuple(rows))))

    pauses = config.evaluation.every, config.checkpoint.every
    plan = schedule(setup.plan, start, config.train.steps, most=setup.most, pauses=pauses)
    return parallel.ahead(lay_out(dispatch) for dispatch in plan)


def streamed_if_large(config: Config, splits: dict[str, Split]) -> Config:
    """The config, without `data.resident` where the tiles to train by are too many for a device."""
    tiles = len(splits["train"]) + len(splits["val"])
    size = tiles * sum(array.nbytes for array in pipeline.gather(splits["train"], [0]))
    if not config.data.resident or size <= _memory() // 4:
        return config
    if parallel.is_alone():
        parallel.say(
            f"{tiles} tiles of {size / 2**30:.1f} GiB in all are streamed from the records: they "
            f"would take more than a quarter of the device's memory"
        )
    config = config.copy_and_resolve_references()
    config.data.resident = False
    return config


def _memory() -> int:
    """Bytes of a device; of the machine, where it does not say."""
    found = jax.local_devices()[0].memory_stats() or {}
    return found.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def schedule(
    plan: HyperPlan, start: int, end: int, *, most: int, pauses: tuple[int, ...]
) -> Iterator[Dispatch]:
    """The dispatches from step `start` to `end`, without their batches.

    Each holds `most` steps (or updates) at most, and ends where a multiple of one of `pauses`,
    numbers of steps, is passed.
    """

    def kind(step: int) -> tuple[bool, int]:
        size = plan.estimator.steps if plan.estimator else 1
        return (True, size) if plan.is_due(step) and step + size <= end else (False, 1)

    step = start
    while step < end:
        bilevel, size = kind(step)
        after = step + size
        while (
            (after - step) // size < most
            and after < end
            and kind(after) == (bilevel, size)
            and not any(passes(step, after, every) for every in pauses)
        ):
            after += size
        yield Dispatch(step, size, (after - step) // size, bilevel)
        step = after


def passes(before: int, step: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, step]."""
    return step // every > before // every


def _feed(
    config: Config, setup: Setup, split: Split, section: str, position: int
) -> tuple[PyTree, Iterator[Any]]:
    """What resides on the device of a split, and its batches (or their rows) from a position.

    `section` is the config's that has their size.
    """
    options: dict[str, Any] = {"batch_size": config[section].batch_size, "seed": config.seed}
    with_rows = section == "train" and "tile_weights" in learned.names(config)
    indices = _indices(config, section, split)
    if not setup.resident:
        options |= setup.layout.share
        return (), pipeline.train_batches(split, start=position, with_rows=with_rows, **options)
    tiles: Any = pipeline.resident(split)
    if with_rows:
        tiles = NumberedBatch(tiles.image, tiles.mask, np.arange(len(split), dtype=np.int32))
    resident = setup.layout.replicate(tiles)
    return resident, (indices[t].astype(np.int32) for t in itertools.count(position))


def check_batches(config: Config, splits: dict[str, Split]) -> None:
    """Checks, before anything is written, that batches are no larger than their splits.

    Raises:
      UserError: naming the field of the first that is.
    """
    _indices(config, "train", splits["train"])
    if config.hypergrad.method != "none":
        _indices(config, "hypergrad", splits["val"])


def _indices(config: Config, section: str, split: Split) -> pipeline.TrainIndices:
    size = config[section].batch_size
    try:
        return pipeline.TrainIndices(len(split), batch_size=size, seed=config.seed)
    except UserError as error:
        raise UserError(f"--config.{section}.batch_size: {error}") from error


def _read_ahead(batches: Iterator[Any]) -> Callable[[int, int], list[Any]]:
    """`(n, more) -> the next n batches and more`, which come again with the next call."""
    held: deque[Any] = deque()

    def take(n: int, more: int) -> list[Any]:
        held.extend(itertools.islice(batches, max(0, n + more - len(held))))
        return [held.popleft() for _ in range(n)] + list(itertools.islice(held, more))

    return take


def _padded(rows: np.ndarray, most: int) -> np.ndarray:
    """`[B, count, ...]` -> `[B, most, ...]`, so that one program serves every count."""
    missing = most - rows.shape[1]
    return np.pad(rows, [(0, 0), (0, missing), *[(0, 0)] * (rows.ndim - 2)])
