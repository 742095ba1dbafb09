"""Checkpoints: the whole training state and what resuming needs, by orbax."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from tvjax.errors import UserError
from tvjax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, newest first; a context manager that finishes pending saves.

    Saving is asynchronous, and a save that was cut off is never read: orbax writes into a
    temporary folder and renames it.
    """

    def __init__(self, directory: Path, *, keep: int):
        self._directory = directory.absolute()  # orbax takes no other
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, run: dict[str, Any], *, wait: bool = False) -> None:
        """Saves the state with `run`, a JSON dict (seconds so far, and the like)."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # A copy: the next step reuses the state's memory while the save still reads it.
        state = jax.tree.map(jnp.copy, state)
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
        )
        if wait:
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None where there is none.

        One that is damaged is reported, set aside and the one before is taken.

        Raises:
          UserError: the checkpoint holds other arrays than `like` (another architecture), or
            none of those that are there can be read.
        """
        broken = []
        for step in self.steps:
            try:
                self._check_shapes(step, like)
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(jax.tree.map(_abstract, like)),
                        run=ocp.args.JsonRestore(),
                    ),
                )
            except UserError:
                raise
            except Exception as error:  # a damaged file can raise almost anything in tensorstore
                broken.append(step)
                reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else ""
                print(
                    f"warning: checkpoint {self._directory / str(step)} cannot be read "
                    f"({type(error).__name__}: {reason}); trying the one before"
                )
                continue
            for bad in broken:
                self._set_aside(bad)
            return restored["state"], restored["run"]
        if broken:
            raise UserError(
                f"{self._directory}: none of the checkpoints {broken} can be read; "
                f"move the folder away to start anew"
            )
        return None

    def _set_aside(self, step: int) -> None:
        # Out of the manager's sight, or it would not save that step again.
        aside = self._directory.parent / "damaged_checkpoints"
        aside.mkdir(exist_ok=True)
        target = aside / str(step)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(self._directory / str(step), target)
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
