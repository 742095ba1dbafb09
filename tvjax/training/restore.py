"""A finished (or interrupted) run, ready to be used."""

import functools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from tvjax import fields, files, interruption, program
from tvjax.data import sets
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.training import rundir
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.net import Net, make_net
from tvjax.training.state import TrainState
from tvjax.types import Config

ANY_SHAPE = (64, 64)
"""Size of the images by which parameters are made, whose shapes do not depend on it."""


def open_splits(workdir: Path, config: Config) -> dict[str, Split]:
    """The tiles that a run was trained on.

    Raises:
      UserError: there are none, or they are others.
    """
    splits, data = open_data(config)
    rundir.check_data(workdir, data, advice="put the former back in their place")
    return splits


def open_data(
    config: Config, directory: str | None = None
) -> tuple[dict[str, Split], dict[str, Any]]:
    """The data that a config names, or those of another folder; and what tells them apart.

    Raises:
      UserError: there are none.
    """
    data = config.data
    directory = data.directory if directory is None else directory
    boundaries = data.boundaries
    ready = sets.find_embedded(data.cache, size=data.size, seed=data.seed, boundaries=boundaries)
    if directory is None and ready is not None:  # read there, and never written
        splits = sets.open_prepared(ready, boundaries=boundaries)
        return splits, sets.identify(splits, None)
    if directory != data.directory and sets.is_prepared(directory):
        boundaries = False  # other tiles can be scored without
    splits = sets.open_section(
        data, directory=directory, cache=program.CACHE, boundaries=boundaries
    )
    return splits, sets.identify(splits, directory)


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
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
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


def open_net(workdir: Path, checkpoint: str | int = "newest") -> tuple[Config, Net, TrainState]:
    """A run's net with its parameters, on one device; its data need not be at hand.

    Nothing of training is made or read: of the state optimisers and carry are `()`. For what
    `checkpoint` may be, see `Checkpoints.choose`.

    Raises:
      UserError: there is no run, or no such checkpoint.
    """
    config = read_config(workdir)
    program.cache_compilations(Path(program.CACHE) / "compiled")  # never the run's folder
    tiles = (rundir.read_data(workdir) or {}).get("train_tiles")
    with jax.enable_x64(False):  # as it was trained, also where the caller computes in float64
        net = make_net(config, tiles=tiles)
        create = functools.partial(net.create, image_shape=ANY_SHAPE)
        shapes = jax.eval_shape(create, config.seed, net.hyper)
        return config, net, open_state(workdir, shapes, checkpoint)


def open_state(workdir: Path, like: TrainState, checkpoint: str | int = "newest") -> TrainState:
    """The state of a run's checkpoint, or what `like` has of it, as in `Checkpoints.restore`.

    Raises:
      UserError: there is no such checkpoint, or a link among them.
    """
    interruption.check()
    folder, restored = workdir / "checkpoints", None
    rundir.check_links(workdir)
    if folder.is_dir():  # nothing is made where nothing was: orbax would create the folder
        with Checkpoints(folder, read_only=True) as checkpoints:
            restored = checkpoints.restore(like, checkpoint)
    interruption.check()
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint yet; train first")
    state, run = restored
    if "net" in run:  # not of earlier versions
        rundir.check_net(workdir, read_config(workdir), run, rundir.read_data(workdir))
    return state
