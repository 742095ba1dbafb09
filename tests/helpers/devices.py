"""Training over several devices against training on one; `test_training_devices` runs it.

In float64 and in a process of its own: both, and the number of devices, are set for good.
    JAX_NUM_CPU_DEVICES=8 python tests/helpers/devices.py NET METHOD [MAP:DEVICES ...]
One device, and then each of two processes that share the work, by pmap and by jit:
    python tests/helpers/devices.py keep FILE NET METHOD ...
    JAX_NUM_CPU_DEVICES=2 python tests/helpers/devices.py join FILE PORT INDEX NET METHOD ...
"""

import json
import pickle
import sys
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from configs import lunet_bilevel, runet
from tvjax import models
from tvjax.models.layers import BatchNorm
from tvjax.training import cluster, feeds, learned
from tvjax.training import resident as residence
from tvjax.training.evaluation import evaluate
from tvjax.training.setup import make_setup

STEPS, SIZE, BATCH = 5, 16, 8


class Pixels(nn.Module):
    """A net that compiles in a moment: each pixel by itself, but for BatchNorm."""

    channels: int
    width: int
    depth: int
    momentum: float
    dtype: str
    axis_name: str | None
    precision: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        norm = BatchNorm(momentum=self.momentum, axis_name=self.axis_name)
        dense = partial(nn.Dense, dtype=self.dtype, precision=self.precision)
        x = nn.relu(norm(dense(self.width, use_bias=False)(images), train=train))
        return dense(self.channels)(x)


models.NETS["pixels"] = Pixels


class Tiles:
    """A split of discs on noise; float64, for the loss to be."""

    def __init__(self, seed, length, name="tiles"):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:SIZE, :SIZE]
        centres, radii = rng.uniform(3, 13, (2, length, 1, 1)), rng.uniform(2, 6, (length, 1, 1))
        mask = (x - centres[0]) ** 2 + (y - centres[1]) ** 2 < radii**2
        image = 0.4 * mask[..., None] + rng.uniform(0, 0.6, (length, SIZE, SIZE, 3))
        self.image, self.mask, self.name = image, mask[..., None].astype(np.uint8), name

    def __len__(self):
        return len(self.image)

    def __getitem__(self, i):
        return {"image": self.image[i], "mask": self.mask[i]}


SPLITS = {"train": Tiles(0, 21), "val": Tiles(1, 19)}


def config_of(net, method, map, devices):
    """The small problem under `method`.

    `head` stands for RU-Net's, learned exactly; `everything` for all that can be learned, at once.
    """
    config = (runet if method == "head" else lunet_bilevel).get_config()
    exact = method in ("head", "everything")
    config.hypergrad.update(method="exact" if exact else method, warmup=1, every=1)
    if method == "everything":
        config.hypergrad.learn = learned.NAMES
        config.optimizer.update(name="adamw", weight_decay=0.01)
        config.loss.update(train="mix", mix=0.3)
    config.hypergrad.batch_size = config.train.batch_size = config.evaluation.batch_size = BATCH
    if method in ("amigo", "forward", "reverse", "stocbio"):
        config.hypergrad.steps = config.hypergrad.every = 2
    if method == "f2sa":  # sigma multiplies rounding
        config.hypergrad.warmup, config.hypergrad.solver.sigma = 0, 1.0
    config.model.update(name=net, width=2, depth=1, dtype="float64")
    config.regularizer.weight = 1e-4
    config.train.steps = STEPS
    config.parallel.update(map=map, devices=devices)
    return config


@cache
def first_state(net, method):
    """The first state in float64, made in float32: 64-bit draws compile ten times as long."""

    def widen(x):
        return np.asarray(x, np.float64 if np.issubdtype(x.dtype, np.floating) else x.dtype)

    config = config_of(net, method, "jit", 1)
    config.model.dtype = "float32"
    with jax.enable_x64(False):
        return jax.tree.map(widen, setup_of(config).create())


def setup_of(config):
    """The setup of a config for these tiles."""
    return make_setup(config, (SIZE, SIZE), tiles=len(SPLITS["train"]))


def tiles_of(tiles, batch):
    """What tells the tiles of a batch apart, those of all processes, in no order."""
    shards = residence.take(tiles, batch).image.addressable_shards
    sums = [np.asarray(s.data).reshape(-1, SIZE * SIZE * 3).sum(axis=1) for s in shards]
    return np.sort(multihost_utils.process_allgather(np.concatenate(sums)), axis=None)


