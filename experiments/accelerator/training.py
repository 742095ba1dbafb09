"""Training at the paper's sizes by the program that people call, with images per second."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from experiments.accelerator.report import Job, Report
from tvjax.data.records import open_split

EPOCHS, BATCH = 30, 16
CONFIGS = {"lunet_bilevel": 0.75, "unet": 1.0}
"""Each with its part of the time that is left."""
SAVING = 15.0
"""Seconds that a run which is stopped takes to save and to end."""


def measure(report: Report, job: Job) -> None:
    """Adds one finding per config: the summary of a run, and its speed."""
    began = time.perf_counter()
    configs = dict(list(CONFIGS.items())[:1]) if job.tiny else CONFIGS
    for config, share in configs.items():
        left = job.seconds - (time.perf_counter() - began) - SAVING
        report.add(config, partial(train, job, config, left * share))


def train(job: Job, config: str, seconds: float) -> dict[str, Any]:
    """Runs `tvjax.main` for 30 epochs, or as many steps as the time allows."""
    workdir = job.folder / config
    shutil.rmtree(workdir, ignore_errors=True)
    steps = EPOCHS * (len(open_split(job.data, "train")) // BATCH)
    fields = {"data.directory": job.data, "train.steps": steps, "train.log_every": 10}
    if job.tiny:
        fields |= job.fields | {"train.steps": 6, "train.log_every": 2, "hypergrad.warmup": 2}
    command = [
        sys.executable, "-m", "tvjax.main", f"--config=configs/{config}.py:paper",
        f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items()),
        f"--config.data.cache={job.folder / 'cache'}",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    lines = _watch(process, workdir / "metrics.jsonl", seconds)
    found = {"command": " ".join(command[1:4]), "steps_asked": steps, **_speed(lines)}
    summary = workdir / "summary.json"
    if process.returncode == 0 and summary.exists():
        return found | {"summary": json.loads(summary.read_text())}
    # 75: it was stopped for time, and saved.
    return found | {"status": process.returncode, "ok": process.returncode == 75}


def _watch(process: subprocess.Popen, log: Path, seconds: float) -> list[tuple[float, int]]:
    """When each number of steps was logged; ends the run when the time is up."""
    began, seen = time.perf_counter(), []
    while process.poll() is None:
        time.sleep(0.1)
        now = time.perf_counter()
        if log.exists():
            texts = log.read_text().splitlines()
            steps = [json.loads(t)["step"] for t in texts[:-1] if '"train"' in t]
            if steps and (not seen or steps[-1] > seen[-1][1]):
                seen.append((now, steps[-1]))
        if now - began > seconds:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            break
    process.wait()
    return seen


def _speed(lines: list[tuple[float, int]]) -> dict[str, Any]:
    """Images per second between the first and the last line, evaluations and saves included."""
    if len(lines) < 2 or lines[-1][0] - lines[0][0] < 1e-9:
        return {"images_per_s": None}
    (start, first), (end, last) = lines[0], lines[-1]
    return {"images_per_s": BATCH * (last - first) / (end - start), "steps": last}
