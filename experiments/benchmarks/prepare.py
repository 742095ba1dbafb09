"""How fast `tvjax.data.prepare` makes records of JPEGs and polygons, and finds near-duplicates.

    python -m experiments.benchmarks.prepare --json=FILE

Beside the functions that are in use, in the same process and by turns, runs what they replaced:
area means and hashes by products with dense matrices (as many threads as numpy takes), and the
comparison of each hash with all others. Both must agree to the bit.

- `shrink`: a tile of 300 pixels to its record of 100 pixels and its hashes.
- `build`: JPEGs and a COCO file to records, by one process and by `--workers`. Rates count the
  start of processes, and processor seconds those of all.
- `clusters`: drawn hashes of `--hashes` tiles, of which one in eight is a twin, and of fewer tiles
  against brute force. Memory is the most that the process ever held (`ru_maxrss`).

Seconds by the clock say little where other work runs; processor seconds say nearly as much as ever.
"""

import contextlib
import functools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

from experiments import kept
from tvjax import interruption, program, provenance
from tvjax.data import area, builder, duplicates
from tvjax.data.origins import Images
from tvjax.data.splits import by_first, edges, join

_JSON = kept.json_flag()
_TILES = flags.DEFINE_integer("tiles", 6000, "Tiles of a build.")
_DENSE_TILES = flags.DEFINE_integer("dense_tiles", 100, "Tiles of a build by dense products.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes of the build by several.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Repetitions, by turns; of builds half as many.")
_HASHES = flags.DEFINE_integer("hashes", 280_000, "Tiles whose near-duplicates are sought.")
_COMPARED = flags.DEFINE_integer("compared", 10_000, "The same, against brute force.")

SIDE, SIZE = 300, 100
"""Pixels of the images, and of the records."""

ROOFS = 8
"""Polygons of an image."""

GREY = np.array([19595, 38470, 7471], np.float32)
"""Weights of red, green and blue, times 2^16."""

Shown = dict[str, Any]


