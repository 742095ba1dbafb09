"""Runs with a pretrained encoder: where they begin, and that they then need no file of weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weight_files
from devices import Tiles
from encoders import TINY, arrays_of
from encoders import tiny as tiny
from nets import initial, state_shapes

import tvjax
from configs import lunet_bilevel
from tvjax import hypergrad
from tvjax.errors import UserError
from tvjax.models import make_model
from tvjax.models.encoders import weights
from tvjax.training import loop, pretrained, steps
from tvjax.training import state as states
from tvjax.training.setup import check_sizes, make_functions, make_setup
from tvjax.types import Batch

FOUND = arrays_of(TINY)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.pth"
    path.write_bytes(weight_files.zipped(FOUND))
    return path


def config_of(tiles, file, **changes):
    config = lunet_bilevel.get_config()
    config.update_from_flattened_dict({
        "data.directory": str(tiles), "data.cache": str(file.parent), "model.width": 2,
        "model.encoder": "tiny", "model.weights": str(file), "model.encoder_rate": 0.1,
        "train.steps": 4, "train.batch_size": 4, "hypergrad.batch_size": 4, "hypergrad.warmup": 1,
        "hypergrad.every": 1, "checkpoint.every": 2, "evaluation.panels": 0, **changes,
    })  # fmt: skip
    return config


def encoder_of(state):
    """The encoder's variables, as the file's are converted."""
    inner = state.inner
    return {"params": inner.params, "batch_stats": inner.model_state["batch_stats"]}


def test_a_run_needs_its_weights_once(tiny, tiles, file):
    """Prolonged, it is bit for bit the whole one; it predicts too; another file is refused."""
    plain = {"hypergrad.method": "none", "regularizer.place": "none", "evaluation.batch_size": 4}
    whole, parts = (file.parent / name for name in ("whole", "parts"))
    summary = loop.run(config_of(tiles, file, **plain), whole)
    loop.run(config_of(tiles, file, **plain, **{"train.steps": 2}), parts)
    digest = weights.digest(file)
    file.unlink()
    resumed = loop.run(config_of(tiles, file, **plain), parts)
    assert resumed["parameters_sha256"] == summary["parameters_sha256"]
    stored = json.loads((parts / "config.json").read_text())["model"]
    assert stored["weights_sha256"] == digest
    predictor = tvjax.Predictor.load(parts)
    assert predictor(jnp.zeros((10, 7, 3))).shape == (10, 7, 1)
    with pytest.raises(UserError, match=r"weights_sha256"):
        loop.run(config_of(tiles, file, **plain, **{"model.weights_sha256": "0" * 64}), parts)
    with pytest.raises(UserError, match=r"model\.weights=.*tiny\.pth is no file"):
        loop.run(config_of(tiles, file, **plain), file.parent / "new")


def test_the_first_state_has_the_weights_of_the_file(tiny, tiles, file):
    config = config_of(tiles, file)
    state = make_setup(config, (16, 16)).create()
    begun = pretrained.put(config.model, state)
    wanted = weights.convert(TINY, FOUND)
    for name, found in encoder_of(begun).items():
        jax.tree.map(np.testing.assert_array_equal, dict(found["encoder"]), wanted[name])
        assert jax.tree.structure(found) == jax.tree.structure(encoder_of(state)[name])
    many = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    stem = pretrained.put(config.model, many).inner.params["encoder"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(stem[1], wanted["params"]["Conv_0"]["kernel"])


@pytest.mark.parametrize("content, words", [
    (b"PK", "neither a state dict"),
    (weight_files.zipped(arrays_of(TINY) | {"_bn0.bias": np.zeros(9)}), r"_bn0\.bias has shape"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(tiny, tiles, file, content, words):
    file.write_bytes(content)
    config = config_of(tiles, file)
    state = state_shapes(config)
    with pytest.raises(UserError, match=words):
        pretrained.put(config.model, state)


def test_other_weights_than_the_pinned_are_refused(tiles, file):
    config = config_of(tiles, file, **{"model.weights_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"model\.weights_sha256=0+ is not that of the weights"):
        pretrained.pinned(config, None)
    config.model.weights_sha256 = None
    assert pretrained.pinned(config, None).model.weights_sha256 == weights.digest(file)


@pytest.mark.parametrize("changes, words", [
    ({"hypergrad.method": "sgd_formula"}, r"model\.encoder_rate=0\.1 cannot be with"),
    ({"model.name": "segnet"}, r"model\.encoder='tiny' needs model\.name='unet'"),
])  # fmt: skip
def test_what_cannot_be_with_an_encoder_is_refused(tiny, tiles, file, changes, words):
    with pytest.raises(UserError, match=words):
        make_functions(config_of(tiles, file, **changes), (16, 16))


def test_tiles_smaller_than_the_encoder_s_stride_are_refused(tiles, file):
    config = config_of(tiles, file, **{"model.encoder": "efficientnet_lite0"})
    layout = make_setup(config, (16, 16)).layout
    with pytest.raises(UserError, match=r"model\.encoder='efficientnet_lite0' cannot be"):
        check_sizes(config, layout, (16, 16))


def test_the_encoder_moves_by_its_own_rate():
    """AdamW's decay, too, which a frozen encoder must not feel."""
    params = {"encoder": {"kernel": jnp.ones(3)}, "head": jnp.ones(2)}
    gradient = jax.tree.map(lambda x: 0.3 * x, params)
    whole = hypergrad.adamw(1e-2, weight_decay=0.1)
    wanted, _ = whole.update(gradient, whole.init(params), params)
    for rate in (0.0, 0.25):
        optimizer = states.with_rate(whole, "encoder", rate)
        found, _ = optimizer.update(gradient, optimizer.init(params), params)
        np.testing.assert_array_equal(found["head"], wanted["head"])
        kernel = rate * wanted["encoder"]["kernel"]
        np.testing.assert_array_equal(found["encoder"]["kernel"], kernel)


