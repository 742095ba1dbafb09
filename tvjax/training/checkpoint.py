"""Checkpoints: the whole training state and what resuming needs, by orbax."""

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as keeping

from tvjax.errors import Outage, UserError
from tvjax.training import parallel
from tvjax.training.state import TrainState

_NOT_EVALUATED = -1.0  # below any IoU; orbax wants each checkpoint to have its metric


class Checkpoints:
    """The checkpoints of one run, newest first; a context manager that finishes pending saves.

    Saving is asynchronous, and a save that was cut off is never read: orbax writes into a
    temporary folder and renames it. All processes of a run save and restore together.
    """

    def __init__(
        self, directory: Path, *, keep: int = 1, keep_best: int = 0, read_only: bool = False
    ):
        """Opens the folder, and makes it where it is not.

        Args:
          directory: of the checkpoints.
          keep: how many of the newest to keep.
          keep_best: how many to keep besides, of those with the best validation IoU.
          read_only: leaves everything as it is: a run may be writing there.
        """
        self._directory = directory.absolute()  # orbax takes no other
        self._read_only = read_only
        if not read_only:
            _report_cut_off(self._directory)
        best = keeping.BestN(
            get_metric_fn=_val_iou, n=keep_best, keep_checkpoints_without_metrics=False
        )
        newest = keeping.LatestN(n=keep)
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                best_fn=_val_iou,  # makes orbax write the metrics
                preservation_policy=keeping.AnyPreservationPolicy([newest, best]),
                cleanup_tmp_directories=not read_only,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self._finish(self._manager.close)
        else:  # the error under way says more than a save that fails for the same reason
            with contextlib.suppress(Exception):
                self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    @property
    def best(self) -> int | None:
        """The step of the one with the best validation IoU, if any was saved with its IoU."""
        scores = {step: _val_iou(self._manager.metrics(step)) for step in self.steps}
        best = max(scores, key=lambda step: scores[step], default=None)
        return best if best is not None and scores[best] != _NOT_EVALUATED else None

    def choose(self, which: str | int) -> list[int]:
        """The steps to be tried in turn for a choice of checkpoint.

        Args:
          which: `"newest"` (where one is damaged, the one before is tried), `"best"` by validation
            IoU, or a step.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps
        if which == "newest" or not steps:
            return steps
        best = self.best
        if which == "best" and best is not None:
            return [best]
        if str(which).isdigit() and int(which) in steps:
            return [int(which)]
        named = f"newest ({steps[0]}), " + ("" if best is None else f"best ({best}), ")
        raise UserError(
            f"checkpoint={which}: {self._directory} holds none such; choose {named}or one of "
            f"{', '.join(map(str, steps))}"
        )

    def save(
        self,
        state: TrainState,
        run: dict[str, Any],
        *,
        val_iou: float | None = None,
        wait: bool = False,
    ) -> None:
        """Saves the state with `run`, a JSON dict (seconds so far, and the like).

        Args:
          state: what to save.
          run: goes with it.
          val_iou: validation IoU of this state, where it was evaluated.
          wait: return only when it is written.

        Raises:
          Outage: it, or the one before it, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # A copy: the next step reuses the state's memory while the save still reads it.
        state = jax.tree.map(jnp.copy, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        metrics = {"val_iou": _NOT_EVALUATED if val_iou is None else val_iou}
        self._finish(lambda: self._manager.save(step, args=args, metrics=metrics))
        if wait:
            self._finish(self._manager.wait_until_finished)

    def _finish(self, write: Any) -> None:
        try:
            write()
            self._manager.check_for_errors()
        except Exception as error:  # orbax and tensorstore pass on what the file system says
            self._manager.reload()
            kept = next(iter(self.steps), None)
            left = "there is none before it" if kept is None else f"checkpoint {kept} is kept"
            raise Outage(
                f"{self._directory}: a checkpoint could not be written ({_reason(error)}); {left}. "
                f"Where that is mended, the same command resumes"
            ) from error

    def restore(
        self, like: TrainState, which: str | int = "newest"
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or another; None where there is none at all.

        Of the newest, one that is damaged is reported, set aside and the one before is taken.

        Args:
          like: of the same shapes.
          which: see `choose`.

        Raises:
          UserError: there is no such checkpoint, it holds other arrays than `like` (another
            architecture), or none of those that are there can be read.
        """
        broken: list[int] = []
        steps = self.choose(which)
        while (step := _newest_but(broken, steps)) is not None:
            restored, reason = self._read(step, like)
            if parallel.in_all(restored is not None):  # all take the same one
                for bad in () if self._read_only else broken:
                    self._set_aside(bad)
                return restored
            broken.append(step)
            _warn(
                f"checkpoint {self._directory / str(step)} cannot be read "
                f"({reason or 'by another process'})"
                + ("; trying the one before" if step != steps[-1] else "")
            )
        if broken:
            raise UserError(
                f"{self._directory}: none of the checkpoints {broken} can be read; "
                f"move the folder away to start anew"
            )
        return None

    def _read(self, step: int, like: TrainState) -> tuple[Any, str]:
        """The checkpoint, or None and why it cannot be read; each process reads for itself.

        The manager's own reading waits for the other processes, also for one in which it failed.
        """
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        reader = ocp.Checkpointer(handler, multiprocessing_options=alone)
        try:
            self._check_shapes(step, like)
            folder, wanted = self._directory / str(step), jax.tree.map(_abstract, like)
            state = reader.restore(folder / "state", args=ocp.args.StandardRestore(wanted))
            return (state, json.loads((folder / "run" / "metadata").read_text())), ""
        except UserError:
            raise
        except Exception as error:  # a damaged file can raise almost anything in tensorstore
            return None, _reason(error)

    def _set_aside(self, step: int) -> None:
        # Out of the manager's sight, or it would not save that step again.
        if parallel.is_first():
            aside = self._directory.parent / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            target = aside / str(step)
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(self._directory / str(step), target)
        parallel.wait_for_all("set aside")
        self._manager.reload()

    def _check_shapes(self, step: int, like: TrainState) -> None:
        saved = self._manager.item_metadata(step)["state"]
        if saved is None:
            raise FileNotFoundError("its metadata are missing")
        found, wanted = _shapes(saved), _shapes(like)
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"{self._directory / str(step)} is of another architecture: {name} has shape "
                    f"{found.get(name)} there and {wanted.get(name)} here; use another --workdir "
                    f"or the config that wrote it"
                )


def _newest_but(broken: list[int], steps: list[int]) -> int | None:
    """The first process's: folders of a network may look older from elsewhere."""
    step = parallel.as_the_first(next((s for s in steps if s not in broken), -1))
    return None if step == -1 else step


def _val_iou(metrics: Any) -> float:
    return metrics["val_iou"] if metrics else _NOT_EVALUATED


def _report_cut_off(directory: Path) -> None:
    for folder in directory.glob("*.orbax-checkpoint-tmp*") if directory.is_dir() else ():
        _warn(f"the save of checkpoint {folder.name.split('.')[0]} was cut off; it is not used")


def _reason(error: Exception) -> str:
    """What the file system said, which tensorstore hides in a long line; or the line."""
    said = re.search(r": ([^:]+) \[os_error_code", str(error))
    lines = [said[1]] if said else str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _warn(message: str) -> None:
    if parallel.is_first():
        print(f"warning: {message}", file=sys.stderr)


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {_name(path): tuple(x.shape) for path, x in leaves if hasattr(x, "shape")}


def _name(path: tuple[Any, ...]) -> str:
    """`inner/params/Conv_0/kernel`, the same for tuples with names and their saved dicts."""
    keys = (
        getattr(k, "name", None) or getattr(k, "key", None) or getattr(k, "idx", None) for k in path
    )
    return "/".join(str(0 if k is None else k) for k in keys)
