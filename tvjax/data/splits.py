"""Splits of a set into training, validation and test that keep clusters together."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tvjax.errors import UserError

NAMES = ("train", "val", "test")
"""The splits, in the order of their fractions."""

TRIES = 100
"""Draws of which the one nearest to the fractions is taken, unless one is as near as can be."""


def draw(labels: np.ndarray, fractions: tuple[float, ...], seed: int) -> np.ndarray:
    """Assigns each tile to a split, whole clusters at a time, as chance has it.

    Clusters come the large before the small, in random order among equals, and each falls to a
    split with the probability `missing tiles of the split / missing tiles of all`, among the splits
    that have room for it. But for that room, a tile's chance of a split is the split's fraction,
    whatever the size of its cluster: the expected share of the missing tiles stays what it is.

    What is guaranteed:

    - No split is empty, and clusters of one size have equal chances.
    - Without clusters, or where single tiles fill the gaps, the numbers of tiles are those asked
      for: `round(f N)`, but at least one of each split.
    - Otherwise they are as near to those as the nearest of `TRIES` draws, by the sum of squared
      differences.
    - Clusters of which only few fit into a split fall to it less often than its fraction says, and
      those larger than it only where no split has room; smaller ones then do more often.

    Args:
      labels: int `[N]`, equal for tiles that must stay together. The draw depends on the sizes of
        clusters in the order of their labels, not on the order of the tiles.
      fractions: positive, of training, validation and test; they sum to 1.
      seed: seed of the draw.

    Returns:
      int `[N]`: the index of the split in `NAMES`.

    Raises:
      UserError: the fractions are no such numbers, or there are fewer clusters than splits.
    """
    splits = len(NAMES)
    if len(fractions) != splits or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"split={fractions}: three positive fractions that sum to 1 are needed")
    _, cluster, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(sizes) < splits:
        raise UserError(
            f"{len(labels)} tiles in {len(sizes)} clusters that stay together are too few for "
            f"the splits {', '.join(NAMES)}: at least {splits} clusters are needed"
        )
    return _nearest(sizes, _numbers(len(labels), fractions), np.random.default_rng(seed))[cluster]


def are_many(labels: np.ndarray, fractions: Sequence[float]) -> bool:
    """Whether clusters, labels `[N]`, leave validation and test half of what they shall have.

    All but the largest cluster are what these can be made of.
    """
    sizes = np.unique(labels, return_counts=True)[1]
    outside = len(labels) - sizes.max()
    return len(sizes) >= len(fractions) and outside >= sum(sorted(fractions)[:-1]) * len(labels) / 2


def join(count: int, pairs: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Labels what pairs connect, also by way of others.

    Returns:
      int `[count]`: the smallest index of what is connected.
    """
    one, two = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one), bool), (one, two)), shape=(count, count))
    return by_first(connected_components(graph, directed=False)[1])


def by_first(labels: np.ndarray) -> np.ndarray:
    """The same labels `[N]`, each named by the smallest index that has it."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse]


def edges(labels: np.ndarray) -> np.ndarray:
    """Pairs `[N, 2]` that connect what has one label."""
    return np.stack([np.arange(len(labels)), by_first(labels)], axis=1)


def together(*partitions: np.ndarray) -> np.ndarray:
    """Labels, `[N]` as in `join`, of what stays together by any of several labels `[N]`."""
    return join(len(partitions[0]), np.concatenate([edges(labels) for labels in partitions]))


def _numbers(tiles: int, fractions: tuple[float, ...]) -> np.ndarray:
    """How many tiles each split shall have, at least one."""
    wanted = np.array([0, *(max(1, round(fraction * tiles)) for fraction in fractions[1:])])
    wanted[0] = max(1, tiles - wanted.sum())
    wanted[np.argmax(wanted)] -= wanted.sum() - tiles
    return wanted


def _nearest(sizes: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The nearest draw to the numbers that are wanted: the split of each cluster, `[K]`."""
    best, least = np.empty(0, int), np.inf
    for _ in range(TRIES):
        assigned = _draw_once(sizes, wanted, rng)
        difference = np.bincount(assigned, sizes, len(wanted)) - wanted
        error = np.sum(difference**2)
        if error < least:
            best, least = assigned, error
        # Numbers of tiles are multiples of this unit, and moving one lessens the error only between
        # splits whose differences are further apart: no numbers are nearer.
        if np.ptp(difference) <= np.gcd.reduce(sizes):
            break
    return best


def _draw_once(sizes: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw: the split of each cluster, `[K]`."""
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    assigned = np.empty(len(sizes), int)
    missing, empty = wanted.tolist(), set(range(len(wanted)))
    several = np.count_nonzero(sizes > 1)
    several_sizes, lots = sizes[order[:several]].tolist(), rng.random(several).tolist()
    for done, (size, lot) in enumerate(zip(several_sizes, lots, strict=True)):
        last_chance = len(order) - done <= len(empty)
        place = _place(missing, size, sorted(empty) if last_chance else range(len(missing)), lot)
        assigned[order[done]] = place
        missing[place] -= size
        empty.discard(place)
    # Single tiles fill what is missing, what is empty first.
    left = [max(0, count - (split in empty)) for split, count in enumerate(missing)]
    filling = rng.permutation(np.repeat(np.arange(len(missing)), left))
    singles = order[several:]
    assigned[singles] = np.concatenate([sorted(empty), filling])[: len(singles)]
    return assigned


def _place(missing: list[int], size: int, candidates: Iterable[int], lot: float) -> int:
    """The split that a cluster falls to, where `lot` in [0, 1) decides."""
    room = [split for split in candidates if missing[split] >= size]
    if not room:
        return max(candidates, key=lambda split: missing[split])
    lot *= sum(missing[split] for split in room)
    for split in room:
        lot -= missing[split]
        if lot < 0:
            break
    return split
