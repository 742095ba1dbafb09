"""Measures on a machine with a GPU what cannot be known without one, within a time budget.

    make gpu                                    # or, with tiles and options of your own:
    python -m experiments.gpu --out=results/gpu/NAME --minutes=9 --data=TILES

The pieces run one after another, the most telling first, each in a process of its own: numerics
(float32, TF32 and bfloat16 against float64, certificates, the CPU), step_times (estimators,
precisions, PyTorch), training (the paper's sizes), denoising, and resuming (bit for bit or not).
Each leaves `PIECE.json`, which holds what was found even if its time ran out, and all write to
`gpu.log`. No network is needed; `make gpu-wheels` fetches what such a machine lacks.
`--scale=tiny` shows on any machine, in a minute, that every piece works.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from experiments import kept
from tvjax import program
from tvjax.errors import UserError

_OUT = flags.DEFINE_string("out", None, "Folder of the results, e.g. results/gpu.", required=True)
_MINUTES = flags.DEFINE_float("minutes", 9.0, "Time budget of all pieces together, in minutes.")
_DATA = flags.DEFINE_string(
    "data", None, "Folder of prepared tiles, e.g. TILES; default: 320 drawn ones."
)
_SCALE = flags.DEFINE_enum("scale", "full", ["full", "tiny"], "full needs a GPU, tiny does not.")
_PIECES = flags.DEFINE_list("pieces", None, "Pieces to run, e.g. numerics,training; default: all.")
_COMMIT = flags.DEFINE_string(
    "commit", None, "Commit to record, e.g. 57f7a64, where the code is a copy."
)
_PIECE = flags.DEFINE_string("piece", None, "One piece to run in this process, e.g. numerics.")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Time in seconds of the piece named by --piece.")

SHARES = {"numerics": 2.5, "step_times": 4.5, "training": 3.0, "denoising": 0.5, "resuming": 2.0}
"""The pieces in their order, with their parts of the time; what one leaves is for the later."""


def main(argv: list[str]) -> None:
    """Runs one piece here, or all of them, each in a process of its own."""
    del argv
    out = Path(_OUT.value).absolute()
    names = list(SHARES) if _PIECES.value is None else _PIECES.value
    unknown = sorted({*names, _PIECE.value or names[0]} - SHARES.keys())
    if unknown:
        raise UserError(f"--pieces={unknown[0]}: choose among {', '.join(SHARES)}")
    out.mkdir(parents=True, exist_ok=True)
    if _PIECE.value is not None:
        sys.exit(0 if run_piece(_PIECE.value, out) else 1)
    for name in names:
        of = {"piece": name, "scale": _SCALE.value}
        kept.lines(out / f"{name}.json", of, "found", dict.items)
    began = time.perf_counter()
    data = Path(_DATA.value).absolute() if _DATA.value else draw_tiles(out)
    states = {}
    with (out / "gpu.log").open("a") as log:
        for i, name in enumerate(names):
            left = 60 * _MINUTES.value - (time.perf_counter() - began)
            share = SHARES[name] / sum(SHARES[n] for n in names[i:])
            states[name] = start_piece(name, out, data, left * share, log)
            print(f"{name}: {states[name]}, {time.perf_counter() - began:.0f} s in all", flush=True)
    if any(state != "complete" for state in states.values()):
        sys.exit(1)


def run_piece(name: str, out: Path) -> bool:
    """Measures one piece in this process; whether all its bounds were kept."""
    import jax

    from experiments.accelerator.report import Job, Report

    tiny = _SCALE.value == "tiny"
    if not tiny and jax.default_backend() == "cpu":
        raise UserError("JAX sees no GPU here; --scale=tiny shows that the pieces work without one")
    if _DATA.value is None:
        raise UserError("--data is missing: --piece takes prepared tiles")
    if tiny:
        program.cache_compilations(out / "work" / "compiled")
    job = Job(tiny, Path(_DATA.value), _SECONDS.value, out / "work" / name)
    job.folder.mkdir(parents=True, exist_ok=True)
    report = Report(out / f"{name}.json", name, _COMMIT.value, job)
    importlib.import_module(f"experiments.accelerator.{name}").measure(report, job)
    return report.finish()


def start_piece(name: str, out: Path, data: Path, seconds: float, log) -> str:
    """Runs one piece in a process that ends when its time is up; says how it went."""
    if seconds < 5:
        return "no time was left"
    arguments = {"out": out, "data": data, "scale": _SCALE.value, "piece": name}
    arguments |= {"seconds": f"{seconds:.0f}"} | (
        {"commit": _COMMIT.value} if _COMMIT.value else {}
    )
    command = [sys.executable, "-m", "experiments.gpu"]
    command += [f"--{key}={value}" for key, value in arguments.items()]
    # The processes that a piece starts, and PyTorch, use the same GPU's memory.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"} | os.environ
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "its time ran out"
    return "complete" if status == 0 else f"failed with status {status}, see gpu.log"


def draw_tiles(out: Path) -> Path:
    """Draws tiles of the embedded kind; of the paper's size, unless the scale is tiny."""
    from tvjax.data import builder
    from tvjax.data.embedded import synthetic

    tiles, size = (60, 16) if _SCALE.value == "tiny" else (320, 100)
    source = out / "work" / "drawn"
    synthetic.write(source, tiles=tiles)
    builder.build(source / synthetic.ANNOTATIONS, source / synthetic.IMAGES, out / "work" / "tiles",
                  size=size)  # fmt: skip
    return out / "work" / "tiles"


if __name__ == "__main__":
    program.run(main)
