"""What the command-line programs share: flags, one-line errors, interruptions, compilation cache.

A mistake in flags, config or data is one line on stderr and status 2; Ctrl-C and SIGTERM are one
line and status 130 (75 where the same command resumes).
"""

import contextlib
import difflib
import io
import itertools
import logging as python_logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from tvjax import fields, interruption, usage
from tvjax.errors import Outage, UserError, exit_with_one_line, shortage
from tvjax.home import expanded
from tvjax.types import Config

CACHE = "~/.cache/tvjax"
"""Where programs keep what they may make again, unless a config of the user says otherwise."""

PATHS = (
    "against", "annotations", "config", "data", "extent", "figure", "images", "json", "labels",
    "leave_out", "masks", "nets", "onnx", "others", "out", "readme", "results", "split_file",
    "workdir",
)  # fmt: skip
"""Flags that name files and folders."""

PARSING = {
    r"invalid literal for int\(\) with base 10: .*": "is no whole number",
    "could not convert string to float: .*": "is no number",
    r"\('Non-boolean argument to boolean flag', .*\)": "is neither True nor False",
}
"""What Python and absl say of a flag's value, and what is said instead."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it, and after SIGTERM."""


def define_config_flag() -> flags.FlagHolder[Config]:
    """`--config=FILE.py[:PRESET]`, and `--config.section.field=value` for its fields."""
    return config_flags.DEFINE_config_file(
        "config", None, "The config, e.g. configs/unet.py or configs/unet.py:paper; see below."
    )


def define_checkpoint_flag() -> flags.FlagHolder[str]:
    """`--checkpoint`, of the programs that use a trained net; see `Checkpoints.choose`."""
    return flags.DEFINE_string(
        "checkpoint", "newest",
        "Which checkpoint of the run: newest, best (by evaluation.score on validation tiles), or "
        "the step of one that was kept, e.g. 400.",
    )  # fmt: skip


def define_augment_flag() -> flags.FlagHolder[bool]:
    """`--augment`, of the programs that predict; see `Predictor.augment`."""
    return flags.DEFINE_bool(
        "augment", False,
        "Whether probabilities are means over the image's flips and quarter turns, in eight times "
        "the time (of tiles that are not square over flips, in four times).",
    )  # fmt: skip


def run(
    main: Callable[[list[str]], Any], *, interrupted: int = INTERRUPTED, words: int = 0
) -> None:
    """Runs a program's `main`, which gets the program's name, and after it `words` at most.

    Ctrl-C and SIGTERM are noted, and end the program where `interruption.check` is called next, so
    that what is half written is removed on the way out. A `main` may raise its `KeyboardInterrupt`
    anew with a word on what stays.

    Args:
      main: main function of the program.
      interrupted: the exit status after either, and after a second one, which ends it at once.
      words: how many arguments that are no flags it takes.
    """

    @_told(unread=1)
    def guarded(argv: list[str]) -> Any:
        # Orbax and tfds log what they do, and errors with tracebacks that are told of here anyway.
        logging.set_verbosity(logging.FATAL)
        python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
        # A file's name need not be text; it must not end the program that prints it.
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore
        _leave_x64()
        try:
            with interruption.noted(interrupted):
                return main(argv)
        except (RuntimeError, AssertionError, MemoryError) as error:
            if lacking := shortage(error):
                raise Outage(lacking) from error
            _check_devices(error)
            raise
        except KeyboardInterrupt as interrupt:
            what = f": {interrupt}" if str(interrupt) else ""
            print(f"\ninterrupted{what}; run the same command again", file=sys.stderr)
            sys.exit(interrupted)

    _mend_streams()
    parse = _told(unread=0)(partial(_parse, words=words))
    app.run(exit_with_one_line(guarded), flags_parser=exit_with_one_line(parse))


def cache_compilations(directory: str | Path) -> None:
    """Keeps compiled programs in a folder, so that a second run starts at once.

    Where JAX has one already, by `JAX_COMPILATION_CACHE_DIR`, they are kept there instead.
    """
    import jax  # programs that prepare data do without it

    with contextlib.suppress(UserError):  # no home, no cache
        if jax.config.values["jax_compilation_cache_dir"] is None:
            jax.config.update("jax_compilation_cache_dir", str(expanded(directory)))


