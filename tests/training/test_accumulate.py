"""Batches in parts: the same loss, gradient and hypergradient, by any loop, on any devices."""

from types import SimpleNamespace

import devices  # noqa: F401  its net, which compiles in a moment
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from tvjax import hypergrad
from tvjax.errors import UserError
from tvjax.hypergrad import SCANNED, UNROLLED, Bilevel
from tvjax.training import loop as training
from tvjax.training.accumulate import in_parts
from tvjax.training.setup import check_sizes, make_functions
from tvjax.types import Batch


def batch(n=8, size=6, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (n, size, size, 1))
    return Batch(jnp.asarray(rng.random((n, size, size, 3))), jnp.asarray(mask.astype(np.uint8)))


def stateful(params, hyper, data, model_state):
    """A loss with products of images of one part, as BatchNorm makes them, and a count."""
    x = jnp.mean(data.image, axis=(1, 2)) @ params
    spread = jnp.mean((x - x.mean()) ** 2)
    loss = jnp.mean(jnp.sin(x) ** 2) + jnp.exp(hyper) * spread
    return loss, (0.9 * model_state + 0.1 * x.mean(), {"loss": loss})


def by_hand(params, hyper, data, model_state, parts):
    losses = []
    for n in range(parts):
        part = jax.tree.map(lambda x, n=n: x[n::parts], data)
        loss, (model_state, _) = stateful(params, hyper, part, model_state)
        losses.append(loss)
    return sum(losses) / parts, model_state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("loop", [UNROLLED, SCANNED])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_loss_gradient_and_state_are_those_of_the_parts(parts, loop):
    args = jnp.array([0.5, -1.0, 2.0]), jnp.array(-1.0), batch(), jnp.array(0.25)
    split = in_parts(stateful, parts, loop)
    grad = jax.jit(jax.value_and_grad(lambda *a: split(*a), has_aux=True))
    (loss, (state, aux)), slope = grad(*args)
    wanted, after = by_hand(*args, parts)
    np.testing.assert_allclose([loss, aux["loss"]], wanted, rtol=1e-12)
    np.testing.assert_allclose(state, after, rtol=1e-12)
    expected = jax.grad(lambda *a: by_hand(*a, parts)[0])(*args)
    np.testing.assert_allclose(slope, expected, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_the_exact_hypergradient_is_that_of_the_step_taken_in_parts(mode):
    def outer(params, hyper, data, model_state):
        return jnp.mean(jnp.cos(jnp.mean(data.image, axis=(1, 2)) @ params)), {"iou": 0.0}

    problem = Bilevel(in_parts(stateful, 4), outer, optax.sgd(0.1), stateful=True)
    state = problem.init(jnp.array([0.5, -1.0, 2.0]), jnp.array(0.0))
    step = jax.jit(
        lambda h: hypergrad.exact(mode=mode)(problem, state, h, [batch()], batch(seed=1))
    )
    ahead, behind, here = (step(jnp.array(h)) for h in (-1 + 1e-5, -1 - 1e-5, -1.0))
    slope = (ahead.outer_loss - behind.outer_loss) / 2e-5
    assert abs(slope) > 1e-6
    np.testing.assert_allclose(here.gradient, slope, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", ["sum", "image", "pixel"])
def test_a_training_step_in_parts_of_the_same_images_is_the_whole_step(reduction):
    """So are BatchNorm's statistics then."""
    found, data = [], jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), batch(2))
    for parts in (1, 2, 4):
        config = base.get_config()
        config.model.update(name="pixels", width=2)
        config.regularizer.update(place="loss", weight=0.01, reduction=reduction)
        config.train.accumulate = parts
        made = make_functions(config, (6, 6))
        state = made.create(0, made.net.hyper)
        loss = jax.jit(jax.value_and_grad(made.problem.inner, has_aux=True))
        found.append(loss(state.inner.params, state.hyper, data, state.inner.model_state))
    for (value, (_, aux)), slope in found[1:]:
        np.testing.assert_allclose(value, found[0][0][0], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), aux, found[0][0][1][1]
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), slope, found[0][1])
    assert found[0][0][1][1]["tv"] > 0


@pytest.mark.usefixtures("x64")
def test_parts_are_the_same_images_on_any_number_of_devices():
    def shared(params, hyper, data, model_state):  # BatchNorm's mean over the axis
        x = jnp.mean(data.image, axis=(1, 2)) @ params
        mean = jax.lax.pmean(jnp.mean(x), "devices")
        return jnp.mean((x - mean) ** 2), (model_state + mean, {})

    args = jnp.array([0.5, -1.0, 2.0]), None
    found = []
    for count in (1, 2):
        shares = jax.tree.map(lambda x, n=count: x.reshape(n, -1, *x.shape[1:]), batch())
        run = jax.vmap(in_parts(shared, 4), (None, None, 0, None), axis_name="devices")
        loss, (state, _) = run(*args, shares, jnp.zeros(()))
        found.append([loss.mean(), state[0]])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_a_batch_that_does_not_divide_is_named():
    config, layout = base.get_config(), SimpleNamespace(devices=[0, 1], check_batch=lambda *_: None)
    config.train.accumulate = 16
    with pytest.raises(UserError, match=r"accumulate=16 must divide train\.batch_size=16 on each"):
        check_sizes(config, layout, (64, 64))
    config.train.accumulate = 8
    check_sizes(config, layout, (64, 64))


def test_a_run_in_parts_trains_and_resumes_bit_for_bit(tiles, tmp_path):
    def run(steps, name):
        config = base.get_config()
        config.data.directory, config.data.cache = str(tiles), str(tiles.parent / "cache")
        config.model.update(name="pixels", width=2)
        config.train.update(steps=steps, batch_size=4, log_every=1, accumulate=2)
        config.evaluation.update(every=10**6, panels=0)
        return training.run(config, tmp_path / name)

    whole, _ = run(5, "whole"), run(3, "parts")
    assert run(5, "parts")["parameters_sha256"] == whole["parameters_sha256"]
