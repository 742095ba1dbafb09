"""Warps against numpy and scipy: turns, sizes, mirrored edges, and masks that follow images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tvjax.training import warp

APPLY = jax.jit(warp.apply)


def tile(height=12, width=12, channels=3, seed=0):
    return np.random.default_rng(seed).random((1, height, width, channels), np.float32)


def warped(image, degrees=0.0, size=1.0, shift=(0.0, 0.0), mask=None):
    matrix = warp.turn(jnp.array([degrees], jnp.float32)) / size
    mask = (image[..., :1] > 0.5).astype(np.uint8) if mask is None else mask
    found = APPLY(warp.Warp(matrix, jnp.array([shift], jnp.float32)), image, mask)
    return tuple(map(np.asarray, found))


def test_no_change_is_the_identity_bit_for_bit():
    image = tile(11, 14)
    found, mask = warped(image)
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(mask, image[..., :1] > 0.5)
    assert mask.dtype == np.uint8


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("quarters", [-2, -1, 1, 2, 3])
def test_quarter_turns_are_rot90_bit_for_bit(side, quarters):
    image = tile(side, side)
    found, mask = warped(image, 90.0 * quarters)
    np.testing.assert_array_equal(found[0], np.rot90(image[0], quarters))
    np.testing.assert_array_equal(mask[0], np.rot90(image[0, ..., :1] > 0.5, quarters))


@pytest.mark.parametrize(
    "degrees, size, shift", [(30, 1, (0, 0)), (-75, 1.4, (0.1, -0.2)), (170, 0.5, (0, 0.3))]
)
def test_any_map_is_that_of_scipy_with_mirrored_edges(degrees, size, shift):
    image = tile(13, 10)
    found, mask = warped(image, degrees, size, shift)
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    middle = (np.array(image.shape[1:3]) - 1) / 2
    offset = middle - matrix @ middle + np.array(shift) * image.shape[1:3]
    wanted = [
        ndimage.affine_transform(
            image[0, ..., c].astype(float), matrix, offset, order=1, mode="reflect"
        )
        for c in range(3)
    ]
    np.testing.assert_allclose(found[0], np.stack(wanted, -1), atol=2e-5)
    near = ndimage.affine_transform(
        (image[0, ..., 0] > 0.5).astype(np.uint8), matrix, offset, order=0, mode="reflect"
    )
    np.testing.assert_array_equal(mask[0, ..., 0], near)


@pytest.mark.parametrize("name, value", [("rotation", 180.0), ("scale", 0.7), ("crop", 0.8)])
def test_masks_stay_on_their_objects(name, value):
    y, x = np.mgrid[:48, :48]
    mask = ((y - 20) ** 2 + (x - 28) ** 2 < 150).astype(np.uint8)[None, ..., None].repeat(16, 0)
    limits = warp.Limits(**(dict.fromkeys(("rotation", "scale", "crop"), 0.0) | {name: value}))
    drawn = warp.draw(jax.random.key(0), 16, limits)
    image, moved = APPLY(drawn, mask.astype(np.float32), mask)
    assert np.any(moved != mask, axis=(1, 2, 3)).all()
    sure = np.abs(np.asarray(image) - 0.5) > 0.49  # all but the outline
    np.testing.assert_array_equal((np.asarray(image) > 0.5)[sure], np.asarray(moved)[sure] > 0)
    assert sure.mean() > 0.85


def test_draws_stay_within_their_limits():
    drawn = warp.draw(jax.random.key(1), 4000, warp.Limits(30.0, 0.5, 0.4))
    matrix = np.asarray(drawn.matrix, float)
    size = 1 / np.sqrt(np.linalg.det(matrix))
    angles = np.rad2deg(np.arctan2(matrix[:, 0, 1], matrix[:, 0, 0]))
    assert angles.min() < -29 and angles.max() > 29 and np.abs(angles).max() < 30.001
    assert 1 / 1.5 <= size.min() + 1e-6 < 0.75 and 2.2 < size.max() < 1.5 / 0.6 + 1e-6
    cropped = warp.draw(jax.random.key(1), 4000, warp.Limits(0.0, 0.0, 0.4))
    cut = 1 - np.asarray(cropped.matrix)[:, 0, 0]
    assert np.all(np.abs(np.asarray(cropped.shift)) <= cut[:, None] / 2 + 1e-6)  # in the tile
    assert np.abs(np.asarray(cropped.shift)).max() > 0.19
    assert warp.draw(jax.random.key(0), 3, warp.Limits(0.0, 0.0, 0.0)) is None
