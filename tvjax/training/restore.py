"""A finished (or interrupted) run, ready to be used."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from tvjax import fields, files, interruption, program
from tvjax.data import sets
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.training import rundir
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.setup import Setup, make_setup
from tvjax.training.state import TrainState
from tvjax.types import Config

ANY_SHAPE = (64, 64)
"""Size of the images by which parameters are made, whose shapes do not depend on it."""


class Run(NamedTuple):
    """What a workdir holds."""

    config: Config
    setup: Setup
    state: TrainState
    splits: dict[str, Split]


def open_run(workdir: Path, checkpoint: str | int = "newest") -> Run:
    """Restores a checkpoint of a run and opens its data.

    Args:
      workdir: folder of the run.
      checkpoint: see `Checkpoints.choose`.

    Raises:
      UserError: there is no run, no checkpoint, or no data, or they are not those of the run.
    """
    config, setup, state = open_net(workdir, checkpoint)
    splits, data = open_data(config)
    rundir.check_data(workdir, data, advice="put the former back in their place")
    return Run(config, setup, state, splits)


def open_data(
    config: Config, directory: str | None = None
) -> tuple[dict[str, Split], dict[str, Any]]:
    """The data that a config names, or those of another folder; and what tells them apart.

    Raises:
      UserError: there are none.
    """
    options = {name: config.data[name] for name in config.data if name != "resident"}
    options["directory"] = options["directory"] if directory is None else directory
    cache, options["cache"] = options["cache"], program.CACHE
    ready = sets.find_embedded(cache, **{name: options[name] for name in ("size", "seed")})
    if options["directory"] is None and ready is not None:  # read there, and never written
        return (splits := sets.open_prepared(ready)), sets.identify(splits, None)
    splits = sets.open_sets(**options)
    return splits, sets.identify(splits, options["directory"])


def read_config(workdir: Path) -> Config:
    """The config of a run. Its folder may be somebody else's: nothing is written where it says.

    Raises:
      UserError: there is no run, or its `config.json` is damaged.
    """
    path = workdir / "config.json"
    try:
        stored = files.read_object(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{workdir} holds no run (no readable config.json)") from error
    except (OSError, ValueError) as error:
        raise UserError(_damaged(path, error)) from error
    try:
        config: Config = ConfigDict(rundir.as_now(stored))
        fields.check(config)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(_damaged(path, error)) from error
    return config


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).partition("\n")[0][:200]
    return (
        f"{path} is damaged, or of another version of tvjax ({reason}); move it away, and run the "
        f"training's command, which writes it anew"
    )


def open_net(workdir: Path, checkpoint: str | int = "newest") -> tuple[Config, Setup, TrainState]:
    """Restores a checkpoint of a run, whose data need not be at hand.

    Args:
      workdir: folder of the run.
      checkpoint: see `Checkpoints.choose`.

    Raises:
      UserError: there is no run, or no such checkpoint.
    """
    config = read_config(workdir)
    if (
        jax.config.values["jax_compilation_cache_dir"] is None
    ):  # that of the user, never of the run's folder
        program.cache_compilations(Path(program.CACHE) / "compiled")
    setup = make_setup(config, ANY_SHAPE)
    interruption.check()
    # Nothing is made where nothing was: orbax would create the folder.
    folder = workdir / "checkpoints"
    restored = None
    if folder.is_dir():
        with Checkpoints(folder, read_only=True) as checkpoints:
            restored = checkpoints.restore(setup.create(), checkpoint)
    interruption.check()
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint yet; train first")
    return config, setup, restored[0]
