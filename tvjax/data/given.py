"""Splits that are given, by a CSV file of names and splits."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tvjax.data.splits import NAMES
from tvjax.errors import UserError

SHOWN = 2
"""Pairs of tiles that a warning names."""

_PART = re.compile(r"@x\d+y\d+$", re.ASCII)
"""What a tile's name adds to that of its image."""


def read(file: Path) -> dict[str, int]:
    """Reads which tile belongs to which split.

    Args:
      file: a line per tile: its file's name, as in `splits.csv` (its path in the folder of images),
        and `train`, `val` or `test`. A first line may name the columns: `file` or `name`, and
        `split`; others do not matter.

    Returns:
      Indices in `splits.NAMES` by name.

    Raises:
      UserError: the file cannot be read, or a line is no such pair; the message names it.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:  # a name may hold line ends
            lines = list(csv.reader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--split_file={file}: cannot be read ({error})") from error
    first = [cell.strip().lower() for cell in lines[0]] if lines else []
    at, start = (0, 1), 0
    if "split" in first and {"file", "name"} & set(first):
        name = "file" if "file" in first else "name"
        at, start = (first.index(name), first.index("split")), 1
    found: dict[str, int] = {}
    for number, cells in enumerate(lines[start:], start + 1):
        if not any(cells):
            continue
        name, split = (cells[k].strip() if k < len(cells) else "" for k in at)
        number_of = NAMES.index(split) if name and split in NAMES else None
        if number_of is None or found.setdefault(name, number_of) != number_of:
            raise UserError(
                f"--split_file={file}: line {number} is {','.join(cells)[:80]!r}; each line is the "
                f"name of an image and one of {', '.join(NAMES)}, and each name has one split"
            )
    return found


def is_of_tiles(splits: Mapping[str, int]) -> bool:
    """Whether the names are those of tiles that images were cut into, as `splits.csv` has them."""
    return any(_PART.search(name) for name in splits)


def assign(names: Sequence[str], splits: Mapping[str, int], where: str) -> np.ndarray:
    """The split of each tile, int `[N]`.

    Args:
      names: names of the tiles.
      splits: indices by name, by name without its ending, or by that of the large image of which a
        tile is a part (`NAME@x0y512`); names of no tile do not matter.
      where: what says so, for the message.

    Raises:
      UserError: a tile has no split, or two by two forms of its name, or a split no tile.
    """
    found = [_find(name, splits, where) for name in names]
    lacking = [name for name, split in zip(names, found, strict=True) if split is None]
    if lacking:
        more = f" and {len(lacking) - 1} more" * (len(lacking) > 1)
        raise UserError(f"{where}: gives no split for {lacking[0]}{more}; each image needs one")
    assigned = np.array(found, int)
    empty = [name for k, name in enumerate(NAMES) if k not in assigned]
    if empty:
        raise UserError(f"{where}: no image is in {empty[0]}; each of {', '.join(NAMES)} needs one")
    return assigned


def _find(name: str, splits: Mapping[str, int], where: str) -> int | None:
    """The split of a tile by its own name, or else by that of its image."""
    image = _PART.sub("", name)
    for whole in (name, image):
        forms = [form for form in (whole, os.path.splitext(whole)[0]) if form in splits]
        found = {splits[form] for form in forms}
        if len(found) > 1:
            both = " and ".join(f"{form} in {NAMES[splits[form]]}" for form in forms)
            raise UserError(f"{where}: has {both}, which are both {name}; leave one out")
        if found:
            return found.pop()
    return None


def warn(assigned: np.ndarray, kept: dict[str, np.ndarray], names: Sequence[str] = ()) -> list[str]:
    """One line for each kind of what should stay together and is in several splits.

    The splits are `[N]`, and so are the labels of each kind, equal for what should stay together.
    Where the tiles' names are given, it tells the first ones.
    """
    lines = []
    for kind, labels in kept.items():
        several = sum(len(np.unique(assigned[labels == label])) > 1 for label in np.unique(labels))
        trained_on = np.unique(labels[assigned == 0])
        leaked = np.isin(labels, trained_on) & (assigned > 0)
        if several:
            pairs = [
                (np.flatnonzero((labels == label) & (assigned == 0))[0],
                 np.flatnonzero((labels == label) & leaked)[0])
                for label in np.unique(labels[leaked])[:SHOWN]
            ]  # fmt: skip
            number = int(leaked.sum())
            lines.append(
                f"the given splits part {several} cluster{'s' * (several > 1)} of {kind}: of the "
                f"{np.sum(assigned > 0)} tiles of val and test {number} "
                f"{'is' if number == 1 else 'are'} of a cluster that is in train too, which makes "
                "scores look better than they are" + _such_as(pairs, names)
            )
    return lines


def warn_near(assigned: np.ndarray, pairs: np.ndarray, names: Sequence[str]) -> list[str]:
    """One line, or none, on tiles of val and test that are too near to some of train.

    The splits are `[N]`, and `pairs` `[P, 2]` in both orders, see `places.Places`.
    """
    found = np.unique(pairs[(assigned[pairs[:, 0]] == 0) & (assigned[pairs[:, 1]] > 0)], axis=0)
    near, first = np.unique(found[:, 1], return_index=True)
    number = len(near)
    if not number:
        return []
    return [
        f"{number} of the {np.sum(assigned > 0)} tiles of val and test "
        f"{'lies' if number == 1 else 'lie'} nearer than --gap to tiles of train (the given splits "
        "part images that touch, and no gap is cut there), which makes scores look better than "
        "they are" + _such_as(found[first[:SHOWN]].tolist(), names)
    ]


def _such_as(pairs: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    told = [f"{names[one]} (train) and {names[two]}" for one, two in pairs if len(names)]
    return "; such as " + ", ".join(told) if told else ""