class _Heedless(io.FileIO):
    """The file of stderr, of which a full disk takes nothing: what is said there ends no work."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data) or 0
        return memoryview(data).nbytes


def _mend_streams() -> None:
    """Opens what is closed, whose number would be that of a file, and makes stderr heedless."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    with contextlib.suppress(OSError, ValueError):  # of a notebook or a test it has no number
        told = sys.stderr
        file = _Heedless(told.fileno(), "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(file), told.encoding, "backslashreplace", line_buffering=True
        )


@contextlib.contextmanager
def _told(unread: int) -> Iterator[None]:
    """Ends in one line what the system refuses and was not foreseen, stdout's last words included.

    `unread` is the exit status where whoever read stdout has read enough.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:  # the system says why, and of which file
        if error.strerror is None:
            raise
        if error.filename is None:  # perhaps of stdout, which is flushed once more at the end
            _leave_stdout()
        if isinstance(error, BrokenPipeError):
            sys.exit(unread)
        where = "" if error.filename is None else f"{error.filename}: "
        raise Outage(f"{where}{error.strerror}") from error


def _leave_x64() -> None:
    """Computes in 32 bits where JAX would in 64: runs and their checkpoints are of 32."""
    jax = sys.modules.get("jax")  # programs that prepare data do without it
    if jax is not None and jax.config.jax_enable_x64:
        print("note: JAX_ENABLE_X64 is set; this program computes in float32", file=sys.stderr)
        jax.config.update("jax_enable_x64", False)


def _check_devices(error: Exception) -> None:
    """Looks whether an error came of devices that are not there: any program would end in it.

    Raises:
      UserError: it did.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return
    with contextlib.suppress(RuntimeError, AssertionError):
        if not str(error).startswith("Unable to initialize backend"):
            jax.devices()
            return
    reason = f" ({str(error).partition(' (set JAX')[0].rstrip('.')[:200]})" if str(error) else ""
    raise UserError(
        f"JAX_PLATFORMS={jax.config.jax_platforms}: JAX finds no such device here{reason}; leave "
        "it unset, or set it to cpu"
    ) from error


def _parse(argv: list[str], words: int = 0) -> list[str]:
    if usage.ASKS.intersection(argv[1:]):
        print(usage.text())
        sys.exit(0)
    argv = _at_home(argv)
    if [name for name, _ in _typed(argv)].count("config") > 1:
        raise UserError("--config is given twice; give one file, and its fields by --config.FIELD")
    file = dict(_typed(argv)).get("config", "").partition(":")[0]
    if os.path.exists(file) and not os.path.isfile(file):
        raise UserError(f"--config: {file} is no file")
    try:
        rest = flags.FLAGS(argv)
        config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
        if config is not None:
            getattr(config, "name", None)  # ml_collections tells only now of a file it cannot read
    # A config file runs as Python, and is the user's.
    except (
        flags.Error, AttributeError, LookupError, TypeError, ValueError, OSError, ImportError,
        NameError, SyntaxError,
    ) as error:  # fmt: skip
        raise UserError(_explain(error, dict(_typed(argv)))) from error
    _check_typed(argv)
    if "config" in flags.FLAGS:
        if config is None:
            raise UserError(_no_config())
        for name, value in dict(fields.flat(config)).items():
            if value == "None" and name in fields.FIELDS and fields.FIELDS[name].holds(None):
                config.update_from_flattened_dict({name: None})  # flags hold texts alone
        fields.check(config)
    if len(rest) > 1 + words:
        kinds = "all are flags" if not words else f"{words} may be no flag"
        raise UserError(
            f"unexpected argument {rest[1 + words]!r}; {kinds}, see --help (a glob needs quotes)"
        )
    return rest


