"""What a piece is asked to do, and the file that keeps what it has found so far."""

import json
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tvjax import provenance


class Job(NamedTuple):
    """The size and the means of one piece."""

    tiny: bool
    """Whether only to show that the piece works, on any machine, in seconds."""
    data: Path
    """Prepared tiles."""
    seconds: float
    """How long the piece may take."""
    folder: Path
    """Where the piece writes what does not go into its report."""

    @property
    def depth(self) -> int:
        """Blocks of the U-Net's encoder: the paper's, or one, which compiles in half the time."""
        return 1 if self.tiny else 2

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a config that make its run tiny; none at the full scale."""
        if not self.tiny:
            return {}
        net = {"model.width": 4, "model.depth": self.depth}
        return net | {"train.batch_size": 4, "hypergrad.batch_size": 4}


class Report:
    """One JSON file that is written anew after each finding, so that a killed piece loses none.

    A finding is a dict. Where it has `ok`, that tells whether a bound was kept.
    """

    def __init__(self, path: Path, piece: str, commit: str | None, job: Job):
        self._path, self._began = path, time.perf_counter()
        self._content: dict[str, Any] = {
            "piece": piece, "scale": "tiny" if job.tiny else "full", "complete": False,
            **provenance.describe(seed=0),
        }  # fmt: skip
        if commit is not None:  # a copy's own repository may tell of another
            self._content["commit"] = commit
        self._content |= {"backend": jax.default_backend(), "found": {}}
        self._write()

    def add(self, name: str, find: Callable[[], dict[str, Any]]) -> None:
        """Calls `find`, and keeps and prints what it returns, or its error."""
        began = time.perf_counter()
        try:
            found = find()
        except Exception as error:  # one finding that fails must not cost the others
            traceback.print_exc()
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:1000]}
        found["took_s"] = round(time.perf_counter() - began, 2)
        self._content["found"][name] = found
        self._write()
        print(
            f"[{time.perf_counter() - self._began:6.1f} s] {name}: {json.dumps(found)}", flush=True
        )

    def finish(self) -> bool:
        """Marks the report as complete; returns whether no finding broke its bound."""
        self._content["complete"] = True
        self._write()
        return all(found.get("ok", True) for found in self._content["found"].values())

    def _write(self) -> None:
        self._content["seconds"] = round(time.perf_counter() - self._began, 1)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._content, indent=1) + "\n")
        temporary.replace(self._path)


def bounded(error: float, bound: float, **more: Any) -> dict[str, Any]:
    """A finding: an error, the bound that it is to keep, and whether it does. NaN does not."""
    number = float(error) if math.isfinite(error) else None  # JSON has no NaN
    return {"error": number, "bound": bound, "ok": bool(error <= bound), **more}
