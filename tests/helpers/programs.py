"""Programs as users run them, from the root of the checkout."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SHARED = ROOT.parent / "shared"
"""Real tiles, beside the checkout where they are at hand."""

STRICT = ("-W", "error::UserWarning", "-W", "ignore:Error reading persistent")
"""Python's flags for a program that must not warn, but that it reads what another one is writing:
JAX does not write the programs that it keeps in one piece."""


def use(program, *flags):
    command = [sys.executable, "-m", f"tvjax.{program}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
