"""What the program learns beside lambda: derivatives, resuming, logs, and what it refuses."""

import devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lunet_bilevel
from tvjax import losses
from tvjax.errors import UserError
from tvjax.models.heads import SIGMOID, make_loss
from tvjax.training import feeds, figures, learned, resident
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.setup import make_functions, make_setup
from tvjax.types import NumberedBatch

SHAPE, TILES = (devices.SIZE, devices.SIZE), len(devices.SPLITS["train"])


def batch(name, rows):
    split = devices.SPLITS[name]
    return NumberedBatch(
        *(jnp.asarray(x[rows]) for x in (split.image, split.mask)), jnp.asarray(rows)
    )


def test_the_hypergradient_of_everything_is_the_finite_difference(x64):
    """The training step itself is differentiated, in each quantity alone."""
    config = devices.config_of("pixels", "everything", "jit", 1)
    functions = make_functions(config, SHAPE, tiles=TILES)
    problem, estimator = functions.problem, functions.plan.estimator
    inner = devices.first_state("pixels", "everything").inner
    hyper = jax.tree.map(lambda h: jnp.asarray(h, jnp.float64), functions.net.hyper)
    train, val = batch("train", np.arange(8)), batch("val", np.arange(8))
    step = jax.jit(lambda s: problem.inner_step(s, hyper, train)[0])
    state = step(step(inner))

    @jax.jit
    def loss(hyper):
        new, _ = problem.inner_step(state, hyper, train)
        return problem.outer(new.params, hyper, val, new.model_state)[0]

    found = jax.jit(lambda h: estimator(problem, state, h, [train], val).gradient)(hyper)
    assert set(found) == set(learned.NAMES)
    for name, gradient in found.items():
        along = jnp.cos(jnp.arange(float(gradient.size))).reshape(gradient.shape)

        def at(k, name=name, along=along):
            return float(loss(hyper | {name: hyper[name] + k * 1e-2 * along}))

        truth = (8 * (at(1) - at(-1)) - at(2) + at(-2)) / 12e-2
        np.testing.assert_allclose(jnp.vdot(gradient, along), truth, rtol=1e-6, err_msg=name)
    assert not np.any(found["tile_weights"][8:]) and np.all(found["tile_weights"][:8])


def test_everything_resumes_bit_for_bit_and_moves(tmp_path):
    config = devices.config_of("pixels", "everything", "jit", 1)
    config.model.dtype, config.train.steps = "float32", 7
    setup = make_setup(config, SHAPE, tiles=TILES)

    def advance(state, start, steps):
        for dispatch in feeds.dispatches(config, setup, devices.SPLITS, start):
            if dispatch.before == start + steps:
                break
            take = setup.bilevel if dispatch.bilevel else setup.plain
            state, metrics = take(state, *dispatch.arguments)
        return state, metrics

    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        state, _ = advance(setup.create(), 1, 3)
        checkpoints.save(state, {}, wait=True)
        whole, metrics = advance(state, 4, 3)
        restored, _ = checkpoints.restore(setup.create())
    again, _ = advance(restored, 4, 3)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    first = learned.values(setup.create().hyper)
    for name, value in learned.values(whole.hyper).items():
        assert np.any(value != first[name])
        assert f"hypergradient_{name}" in metrics and name in metrics
    assert "lambda" in metrics and "hypergradient" in metrics
    np.testing.assert_allclose(first["learning_rate"], config.optimizer.learning_rate, rtol=1e-6)
    np.testing.assert_allclose(first["loss_mix"], 0.3, rtol=1e-6)
    np.testing.assert_array_equal(first["tile_weights"], np.ones(TILES))
    told = learned.describe(whole.hyper)["learned"]
    assert set(told) == set(learned.NAMES) - {"lambda"}
    assert told["tile_weights"]["least"] < 1 < told["tile_weights"]["most"]
    learned.write_weights(whole.hyper, tmp_path / "weights.csv")
    found = np.loadtxt(tmp_path / "weights.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(found[:, 1], learned.values(whole.hyper)["tile_weights"], rtol=1e-6)


def test_each_moves_by_a_step_size_of_its_own():
    hyper = {name: jnp.zeros(()) for name in ("lambda", "weight_decay", "loss_mix")}
    rates = {"weight_decay": 0.2, "loss_mix": 0.3}
    optimizer = learned.make_optimizer(tuple(hyper), 0.1, rates, significance=0.0, block=1)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, hyper), optimizer.init(hyper))
    np.testing.assert_allclose([updates[name] for name in hyper], [-0.1, -0.2, -0.3], rtol=1e-5)


