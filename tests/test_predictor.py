"""A trained net as a function: shapes, jit, and the exported program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import tvjax
from tvjax.errors import UserError
from tvjax.rasters import reader, tiles
from tvjax.tv.rof import denoise_tv


@pytest.fixture(scope="module")
def predictor(make_predictor):
    """An untrained U-Net whose answers vary."""
    return make_predictor("unet", width=4, depth=1)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_images_of_bytes_and_floats_batched_or_not_give_the_same(predictor, image):
    one = predictor(image)
    assert one.shape == (64, 96, 1) and 0 <= one.min() < one.max() <= 1
    np.testing.assert_allclose(predictor(image.astype(np.float32) / 255), one, atol=1e-6)
    np.testing.assert_allclose(predictor(np.stack([image, image])[None])[0, 1], one, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(64, 96\)"):
        predictor(image[..., 0])


def test_it_works_under_jit_as_function_and_as_argument(predictor, image):
    one = predictor(image)
    np.testing.assert_allclose(jax.jit(lambda x: predictor(x))(image), one, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda net, x: net(x))(predictor, image), one, atol=1e-6)
    jitted = jax.jit(predictor)
    for _ in range(2):
        np.testing.assert_allclose(jitted(image), one, atol=1e-6)
    assert jitted._cache_size() == 1


def test_tiles_of_a_net_give_what_one_pass_gives(predictor):
    image = np.random.default_rng(1).integers(0, 256, (288, 352, 3), dtype=np.uint8)
    tiling = tiles.choose_tiling({(288, 352)}, predictor, 128, 2)
    assert tiling.overlap == 32
    blend = np.concatenate(list(tiles.probabilities(reader.from_array(image), predictor, tiling)))
    np.testing.assert_allclose(blend, predictor(image), atol=2e-6)


def test_denoising_is_the_library_s(predictor, image):
    denoising = tvjax.Predictor(
        predictor.state, 0.1, predictor.step, predictor.denoise_kind
    )  # as load(workdir, denoise=0.1) makes it
    wanted = denoise_tv(predictor(image), 0.1, tolerance=1e-3).image
    np.testing.assert_allclose(denoising(image), wanted, atol=0.05)


@pytest.mark.parametrize("size, batch", [(64, 2), (None, None)])
def test_an_exported_net_gives_the_same_after_a_round_trip(predictor, size, batch):
    content = predictor.export(size=size, batch=batch).serialize()
    exported = export.deserialize(content)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    images = np.random.default_rng(2).random((2, 64, 64, 3), np.float32)
    np.testing.assert_allclose(exported.call(images), predictor(images), atol=1e-6)
    if size is None:
        other = jnp.asarray(images[:1, :32])
        np.testing.assert_allclose(exported.call(other), predictor(other), atol=1e-6)


def test_a_size_that_the_net_does_not_take_names_those_near(predictor):
    def step(state, images):
        if images.shape[1] % 64:
            raise TypeError("no such patches")
        return images, images[..., :1]

    picky = tvjax.Predictor(predictor.state, None, step)
    with pytest.raises(UserError, match=r"size=100: .* nearest .*: 128 and 192$"):
        picky.export(size=100)
    with pytest.raises(UserError, match=r"size=70: .* nearest .*: 64 and 128$"):
        picky.export(size=70)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segnet", "segformer"])
def test_other_nets_are_predicted_with_and_exported_too(make_predictor, image, name):
    net = make_predictor(name, width=4, depth=2)
    np.testing.assert_allclose(jax.jit(net)(image), net(image), atol=1e-5)
    assert net(image).std() > 0
    exported = export.deserialize(net.export(size=None).serialize())
    images = np.random.default_rng(2).random((2, 64, 96, 3), np.float32)
    np.testing.assert_allclose(exported.call(images), net(images), atol=1e-5)
    tiling = tiles.choose_tiling({image.shape[:2]}, net)
    (strip,) = tiles.probabilities(reader.from_array(image), net, tiling)
    np.testing.assert_allclose(strip, net(image), atol=1e-5)
