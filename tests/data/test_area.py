"""Weights of resizing: the overlap of pixels, and straight lines between their centres."""

import numpy as np
import pytest

from tvjax.data import area
from tvjax.data.scaling import Axis


def windows(length, number=12):
    rng = np.random.default_rng(length)
    found = [sorted(rng.choice(length + 1, 2, replace=False).tolist()) for _ in range(number)]
    return [(0, length), (length - 1, length), *found]


@pytest.mark.parametrize("old, new", [(300, 100), (300, 64), (97, 31), (11, 11), (40, 1), (8, 7)])
def test_overlaps_are_lengths_shared_by_intervals(old, new):
    for start, stop in windows(new):
        low, high = area.span(old, new, start, stop)
        expected = [
            [max(0, min((i + 1) * old, (j + 1) * new) - max(i * old, j * new)) for j in range(old)]
            for i in range(start, stop)
        ]
        assert not np.any(np.delete(expected, slice(low, high), axis=1))
        found = area.overlaps(old, new, start, stop)
        np.testing.assert_array_equal(found.toarray(), np.array(expected)[:, low:high])


@pytest.mark.parametrize("old, new", [(1, 5), (2, 3), (7, 19), (100, 101), (16, 250)])
def test_enlarged_pixels_lie_on_lines_between_centres(old, new):
    values = np.random.default_rng(0).random(old)
    axis = Axis(old, new)
    line = np.interp((np.arange(new) + 0.5) * old / new, np.arange(old) + 0.5, values)
    for start, stop in windows(new):
        low, high = axis.source(start, stop)
        found = axis.weights(start, stop) @ values[low:high] / axis.total
        np.testing.assert_allclose(found, line[start:stop], rtol=1e-12)


@pytest.mark.parametrize("old, new", [(30_000, 10_000), (20_000, 19_999), (10_000, 30_000)])
def test_weights_grow_as_the_pixels_and_not_as_their_square(old, new):
    weights = Axis(old, new).weights(0, new)
    assert len(weights.data) <= 3 * max(old, new)
    assert weights.sum() == new * Axis(old, new).total


def test_a_block_is_weighed_as_by_dense_matrices():
    values = np.random.default_rng(0).random((20, 30, 2))
    rows, columns = area.overlaps(20, 7, 0, 7), area.overlaps(30, 9, 0, 9)
    expected = np.einsum("ij,jkc,lk->ilc", rows.toarray(), values, columns.toarray())
    np.testing.assert_allclose(area.weigh(values, rows, columns), expected, rtol=1e-12)
