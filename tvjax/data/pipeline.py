"""Batches of tiles: deterministic, sharded by process, resumable at any step; built on grain.

The global batch of step t is a function of the seed, the batch size and t alone. Every epoch is a
fresh permutation of the split whose remainder is dropped. Process p of P gets rows
`p B/P ... (p+1) B/P` of each batch, so that the batches do not depend on the number of processes.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tvjax.errors import UserError
from tvjax.types import Batch, NumberedBatch

if TYPE_CHECKING:
    import grain

_FOREVER = 2**62


class TrainIndices:
    """`indices[t]`: int `[batch_size]`, the tiles of the global batch of step t, for any t >= 0.

    Args:
      length: number of tiles in the split.
      batch_size: tiles in the global batch, over all processes.
      seed: seed of the permutations.

    Raises:
      UserError: the batch is empty or larger than the split.
    """

    def __init__(self, length: int, *, batch_size: int, seed: int):
        if not 0 < batch_size <= length:
            raise UserError(
                f"batch size {batch_size} does not suit a split of {length} tiles; "
                f"take 1 to {length}, or prepare more tiles"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.steps_per_epoch = length // batch_size

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, position = divmod(int(step), self.steps_per_epoch)
        order = _permutation(self.length, self.seed, epoch)
        return order[position * self.batch_size : (position + 1) * self.batch_size]


def train_batches(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    with_rows: bool = False,
) -> "grain.DatasetIterator":
    """An endless iterator over this process's rows of the batches of step start, start + 1, ...

    Args:
      source: a split; `source[i]` has "image" and "mask".
      batch_size: size of the global batch; a multiple of `process_count`.
      seed: seed of the permutations.
      start: the step of the first batch.
      process_index: number of this process, below `process_count`.
      process_count: number of processes that share each batch.
      with_rows: whether batches say which tiles they hold.

    Returns:
      An iterator of `Batch` (or `NumberedBatch`) with `get_state` and `set_state`; the state is a
      dict with the number of the next step. Threads read ahead.

    Raises:
      UserError: the batch size does not suit the split or the number of processes.
    """
    indices = TrainIndices(len(source), batch_size=batch_size, seed=seed)
    import grain  # takes seconds to load, and training by resident tiles does without it

    rows = _rows(batch_size, process_index, process_count)
    steps = grain.MapDataset.range(0, _FOREVER)

    def batch(t: int) -> Batch | NumberedBatch:
        chosen = indices[t][rows]
        found = gather(source, chosen)
        rows_of = chosen.astype(np.int32)
        return NumberedBatch(found.image, found.mask, rows_of) if with_rows else found

    iterator = iter(steps.map(batch).to_iter_dataset(_read()))
    iterator.set_state({"next_index": start})
    return iterator


def eval_batches(
    source: Any, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterable[tuple[Batch, np.ndarray]]:
    """This process's rows of the whole split in order, padded to full batches.

    Args:
      source: a split; `source[i]` has "image" and "mask".
      batch_size: size of the global batch; a multiple of `process_count`. It may exceed the split.
      process_index, process_count: see `train_batches`.

    Returns:
      An iterable, usable more than once, of pairs of a batch and bool `[batch_size /
      process_count]`, False on the padding, which repeats the last tile. All processes get the
      same number of batches.

    Raises:
      UserError: the batch size does not suit the number of processes.
    """
    import grain

    rows = _rows(batch_size, process_index, process_count)
    indices = eval_indices(len(source), batch_size)

    def batch(t: int) -> tuple[Batch, np.ndarray]:
        at, valid = indices[t]
        return gather(source, at[rows]), valid[rows]

    return grain.MapDataset.range(0, len(indices)).map(batch).to_iter_dataset(_read())


def eval_indices(length: int, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tiles of each batch of a whole split, int `[B]`, and bool `[B]`, False on the padding."""
    wanted = np.arange(-(-length // batch_size) * batch_size).reshape(-1, batch_size)
    return [(np.minimum(at, length - 1), at < length) for at in wanted]


def resident(source: Any, *, progress: bool = True) -> Batch:
    """The whole split as arrays, for a set that fits into a device's memory.

    Args:
      source: a split; `source[i]` has "image" and "mask".
      progress: whether to show a bar on stderr, if it takes more than three seconds.

    Returns:
      A `Batch` of uint8 `[N, H, W, 3]` and `[N, H, W, 1]` (with contact 2); row i is `source[i]`.
    """
    starts = range(0, len(source), 256)
    bar = tqdm(starts, "loading tiles", delay=3, disable=not progress)
    parts = [gather(source, range(k, min(k + 256, len(source)))) for k in bar]
    return Batch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@lru_cache(maxsize=8)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(length)
    order.flags.writeable = False  # it is shared by all who ask for it
    return order


def _read() -> "grain.ReadOptions":
    import grain

    return grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def _rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} cannot be shared equally by {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} of {process_count} processes")
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def gather(source: Any, indices: Sequence[int] | np.ndarray) -> Batch:
    """The batch of these tiles of a split, on the host."""
    many = getattr(source, "__getitems__", None)
    records = many(indices) if many else [source[int(i)] for i in indices]
    return Batch(
        np.stack([record["image"] for record in records]),
        np.stack([_mask(record, getattr(source, "boundaries", False)) for record in records]),
    )


def _mask(record: dict[str, Any], boundaries: bool) -> np.ndarray:
    parts = [record["mask"], record["contact"]] if boundaries else [record["mask"]]
    return np.concatenate(parts, axis=-1)
