"""A trained net as a function: shapes, jit, and the exported program."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import tiny as tiny
from jax import export
from traces import jitted

import tvjax
from tvjax.data import pictures
from tvjax.errors import UserError
from tvjax.inference import tiles
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


def test_numbers_of_unknown_meaning_are_refused_by_name(predictor, image):
    bytes_as_floats = image.astype(np.float32)
    for given, told in (
        *((image.astype(t), f"got {t}") for t in ("int32", "int16", "uint16", "int8", "bool")),
        (image.astype(np.int64), "got int"),
        (image.tolist(), "got int32"),
        (bytes_as_floats, r"in \[0, 1\]; got"),
        (jnp.asarray(bytes_as_floats), r"in \[0, 1\]; got"),
        (bytes_as_floats / 255 - 2, r"in \[0, 1\]; got -"),
        (bytes_as_floats * np.nan, r"in \[0, 1\]; got nan"),
        (bytes_as_floats / 255 * 1j, "got complex64"),
        (image.transpose(2, 0, 1), r"\(3, 64, 96\)"),
        (np.dstack([image, image[..., :1]]), r"\(64, 96, 4\)"),
        (image[:0], r"\(0, 96, 3\)"),
        *((jnp.zeros((4, 4, 3), t), f"got {t}: ") for t in ("float8_e4m3fn", "float8_e5m2")),
        *((np.zeros((4, 4, 3), jnp.dtype(t)), f"got {t}: ") for t in ("float8_e4m3fn", "int4")),
        (np.zeros((4, 4, 3), object), "got object: "),
    ):
        with pytest.raises(ValueError, match=rf"^images must .*{told}") as caught:
            predictor(given)
        assert "\n" not in str(caught.value)
    assert jnp.isnan(jax.jit(lambda x: predictor(x))(bytes_as_floats)).mean() > 0.9
    assert predictor(np.zeros((0, 64, 96, 3), np.uint8)).shape == (0, 64, 96, 1)
    half = jnp.asarray(bytes_as_floats / 255, jnp.bfloat16)
    np.testing.assert_allclose(predictor(half), predictor(half.astype(jnp.float32)), atol=1e-6)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", "<f4"])
def test_the_order_of_bytes_does_not_matter(predictor, image, dtype):
    floats = (image / 255).astype(dtype)
    np.testing.assert_array_equal(predictor(floats), predictor(floats.astype(dtype[1:])))
    assert tvjax.total_variation(floats) == tvjax.total_variation(floats.astype(dtype[1:]))
    with pytest.raises(ValueError, match=r"^images must be uint8 .*; got uint16"):
        predictor(image.astype(">u2"))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), 1e39, np.float32(-1)])
def test_a_denoising_that_cannot_be_is_refused(predictor, weight):
    with pytest.raises(UserError, match=re.escape(f"denoise={weight} must be finite")):
        tvjax.Predictor.of(None, predictor.state, denoise=weight)


@pytest.mark.parametrize("weight", ["1", True, np.array([0.1, 0.2]), [0.1], {}, 1j])
def test_a_denoising_is_one_number(predictor, weight):
    with pytest.raises(UserError, match="denoise must ") as error:
        tvjax.Predictor.of(None, predictor.state, denoise=weight)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["augment", "contact"])
@pytest.mark.parametrize("value", ["no", "", 1, None, np.zeros(2)])
def test_a_choice_is_true_or_false(predictor, name, value):
    for make in (lambda **k: tvjax.Predictor.of(None, predictor.state, **k), tvjax.Predictor.load):
        first = ("no such folder",) if make == tvjax.Predictor.load else ()
        with pytest.raises(UserError, match=f"^{name} must be True or False; got "):
            make(*first, **{name: value})


@pytest.mark.parametrize(
    "name, values",
    [
        ("size", (0, -1, 32.5, "64", True, 99999999999, [64])),
        ("batch", (0, -1, 1.5, "2", False, 99999999999)),
        ("platforms", ([], (), "cpu", ["gpu"], None, [None], [["cpu"]], ["cpu", "x"], ["cpu"] * 2)),
    ],
)
def test_an_export_that_cannot_be_names_the_argument(predictor, name, values):
    for value in values:
        with pytest.raises(UserError, match=f"^{name} must be ") as error:
            predictor.export(**{"size": 64, name: value})
        assert "\n" not in str(error.value)


def test_it_works_under_jit_as_function_and_as_argument(predictor, image):
    one = predictor(image)
    np.testing.assert_allclose(jax.jit(lambda x: predictor(x))(image), one, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda net, x: net(x))(predictor, image), one, atol=1e-6)
    compiled, traces = jitted(predictor)
    for _ in range(2):
        np.testing.assert_allclose(compiled(image), one, atol=1e-6)
    assert len(traces) == 1


def test_tiles_of_a_net_give_what_one_pass_gives(predictor):
    image = np.random.default_rng(1).integers(0, 256, (288, 352, 3), dtype=np.uint8)
    tiling = tiles.choose_tiling({(288, 352)}, predictor, 128, 2)
    assert tiling.overlap == 32
    blend = np.concatenate(list(tiles.probabilities(pictures.from_array(image), predictor, tiling)))
    np.testing.assert_allclose(blend, predictor(image), atol=2e-6)


def test_denoising_is_the_library_s(predictor, image):
    denoising = tvjax.Predictor(
        predictor.state, 0.1, predictor.step, predictor.denoise_kind
    )  # as load(workdir, denoise=0.1) makes it
    wanted = denoise_tv(predictor(image), 0.1, tolerance=1e-3).image
    np.testing.assert_allclose(denoising(image), wanted, atol=0.05)


@pytest.mark.parametrize("denoise", [None, 0.1])
@pytest.mark.parametrize("size, batch", [(64, 2), (64, None), (None, None)])
def test_an_exported_net_gives_the_same_after_a_round_trip(predictor, size, batch, denoise):
    predictor = dataclasses.replace(predictor, denoise=denoise)
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
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name, encoder", [("segnet", None), ("segformer", None), ("unet", "tiny")])
def test_other_nets_are_predicted_with_and_exported_too(make_predictor, image, name, encoder):
    net = make_predictor(name, width=4, depth=2, encoder=encoder)
    np.testing.assert_allclose(jax.jit(net)(image), net(image), atol=1e-5)
    assert net(image).std() > 0
    exported = export.deserialize(net.export(size=None).serialize())
    images = np.random.default_rng(2).random((2, 64, 96, 3), np.float32)
    np.testing.assert_allclose(exported.call(images), net(images), atol=1e-5)
    tiling = tiles.choose_tiling({image.shape[:2]}, net)
    (strip,) = tiles.probabilities(pictures.from_array(image), net, tiling)
    np.testing.assert_allclose(strip, net(image), atol=1e-5)


def test_a_predictor_is_one_line_on_the_screen(predictor):
    number = sum(x.size for x in jax.tree.leaves(predictor.state.inner.params))
    assert repr(predictor) == f"Predictor({number:,} parameters, denoise=None)"
    red = tvjax.Predictor((), None, lambda state, images: (images, images[..., :1]))
    assert repr(red) == "Predictor(0 parameters, denoise=None)"
    jax.eval_shape(lambda p: (repr(p), p)[1], predictor)  # of traced weights too
