"""Tiles that are left out of a build by a list, such as `tvjax.label_faults` writes."""

import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

from tvjax.errors import UserError, short

T = TypeVar("T")


def read(file: Path) -> dict[tuple[int, str], int]:
    """Reads which tiles are left out.

    Args:
      file: a CSV file with a line per tile: its id, and after it, if at all, its file's name as in
        `splits.csv`. A first line may name the columns `id` and `file`; others do not matter.

    Returns:
      The numbers of the lines by `(id, name)`, the name empty where there is none.

    Raises:
      UserError: the file cannot be read, or a line begins with no id; the message names it.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            lines = list(csv.reader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--leave_out={file}: cannot be read ({error})") from error
    first = [cell.strip().lower() for cell in lines[0]] if lines else []
    at, start = (0, 1), 0
    if "id" in first:
        at, start = (first.index("id"), first.index("file") if "file" in first else len(first)), 1
    found: dict[tuple[int, str], int] = {}
    for number, cells in enumerate(lines[start:], start + 1):
        if not any(cells):
            continue
        identity, name = (cells[k].strip() if k < len(cells) else "" for k in at)
        if not re.fullmatch(r"-?[0-9]{1,19}", identity):
            raise UserError(
                f"--leave_out={file}: line {number} is {short(','.join(cells))}; each line is the "
                "id of an image, and after it, if at all, its name"
            )
        found.setdefault((int(identity), name), number)
    return found


def without(
    tiles: Sequence[T],
    ids: Sequence[int],
    names: Sequence[str],
    file: Path,
    *,
    unknown: Collection[str] = (),
) -> list[T]:
    """The tiles that a list, see `read`, does not name by their ids and names.

    It may name those that are `unknown`: images that are no tiles, since they cannot be used.

    Raises:
      UserError: the list cannot be read, names what is no tile, or a tile by another name, or it
        leaves no tile.
    """
    listed = read(file)
    keys = [{(k, ""), (k, name)} for k, name in zip(ids, names, strict=True)]
    missed = listed.keys() - set().union(*keys)
    missed = {(k, name) for k, name in missed if (name or not unknown) and name not in unknown}
    if missed:
        k, name = min(missed, key=lambda key: listed[key])
        here = dict(zip(ids, names, strict=True)).get(k)
        called = f" called {short(name)}" if name else ""
        raise UserError(
            f"--leave_out={file}: line {listed[k, name]}: there is no image {k}{called}"
            + (f"; the one here is called {short(here)}" if here and name else "")
            + "; give the list that was made of these images, prepared by the same flags"
        )
    kept = [tile for tile, key in zip(tiles, keys, strict=True) if not key & listed.keys()]
    if tiles and not kept:
        raise UserError(f"--leave_out={file}: leaves out all {len(tiles)} images; shorten it")
    return kept
