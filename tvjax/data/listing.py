"""The files of a folder that labels and images are matched by: those of some endings, by name."""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tvjax.errors import UserError, escaped
from tvjax.files import held_by


def files(directory: Path, kind: str, suffixes: Iterable[str], *, below: bool) -> list[Path]:
    """The files with these endings, in the order of their names.

    Hidden files and folders do not count, nor do prepared tiles, which hold pictures of their own.

    Args:
      directory: the folder.
      kind: what the files are, for messages: "images", "masks" or "labels".
      suffixes: endings in small letters, each with its dot.
      below: whether files of folders within count too.

    Raises:
      UserError: there is no such folder, or one within is a link, whose files would be missed.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory of {kind}")
    found: list[Path] = []
    for place, folders, names in os.walk(directory, onerror=_refuse):
        kept = [name for name in sorted(folders) if not name.startswith(".")] if below else []
        for name in kept:
            if Path(place, name).is_symlink():
                raise UserError(f"{Path(place, name)}: is a link to a folder; put it in its place")
        # What is left in this list is walked through.
        folders[:] = [name for name in kept if held_by(Path(place, name)) is None]
        found += (Path(place, name) for name in names if not name.startswith("."))
    return sorted(file for file in found if file.suffix.lower() in suffixes)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def note_below(directory: Path, kind: str, suffixes: Iterable[str]) -> None:
    """Tells of files in folders within, where `files` without `below` leaves them out."""
    with contextlib.suppress(UserError):  # a link, which is not followed
        found = files(directory, kind, suffixes, below=True)
        left = sum(file.parent != directory for file in found)
        if left:
            words = f"{left} {kind} in folders within {directory} are left out: move them up"
            print(f"note: {escaped(words)}", file=sys.stderr)


def by_name(directory: Path, kind: str, suffixes: Iterable[str], *, below: bool) -> dict[str, Path]:
    """The same by their paths in the folder without endings, accents written in one way.

    File systems write accents apart (macOS) or in one with their letters (others).

    Raises:
      UserError: as `files`; two share a name; or there are none.
    """
    found: dict[str, Path] = {}
    for file in files(directory, kind, suffixes, below=below):
        name = unicodedata.normalize("NFC", str(file.relative_to(directory).with_suffix("")))
        if name in found:
            raise UserError(f"{file}: {found[name].name} has the same stem; rename one")
        found[name] = file
    if not found:
        raise UserError(f"{directory}: holds no {kind} ({', '.join(suffixes)})")
    return found
