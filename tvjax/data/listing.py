"""The files of a folder that labels and images are matched by: those of some endings, by name."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tvjax.errors import UserError


def files(directory: Path, kind: str, suffixes: Iterable[str], *, below: bool) -> list[Path]:
    """The files with these endings, in the order of their names; hidden ones do not count.

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
    inside = sorted(directory.rglob("*") if below else directory.iterdir())
    links = [file for file in inside if file.is_symlink() and file.is_dir()]
    if below and links:
        raise UserError(f"{links[0]}: is a link to a folder; put the folder in its place")
    found = (file for file in inside if file.suffix.lower() in suffixes and not file.is_dir())
    return [file for file in found if not file.name.startswith(".")]


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
