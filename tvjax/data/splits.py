"""Splits of a set into training, validation and test that keep clusters together."""

import numpy as np

from tvjax.errors import UserError

NAMES = ("train", "val", "test")
"""The splits, in the order of their fractions."""


def draw(labels: np.ndarray, fractions: tuple[float, ...], seed: int) -> np.ndarray:
    """Assigns each tile to a split, whole clusters at a time.

    Clusters come in random order, the large before the small, and each goes to the split that
    misses most tiles; single tiles come last and fill the gaps. Without clusters the fractions are
    met to the tile, with `round(f N)` but at least one tile in validation and test.

    Args:
      labels: int `[N]`, equal for tiles that must stay together.
      fractions: positive, of training, validation and test; they sum to 1.
      seed: of the random order.

    Returns:
      int `[N]`: the index of the split in `NAMES`.

    Raises:
      UserError: the fractions are no such numbers, or there are fewer clusters than splits.
    """
    splits = len(NAMES)
    if len(fractions) != splits or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"split={fractions}: three positive fractions that sum to 1 are needed")
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len(members) < splits:
        raise UserError(
            f"{len(labels)} tiles in {len(members)} clusters of near-duplicates are too few for "
            f"the splits {', '.join(NAMES)}: at least {splits} clusters are needed"
        )
    held_out = [max(1, round(fraction * len(labels))) for fraction in fractions[1:]]
    missing = np.array([len(labels) - sum(held_out), *held_out])
    order = np.random.default_rng(seed).permutation(len(members))
    order = sorted(order, key=lambda k: -len(members[k]))  # stable: random among equals
    assigned = np.zeros(len(labels), int)
    empty = set(range(splits))
    for position, k in enumerate(order):
        last_chance = len(order) - position == len(empty)
        candidates = sorted(empty) if last_chance else range(splits)
        chosen = max(candidates, key=lambda split: missing[split])
        assigned[members[k]] = chosen
        missing[chosen] -= len(members[k])
        empty.discard(chosen)
    return assigned
