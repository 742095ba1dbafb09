"""Small files: written whole or not at all, and read without trust in what they hold."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tvjax.errors import UserError, unwritable


@contextlib.contextmanager
def replacing(path: Path, work: Path | None = None) -> Iterator[Path]:
    """A temporary path, renamed to `path` at the end, or removed after an error.

    It lies in `work`, a folder of the same file system, or beside `path` under a hidden name; what
    has that name already, perhaps a link to elsewhere, is removed first.
    """
    hidden = path.with_name(f".{path.stem}.part{path.suffix}")
    temporary = hidden if work is None else work / path.name
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file; an earlier one stays whole until the new one is.

    Raises:
      OSError: it cannot be written; nothing of it stays.
    """
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, as `write_text` writes."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      OSError: there is no such file, or it cannot be read.
      ValueError: it holds anything else.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    try:
        content = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


@contextlib.contextmanager
def writing(flag: str, place: Path) -> Iterator[None]:
    """Turns a failed write under `place` into one line that names the flag that chose it.

    Raises:
      UserError: an `OSError` came from within; an `Outage` for a full disk.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(f"--{flag}={place} cannot be written: {{}}", error) from error


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Makes a folder; what was made and is empty at the end, perhaps after an error, is removed."""
    missing = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: those around it are neither
            for place in missing:
                place.rmdir()


KEPT_BY = {
    "a run": ("config.json", "checkpoints"),
    "a sweep": ("config.json", "results.jsonl"),
    "prepared tiles": ("source.json", "tiles"),
}
"""What a folder holds in which all of these lie; nothing else is written among them."""

INNER = ("checkpoints", "tensorboard", "damaged_checkpoints", "runs", "tiles", "downloads")
"""Folders within such a folder that belong to it too."""


def held_by(folder: Path) -> str | None:
    """What the folder holds that belongs together, in words; None: nothing of this kind."""
    for what, names in KEPT_BY.items():
        if all(os.path.exists(folder / name) for name in names):
            return what
    return None


def check_apart(flag: str, place: Path, folder: Path) -> None:
    """Refuses to write in a folder among the files of a run, a sweep or prepared tiles.

    A folder of one's own within theirs will do. `place` is the value of the flag.

    Raises:
      UserError: it is theirs.
    """
    real = Path(os.path.realpath(folder))
    for owner in (real, *real.parents):
        within = real.relative_to(owner).parts
        what = held_by(owner) if not within or within[0] in INNER else None
        if what is not None:
            raise UserError(
                f"--{flag}={place}: {owner} holds {what}, among whose files nothing else is "
                f"written; name another folder, such as {owner}-out"
            )


def check_folder(flag: str, folder: Path, within: str = "") -> None:
    """Checks, before the work, that a folder can be written, or made; makes nothing.

    The flag names the folder, or the file `within` it.

    Raises:
      UserError: it cannot be, or it holds a run or the like (see `check_apart`); an `Outage` for
        a full disk.
    """
    check_apart(flag, folder / within, folder)
    real = Path(os.path.realpath(folder))
    with writing(flag, folder / within):
        there = next(place for place in (real, *real.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there) as probe:  # without a name, which might stay
            probe.write(bytes(4096))


def check_replaced(flag: str, folder: Path, names: Iterable[str], why: str) -> None:
    """Refuses to replace files that the program did not write.

    Args:
      flag: the flag that names the folder.
      folder: where they would be written.
      names: files that would be replaced and are not known to be the program's own.
      why: what tells that they are not.

    Raises:
      UserError: naming the first one that is there.
    """
    found = next((name for name in names if os.path.lexists(folder / name)), None)
    if found is not None:
        raise UserError(
            f"--{flag}={folder} holds {found}, which is of something else ({why}) and would be "
            "replaced; name another folder"
        )


def check_name(path: Path) -> None:
    """Refuses a path whose bytes are no UTF-8, which array_record, GDAL and orbax do not take.

    Raises:
      UserError: it is such a one.
    """
    if os.fsencode(path).decode(errors="ignore") != str(path):
        raise UserError(
            f"{path}: the bytes of its name are no UTF-8; rename it, or set LC_ALL=C.UTF-8 if only "
            "this terminal's language has no such letters"
        )


def check_file(flag: str, path: Path) -> None:
    """The same of a file to be written or replaced.

    Raises:
      UserError: it cannot be.
    """
    if path.is_dir():
        raise UserError(f"--{flag}={path} cannot be written: it is a folder; name a file in it")
    if os.path.exists(path) and not path.is_file():  # renaming would put a file in its place
        raise UserError(f"--{flag}={path} cannot be written: it is a device or a pipe; name a file")
    check_folder(flag, path.parent, path.name)
