"""Augmentation against numpy, and where it stands in a step."""

from itertools import product

import devices  # noqa: F401  its net, which compiles in a moment
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from traces import jitted

from configs import base
from tvjax.hypergrad import Bilevel, Estimate, Estimator
from tvjax.training import augment, loop, state, steps
from tvjax.types import Batch


def batch(n=8, size=4, seed=0):
    """Images that are their masks, in all channels."""
    mask = np.random.default_rng(seed).integers(0, 2, (n, size, size, 1)).astype(np.uint8)
    return Batch(jnp.asarray(255 * mask.repeat(3, -1)), jnp.asarray(mask))


def made(axis_name=None, *, seed=0, image_shape=(4, 4), **options):
    options = base.get_config().augmentation.to_dict() | options
    return augment.make_augment(seed=seed, image_shape=image_shape, axis_name=axis_name, **options)


ALL = {"flips": True, "turns": True, "brightness": 0.3}
MORE = {
    "rotation": 180.0, "scale": 0.5, "crop": 0.3, "contrast": 0.3, "saturation": 0.5, "hue": 20.0,
    "blur": 1.0,
}  # fmt: skip


def test_what_is_drawn_is_done():
    bits = np.array(list(product([False, True], repeat=3)))
    data = batch()
    drawn = augment.Draw(*jnp.asarray(bits.T), jnp.linspace(0.5, 1.5, 8))
    found = augment.apply(drawn, data)
    for k, (transpose, rows, columns) in enumerate(bits):
        expected = np.asarray(data.mask[k])
        expected = expected.swapaxes(0, 1) if transpose else expected
        expected = expected[::-1] if rows else expected
        expected = expected[:, ::-1] if columns else expected
        np.testing.assert_array_equal(found.mask[k], expected)
        bright = np.minimum(expected * (0.5 + k / 7), 1)  # clipped
        np.testing.assert_allclose(found.image[k], bright.repeat(3, -1), rtol=1e-6)
    assert found.mask.dtype == jnp.uint8 and found.image.dtype == jnp.float32


@pytest.mark.parametrize(
    "options, symmetries",
    [
        ({"turns": True}, [lambda x, k=k: np.rot90(x, k) for k in range(4)]),
        ({"flips": True}, [lambda x, a=a: np.flip(x, a) for a in ((), 0, 1, (0, 1))]),
        (
            {"flips": True, "turns": True},
            [lambda x, k=k, f=f: np.rot90(x[:: 1 - 2 * f], k) for k in range(4) for f in (0, 1)],
        ),
    ],
)
def test_symmetries_come_alike_often_and_no_others(options, symmetries):
    one = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    data = Batch(jnp.zeros((800, 4, 4, 3), jnp.uint8), jnp.asarray(np.stack([one] * 800)))
    found = np.asarray(jax.jit(made(**options))(jnp.int32(3), data).mask)
    counts = [np.sum(np.all(found == s(one), axis=(1, 2, 3))) for s in symmetries]
    assert sum(counts) == 800
    np.testing.assert_allclose(np.array(counts) * len(symmetries) / 800, 1, atol=0.35)


def test_masks_go_with_their_images_and_brightness_stays_in_bounds():
    data = batch(64)
    found = made(flips=True, turns=True)(jnp.int32(0), data)
    np.testing.assert_array_equal(found.image, np.asarray(found.mask).repeat(3, -1))
    assert np.any(found.mask != data.mask)
    factors = np.asarray(made(brightness=0.3)(jnp.int32(0), data).image).max((1, 2, 3))
    assert 0.7 <= factors.min() < 0.75 and factors.max() == 1  # clipped at white
    assert made() is None


def test_draws_are_functions_of_seed_and_step():
    data = batch()
    first = made(**ALL)(jnp.int32(5), data)
    again = jax.jit(made(**ALL))(jnp.int32(5), data)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for other in (made(**ALL)(jnp.int32(6), data), made(seed=1, **ALL)(jnp.int32(5), data)):
        assert np.any(other.image != first.image)


