"""Where a result comes from: commit, versions, hardware and seed."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe(seed: int) -> dict[str, Any]:
    """A JSON dict to be stored with every result."""
    device = jax.devices()[0]
    return {
        "seed": seed,
        "tvjax": _version("tvjax"),
        "commit": _commit(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "hardware": f"{jax.device_count()} x {_kind(device)}, {os.cpu_count()} CPU cores",
        "visible_cores": visible_cores(),
    }


def visible_cores() -> int:
    """The CPU cores that this process may use, as XLA counts them for its threads.

    On a CPU the last bits of sums depend on it: each thread adds up a part.
    """
    for name in ("PJRT_NPROC", "NPROC"):  # XLA takes their word for it
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    """The version of a package; None if it runs without being installed, as from a checkout."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kind(device: Any) -> str:
    return platform.machine() + " CPU" if device.platform == "cpu" else device.device_kind


def _commit() -> str | None:
    """The commit of this file's checkout, with `+` where it has changes; None outside one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
