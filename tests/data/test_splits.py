"""Splits by cluster: numbers, chances, determinism."""

import itertools

import numpy as np
import pytest

from tvjax.data import splits
from tvjax.errors import UserError

TENTHS = (0.8, 0.1, 0.1)


def labels_of(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def numbers(sizes, fractions=TENTHS, seed=0):
    return np.bincount(splits.draw(labels_of(sizes), fractions, seed), minlength=3).tolist()


def test_split_fractions():
    for n in (3, 10, 25, 137):
        assigned = splits.draw(np.arange(n), TENTHS, seed=1)
        held_out = max(1, round(0.1 * n))
        assert np.bincount(assigned).tolist() == [n - 2 * held_out, held_out, held_out]
    labels = np.random.default_rng(0).integers(0, 150, 500)
    assigned = splits.draw(labels, (0.6, 0.2, 0.2), seed=2)
    for label in np.unique(labels):
        assert len(np.unique(assigned[labels == label])) == 1
    np.testing.assert_allclose(np.bincount(assigned) / 500, [0.6, 0.2, 0.2], atol=0.02)
    # Three clusters, the largest beyond its share: still none is empty.
    assert set(splits.draw(np.repeat([0, 1, 2], [50, 30, 20]), TENTHS, 0)) == {0, 1, 2}
    with pytest.raises(UserError, match="5 tiles in 2 clusters"):
        splits.draw(np.array([0, 0, 0, 3, 3]), TENTHS, 0)
    with pytest.raises(UserError, match="split="):
        splits.draw(np.arange(9), (0.8, 0.1, 0.2), 0)


@pytest.mark.parametrize(
    "sizes",
    [
        [15] * 20 + [1] * 300,
        [50, 50, 20, 20, 20] + [5] * 20 + [1] * 340,
        [4] * 40,
        [1] * 50,
        [8] * 5 + [2] * 30 + [1] * 100,
    ],
)
def test_every_tile_has_the_same_chance(sizes):
    labels, seeds = labels_of(sizes), 400
    found = np.stack([splits.draw(labels, TENTHS, seed) for seed in range(seeds)])
    expected = np.bincount(found[0], minlength=3) / len(labels)
    for row in found:
        np.testing.assert_allclose(np.bincount(row, minlength=3) / len(labels), expected)
    for size in set(sizes):
        clusters = np.flatnonzero(np.asarray(sizes) == size)
        tiles = np.flatnonzero(np.isin(labels, clusters))
        for split in (1, 2):
            share = np.mean(found[:, tiles] == split)
            error = (expected[split] / (seeds * len(clusters))) ** 0.5
            assert abs(share - expected[split]) < 4 * error + 0.1 * expected[split], (size, split)


def test_shares_are_as_near_as_the_clusters_allow():
    assert numbers([14] * 7) == [70, 14, 14]
    assert numbers([4] * 25) in ([80, 8, 12], [80, 12, 8])
    rng, missed = np.random.default_rng(0), 0
    for seed in range(30):
        sizes = rng.integers(1, 3 + seed, rng.integers(3, 8))
        fractions = ((0.8, 0.1, 0.1), (0.6, 0.2, 0.2))[seed % 2]
        wanted = splits._numbers(int(sizes.sum()), fractions)
        found = numbers(sizes, fractions, seed)
        possible = [
            np.bincount(places, sizes, 3)
            for places in itertools.product(range(3), repeat=len(sizes))
            if len(set(places)) == 3
        ]
        least = min(np.sum((counts - wanted) ** 2) for counts in possible)
        missed += np.sum((np.asarray(found) - wanted) ** 2) > least
    assert missed <= 1  # of 100 draws the nearest: all but always the nearest there is


def test_no_split_is_empty():
    for fractions in ((0.1, 0.45, 0.45), (0.01, 0.01, 0.98), (0.98, 0.01, 0.01)):
        for tiles in range(3, 9):
            assert min(numbers([1] * tiles, fractions)) > 0
        for sizes in ([90, 1, 1], [40, 40, 1, 1], [5, 90, 5, 90], [1000, *[1] * 30]):
            assert min(numbers(sizes, fractions)) > 0, (fractions, sizes)
    assert numbers([1000, *[1] * 30]) == [1000, 15, 15]  # beyond its share: the others the rest


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_tiles():
    labels = labels_of([9, 7, 7, 3, 3, 3, *[1] * 40])
    first = splits.draw(labels, TENTHS, 3)
    order = np.random.default_rng(0).permutation(len(labels))
    np.testing.assert_array_equal(splits.draw(labels[order], TENTHS, 3), first[order])
    np.testing.assert_array_equal(splits.draw(10 * labels + 7, TENTHS, 3), first)
    assert (splits.draw(labels, TENTHS, 4) != first).any()
    for label in np.unique(labels):
        assert len(set(first[labels == label])) == 1
