"""How long ROF denoising takes to a given accuracy: tvjax against scikit-image's Chambolle.

    python -m experiments.benchmarks.denoise --json=FILE [--cases=256x1,256x64]

Both minimise `1/2 ||u - f||^2 + lam TV(u)`, isotropic (scikit-image has no other), in float32, and
are timed **at equal accuracy**, side by side in one run: the relative objective error

  (P(u) - P*) / P*,   P* from a float64 run to a relative duality gap of 1e-7.

tvjax is given only its duality gap: it must certify the accuracy, knowing nothing of P*, and its
time includes that. scikit-image has no certificate, so it is given an oracle: the number of
iterations that just reaches the accuracy, found beforehand and not timed; where it needs more than
20,000 (at 1024 squared 4,000), `reached` is false and the speed-up is a lower bound. Compilation is
reported beside the times and not in them, but for the largest batch, which runs once. Images are
scikit-image's photographs with noise, made here.
"""

import json
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
from absl import flags
from skimage.restoration import denoise_tv_chambolle
from skimage.transform import resize

from experiments import kept
from tvjax import interruption, program, provenance
from tvjax.tv import dual, solvers
from tvjax.tv.rof import denoise_tv
from tvjax.tv.variation import total_variation

_JSON = kept.json_flag()
_CASES = flags.DEFINE_list(
    "cases", ["256x1", "256x64", "1024x1", "1024x64"],
    "Cases, each as side in pixels x images in a batch; the last one takes half an hour.",
)  # fmt: skip

LAM = 0.1
NOISE = 0.1  # standard deviation; images are in [0, 1]
ACCURACIES = (1e-4, 1e-6)
METHODS = ("fista", "primal_dual")
MOST_ITERATIONS = 60_000
DISTINCT = 4


