"""How fast `tvjax.predict` is, and that its memory does not grow with the raster.

    python -m experiments.benchmarks.predict --json=FILE
    python -m experiments.benchmarks.predict --peers --sizes=2000 --json=FILE

Writes GeoTIFFs of two sizes (`--sizes`) and a folder of pictures of 300 pixels, and predicts each
in a process of its own, whose peak memory is that of the operating system (`ru_maxrss`). The net is
an untrained U-Net, whose answer is then overruled by the drawn roofs: outlines of noise would be
the better part of the work. Compilation is not timed; reading, polygons and writing are. Beside it,
in the same process, stands the net's forward pass alone, of one batch of the tiles that are used.
Processor seconds, of all threads, tell more than the clock where other work runs.

`--peers` times PyTorch beside ours instead, in turn, from the file to the map of probabilities: the
same U-Net with the same weights, whose maps are compared, and segmentation-models-pytorch's U-Net
beside ours with the same encoder, EfficientNet-lite0, where decoders differ. Both of a pair take
the same tiles, overlaps and batches. It needs PyTorch; without smp that pair is left out.
"""

import importlib
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rasterio
from absl import flags
from PIL import Image

from configs import base
from experiments import kept
from experiments.benchmarks import workload
from tvjax import program, provenance
from tvjax.data import mosaic, pictures
from tvjax.errors import UserError
from tvjax.inference import tiles, writing
from tvjax.inference.predictor import Predictor
from tvjax.training import parallel
from tvjax.training.net import make_net

_JSON = kept.json_flag(required=False)
_SIZES = flags.DEFINE_list("sizes", ["2000", "5000"], "Sides of the rasters, in pixels.")
_PICTURES = flags.DEFINE_integer("pictures", 50, "Number of the pictures.")
_WIDTH = flags.DEFINE_integer("width", 16, "Filters of the U-Net's first block.")
_TILE = flags.DEFINE_integer("tile", None, "Side of the tiles, e.g. 512; default: that of predict.")
_BATCH = flags.DEFINE_integer("batch", 1, "Tiles that the net takes at once.")
_PEERS = flags.DEFINE_bool("peers", False, "Whether to time PyTorch beside ours instead.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often ours and PyTorch's are timed.")
_CASE = flags.DEFINE_string(
    "case", None, "Folder to predict, e.g. CASE; each process of the benchmark gets one."
)

PASSES = 9
"""Forward passes that are timed."""

GROUND = 80
"""Grey of what is no roof."""