def _at_home(argv: list[str]) -> list[str]:
    """The arguments with the home directory for `~` in paths: after a `=` shells leave it as it is.

    Raises:
      UserError: there is none.
    """
    found = argv[:1]
    for before, argument in itertools.pairwise(argv):
        name, equals, value = argument.partition("=")
        if not equals:
            name, value = before, argument
        if name.startswith("-") and name.lstrip("-") in PATHS:
            value = ",".join(map(_expanded, value.split(",")))
            argument = f"{name}={value}" if equals else value
        found.append(argument)
    return found


def _expanded(path: str) -> str:
    return str(expanded(path)) if path.startswith("~") else path


def _leave_stdout() -> None:
    """Sends to nowhere what stdout still holds, and could not write."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _typed(argv: list[str]) -> Iterator[tuple[str, str]]:
    """Names and values of the flags as they were typed, `--name=value` and `--name value` alike."""
    for argument, after in zip(argv[1:], [*argv[2:], ""], strict=False):
        name, has_value, value = argument.partition("=")
        if name.startswith("-"):
            yield name.lstrip("-"), value if has_value else after


def _check_typed(argv: list[str]) -> None:
    """Refuses empty flags, and numbers in other forms: Python reads other digits and `1_000` too.

    A flag is empty where a script's variable is: as a folder it would be the working folder.
    """
    for name, text in _typed(argv):
        if name not in flags.FLAGS:
            continue
        flag = flags.FLAGS[name]
        if not (text or flag.boolean or name.startswith("config")):
            raise UserError(f"--{name} is empty; give a value, or leave the flag out")
        found = flag.value
        value = found[0] if isinstance(found, list) and found else found
        if type(value) in (int, float) and not (text.isascii() and "_" not in text):
            raise UserError(f"--{name}={text}: write numbers in the digits 0 to 9 alone")


def _explain(error: Exception, given: dict[str, str]) -> str:
    """One line for whatever absl, ml_collections and config files raise about a flag."""
    file, _, preset = given.get("config", "").partition(":")
    if "config" in given and not Path(file).is_file():
        return _no_such_config(file)
    overrides = [name for name in given if name.startswith("config.")]
    if "config" in flags.FLAGS and overrides and "config" not in given:
        return _no_config()
    if overrides:
        with contextlib.suppress(Exception):  # a config that cannot be loaded explains itself below
            get_config = runpy.run_path(file)["get_config"]
            names = [f"config.{name}" for name, _ in fields.flat(get_config(preset or None))]
            for name in (name for name in overrides if name not in names):
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
                return f"--{name}: the config has no such field; did you mean --{near[0]}?"
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f"did you mean --{near[0]}?" if near else "see --help"
        return f"--{error.flagname}: there is no such flag; {hint}"
    missing = re.findall(r"Flag --(\w+) must have a value other than None", str(error))
    if missing:
        return f"{' and '.join(f'--{name}' for name in missing)} must be given, see --help"
    # An error inside a config file comes with its whole traceback: the last line says it.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "config" in given and (len(lines) > 1 or not isinstance(error, flags.Error)):
        last = lines[-1] if lines else ""
        kind = "" if isinstance(error, (flags.Error, ValueError)) else f"{type(error).__name__}: "
        return f"--config={given['config']}: {kind}{last.removeprefix('ValueError: ')}"
    told = " ".join(lines)
    for theirs, ours in PARSING.items():
        told = re.sub(f"^flag (--.*): {theirs}", rf"\1 {ours}", told)
    return told


def _no_config() -> str:
    return "--config is missing: give one of configs/, e.g. --config=configs/lunet_bilevel.py"


def _no_such_config(file: str) -> str:
    """What there is instead, in the folder that was named or else in configs/."""
    named = [Path(file).parent] if Path(file).name != file else []
    for folder in (*named, Path("configs")):
        siblings = sorted(str(path) for path in folder.glob("[!_]*.py"))
        near = difflib.get_close_matches(file, siblings, n=1)
        near = near or difflib.get_close_matches(f"{folder / file}.py", siblings, n=1)
        if siblings:
            hint = f"did you mean {near[0]}? " if near else ""
            return f"--config: {file} does not exist; {hint}There are {', '.join(siblings)}"
    return (
        f"--config: {file} does not exist; configs/ lies among the project's source: run in there, "
        "or give the config's whole path"
    )
