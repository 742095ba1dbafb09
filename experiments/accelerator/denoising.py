"""Seconds of `denoise_tv` for large images, with the duality gaps that it certifies."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tvjax
from experiments.accelerator.report import Job, Report

LAM = 0.1


def measure(report: Report, job: Job) -> None:
    """Adds one finding per kind and method."""
    size, images = (32, 2) if job.tiny else (1024, 16)
    f = jnp.asarray(noisy_discs(size, images))
    for kind in ("isotropic", "anisotropic"):
        for method in ("primal_dual", "fista"):
            report.add(f"{kind}, {method}, {images} x {size} x {size}", partial(
                denoise, f, kind, method
            ))  # fmt: skip


def noisy_discs(size: int, images: int) -> np.ndarray:
    """Float32 `[images, size, size, 1]`: discs in noise of standard deviation 0.1."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    out = np.zeros((images, size, size, 1), np.float32)
    for image in out:
        for cy, cx, r, value in rng.uniform((0, 0, 0.02, 0), (1, 1, 0.2, 1), (30, 4)):
            image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = value
        image += 0.1 * rng.standard_normal((size, size, 1), dtype=np.float32)
    return out


def denoise(f: jax.Array, kind: str, method: str) -> dict[str, Any]:
    """Denoises to a gap of 1e-4 of the objective at the start."""
    scale = LAM * float(jnp.min(tvjax.total_variation(f, kind=kind)))
    solve = partial(
        tvjax.denoise_tv, f, LAM,
        kind=kind, method=method, tolerance=1e-4 * scale, max_iterations=5000,
    )  # fmt: skip
    began = time.perf_counter()
    result = jax.block_until_ready(solve())
    first = time.perf_counter() - began
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(solve())
        times.append(time.perf_counter() - began)
    return {
        "seconds": float(np.median(times)),
        "seconds_with_compiling": first,
        "iterations": int(result.iterations.max()),
        "relative_gap": float(jnp.max(result.gap)) / scale,
        "ok": bool(jnp.max(result.gap) <= 1e-4 * scale),
    }