def train(net, method, map, devices, *, first=None, resident=True, most=1):
    """Every line of metrics, the last state, and the scores of an evaluation; the batches' tiles.

    `first` is the state to start from, where it cannot be made here.
    """
    config = config_of(net, method, map, devices)
    config.data.resident, config.train.steps_per_dispatch = resident, most
    setup = setup_of(config)

    state = setup.layout.replicate(first_state(net, method) if first is None else first)
    lines, batches = [], []
    for dispatch in feeds.dispatches(config, setup, SPLITS, 0):
        if len(setup.layout.devices) == 1 or setup.layout.processes > 1:
            tiles, (inner, *outer) = dispatch.arguments[0], dispatch.arguments[1:]
            batches += [tiles_of(tiles[0], batch) for batch in inner] if most == 1 else []
            batches += [tiles_of(tiles[1], batch) for batch in outer] if most == 1 else []
        take = setup.bilevel if dispatch.bilevel else setup.plain
        state, metrics = take(state, *dispatch.arguments)
        metrics = jax.device_get(metrics)
        for i in range(dispatch.count):
            lines.append({k: v[i] if setup.most > 1 else v for k, v in metrics.items()})
    agree(state)
    scores = {}
    if method == "exact" or net == "unet":  # it is the same for all, and takes longest to compile
        scores = evaluate(
            setup, state, SPLITS["val"], batch_size=BATCH, denoise=0.05 if net == "unet" else None
        )
    return lines, jax.device_get(state), scores, batches


def agree(state):
    """All devices, of all processes, hold the same bits."""
    for path, leaf in jax.tree.leaves_with_path(state):
        own = np.stack([shard.data for shard in leaf.addressable_shards])
        one, *others = multihost_utils.process_allgather(own).reshape(-1, *leaf.shape)
        for other in others:
            np.testing.assert_array_equal(other, one, err_msg=jax.tree_util.keystr(path))


def compare(found, wanted):
    """The largest relative difference in anything, but for counts of pixels, which are float32."""
    worst = 0.0
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and a.dtype == b.dtype, jax.tree_util.keystr(path)
        # Adam divides by gradients' sizes: what is zero but for rounding is compared to 1e-6.
        difference = np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-6), initial=0.0)
        exact = a.dtype == np.float64
        assert difference < (1e-10 if exact else 1e-5), (jax.tree_util.keystr(path), a, b)
        worst = max(worst, difference) if exact else worst
    return float(worst)


def main(net, method, *layouts):
    jax.config.update("jax_enable_x64", True)
    wanted = train(net, method, "pmap", 1)
    assert wanted[0][-1]["hypergradient"] != 0
    report = {}
    for layout in layouts:
        map, devices, *options = layout.split(":")
        options = {"resident": "stream" not in options, "most": 3 if "many" in options else 1}
        found = train(net, method, map, int(devices), **options)
        report[layout] = compare(found[:2], wanted[:2])
        for name, score in wanted[2].items():  # float32 inside: sums over another order
            np.testing.assert_allclose(found[2][name], score, rtol=1e-5, err_msg=name)
    print(json.dumps({method: report}))


def keep(file, net, *methods):
    """What one device makes of each method."""
    jax.config.update("jax_enable_x64", True)
    kept = {method: (first_state(net, method), train(net, method, "pmap", 1)) for method in methods}
    Path(file).write_bytes(pickle.dumps(kept))


def join(file, port, index, net, *methods):
    """The same by one of two processes."""
    cluster.join(
        multihost=True, coordinator=f"localhost:{port}", num_processes=2, process_id=int(index)
    )
    jax.config.update("jax_enable_x64", True)
    kept, report = pickle.loads(Path(file).read_bytes()), {}
    for method in methods:
        first, wanted = kept[method]
        for map in ("pmap", "jit"):
            found = train(net, method, map, None, first=first)
            report[f"{method} {map}"] = compare(found[:2], wanted[:2])
            print(method, map, report[f"{method} {map}"], file=sys.stderr, flush=True)
            np.testing.assert_allclose(found[3], wanted[3], rtol=1e-14, err_msg="batches")
            for name, score in wanted[2].items():
                np.testing.assert_allclose(found[2][name], score, rtol=1e-5, err_msg=name)
    print(json.dumps(report))


if __name__ == "__main__":
    {"keep": keep, "join": join}.get(sys.argv[1], lambda *rest: main(sys.argv[1], *rest))(
        *sys.argv[2:]
    )
