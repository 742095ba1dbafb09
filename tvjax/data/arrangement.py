"""Which tile goes into which split: as it is given, or drawn by what stays together."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tvjax.data import given, groups, map_tiles, splits
from tvjax.data.places import Places
from tvjax.errors import UserError

FILE = "splits.csv"
"""Beside the records: `id`, `file`, `split` and `cluster` of each tile; `--split_file` reads it."""


class Arrangement(NamedTuple):
    """What was asked of the splits of a build."""

    splits: Mapping[str, int] | None
    """Given ones by name, as in `given.read`; None: they are drawn."""
    where: str
    """What gives them, for messages."""
    group: str | None
    """Pattern of file names that stay together, see `groups.label`."""
    map_tiles: bool
    """Whether names of map tiles count."""
    fractions: tuple[float, ...]
    """Shares of the splits in a draw, see `splits.draw`."""
    seed: int
    """Seed of a draw."""

    def check(self, names: Sequence[str], places: Places | None = None) -> None:
        """Refuses, before anything is decoded, what `assign` would.

        Raises:
          UserError: the group is no regular expression, is in no name or in all, or given splits
            lack a name or are empty.
        """
        self.assign(names, np.arange(len(names)), places)  # as if no two were near-duplicates

    def assign(
        self, names: Sequence[str], twins: np.ndarray, places: Places | None = None
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """The splits of tiles.

        Args:
          names: names of the tiles.
          twins: labels `[N]`, equal for near-duplicates.
          places: where the tiles lie; None: it is not known, but perhaps by their names.

        Returns:
          Labels of what stays together, `[N]`; the split of each tile, `[N]`; and lines to be told.

        Raises:
          UserError: see `check`, and `splits.draw`.
        """
        kept, notes = {"near-duplicates": twins}, []
        if self.group is not None:
            kept[f"--group={self.group}"] = groups.label(names, self.group)
        named = map_tiles.read(names) if self.map_tiles and places is None else None
        if places is not None:
            kept["neighbours"] = places.near
        elif named is not None and self.splits is not None:
            kept["ground that overlaps or touches"] = map_tiles.touching(named)
        elif named is not None:
            ground = map_tiles.ground(named, self.fractions)
            kept["ground"] = ground.labels
            notes.append(f"note: {ground.words}")
        labels = splits.together(*kept.values())
        if places is not None and self.splits is None:
            labels, words = self._by_place(labels, kept, places)
            notes += words
        if self.splits is None:
            return labels, splits.draw(labels, self.fractions, self.seed), notes
        assigned = given.assign(names, self.splits, self.where)
        lines = given.warn(assigned, {k: x for k, x in kept.items() if k != "neighbours"}, names)
        if places is not None:
            lines += given.warn_near(assigned, places.pairs, names)
        return labels, assigned, [f"warning: {line}" for line in lines]

    def _by_place(
        self, labels: np.ndarray, kept: dict[str, np.ndarray], places: Places
    ) -> tuple[np.ndarray, list[str]]:
        """Labels without near-duplicates within an image, if those would join nearly all of it."""
        if splits.are_many(labels, self.fractions):
            return labels, []
        twins = places.across(kept["near-duplicates"])
        loose = splits.together(*(kept | {"near-duplicates": twins}).values())
        number = len(np.unique(loose))
        if number < len(self.fractions):
            parts = "1 part" if number == 1 else f"{number} parts"
            apart = {kind: x for kind, x in kept.items() if not kind.startswith("--group")}
            if len(np.unique(splits.together(*apart.values()))) >= len(self.fractions):
                raise UserError(
                    f"--group={self.group}: joins the {len(labels)} tiles, by names and by ground "
                    f"that is near, to {parts}, too few for the splits "
                    f"{', '.join(splits.NAMES)}: give a pattern that tells more apart, or none"
                )
            raise UserError(
                f"{len(labels)} tiles lie so near to each other that they make {parts}, too few "
                f"for the splits {', '.join(splits.NAMES)}: take smaller tiles (--tile) or a "
                "smaller --gap, or give the splits by --split_file"
            )
        if not splits.are_many(loose, self.fractions):
            return labels if len(np.unique(labels)) >= len(self.fractions) else loose, []
        return loose, [
            "note: near-duplicates within an image would join nearly all of its blocks; they show "
            "different ground, and may fall into different splits"
        ]


def read_clusters(directory: Path) -> dict[int, int]:
    """The number of the cluster of each tile of prepared records, by its id.

    Nothing of records that an earlier version made, which have no `splits.csv`.

    Raises:
      UserError: the file cannot be read, or is no such table.
    """
    path = directory / FILE
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {int(row["id"]): int(row["cluster"]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); prepare the tiles anew") from error


def write(
    directory: Path,
    ids: Sequence[int],
    names: Sequence[str],
    assigned: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Writes `splits.csv`, in which clusters are numbered from 0."""
    clusters = np.unique(labels, return_inverse=True)[1].ravel().tolist()
    with open(directory / FILE, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "file", "split", "cluster"])
        for number, name, split, cluster in zip(ids, names, assigned, clusters, strict=True):
            table.writerow([number, name, splits.NAMES[split], cluster])
