"""A finished (or interrupted) run, ready to be used."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tvjax import fields, interruption, program
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
      workdir: of the run.
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
    splits = sets.open_sets(**options)
    return splits, sets.identify(splits, options["directory"])


def open_net(workdir: Path, checkpoint: str | int = "newest") -> tuple[Config, Setup, TrainState]:
    """Restores a checkpoint of a run, whose data need not be at hand.

    Args:
      workdir: of the run.
      checkpoint: see `Checkpoints.choose`.

    Raises:
      UserError: there is no run, or no such checkpoint.
    """
    try:
        stored = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir} holds no run (no readable config.json)") from error
    config: Config = ConfigDict(rundir.as_now(stored))
    try:
        fields.check(config)
    except UserError as error:
        raise UserError(
            f"{workdir}/config.json is damaged, or of another version of tvjax ({error}); train "
            f"anew"
        ) from error
    program.cache_compilations(Path(config.data.cache) / "compiled")
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
