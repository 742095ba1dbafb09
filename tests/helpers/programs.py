"""Programs as users run them, from the root of the checkout."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

SHARED = ROOT.parent / "shared"
"""Real tiles, beside the checkout where they are at hand."""

STRICT = ("-W", "error::UserWarning", "-W", "ignore:Error reading persistent")
"""Python's flags for a program that must not warn, but that it reads what another one is writing:
JAX does not write the programs that it keeps in one piece."""

WARM = """
import atexit, gc, json, os, runpy, sys, threading
import flax.linen, grain, jax, matplotlib.pyplot, ml_collections.config_flags, optax
import orbax.checkpoint, scipy.ndimage, scipy.optimize, tensorboardX, tensorflow_datasets
gc.collect()
gc.freeze()
for line in sys.stdin:
    child = os.fork()
    if not child:
        folder, program, *flags = json.loads(line)
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT), number)
        sys.argv = [program, *flags]
        status = 0
        try:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            status = 1
            sys.excepthook(*sys.exc_info())
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Loads libraries, none of ours, starts nothing, and lends itself to each program as a fork.

A fork ends without taking the libraries apart, and its collector leaves them alone: both would copy
all of them, which took 0.7 s of processor time per program.
"""


def use(program, *flags, python=()):
    """Runs `python -m tvjax.PROGRAM FLAGS`, but for the seconds that libraries take to load.

    `python` are flags of Python itself, such as `STRICT`.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = [folder, f"tvjax.{program}", *flags]
        warm = _warm(tuple(python))
        warm.stdin.write(json.dumps(asked) + "\n")
        warm.stdin.flush()
        status = int(warm.stdout.readline())
        out, err = ((Path(folder) / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(asked[1:], status, out, err)


@functools.cache
def _warm(python):
    pipe = subprocess.PIPE
    command = [sys.executable, *python, "-c", WARM]
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    atexit.register(process.communicate)  # it ends with its input
    return process


def use_all(*commands, cwd=ROOT, **options):
    """Status, stdout and stderr of each program with its flags; see `forked` for dicts of more."""
    listed = [c if isinstance(c, dict) else {"argv": list(c)} for c in commands]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "tests" / "helpers" / "forked.py"], cwd=cwd,
        input=json.dumps(listed), capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"} | options,
    )  # fmt: skip
    return [json.loads(line) for line in ran.stdout.splitlines()]