def test_four_devices_augment_as_one():
    data = batch()
    whole = made(**ALL)(jnp.int32(2), data)
    shares = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), data)
    step = made("devices", **ALL)
    parts = jax.vmap(lambda b: step(jnp.int32(2), b), axis_name="devices")(shares)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), parts, whole)


@pytest.mark.parametrize("name", MORE)
def test_each_option_changes_every_image_anew_in_each_step_and_masks_where_it_moves_them(name):
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    data = batch(8, 16)._replace(image=jnp.asarray(noise))
    change = jax.jit(made(**{name: MORE[name]}, image_shape=(16, 16)))
    found, later = change(jnp.int32(0), data), change(jnp.int32(1), data)
    moves = name in ("rotation", "scale", "crop")
    assert np.any(found.mask != data.mask) == moves
    assert found.mask.dtype == jnp.uint8 and set(np.unique(found.mask)) == {0, 1}
    assert found.image.min() >= 0 and found.image.max() <= 1
    for other in (augment.to_float(data.image), later.image):
        assert np.any(found.image != other, axis=(1, 2, 3)).all()


def test_one_program_serves_all_steps_and_repeats_them_bit_for_bit():
    data = batch(8, 16)
    change, traces = jitted(made(**ALL, **MORE, image_shape=(16, 16)))
    first, other = change(jnp.int32(5), data), change(jnp.int32(6), data)
    jax.tree.map(np.testing.assert_array_equal, first, change(jnp.int32(5), data))
    assert np.any(first.mask != other.mask) and np.any(first.image != other.image)
    assert len(traces) == 1


def test_an_augmented_run_resumes_bit_for_bit(tiles, tmp_path):
    def run(steps, name):
        config = base.get_config()
        config.data.directory, config.data.cache = str(tiles), str(tiles.parent / "cache")
        config.model.update(name="pixels", width=2)
        config.augmentation.update(**ALL, **MORE)
        config.train.update(steps=steps, batch_size=4, log_every=1)
        config.evaluation.update(every=10**6, panels=0)
        return loop.run(config, tmp_path / name)

    whole, _ = run(7, "whole"), run(4, "parts")
    assert run(7, "parts")["parameters_sha256"] == whole["parameters_sha256"]


def test_four_devices_warp_and_colour_as_one():
    data = batch(8, 16)
    step = made("devices", **ALL, **MORE, image_shape=(16, 16))
    whole = jax.jit(made(**ALL, **MORE, image_shape=(16, 16)))(jnp.int32(2), data)
    shares = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), data)
    parts = jax.jit(jax.vmap(lambda b: step(jnp.int32(2), b), axis_name="devices"))(shares)
    np.testing.assert_allclose(parts.image.reshape(whole.image.shape), whole.image, atol=1e-5)
    np.testing.assert_array_equal(parts.mask.reshape(whole.mask.shape), whole.mask)


def test_training_batches_are_augmented_each_by_its_step_and_validation_batches_never():
    def estimate(problem, inner, hyper, batches, outer_batch, carry):
        seen = {f"train{i}": b.image for i, b in enumerate(batches)}
        return Estimate(hyper, hyper, inner, (seen, {"iou": outer_batch.image}), carry)

    estimator, regularizer = Estimator(estimate, steps=2), steps.Regularizer("loss", "", "", "log")
    problem = Bilevel(lambda *_: 0.0, lambda *_: 0.0, optax.sgd(1.0), stateful=True)
    start = state.create(problem, {"w": jnp.zeros(1)}, {}, jnp.zeros(()), estimator, optax.sgd(1.0))
    start = start._replace(step=jnp.int32(7))
    data, change = [batch(seed=s) for s in range(3)], made(**ALL)
    step = steps.bilevel_step(problem, regularizer, estimator, optax.sgd(1.0), change)
    _, seen = step(start, data[:2], data[2])
    for i in range(2):
        expected = change(jnp.int32(7 + i), data[i]).image
        np.testing.assert_array_equal(seen[f"train{i}"], expected)
    np.testing.assert_array_equal(seen["outer_iou"], data[2].image)
