"""Checkpoints: the whole training state and what resuming needs, by orbax."""

import contextlib
import copy
import functools
import gc
import json
import logging
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as keeping

from tvjax import files
from tvjax.errors import Outage, UserError, short, shortage
from tvjax.training import checksums, parallel
from tvjax.training.state import TrainState

_FORMER = {"inner/model_state/lam"}
"""Names of arrays that earlier versions saved, and nothing reads now."""
SHOWN = 8
"""Steps that a message lists."""

_name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
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

        Of the checkpoints the newest `keep` are kept, and `keep_best` besides, of those with the
        best validation IoU. With `read_only` everything is left as it is: a run may be writing.
        """
        files.check_name(directory.absolute())
        self._directory = directory.absolute()  # orbax takes no other
        self._read_only = read_only
        if not read_only:
            _report_cut_off(self._directory)
        best = keeping.BestN(
            get_metric_fn=_val_iou, n=keep_best, keep_checkpoints_without_metrics=False
        )
        newest = keeping.LatestN(n=keep)
        try:
            self._manager = _Manager(
                self._directory,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "run": ocp.JsonCheckpointHandler(),
                    checksums.ITEM: ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    best_fn=_val_iou,  # makes orbax write the metrics
                    preservation_policy=keeping.AnyPreservationPolicy([newest, best]),
                    cleanup_tmp_directories=not read_only,
                ),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{directory}: the _CHECKPOINT_METADATA of a checkpoint is damaged "
                f"({short(str(error))}); move that file away, the checkpoint is read without it"
            ) from error

    def __enter__(self) -> "Checkpoints":
        _never_tell_of_dropped_tasks()
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
        metrics = {step: self._manager.metrics(step) for step in self.steps}
        for step in (step for step, found in metrics.items() if found is None):
            parallel.say(
                f"warning: the validation IoU of checkpoint {self._directory / str(step)} cannot "
                f"be read"
            )
        scores = {step: _val_iou(found) for step, found in metrics.items()}
        best = max(scores, key=lambda step: scores[step], default=None)
        return best if best is not None and scores[best] != _NOT_EVALUATED else None

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints that are newer than a step."""
        self._finish(self._manager.wait_until_finished)
        for newer in self.steps:
            if newer > step:
                self._finish(lambda newer=newer: self._manager.delete(newer))

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
        if str(which) in map(str, steps):
            return [int(which)]
        named = f"newest ({steps[0]}), " + ("" if best is None else f"best ({best}), ")
        raise UserError(
            f"checkpoint={which}: {self._directory} holds none such; choose {named}or a step "
            f"that was kept: {_listed(steps)}"
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

        Where the state was evaluated, `val_iou` is its IoU, pooled or a mean over images, as
        `evaluation.score` says. With `wait` it returns only when all is written.

        Raises:
          Outage: it, or the one before it, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = {"val_iou": _NOT_EVALUATED if val_iou is None else val_iou}
        sums = checksums.take(_arrays(state), run, **metrics) if parallel.is_first() else {}
        # Copies: the next step reuses the state's memory, and adds to the sums in `run`, while the
        # save still reads them.
        state, run = jax.tree.map(jnp.copy, state), copy.deepcopy(run)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_stored(state)),
            run=ocp.args.JsonSave(run),
            checksums=ocp.args.JsonSave(sums),  # written by the first process, as `run` is
        )
        self._finish(lambda: self._manager.save(step, args=args, metrics=metrics))
        if wait:
            self._finish(self._manager.wait_until_finished)

    def _finish(self, write: Any) -> None:
        try:
            with _without_tasks_told_of():
                write()
                self._manager.check_for_errors()
        except Exception as error:  # orbax and tensorstore pass on what the file system says
            self._manager.reload()
            self._remove_unfinished()
            kept = next(iter(self.steps), None)
            left = "there is none before it" if kept is None else f"checkpoint {kept} is kept"
            raise Outage(
                f"{self._directory}: a checkpoint could not be written ({_reason(error)}); {left}. "
                f"Where that is mended, the same command resumes"
            ) from error

    def _remove_unfinished(self) -> None:
        if not parallel.is_alone():  # another process may be writing there still
            return
        for seconds in (0, 0.1, 0.4):  # tensorstore's threads may write on for a moment
            time.sleep(seconds)
            for folder in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(folder, ignore_errors=True)

    def restore(
        self, like: TrainState, which: str | int = "newest"
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or another; None where there is none at all.

        Of the newest, one that is damaged is reported, set aside and the one before is taken.

        Args:
          like: a state of the same shapes, of arrays or of what `jax.eval_shape` gives; of what is
            `()` in it nothing is read.
          which: see `choose`.

        Raises:
          UserError: there is no such checkpoint, it holds other arrays than `like` (another
            architecture), or none of those that are there can be read.
        """
        broken: list[int] = []
        steps = self.choose(which)
        while (step := _newest_but(broken, steps)) is not None:
            with _without_tasks_told_of():
                restored, reason = self._read(step, like)
            if parallel.in_all(restored is not None):  # all take the same one
                for bad in () if self._read_only else broken:
                    self._set_aside(bad)
                return restored
            broken.append(step)
            parallel.say(
                f"warning: checkpoint {self._directory / str(step)} cannot be read "
                f"({reason or 'by another process'})"
                + ("; trying the one before" if step != steps[-1] else "")
            )
        if broken:
            raise UserError(
                f"{self._directory}: none of the checkpoints {_listed(broken)} can be read; "
                f"move the folder away to start anew"
            )
        return None

    def _read(self, step: int, like: TrainState) -> tuple[Any, str]:
        """The checkpoint, or None and why it cannot be read; each process reads for itself.

        The manager's own reading waits for the other processes, also for one in which it failed.
        """
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        reader = ocp.Checkpointer(handler, multiprocessing_options=alone)
        try:
            folder, wanted = self._directory / str(step), jax.tree.map(_abstract, like)
            sums = checksums.read(folder)
            shapes = _saved_shapes(handler, folder) if sums is None else checksums.shapes(sums)
            is_whole = _check_shapes(folder, shapes, like)
            part = _stored(wanted) if is_whole else unflatten_dict(_arrays(wanted), sep="/")
            args = ocp.args.PyTreeRestore(
                part, ocp.checkpoint_utils.construct_restore_args(part),
                partial_restore=len(_arrays(wanted)) < len(shapes),
            )  # fmt: skip
            found = _arrays(reader.restore(folder / "state", args=args))
            state = jax.tree.unflatten(jax.tree.structure(like), [found[k] for k in _arrays(like)])
            run = _read_run(folder)
            if sums is None:
                parallel.say(
                    f"note: checkpoint {folder} was saved by a version of tvjax that kept no "
                    f"checksums; damage to its arrays would not be seen"
                )
            else:
                checksums.check(sums, _arrays(state), run)
            return (state, run), ""
        except UserError:
            raise
        except Exception as error:  # a damaged file can raise almost anything in tensorstore
            lacking, reason = shortage(error), _reason(error)
            if lacking:
                raise Outage(f"{self._directory / str(step)} cannot be read: {lacking}") from error
        gc.collect()  # its tasks, and its other threads end meanwhile, unheard
        time.sleep(0.2)
        return None, reason

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


class _Manager(ocp.CheckpointManager):
    """Orbax's, which reads metrics as it opens the folder, and ends where one file is damaged."""

    def reached_preemption(self, step: int) -> bool:
        """False: `interrupt.Stop` alone asks JAX, which keeps the number of whoever asked last.

        Asked by orbax with the step of each save, it agreed on a number that had passed.
        """
        del step
        return False

    def metrics(self, step: int) -> dict[str, float] | None:
        """`{"val_iou": ...}`, or None where that cannot be read."""
        folder = Path(self.directory) / str(step)
        try:
            sums = checksums.read(folder)
            found = json.loads((folder / "metrics" / "metrics").read_bytes()) if not sums else sums
            return {"val_iou": float(found["val_iou"])}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None


def _listed(steps: list[int]) -> str:
    more = f" and {len(steps) - SHOWN} more" if len(steps) > SHOWN else ""
    return ", ".join(map(str, steps[:SHOWN])) + more


def _newest_but(broken: list[int], steps: list[int]) -> int | None:
    """The first process's: folders of a network may look older from elsewhere."""
    step = parallel.as_the_first(next((s for s in steps if s not in broken), -1))
    return None if step == -1 else step


def _val_iou(metrics: Any) -> float:
    return metrics["val_iou"] if metrics else _NOT_EVALUATED


def _report_cut_off(directory: Path) -> None:
    for folder in directory.glob("*.orbax-checkpoint-tmp*") if directory.is_dir() else ():
        step = folder.name.split(".")[0]
        parallel.say(f"warning: the save of checkpoint {step} was cut off; it is not used")


def _reason(error: Exception) -> str:
    """What the file system said, which tensorstore hides in a long line; or the line."""
    said = re.search(r": ([^:]+) \[os_error_code", str(error))
    lines = [said[1]] if said else str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


@contextlib.contextmanager
def _without_tasks_told_of() -> Iterator[None]:
    """Where an array cannot be read, orbax drops the tasks of the others: each prints a traceback
    when it is collected, or when tensorstore comes back to it."""
    log = logging.getLogger("asyncio")
    before = sys.excepthook, sys.unraisablehook, log.disabled
    sys.excepthook = sys.unraisablehook = lambda *_: None
    log.disabled = True
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook, log.disabled = before


@functools.cache
def _never_tell_of_dropped_tasks() -> None:
    """A save that fails between two calls here drops tasks too: tensorstore's threads come back to
    a loop that is closed, and print a traceback for each array, at any time from then on."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    told, unraisable = sys.excepthook, sys.unraisablehook

    def is_dropped(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    sys.excepthook = lambda kind, error, trace: is_dropped(error) or told(kind, error, trace)
    sys.unraisablehook = lambda args: is_dropped(args.exc_value) or unraisable(args)


def _read_run(folder: Path) -> dict[str, Any]:
    run = json.loads((folder / "run" / "metadata").read_bytes())
    if not isinstance(run, dict):
        raise checksums.Damaged("run/metadata is not as it was saved")
    return run


def _saved_shapes(handler: ocp.PyTreeCheckpointHandler, folder: Path) -> dict[str, tuple[int, ...]]:
    saved = handler.metadata(epath.Path(folder / "state"))
    return _shapes(getattr(saved, "item_metadata", saved))


def _check_shapes(folder: Path, found: dict[str, tuple[int, ...]], like: TrainState) -> bool:
    """Refuses other arrays than those of `like`; returns whether it wants all that was saved."""
    wanted = _shapes(like)
    leaves = jax.tree.leaves_with_path(like, is_leaf=_is_empty)
    left_out = tuple(f"{_name(path)}/" for path, x in leaves if _is_empty(x))
    read = {name for name in found if not f"{name}/".startswith(left_out)}
    is_whole = len(read) == len(found)
    read -= _FORMER
    for name in sorted(read | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{folder} is of another architecture: {name} has shape {found.get(name)} there "
                f"and {wanted.get(name)} here; use another --workdir or the config that wrote it"
            )
    return is_whole


def _is_empty(x: Any) -> bool:
    return isinstance(x, tuple) and not x


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Where nothing is said, on one device, wherever it was saved."""
    here = x.sharding or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)


def _stored(state: TrainState) -> dict[str, Any]:
    """What is written of a state, as before there were averages where there is none."""
    return {k: x for k, x in state._asdict().items() if k != "average" or not _is_empty(x)}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in _arrays(tree).items()}


def _arrays(tree: Any) -> dict[str, Any]:
    """Arrays by names such as `inner/params/Conv_0/kernel`, of a state and of its saved dicts."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {_name(path): x for path, x in leaves if hasattr(x, "shape")}
