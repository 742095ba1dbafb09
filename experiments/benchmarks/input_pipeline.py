"""How fast batches reach the device, and that streaming holds memory flat.

    python -m experiments.benchmarks.input_pipeline --json=FILE

Images per second from records to the device, without a model: streamed by threads (as training
does), by two worker processes, and gathered from tiles that reside on the device. Then
`--records` tiles are streamed (the ids of a small set, repeated), and the process's memory is read
on the way. `--data` is a folder of prepared tiles; default: the embedded set, drawn at first use.
"""

import itertools
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from configs import base
from experiments import kept
from tvjax import interruption, program, provenance
from tvjax.data import pipeline
from tvjax.data.sets import open_section
from tvjax.training import parallel, resident

_JSON = kept.json_flag()
_DATA = flags.DEFINE_string("data", None, "Folder of prepared tiles, e.g. TILES.")
_BATCH = flags.DEFINE_integer("batch", 16, "Images in a batch.")
_BATCHES = flags.DEFINE_integer("batches", 300, "Number of batches that are timed.")
_RECORDS = flags.DEFINE_integer(
    "records", 100_000, "Number of tiles to stream while watching memory."
)


class Repeated:
    """A split whose records are those of another one, over and over, up to a length."""

    def __init__(self, split, length: int):
        self._split, self._length = split, length
        self.name = split.name

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        return self._split.__getitems__([int(i) % len(self._split) for i in indices])


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_while_streaming(split, *, records: int, batch_size: int, points: int = 10) -> list[int]:
    """Bytes held after each tenth of one epoch over `records` tiles, on their way to the device."""
    source, layout = Repeated(split, records), parallel.make_layout(map="pmap")
    batches = pipeline.train_batches(source, batch_size=batch_size, seed=0)
    steps, held = records // batch_size, []
    for step in tqdm(range(1, steps + 1), "streaming", mininterval=5):
        interruption.check()
        jax.block_until_ready(layout.shard(next(batches)))
        if step * points // steps > len(held):
            held.append(resident_bytes())
    return held


def read(split, indices, step: int):
    """The batch of a step, for a worker process."""
    records = split.__getitems__(indices[step])
    return np.stack([r["image"] for r in records]), np.stack([r["mask"] for r in records])


def by_workers(split, workers: int, *, batch_size: int):
    """Batches read by worker processes."""
    indices = pipeline.TrainIndices(len(split), batch_size=batch_size, seed=0)
    steps = grain.MapDataset.range(0, 10**9).map(partial(read, split, indices)).to_iter_dataset()
    return iter(steps.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))


def images_per_second(batches, put, *, batch_size: int, count: int) -> float:
    for batch in itertools.islice(batches, 20):
        jax.block_until_ready(put(batch))
    began = time.perf_counter()
    for batch in itertools.islice(batches, count):
        jax.block_until_ready(put(batch))
    return batch_size * count / (time.perf_counter() - began)


def measure() -> dict:
    split = open_section(base.get_config().data, directory=_DATA.value)["train"]
    layout, batch = parallel.make_layout(map="pmap"), _BATCH.value
    timed = partial(images_per_second, batch_size=batch, count=_BATCHES.value)
    options: dict[str, Any] = {"batch_size": batch, "seed": 0}
    rates = {"streamed, 0 workers": timed(pipeline.train_batches(split, **options), layout.shard)}
    rates["streamed, 2 workers"] = timed(by_workers(split, 2, batch_size=batch), layout.shard)
    tiles, indices = (
        layout.replicate(pipeline.resident(split)),
        pipeline.TrainIndices(len(split), **options),
    )
    gather = jax.jit(resident.take)
    rows = (indices[t].astype(np.int32) for t in itertools.count())
    rates["resident"] = timed(rows, lambda r: gather(tiles, layout.shard(r)))
    held = memory_while_streaming(split, records=_RECORDS.value, batch_size=batch)
    return {
        "benchmark": "input_pipeline",
        "config": {
            "batch": batch, "batches": _BATCHES.value, "records": _RECORDS.value,
            "tile": list(split[0]["image"].shape), "tiles": len(split),
        },
        "images_per_s": rates,
        "streaming_bytes_held": held,
        "streaming_growth_bytes": held[-1] - held[0],
        **provenance.describe(seed=0),
    }  # fmt: skip


def main(argv):
    del argv
    result = measure()
    kept.write(_JSON.value, result)
    for name, value in result["images_per_s"].items():
        print(f"{name:<22}{value:>10.0f} images/s")
    held = result["streaming_bytes_held"]
    print(
        f"memory after each tenth of {_RECORDS.value} streamed tiles, MiB: "
        + " ".join(f"{value / 2**20:.0f}" for value in held)
    )


if __name__ == "__main__":
    program.run(main)