def draw_block(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A roof of some grey in each 40 pixels, uint8 `[rows, columns, 3]`."""
    cells = rng.integers(60, 250, (-(-rows // 40), -(-columns // 40), 3), dtype=np.uint8)
    block = np.kron(cells, np.ones((40, 40, 1), np.uint8))
    inside = np.arange(40)[:, None] % 40 < 24
    roof = np.tile(inside & inside.T, cells.shape[:2])[..., None]
    return np.where(roof, block, GROUND)[:rows, :columns]


def write_raster(path: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, count=3, dtype="uint8", tiled=True,
        compress="deflate", crs="EPSG:32633", transform=rasterio.Affine(0.3, 0, 5e5, 0, -0.3, 5e6),
    ) as file:  # fmt: skip
        for top in range(0, size, 480):
            rows = min(480, size - top)
            block = draw_block(rows, size, rng)
            file.write(np.moveaxis(block, -1, 0), window=((top, top + rows), (0, size)))


def untrained(encoder: str | None = None) -> Predictor:
    """A U-Net with the parameters that training begins from."""
    config = base.get_config()
    config.model.width, config.model.encoder = _WIDTH.value, encoder
    made = make_net(config)
    state = parallel.compile_drawing(lambda: made.create(config.seed, made.hyper, (64, 64)))()
    return Predictor.of(made, state)


def measure(folder: Path) -> dict:
    """Measures one case, in a process of its own."""
    unet = untrained()

    @jax.jit
    def net(images):
        is_roof = jnp.any(jnp.abs(images - GROUND / 255) > 0.01, axis=-1, keepdims=True)
        return 0.98 * is_roof + 0.01 * unet(images)

    images = list(enumerate(sorted((folder / "images").iterdir()), 1))
    timed: dict[str, Any] = {"tile": _TILE.value, "batch": _BATCH.value}
    sizes = {pictures.read_size(path) for _, path in images}
    tiling = tiles.choose_tiling(sizes, net, **timed).fit(*next(iter(sizes)))
    batch = np.random.default_rng(0).random((_BATCH.value, *tiling.tile, 3), np.float32)
    jax.block_until_ready(net(batch))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    forward = np.array([times(lambda: jax.block_until_ready(net(batch))) for _ in range(PASSES)])
    predicted = []
    used = times(
        lambda: predicted.append(writing.predict_images(images, folder / "out", net, **timed))
    )
    ((objects, skipped),) = predicted
    assert not skipped, skipped
    each = batch.shape[0] * batch.shape[1] * batch.shape[2] / 1e6 / np.median(forward, axis=0)
    return {
        "images": len(images),
        "tile": tiling.tile,
        "tiles": sum(tiles.count(*size, tiling) for size in sizes) * len(images) // len(sizes),
        "objects": objects,
        "seconds": used[0],
        "processor_seconds": used[1],
        "forward_megapixels_per_s": each[0],
        "forward_megapixels_per_processor_s": each[1],
        "images_per_s": len(images) / used[0],
        "mib_before": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def times(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def run_case(folder: Path, side: int) -> dict:
    command = [sys.executable, "-m", "experiments.benchmarks.predict", f"--case={folder}"]
    given = (flag for flag in (_WIDTH, _TILE, _BATCH) if flag.value is not None)
    command += [f"--{flag.name}={flag.value}" for flag in given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    megapixels = found["images"] * side**2 / 1e6
    rate = megapixels / found["processor_seconds"]
    return {
        "side": side,
        **found,
        "megapixels_per_s": megapixels / found["seconds"],
        "megapixels_per_processor_s": rate,
        "of_forward": rate / found["forward_megapixels_per_processor_s"],
    }


def pairs() -> Iterator[tuple[str, Predictor, Any]]:
    """Name of a pair, our net, and PyTorch's."""
    torch_tiles = importlib.import_module("experiments.benchmarks.torch_tiles")
    unet = untrained()
    yield "unet", unet, torch_tiles.twin(unet.state.inner.params, _WIDTH.value)
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        print("smp is left out: it is not installed", file=sys.stderr)
        return
    yield "lite0", untrained("efficientnet_lite0"), torch_tiles.smp_unet()


def race(path: Path, side: int) -> dict[str, Any]:
    """Seconds of our tiled inference and of PyTorch's, and of the nets alone on one batch."""
    torch_tiles = importlib.import_module("experiments.benchmarks.torch_tiles")
    calls, found = {}, {"side": side, "tilings": {}}
    for name, ours, theirs in pairs():
        tiling = tiles.choose_tiling(
            {(side, side)}, ours, tile=_TILE.value, batch=_BATCH.value
        ).fit(side, side)
        other = torch_tiles.ready(theirs)
        batch = np.random.default_rng(0).random((_BATCH.value, *tiling.tile, 3), np.float32)
        calls |= {
            f"{name}, ours": partial(probabilities, path, ours, tiling),
            f"{name}, PyTorch": partial(torch_tiles.predict, path, other, tiling),
            f"{name}, our net alone": partial(ours, batch),
            f"{name}, PyTorch's net alone": partial(other, batch),
        }
        found["tilings"][name] = tiling._asdict()
    maps = {name: call() for name, call in calls.items()}  # compiles, too
    off = float(np.abs(maps["unet, ours"] - maps["unet, PyTorch"]).max())
    if off > 1e-3:
        raise RuntimeError(f"ours and PyTorch's maps differ by {off}")
    seconds = workload.seconds_in_turn(calls, _ROUNDS.value)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    return {**found, "maps_differ_by": off, "seconds": seconds, "medians_s": medians}


def probabilities(path: Path, net: Predictor, tiling: tiles.Tiling) -> np.ndarray:
    """Our map of an image, `[H, W]`, as `tvjax.predict` makes it."""
    with mosaic.open_place(path) as raster:
        return np.concatenate(list(tiles.probabilities(raster, net, tiling)))[..., 0]


def versions() -> dict[str, str]:
    """Versions of PyTorch's packages."""
    names = ("torch", "timm", "segmentation_models_pytorch")
    return {name: metadata.version(name) for name in names if importlib.util.find_spec(name)}


def beside_pytorch(json_file: str) -> None:
    """Times ours and PyTorch's on each raster."""
    origin, cases = provenance.describe(seed=0), []
    with tempfile.TemporaryDirectory() as scratch:
        for side in map(int, _SIZES.value):
            path = Path(scratch) / f"{side}.tif"
            write_raster(path, side)
            cases.append(race(path, side))
    config = {"width": _WIDTH.value, "tile": _TILE.value, "batch": _BATCH.value}
    config |= {"rounds": _ROUNDS.value}
    result = {"benchmark": "predict_peers", "config": config, "cases": cases, "peers": versions()}
    kept.write(json_file, result | origin)
    print(f"{'':<32}{'side':>6}{'seconds':>9}{'least':>9}{'most':>9}")
    for case in cases:
        for name, times in case["seconds"].items():
            row = (np.median(times), min(times), max(times))
            print(f"{name:<32}{case['side']:>6}" + "".join(f"{x:>9.3f}" for x in row))


def main(argv):
    del argv
    if _CASE.value:
        print(json.dumps(measure(Path(_CASE.value))))
        return
    if not _JSON.value:
        raise UserError("--json is missing")
    if _PEERS.value:
        beside_pytorch(_JSON.value)
        return
    origin, cases = provenance.describe(seed=0), []
    with tempfile.TemporaryDirectory() as scratch:
        for side in map(int, _SIZES.value):
            folder = Path(scratch) / str(side)
            (folder / "images").mkdir(parents=True)
            write_raster(folder / "images" / "raster.tif", side)
            cases.append(run_case(folder, side))
        folder = Path(scratch) / "pictures"
        (folder / "images").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for k in range(_PICTURES.value):
            Image.fromarray(draw_block(300, 300, rng)).save(folder / "images" / f"{k:05}.png")
        cases.append(run_case(folder, 300))
    result = {
        "benchmark": "predict",
        "config": {"width": _WIDTH.value, "tile": _TILE.value, "batch": _BATCH.value},
        "cases": cases,
        **origin,
    }
    kept.write(_JSON.value, result)
    print(
        f"{'images':>7}{'side':>7}{'seconds':>9}{'images/s':>10}{'Mpx/s':>7}{'of forward':>12}"
        f"{'peak MiB':>10}"
    )
    for case in cases:
        print(
            f"{case['images']:>7}{case['side']:>7}{case['seconds']:>9.1f}"
            f"{case['images_per_s']:>10.2f}{case['megapixels_per_s']:>7.2f}"
            f"{case['of_forward']:>12.2f}{case['peak_mib']:>10.0f}"
        )


if __name__ == "__main__":
    program.run(main)
