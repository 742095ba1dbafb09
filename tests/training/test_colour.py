"""Changes of colour against their definitions, and blur against scipy."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tvjax.training import colour


def images(n=2, side=10):
    return np.random.default_rng(0).random((n, side, side, 3), np.float32)


def test_nothing_drawn_changes_nothing_bit_for_bit():
    drawn = colour.draw(jax.random.key(0), 2, colour.Limits(0.0, 0.0, 0.0, 0.0))
    assert drawn == (None, None, None)
    exact = colour.Colour(None, None, jnp.zeros(2))
    np.testing.assert_array_equal(colour.apply(exact, images(), blur=2.0), images())


@pytest.mark.parametrize("degrees", [0.0, 40.0, -120.0])
def test_grey_stays_grey_and_a_third_of_a_turn_swaps_primaries(degrees):
    matrix = colour.colours(jnp.array([0.4]), jnp.array([degrees]))
    np.testing.assert_allclose(jnp.sum(matrix, -1), 1, atol=1e-6)
    third = np.asarray(colour.colours(jnp.ones(1), jnp.array([120.0])))[0]
    np.testing.assert_allclose(third @ [1, 0, 0], [0, 1, 0], atol=1e-6)  # red becomes green


def test_hue_turns_as_in_hsv_and_saturation_leaves_luma():
    red = np.array([0.6, 0.5, 0.5])
    turned = np.asarray(colour.colours(jnp.ones(1), jnp.array([30.0])))[0] @ red
    assert abs(colorsys.rgb_to_hsv(*turned)[0] * 360 - 30) < 1
    dull = np.asarray(colour.colours(jnp.zeros(1), jnp.zeros(1)))[0] @ red
    np.testing.assert_allclose(dull, np.dot(colour.LUMA, red), rtol=1e-6)


def test_contrast_is_around_each_image_s_mean():
    given = images()
    drawn = colour.Colour(None, jnp.array([0.5, 1.5]), None)
    found = np.asarray(colour.apply(drawn, given, blur=0.0))
    for k, factor in enumerate((0.5, 1.5)):
        mean = given[k].mean()
        np.testing.assert_allclose(found[k], mean + factor * (given[k] - mean), atol=1e-6)


def test_blur_is_a_gaussian_and_keeps_what_is_flat():
    given = images(3, 16)
    found = np.asarray(
        colour.apply(colour.Colour(None, None, jnp.array([0.5, 1, 2])), given, blur=2.0)
    )
    for k, deviation in enumerate((0.5, 1, 2)):
        for c in range(3):
            wanted = ndimage.gaussian_filter(
                given[k, ..., c].astype(float), deviation, mode="nearest", radius=6
            )
            np.testing.assert_allclose(found[k, ..., c], wanted, atol=1e-5)
    flat = np.full((1, 8, 8, 3), 0.25, np.float32)
    blurred = colour.apply(colour.Colour(None, None, jnp.ones(1)), flat, blur=1.0)
    np.testing.assert_allclose(blurred, flat, rtol=1e-6)


def test_draws_stay_within_their_limits():
    drawn = colour.draw(jax.random.key(0), 2000, colour.Limits(0.2, 0.5, 0.0, 1.5))
    contrast, blur = np.asarray(drawn.contrast), np.asarray(drawn.blur)
    assert 0.8 <= contrast.min() < 0.81 and 1.19 < contrast.max() <= 1.2
    assert 0 <= blur.min() < 0.01 and 1.49 < blur.max() <= 1.5
    red = np.asarray(drawn.matrix)[:, 0, 0]  # s + (1 - s) 0.299
    assert 0.5 + 0.5 * 0.299 - 1e-5 <= red.min() and red.max() <= 1.5 - 0.5 * 0.299 + 1e-5