def batch(seed):
    tiles = Tiles(seed, 4)  # of float64
    return Batch(jnp.asarray(tiles.image), jnp.asarray(tiles.mask))


@pytest.fixture
def bilevel(tiny, x64):
    """`rate -> (problem, state)` in float64, as `setup` makes them."""

    def make(rate):
        net, head = make_model(
            name="unet", head="sigmoid", head_iterations=1, head_kind="anisotropic", width=2,
            depth=2, momentum=0.9, dtype=None, precision="highest", encoder="tiny",
        )  # fmt: skip
        optimizer = states.with_rate(hypergrad.adam(1e-3), "encoder", rate)
        regularizer = steps.Regularizer("loss", "anisotropic", "sum", "log")
        problem = steps.make_problem(net, head, optimizer, regularizer)
        variables = initial(net, jnp.float64)
        model_state = {"batch_stats": variables["batch_stats"]}
        return problem, problem.init(variables["params"], model_state)

    return make


@pytest.mark.slow
def test_the_exact_hypergradient_is_the_finite_difference(bilevel):
    problem, inner = bilevel(0.25)
    data = [batch(seed) for seed in range(3)]

    @jax.jit
    def estimate(inner, hyper, train):
        return hypergrad.exact()(problem, inner, hyper, [train], data[2])

    hyper = jnp.float64(-3.0)
    inner = estimate(inner, hyper, data[0]).state  # so that Adam's moments are at work
    exact, h = estimate(inner, hyper, data[1]).gradient, 1e-3
    near, far = (
        estimate(inner, hyper + k * h, data[1]).outer_loss
        - estimate(inner, hyper - k * h, data[1]).outer_loss
        for k in (1, 2)
    )
    np.testing.assert_allclose(exact, (8 * near - far) / (12 * h), rtol=1e-5)
    assert exact != 0