def draw_image(rng: np.random.Generator) -> Image.Image:
    """Soft patches with noise, whose JPEG is of the size that one of a town has."""
    small = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    soft = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noisy = np.asarray(soft).astype(int) + rng.integers(-12, 13, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_set(folder: Path, number: int) -> None:
    """Writes `images` and `annotation.json`."""
    rng, images, annotations = np.random.default_rng(0), [], []
    (folder / "images").mkdir(parents=True)
    for k in tqdm(range(number), "drawing", mininterval=5):
        name = f"{k:06}.jpg"
        draw_image(rng).save(folder / "images" / name, quality=85)
        images.append({"id": k, "file_name": name, "height": SIDE, "width": SIDE})
        for _ in range(ROOFS):
            (x, y), (w, h) = rng.integers(0, 250, 2).tolist(), rng.integers(10, 50, 2).tolist()
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append({"id": len(annotations), "image_id": k, "segmentation": [outline]})
    content = {"images": images, "annotations": annotations}
    (folder / "annotation.json").write_text(json.dumps(content))


@functools.lru_cache
def dense(old: int, new: int) -> np.ndarray:
    return area.overlaps(old, new, 0, new).toarray()


def dense_sums(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`area.sums` by dense products."""
    (height, width, channels), (h, w) = values.shape, size
    rows, columns = dense(height, h).astype(np.float32), dense(width, w)
    half = rows @ values.reshape(height, -1).astype(np.float32)
    half = half.reshape(-1, width, channels).swapaxes(0, 1).reshape(width, -1)
    found = columns @ half.astype(np.float64)
    return found.reshape(w, h, channels).swapaxes(0, 1)


def dense_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    total = image.shape[0] * image.shape[1]
    return np.floor((dense_sums(image, size) + total / 2) / total).astype(np.uint8)


def dense_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return (2 * dense_sums(mask[..., None], size) > mask.size).astype(np.uint8)


def dense_transform(image: np.ndarray) -> np.ndarray:
    """`duplicates._transform`, grey and area means by dense products."""
    weighted = image.reshape(-1, 3).astype(np.float32) @ GREY
    grey = ((weighted + 2**15) / 2**16).astype(np.uint8).reshape(image.shape[:2])
    side = duplicates.SIDE
    total = dense_sums(grey[..., None], (side, side))[..., 0].astype(np.int64)
    small = ((total << duplicates._FINE) + grey.size // 2) // grey.size
    return duplicates._COSINES @ small @ duplicates._COSINES.T


@contextlib.contextmanager
def by_dense_products() -> Iterator[None]:
    """Within it the package works as it did."""
    places = [
        (area, "shrink_image", dense_image), (area, "shrink_mask", dense_mask),
        (duplicates, "_transform", dense_transform),
    ]  # fmt: skip
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, function in places:
        setattr(module, name, function)
    try:
        yield
    finally:
        for (module, name, _), function in zip(places, before, strict=True):
            setattr(module, name, function)


def processor_seconds() -> float:
    """Processor time of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    began, used = time.perf_counter(), processor_seconds()
    work()
    return time.perf_counter() - began, processor_seconds() - used


def by_turns(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Times of each, `[repeats, 2]` as in `timed`."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in tqdm(range(repeats), " and ".join(works)):
        for name, work in works.items():
            interruption.check()
            time.sleep(0.2)  # threads of the one before spin for a while
            found[name].append(timed(work))
    return {name: np.array(times) for name, times in found.items()}


def spread(times: np.ndarray) -> Shown:
    """Median, least and most."""
    return {
        name: {"median": statistics.median(x), "least": min(x), "most": max(x)}
        for name, x in zip(("seconds", "processor_seconds"), times.T.tolist(), strict=True)
    }


def ratios(old: np.ndarray, new: np.ndarray) -> Shown:
    """How many times as long the old takes: the median over repetitions."""
    wall, processor = np.median(old / new, axis=0)
    return {"seconds": float(wall), "processor_seconds": float(processor)}


def measure_shrink(repeats: int, number: int = 8) -> Shown:
    rng = np.random.default_rng(0)
    images = [np.asarray(draw_image(rng)) for _ in range(number)]

    def shrink() -> list[Any]:
        made = []
        for image in images:
            mask = image[..., 0] > 128
            shrunk = area.shrink_image(image, (SIZE, SIZE)), area.shrink_mask(mask, (SIZE, SIZE))
            made += [*shrunk, duplicates.hashes(image)]
        return made

    def old() -> list[Any]:
        with by_dense_products():
            return shrink()

    assert all(np.array_equal(a, b) for a, b in zip(old(), shrink(), strict=True))
    found = by_turns({"dense": old, "sparse": shrink}, repeats)
    found = {name: times / number for name, times in found.items()}
    return {
        **{name: spread(times) for name, times in found.items()},
        "dense over sparse": ratios(found["dense"], found["sparse"]),
    }


def measure_builds(repeats: int, tiles: int, dense_tiles: int, workers: int) -> Shown:
    with tempfile.TemporaryDirectory() as scratch:
        write_set(Path(scratch), tiles)
        numbers = iter(range(10**9))
        digests: dict[int, set[str]] = {}

        def build(workers: int, limit: int) -> None:
            origin = Images(f"{scratch}/annotation.json", f"{scratch}/images")
            out = Path(scratch, f"out{next(numbers)}")
            builder.build_from(origin, out, size=SIZE, limit=limit, progress=False, workers=workers)
            digest = json.loads((out / "identity.json").read_text())["sha256"]
            digests.setdefault(limit, set()).add(digest)

        def old() -> None:
            with by_dense_products():
                build(1, dense_tiles)

        build(1, 30)  # what is imported at first use is no part of it
        works = {
            "dense, 1 process": (old, dense_tiles),
            "as many, 1 process": (lambda: build(1, dense_tiles), dense_tiles),
            "1 process": (lambda: build(1, tiles), tiles),
            f"{workers} processes": (lambda: build(workers, tiles), tiles),
        }
        found = by_turns({name: work for name, (work, _) in works.items()}, repeats)
    assert all(len(same) == 1 for same in digests.values()), "records differ"
    shown: Shown = {
        name: {"tiles": number, **spread(times), "tiles_per_s": number / np.median(times[:, 0])}
        for (name, (_, number)), times in zip(works.items(), found.values(), strict=True)
    }
    per_tile = {name: found[name] / works[name][1] for name in works}
    for name in works:
        shown[name]["processor_seconds_per_tile"] = float(np.median(per_tile[name][:, 1]))
    few, many = (float(np.median(found[name][:, 1])) for name in list(works)[1:3])
    further = (many - few) / (tiles - dense_tiles)
    shown["processor seconds per further tile, 1 process"] = further
    shown["processor seconds of 60,000 tiles, 1 process"] = few + further * (60_000 - dense_tiles)
    for name in list(works)[2:]:
        shown[f"dense over {name}, per tile"] = ratios(per_tile["dense, 1 process"], per_tile[name])
    return shown


def draw_hashes(number: int) -> np.ndarray:
    """Hashes of drawn frequencies, uint64 `[number, 8]`; one in eight is nearly another's."""
    rng, k = np.random.default_rng(0), np.arange(duplicates.KEPT)
    falling = 1 / (1 + k[:, None] + k)
    low = rng.normal(size=(number, 8, 8)).astype(np.float32) * falling
    twins = np.flatnonzero(rng.random(number) < 1 / 8)
    low[twins] = low[rng.integers(0, number, len(twins))]
    low[twins] += 0.01 * rng.normal(size=(len(twins), 8, 8)) * falling
    low[:, 0, 0] = 100
    return np.stack([duplicates._bits((x * 2**40).astype(np.int64)) for x in low])


def by_brute_force(hashes: np.ndarray, block: int = 256) -> np.ndarray:
    """`duplicates.clusters` by comparing each with all."""
    distinct, same = np.unique(hashes, axis=0, return_inverse=True)
    labels = np.arange(len(distinct))
    for start in range(0, len(distinct), block):
        ours = distinct[start : start + block, :1]
        near = np.zeros((len(ours), len(distinct)), bool)
        for view in distinct.T:
            near |= np.bitwise_count(ours ^ view[None]) <= duplicates.MAX_DISTANCE
        pairs = np.argwhere(near) + np.array([start, 0])
        labels = join(len(labels), np.concatenate([edges(labels), pairs]))
    return by_first(labels[same.ravel()])


def measure_clusters(number: int, compared: int) -> Shown:
    hashes = draw_hashes(number)
    few = hashes[:compared]
    assert np.array_equal(by_brute_force(few), duplicates.clusters(few))
    works = {"all": lambda: by_brute_force(few), "parts": lambda: duplicates.clusters(few)}
    found = by_turns(works, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, processor = timed(lambda: duplicates.clusters(hashes))
    return {
        "compared": {
            "tiles": compared,
            **{name: spread(times) for name, times in found.items()},
            "all over parts": ratios(found["all"], found["parts"]),
        },
        "tiles": number,
        "clusters": len(np.unique(duplicates.clusters(hashes))),
        "seconds": seconds,
        "processor_seconds": processor,
        "mib_before": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(argv):
    del argv
    result = {
        "benchmark": "prepare",
        "config": {
            "side": SIDE, "size": SIZE, "roofs": ROOFS, "tiles": _TILES.value,
            "workers": _WORKERS.value, "repeats": _REPEATS.value,
        },
        "clusters": measure_clusters(_HASHES.value, _COMPARED.value),
        "shrink": measure_shrink(_REPEATS.value),
        "build": measure_builds(
            -(-_REPEATS.value // 2), _TILES.value, _DENSE_TILES.value, _WORKERS.value
        ),
        **provenance.describe(seed=0),
    }  # fmt: skip
    kept.write(_JSON.value, result)
    print(json.dumps({name: result[name] for name in ("clusters", "shrink", "build")}, indent=2))


if __name__ == "__main__":
    program.run(main)