@pytest.mark.parametrize("block", [1, 2])
def test_each_waits_for_evidence_of_its_own(block):
    hyper = {"lambda": jnp.zeros(()), "tile_weights": jnp.zeros(2)}
    optimizer = learned.make_optimizer(
        tuple(hyper), 0.1, {"tile_weights": 0.2}, significance=2.0, block=block
    )
    state, moved = optimizer.init(hyper), jax.tree.map(jnp.zeros_like, hyper)
    update = jax.jit(optimizer.update)
    for k in range(20 * block):
        noise = (-1.0) ** (k // block)
        gradient = {"lambda": jnp.asarray(noise), "tile_weights": jnp.asarray([1.0, noise])}
        gradient = jax.tree.map(lambda g, k=k: g * (1 + 0.01 * k), gradient)
        updates, state = update(gradient, state, hyper)
        moved = jax.tree.map(lambda m, u: m + jnp.abs(u), moved, updates)
    assert moved["lambda"] == 0 and moved["tile_weights"][0] > 0 == moved["tile_weights"][1]


@pytest.mark.parametrize("held", [True, False])
def test_batches_say_which_tiles_they_hold(held):
    config = devices.config_of("pixels", "everything", "jit", 1)
    config.data.resident = held
    setup = make_setup(config, SHAPE, tiles=TILES)
    dispatch = next(feeds.dispatches(config, setup, devices.SPLITS, 1))
    (tiles, _), (inner,), outer = dispatch.arguments
    found = jax.device_get(resident.take(tiles, inner))
    expected = devices.SPLITS["train"].image[found.row]
    np.testing.assert_allclose(found.image, expected, rtol=1e-6)
    assert not hasattr(outer, "row")


def test_a_mixed_loss_is_its_share_of_each():
    logits = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    mask = (jax.random.uniform(jax.random.key(1), (2, 8, 8, 1)) < 0.4).astype(jnp.uint8)
    loss = make_loss(name="mix", mix=0.25, dice_smoothing=1.0, focal_gamma=2.0, focal_alpha=None)
    expected = 0.75 * losses.binary_cross_entropy(logits, mask) + 0.25 * losses.dice(logits, mask)
    np.testing.assert_allclose(loss(SIGMOID, logits, jnp.zeros(()), mask), expected, rtol=1e-6)


REFUSED = {
    "lambda": ({"regularizer.place": "none"}, r"lambda needs regularizer.place='loss' or 'head'"),
    "learning_rate": ({"optimizer.learning_rate": 0.0}, "learning_rate needs .* above 0"),
    "weight_decay": ({}, "weight_decay needs optimizer.name='adamw'"),
    "loss_mix": ({}, "loss_mix needs loss.train='mix'"),
    "tile_weights": ({"hypergrad.method": "forward"}, "tile_weights needs .* a tangent per weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_refused_by_its_field(name):
    changes, message = REFUSED[name]
    config = lunet_bilevel.get_config()
    config.update_from_flattened_dict({"hypergrad.learn": (name,)} | changes)
    with pytest.raises(UserError, match=message) as error:
        make_functions(config, SHAPE)
    assert "\n" not in str(error.value) and "hypergrad.learn" in str(error.value)


@pytest.mark.parametrize("method", ["sgd_formula", "training_loss", "paper"])
def test_a_method_that_does_not_see_the_optimizer_is_refused(method):
    config = lunet_bilevel.get_config()
    config.hypergrad.update(method=method, learn=("lambda", "learning_rate"))
    with pytest.raises(UserError, match=f"method='{method}' does not see learning_rate"):
        make_functions(config, SHAPE)


def test_the_training_loss_cannot_choose_its_own_weights():
    config = lunet_bilevel.get_config()
    config.hypergrad.update(method="training_loss", learn=("lambda", "tile_weights"))
    with pytest.raises(UserError, match=r"training_loss' cannot learn tile_weights"):
        make_functions(config, SHAPE)


def test_what_no_method_learns_is_not_asked_for():
    config = lunet_bilevel.get_config()
    config.hypergrad.update(method="none", learn=("lambda", "weight_decay"))
    with pytest.raises(
        UserError, match=r"'weight_decay'\) is learned by no method; give hypergrad"
    ):
        make_functions(config, SHAPE)


def test_nothing_or_twice_the_same_cannot_be_learned():
    for learn in ((), ("lambda", "lambda")):
        config = lunet_bilevel.get_config()
        config.hypergrad.learn = learn
        with pytest.raises(UserError, match="at least one quantity, each once"):
            make_functions(config, SHAPE)


def test_a_net_without_tv_learns_its_weight_decay_alone():
    config = lunet_bilevel.get_config()
    config.regularizer.place = "none"
    config.optimizer.update(name="adamw", weight_decay=0.01)
    config.hypergrad.learn = ("weight_decay",)
    functions = make_functions(config, SHAPE)
    assert set(functions.net.hyper) == {"weight_decay"}
    assert functions.net.regularizer.lam(functions.net.hyper) == 0


def test_the_figure_has_a_row_per_quantity(tmp_path):
    lines = [
        {"kind": "train", "step": k, "lambda": 1e-6, "hypergradient": 0.1, "loss_mix": 0.3 + k / 10,
         "hypergradient_loss_mix": -0.1}
        for k in range(3)
    ]  # fmt: skip
    figures.learned_over_time(lines, ("lambda", "loss_mix"), tmp_path / "learned.png")
    assert (tmp_path / "learned.png").stat().st_size > 1000
