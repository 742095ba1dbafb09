"""What the command-line programs share: flags, one-line errors, and the compilation cache."""

import contextlib
import difflib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from tvjax.errors import UserError, exit_with_one_line
from tvjax.types import Config


def define_config_flag() -> flags.FlagHolder[Config]:
    """`--config=FILE.py[:PRESET]`, and `--config.section.field=value` for its fields."""
    return config_flags.DEFINE_config_file("config", None, "The config, e.g. configs/unet.py.")


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a program's `main`: a mistake in flags, config or data is one line and status 2."""

    def quiet(argv: list[str]) -> Any:
        logging.set_verbosity(logging.WARNING)  # orbax and tfds log what they do as they do it
        return main(argv)

    app.run(exit_with_one_line(quiet), flags_parser=exit_with_one_line(_parse))


def cache_compilations(directory: str | Path) -> None:
    """Keeps compiled programs in a folder, so that a second run starts at once."""
    jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser()))


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_explain(error, argv)) from error
    if "config" in flags.FLAGS and flags.FLAGS.config is None:
        raise UserError("--config is missing: give one of configs/, e.g. configs/lunet_bilevel.py")
    return rest


def _explain(error: Exception, argv: list[str]) -> str:
    """One line for whatever absl and ml_collections raise about a flag."""
    parts = (argument.lstrip("-").partition("=") for argument in argv[1:])
    given = {name: value for name, _, value in parts}
    file, _, preset = given.get("config", "").partition(":")
    if "config" in given and not Path(file).is_file():
        siblings = [str(path) for path in Path(file).parent.glob("*.py")]
        near = difflib.get_close_matches(file, siblings, n=1)
        return f"--config: {file} does not exist" + (f"; did you mean {near[0]}?" if near else "")
    overrides = [name for name in given if name.startswith("config.")]
    if overrides:
        with contextlib.suppress(Exception):  # a config that cannot be loaded explains itself below
            get_config = runpy.run_path(file)["get_config"]
            fields = ["config." + path for path in field_paths(get_config(preset or None))]
            for name in (name for name in overrides if name not in fields):
                near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)
                return f"--{name}: the config has no such field; did you mean --{near[0]}?"
    # An error inside a config file comes with its whole traceback: the last line says it.
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{first} {rest[-1]}" if rest else first


def field_paths(config: Config, prefix: str = "") -> list[str]:
    """`["seed", "train.steps", ...]`."""
    paths = []
    for key, value in config.items():
        inner = isinstance(value, ConfigDict)
        paths += field_paths(value, f"{prefix}{key}.") if inner else [prefix + key]
    return paths
