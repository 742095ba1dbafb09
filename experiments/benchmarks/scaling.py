"""What spreading a step over devices costs: step time at a fixed global batch, side by side.

    python -m experiments.benchmarks.scaling --json=FILE

Plain and bilevel (exact) steps, pmap and jit over NamedSharding, on 1, 2, 4, ... devices. Without
an accelerator the devices are fake ones that share the same cores: what is seen there is the
overhead of splitting a step, never a speed-up. All are timed in turn, round after round.
"""

from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from configs import lunet_bilevel
from experiments import kept
from experiments.benchmarks import workload
from tvjax import program, provenance
from tvjax.training import feeds
from tvjax.training.setup import make_setup

_JSON = kept.json_flag()
_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4"], "Numbers of devices to try.")
_BATCH = flags.DEFINE_integer("batch", 16, "Images in a step, over all devices.")
_SIZE = flags.DEFINE_integer("size", 32, "Height and width of the images, in pixels.")
_WIDTH = flags.DEFINE_integer("width", 8, "Filters of the U-Net's first block.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "How often each step is timed.")


class Tiles:
    """Random tiles."""

    def __init__(self, length: int):
        rng = np.random.default_rng(0)
        self.image = rng.integers(0, 256, (length, _SIZE.value, _SIZE.value, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {"image": self.image[i], "mask": self.image[i, ..., :1] // 128}


def make_call(layout: str, devices: int, kind: str):
    """A function that takes one step, keeping the state it leads to."""
    config = lunet_bilevel.get_config()
    config.model.width = _WIDTH.value
    config.train.batch_size = config.hypergrad.batch_size = _BATCH.value
    config.hypergrad.update(warmup=1, every=1)
    config.parallel.update(map=layout, devices=devices)
    setup = make_setup(config, (_SIZE.value, _SIZE.value))
    splits: Any = {"train": Tiles(4 * _BATCH.value), "val": Tiles(2 * _BATCH.value)}
    work = feeds.dispatches(config, setup, splits, 0)
    plain, bilevel = next(work), next(work)
    held = [setup.create()]

    def call():
        take, dispatch = (setup.plain, plain) if kind == "plain" else (setup.bilevel, bilevel)
        held[0], metrics = take(held[0], *dispatch.arguments)
        jax.block_until_ready((held[0], metrics))

    return call


def measure() -> dict:
    counts = [int(n) for n in _DEVICES.value]
    cases = [
        (kind, layout, n) for kind in ("plain", "exact") for n in counts
        for layout in (("pmap", "jit") if n > 1 else ("jit",))
    ]  # fmt: skip
    calls = {}
    for kind, layout, n in tqdm(cases, "compiling"):
        calls[f"{kind} {n} {layout}" if n > 1 else f"{kind} 1"] = make_call(layout, n, kind)
    for call in calls.values():
        call()
    medians = workload.median_seconds(calls, _ROUNDS.value)
    return {
        "benchmark": "scaling",
        "config": {
            "devices": counts, "batch": _BATCH.value, "size": _SIZE.value, "width": _WIDTH.value,
            "rounds": _ROUNDS.value,
        },
        "fake_devices": jax.devices()[0].platform == "cpu",
        "medians_s": medians,
        "ratios_to_one_device": {
            name: value / medians[f"{name.split()[0]} 1"] for name, value in medians.items()
        },
        **provenance.describe(seed=0),
    }  # fmt: skip


def main(argv):
    del argv
    jax.config.update("jax_num_cpu_devices", max(int(n) for n in _DEVICES.value))
    result = measure()
    kept.write(_JSON.value, result)
    print(f"{'step, devices, map':<22}{'seconds':>10}{'to one device':>16}")
    for name, value in result["medians_s"].items():
        print(f"{name:<22}{value:>10.4f}{result['ratios_to_one_device'][name]:>16.2f}")
    if result["fake_devices"]:
        print("the devices are fake and share the same cores: overhead only")


if __name__ == "__main__":
    program.run(main)
