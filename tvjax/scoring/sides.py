"""The runs on the two sides of a comparison: what they must not share, and what pairs them."""

import os
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from tvjax.errors import UserError


class Run(NamedTuple):
    """What a comparison must know of a run, beside its scores."""

    workdir: str
    seed: int
    method: dict[str, Any]
    """Fields of its config that make its method, by name: all but the seed."""
    net: str
    """A digest of what it predicts by."""
    data: dict[str, Any] | None
    """The data that it was trained on, as in `rundir.read_data`."""


def folders(given: Iterable[str]) -> list[str]:
    """The folders of runs that a flag names: `A1,A2,A3`, or each by a flag of its own.

    Names may hold commas themselves, as those that `tvjax.sweep` makes do: `lambda=1e-06,seed=0` is
    one folder where there is one of this name.
    """
    found = []
    for text in given:
        parts = text.split(",")
        while parts:
            joined = (",".join(parts[:k]) for k in range(1, len(parts) + 1))
            name = next((name for name in joined if name and Path(name).is_dir()), parts[0])
            found.append(name)
            parts = parts[name.count(",") + 1 :]
    return found


def check_folders(first: Sequence[str], second: Sequence[str]) -> None:
    """Refuses a run that is given twice.

    Raises:
      UserError: naming it.
    """
    for one, two in combinations([*first, *second], 2):
        if os.path.realpath(one) == os.path.realpath(two):
            raise UserError(
                f"{two} is given twice, and a run compared with itself says nothing; give each run "
                "once"
            )


def check(first: Sequence[Run], second: Sequence[Run]) -> None:
    """Refuses runs that are copies of others, and a seed that a side has twice.

    Raises:
      UserError: naming both runs.
    """
    for one, two in combinations([*first, *second], 2):
        if (one.net, one.method, one.seed) == (two.net, two.method, two.seed):
            raise UserError(
                f"{two.workdir} is a copy of {one.workdir}, and a run compared with itself says "
                "nothing; give each run once"
            )
    for side in (first, second):
        for one, two in combinations(side, 2):
            if one.seed == two.seed:
                raise UserError(
                    f"{one.workdir} and {two.workdir} have the same seed, {one.seed}: they are not "
                    "two draws of one method; train one of them with another --config.seed"
                )


def paired(first: Sequence[Run], second: Sequence[Run]) -> list[int] | None:
    """Which run of the second side has the seed of each run of the first, and the same data.

    Returns:
      None: the seeds are not the same, or not all data are known to be.
    """
    by_seed = {run.seed: k for k, run in enumerate(second)}
    known = {run.data["sha256"] if run.data else None for run in (*first, *second)}
    if {run.seed for run in first} != by_seed.keys() or len(known) > 1 or None in known:
        return None
    return [by_seed[run.seed] for run in first]


def warn(first: Sequence[Run], second: Sequence[Run]) -> list[str]:
    """Lines to be told: runs of one side with several configs, runs of different data."""
    lines = [words for side in (first, second) if (words := _warn_of_methods(side))]
    data = warn_of_data(*(run.data for run in (*first, *second)))
    return lines + ([data] if data else [])


def _warn_of_methods(side: Sequence[Run]) -> str | None:
    one = side[0]
    for two in side[1:]:
        names = sorted(one.method.keys() | two.method.keys())
        other = [name for name in names if one.method.get(name) != two.method.get(name)]
        if other:
            values = (run.method.get(other[0]) for run in (one, two))
            more = f" and {len(other) - 1} more" * (len(other) > 1)
            return (
                f"{one.workdir} and {two.workdir} are not seeds of one method: they differ in "
                f"{other[0]} ({' and '.join(map(repr, values))}){more}"
            )
    return None


def warn_of_data(*data: dict[str, Any] | None) -> str | None:
    """One line if runs have other data, by their `rundir.read_data`: images of one's split may be
    in another's training."""
    known = {d["sha256"]: d for d in data if d}
    scored = "all are scored on the same images, and any may have been trained on some of them"
    if None in data:
        return f"one of the runs has no tiles.json, so that its data may be others; {scored}"
    if len(known) < 2:
        return None
    names = (f"{k[:12]} of {d['directory'] or 'the embedded set'}" for k, d in known.items())
    return f"the runs were trained on different data ({' and '.join(names)}); {scored}"
