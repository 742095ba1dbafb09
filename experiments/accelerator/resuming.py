"""Whether equal runs, and a run that stopped half-way and went on, end in the same bits.

On a GPU the compiler may choose other kernels in another process, and some kernels add in an order
that changes; the option `--xla_gpu_deterministic_ops=true` rules that out.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from experiments.accelerator.report import Job, Report

OPTIONS = {"default": "", "deterministic ops": "--xla_gpu_deterministic_ops=true"}


def measure(report: Report, job: Job) -> None:
    """Adds one finding per option; the two are found side by side."""
    import jax

    # A CPU aborts at an option that it does not know.
    names = ["default"] if jax.default_backend() == "cpu" else list(OPTIONS)
    with ThreadPoolExecutor(len(names)) as pool:
        made = {name: pool.submit(compare, job, name) for name in names}
        for name in names:
            report.add(name, made[name].result)


def compare(job: Job, name: str) -> dict[str, Any]:
    """Three trainings: whole, whole again, and in two halves."""
    folder = job.folder / name.replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    steps = 4 if job.tiny else 64
    take = partial(_train, job, folder, OPTIONS[name])
    began = time.perf_counter()
    first = take("whole", steps)
    seconds = time.perf_counter() - began
    again = first if job.tiny else take("again", steps)
    take("halves", steps // 2)
    resumed = take("halves", steps)
    # Without the option, equality is what is asked, not what is promised.
    exact = first == again == resumed
    found = {
        "again_is_equal": again == first,
        "resumed_is_equal": resumed == first,
        "seconds_of_the_first": seconds,
    }
    return found | ({"ok": exact} if name != "default" or job.tiny else {})


def _train(job: Job, folder, option: str, name: str, steps: int) -> str:
    """The digest of the parameters at the end."""
    fields = {
        "data.directory": job.data, "data.cache": folder / "cache", "train.steps": steps,
        "hypergrad.warmup": 2, "evaluation.every": 32, "checkpoint.every": 32,
    }  # fmt: skip
    fields |= job.fields
    command = [
        sys.executable, "-m", "tvjax.main", "--config=configs/lunet_bilevel.py",
        f"--workdir={folder / name}", *(f"--config.{k}={v}" for k, v in fields.items()),
    ]  # fmt: skip
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {option}".strip()}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((folder / name / "summary.json").read_text())
    return summary["parameters_sha256"]
