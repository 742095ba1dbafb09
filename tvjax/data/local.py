"""Where files may lie, and what may be opened: regular files, in the folder that was named."""

import hashlib
import os
import stat
from pathlib import Path

from tvjax.errors import UserError, short

MOST_BYTES, MOST_OF_ALL = 255, 4095
"""Bytes of a part of a path, and of a whole one; no system in use takes longer ones."""

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: str | Path, most: int | None = None, advice: str = "") -> None:
    """Checks that something is a regular file: to open a pipe waits for who writes into it.

    Args:
      path: the file.
      most: bytes that it may have; None: any number.
      advice: what to do about a larger one.

    Raises:
      UserError: it is none, or there is nothing, or it is larger.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from error
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UserError(f"{path}: cannot be read, it is {kind} and no file")
    if most is not None and found.st_size > most:
        raise UserError(f"{path}: has more than {most >> 20} MiB; {advice}")


def sha256(file: Path) -> str:
    """The digest of a regular file.

    Raises:
      UserError: it is none, or cannot be read.
    """
    check_regular(file)
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def wrong_name(name: str) -> str | None:
    """What is wrong with a relative path that was found in a file; None: nothing."""
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:
        return "holds half a character"
    if b"\0" in name.encode():
        return "holds a character of number 0"
    is_long = len(name.encode()) > MOST_OF_ALL or max(map(len, parts)) > MOST_BYTES
    return "is too long for a file" if is_long else None


class Folder:
    """A folder whose files are named by another file, which must not name what lies elsewhere."""

    def __init__(self, path: Path):
        self._path, self._real = path, os.path.realpath(path)
        self._parents: dict[Path, str] = {}

    def check_inside(self, name: str) -> None:
        """Checks a name in the folder; links are followed.

        Raises:
          UserError: the name, or a link on the way, leads out of the folder.
        """
        file = self._path / name
        # Most files have their folder in common: one look at each file suffices then.
        parent = self._parents.get(file.parent)
        if parent is None:
            parent = self._parents[file.parent] = os.path.realpath(file.parent)
        real = os.path.realpath(file) if file.name == ".." or os.path.islink(file) else ""
        for place in (parent, real or parent):
            if os.path.commonpath([place, self._real]) != self._real:
                raise UserError(
                    f"file_name={short(name)} leads out of the folder of images {self._path}, to "
                    f"{real or place}; name the folder that holds the file, or copy it there"
                )
