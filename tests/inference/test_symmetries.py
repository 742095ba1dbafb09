"""Means over symmetries: exact equivariance, the loop that they stand for, one compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tvjax.data import pictures
from tvjax.errors import UserError
from tvjax.inference import symmetries, tiles

FLIPS = [lambda x, a=a, b=b: x[..., ::a, ::b, :] for a in (1, -1) for b in (1, -1)]
SQUARE = FLIPS + [lambda x, flip=flip: flip(x.swapaxes(-3, -2)) for flip in FLIPS]


def blur(images):
    """A convolution that no symmetry leaves as it is."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5, 3, 1)), images.dtype)
    dimensions = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=dimensions
    )
    return jax.nn.sigmoid(found * jnp.linspace(0, 1, images.shape[1])[None, :, None, None])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape, turns", [((12, 12), SQUARE), ((12, 20), FLIPS)])
def test_the_prediction_of_a_turned_image_is_the_turned_prediction(shape, turns):
    images = jnp.asarray(np.random.default_rng(1).random((2, *shape, 3)))
    found = np.asarray(symmetries.average(blur, images))
    assert found.dtype == np.float64
    for turn in turns:
        turned = symmetries.average(blur, jnp.asarray(turn(np.asarray(images))))
        np.testing.assert_allclose(turned, turn(found), rtol=0, atol=1e-15)
    # Plain predictions do not turn along, so that the above means something.
    plain = np.asarray(blur(images))
    flipped = np.asarray(blur(images[:, ::-1]))
    assert np.abs(flipped - plain[:, ::-1]).max() > 0.1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("side, number", [(8, 8), (12, 4)])
def test_means_are_those_of_a_loop(side, number):
    images = np.random.default_rng(2).random((1, 8, side, 3))
    parts = []
    for transposed in (False, True)[: number // 4]:
        for rows in (1, -1):
            for columns in (1, -1):
                x = images.swapaxes(1, 2) if transposed else images
                y = np.asarray(blur(jnp.asarray(x[:, ::rows, ::columns])))[:, ::rows, ::columns]
                parts.append(y.swapaxes(1, 2) if transposed else y)
    found = symmetries.average(blur, jnp.asarray(images))
    np.testing.assert_allclose(found, np.mean(parts, 0), atol=1e-15)


def test_a_net_is_traced_once_for_all_turns():
    traced = []

    def predict(images):
        traced.append(images.shape)
        return images[..., :1]

    images = np.random.default_rng(3).random((1, 8, 8, 3), np.float32)
    found = jax.jit(lambda x: symmetries.average(predict, x))(images)
    np.testing.assert_allclose(found, images[..., :1], atol=1e-6)
    assert traced == [(1, 8, 8, 3)]


def test_predictors_average_on_request(make_predictor):
    plain = make_predictor("unet", width=4, depth=1)
    assert not plain.augment
    averaged = dataclasses.replace(plain, augment=True)
    assert repr(averaged).endswith("denoise=None, augment=True)")
    image = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = np.asarray(averaged(image))
    assert np.abs(found - plain(image)).max() > 1e-3
    for turn in SQUARE:
        np.testing.assert_allclose(averaged(turn(image)), turn(found), atol=2e-6)
    np.testing.assert_allclose(jax.jit(averaged)(image), found, atol=1e-6)
    exported = averaged.export(size=64, platforms=("cpu",))
    floats = image[None].astype(np.float32) / 255
    np.testing.assert_allclose(exported.call(floats)[0], found, atol=1e-6)
    with pytest.raises(UserError, match="augment=True needs a size"):
        averaged.export(size=None)


def test_tiles_of_an_averaged_net_give_what_one_pass_gives(make_predictor):
    averaged = dataclasses.replace(make_predictor("unet", width=4, depth=1), augment=True)
    image = np.random.default_rng(5).integers(0, 256, (160, 288, 3), dtype=np.uint8)
    tiling = tiles.choose_tiling({(160, 288)}, averaged, 128)
    blend = np.concatenate(list(tiles.probabilities(pictures.from_array(image), averaged, tiling)))
    # One pass over the image, which is not square, has no quarter turns: they are taken by hand.
    plain = tvjax.Predictor(averaged.state, None, averaged.step)
    whole = np.mean([undo(plain(np.ascontiguousarray(do(image)))) for do, undo in _ways()], axis=0)
    np.testing.assert_allclose(blend, whole, atol=3e-6)


def _ways():
    for turn in SQUARE:
        (back,) = (b for b in SQUARE if np.array_equal(b(turn(_PROBE)), _PROBE))
        yield turn, back


_PROBE = np.arange(9).reshape(3, 3, 1)