def make_images(size: int, number: int) -> np.ndarray:
    """Float32 `[number, size, size, 1]`: crops of a photograph at several scales, with noise.

    No more than `DISTINCT` differ, so that their optima are known in reasonable time.
    """
    photograph = skimage.data.camera() / 255.0
    rng = np.random.default_rng(0)
    images = []
    for i in range(min(number, DISTINCT)):
        side = 512 if i == 0 else int(rng.integers(200, 512))
        y, x = rng.integers(0, 512 - side + 1, 2)
        clean: Any = resize(photograph[y : y + side, x : x + side], (size, size), order=1)
        images.append(clean + NOISE * rng.standard_normal((size, size)))
    distinct = np.stack(images)[..., None].astype(np.float32)
    return np.tile(distinct, (number // len(images), 1, 1, 1))


@jax.jit
def _objective(u, f):
    fit = 0.5 * jnp.sum((u - f) ** 2, axis=(-3, -2, -1))
    return fit + LAM * total_variation(u, kind="isotropic")


def objective(u, f) -> np.ndarray:
    """P(u) of each image, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_objective(jnp.asarray(u, jnp.float64), jnp.asarray(f, jnp.float64)))


def reference(f) -> np.ndarray:
    """P* of each image: between P(u) - gap and P(u), of which the middle."""
    scale = float(objective(f, f).min())
    with jax.enable_x64(True):
        result = denoise_tv(
            jnp.asarray(f, jnp.float64),
            LAM,
            kind="isotropic",
            method="primal_dual",
            tolerance=1e-7 * scale,
            max_iterations=MOST_ITERATIONS,
        )
        u, gap = np.asarray(result.image), np.asarray(result.gap)
    return objective(u, f) - gap / 2


def error(u, f, best) -> float:
    """The worst relative objective error in the batch."""
    return float(np.max((objective(u, f) - best) / best))


def chambolle(f, iterations: int) -> np.ndarray:
    """scikit-image on one image."""
    options = {"weight": LAM, "eps": 0, "max_num_iter": iterations}
    return denoise_tv_chambolle(f[0, ..., 0], **options)[None, ..., None]


def chambolle_iterations(f, best, most: int) -> dict[float, int]:
    """How many of scikit-image's iterations reach each accuracy, to 2 %; absent if over `most`.

    Its recursion is tvjax's `chambolle`, which is run here in chunks as scikit-image cannot be
    resumed; `measure_scikit_image` checks the number on scikit-image itself.
    """
    lam = jnp.full((1,), LAM, jnp.float32)

    @jax.jit
    def advance(v, count):
        def step(_, v):
            return solvers.chambolle_step(v, f, lam, kind="isotropic")

        v = jax.lax.fori_loop(0, count, step, v)
        return v, f - dual.adjoint(v)

    needed, done = {}, 0
    v = dual.fista_start(jnp.asarray(f)).v
    while done < most and len(needed) < len(ACCURACIES):
        count = max(10, 10 * (done // 500))
        v, u = advance(v, count)
        done += count
        reached = error(u, f, best)
        for accuracy in ACCURACIES:
            if reached <= accuracy:
                needed.setdefault(accuracy, done)
    return needed


def measure_scikit_image(f, best, iterations: int, number: int) -> dict:
    """Seconds for `number` images: an iteration's cost, timed over at most 300, times how many."""
    timed = min(iterations, 300)
    seconds = fastest(lambda: chambolle(f, timed), 3) / timed
    row = {"iterations": iterations, "seconds_per_iteration": seconds}
    if iterations * seconds < 60:
        row["relative_error"] = error(chambolle(f, iterations), f, best)
    return row | {"seconds": number * iterations * seconds}


def fastest(run, repeats: int) -> float:
    """Least of several times in seconds: others share the machine, and only ever slow it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def measure_tvjax(f, best, accuracy: float, method: str, repeats: int) -> dict:
    # Gaps are absolute: the least P* of the batch is what certifies every image of it.
    tolerance = accuracy * float(best.min())

    def run():
        options = {"kind": "isotropic", "method": method, "max_iterations": MOST_ITERATIONS}
        return denoise_tv(f, LAM, tolerance=tolerance, **options)

    start = time.perf_counter()
    result = jax.block_until_ready(run())
    first = time.perf_counter() - start
    seconds = fastest(run, repeats) if repeats else first
    return {
        "seconds": seconds,
        "compile_seconds": max(first - seconds, 0.0),
        "iterations": int(result.iterations.max()),
        "certified": bool((result.gap <= tolerance).all()),
        "relative_gap": float(np.max(np.asarray(result.gap) / best)),
        "relative_error": error(result.image, f, best),
    }


def measure(size: int, number: int) -> Iterator[dict]:
    """A row for each accuracy, as it is known."""
    f = make_images(size, number)
    best = np.tile(reference(f[:DISTINCT]), number // min(number, DISTINCT))
    # scikit-image has no batches: what it takes for the first image, times the number of images.
    most = 20_000 if size <= 256 else 4_000
    needed = chambolle_iterations(f[:1], best[:1], most)
    large, huge = f.size > 1 << 20, f.size > 1 << 22
    for accuracy in ACCURACIES:
        row = {"size": size, "images": number, "accuracy": accuracy}
        peer = measure_scikit_image(f[:1], best[:1], needed.get(accuracy, most), number)
        row["scikit-image"] = peer | {"reached": accuracy in needed}
        for method in METHODS:
            if method == "fista" and (huge or (large and accuracy < 1e-5)):
                continue  # a quarter of an hour
            # Of a huge batch the first run is the time: what compiling adds is a hundredth.
            repeats = 0 if huge else 1 if large else 5
            ours = measure_tvjax(f, best, accuracy, method, repeats=repeats)
            row[method] = ours | {"speedup": peer["seconds"] / ours["seconds"]}
        yield row


def main(argv) -> None:
    del argv
    report = {
        "benchmark": "denoise",
        "lam": LAM,
        "noise": NOISE,
        "kind": "isotropic",
        "dtype": "float32",
        "peer": f"scikit-image {metadata.version('scikit-image')}",
        **provenance.describe(seed=0),
        "rows": [],
    }
    for case in _CASES.value:
        size, number = map(int, case.split("x"))
        for row in measure(size, number):
            interruption.check()
            print(json.dumps(row), flush=True)
            report["rows"].append(row)
            kept.write(_JSON.value, report, indent=1)  # what is known is kept


if __name__ == "__main__":
    program.run(main)
