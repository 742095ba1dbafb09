"""`source.json` beside the records: what they were built from, and what came out."""

import json
from pathlib import Path
from typing import Any

from tvjax import files
from tvjax.data import local, splits
from tvjax.data.sources import Sources
from tvjax.errors import UserError, short

FILE = "source.json"
VERSION = "1.0.0"
"""Version of the records' layout; raise it when tiles prepared before must not be read any more."""
BUILDER = 3
"""Raise it when the same request makes other records; those that are there can be read still."""

_MOST = 2**14
"""Pixels of a tile's side."""


class Differs(UserError):
    """A directory holds tiles that were prepared from something else than is asked for."""


def request(
    labels: dict[str, Any],
    *,
    size: tuple[int, int],
    limit: int | None,
    seed: int,
    split: tuple[float, ...],
    split_file: Path | None = None,
    group: str | None = None,
    map_tiles: bool = True,
    leave_out: Path | None = None,
    boundaries: int | None = None,
) -> dict[str, Any]:
    """What the caller of a build asks for, in the form that is stored and compared.

    Images and masks are compared by `sources`, the labels by what is said of them in `labels`.

    Raises:
      UserError: the file of splits or the list of tiles to leave out cannot be read.
    """
    return {
        "layout_version": VERSION,
        "builder": BUILDER,
        **labels,
        "size": list(size),
        "limit": limit,
        "seed": seed,
        "split": list(split),
        "split_file_sha256": None if split_file is None else local.sha256(split_file),
        "group": group,
        "map_tiles": map_tiles,
        "leave_out_sha256": None if leave_out is None else local.sha256(leave_out),
        "boundaries": boundaries,
    }


def is_built(
    directory: Path, asked: dict[str, Any], sources: Sources, *, skip_bad: bool = False
) -> bool:
    """Whether `directory` already holds what is asked for.

    Returns:
      False if the directory is missing or empty, True if it was built by the same request of the
      same files, and unless `skip_bad`, without leaving out bad images.

    Raises:
      Differs: it holds tiles built by another request or from other files; the message names the
        first field that differs, or a file.
      UserError: it holds something else.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not (directory / FILE).is_file():
        raise UserError(
            f"{directory}: is there already and holds something else than prepared tiles; name "
            f"another directory, or delete this one first"
        )
    content = read(directory)
    built, left_out = content["request"], number_left_out(content)
    advice = "name another directory, or delete this one"
    if built.get("builder") != BUILDER:
        raise Differs(f"{directory}: was prepared by another version of tvjax; {advice}")
    for field, value in asked.items():
        if built.get(field) != value:
            what = _difference(field, built.get(field), value)
            raise Differs(f"{directory}: was prepared with {what}; {advice}")
    changes = sources.changes(directory)
    if changes:
        raise Differs(f"{directory}: its images or masks are others now: {changes}; {advice}")
    if left_out and not skip_bad:
        raise Differs(
            f"{directory}: was prepared with --skip_bad, without {left_out} bad images; give it "
            f"again, name another directory, or delete this one"
        )
    return True


def _difference(name: str, before: Any, now: Any) -> str:
    """What differs of a request, by the names of flags as far as there are any."""
    parts = [part if isinstance(part, dict) else {} for part in (before, now)]
    if any(parts):
        old, new = parts
        for key in old | new:
            if old.get(key) != new.get(key):
                return _difference(key, old.get(key), new.get(key))
    if name.endswith("_sha256"):
        return f"other contents of {name.removesuffix('_sha256')}"
    return f"{name}={short(before)}, now asked for {short(now)}"


def number_left_out(content: dict[str, Any]) -> int:
    """How many images could not be used; sets made before this was kept have none."""
    return content.get("left_out", {}).get("images", 0)


def read(directory: Path) -> dict[str, Any]:
    """Reads `source.json`.

    Raises:
      UserError: the directory is not a set of prepared tiles, or of another layout version.
    """
    try:
        content = files.read_object(directory / FILE)
        version = content["request"]["layout_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory}: is not a directory of prepared tiles (no readable {FILE}); "
            "build one with python -m tvjax.data.prepare"
        ) from error
    if version != VERSION:
        raise UserError(
            f"{directory}: prepared in layout {version}, this version reads {VERSION}; delete it, "
            f"or name another directory, and prepare anew"
        )
    if not _is_sound(content):
        raise UserError(
            f"{directory / FILE}: is damaged; delete {directory}, or name another directory, and "
            f"prepare anew"
        )
    return content


def _is_sound(content: dict[str, Any]) -> bool:
    """Whether what is read of it is of its types."""
    try:
        height, width = content["request"]["size"]
        counts = [content["splits"][name]["tiles"] for name in splits.NAMES]
        shares = [content["splits"][name]["foreground"] for name in splits.NAMES]
        numbers = [number_left_out(content), content["near_duplicate_clusters"], *counts]
        sizes = content["files"].values()
        dict(content.get("sharpness", {}))
    except (LookupError, TypeError, ValueError, AttributeError):
        return False
    whole = all(type(x) is int and x >= 0 for x in (*numbers, *sizes))
    sides = all(type(x) is int and 0 < x <= _MOST for x in (height, width))
    return whole and sides and all(type(x) in (int, float) for x in shares)


def read_request(directory: Path) -> dict[str, Any]:
    """What prediction needs to know of how records were made, as far as it is known.

    That are `size`, height and width of the tiles, `reading` (see `tvjax.data.reading`),
    `resolution`, in metres per pixel, and `scale` (see `tvjax.data.sharpness`).

    Raises:
      UserError: see `read`.
    """
    content = read(directory)
    asked, found = content["request"], dict(content.get("sharpness", {}))
    return found | {n: asked[n] for n in ("size", "reading", "resolution") if asked.get(n)}


def write(directory: Path, content: dict[str, Any]) -> None:
    """Writes `source.json`."""
    (directory / FILE).write_text(json.dumps(content, indent=2) + "\n")
