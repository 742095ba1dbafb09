"""Moving averages of weights: the recursion, what predicts, and that runs resume bit for bit."""

import json

import devices  # noqa: F401  its net, which compiles in a moment
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from configs import lunet_bilevel
from tvjax.errors import UserError
from tvjax.hypergrad import InnerState
from tvjax.training import average, loop, restore
from tvjax.training.state import TrainState
from tvjax.training.steps import to_float


def state_of(step, value, own=()):
    inner = InnerState({"w": jnp.asarray(value)}, (), {"batch_stats": {"m": jnp.asarray(-value)}})
    return TrainState(jnp.int32(step), inner, (), (), (), own)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_averages_are_those_of_the_formula(decay):
    rng = np.random.default_rng(0)
    state, wanted = state_of(0, np.full(3, 7.0)), None
    state = state._replace(average=average.begin(state.inner, decay))
    for t in range(40):
        value = rng.normal(size=3)
        d = min(decay, t / (t + 10))
        wanted = value if wanted is None else d * wanted + (1 - d) * value
        state = average.move(state, state_of(t + 1, value), decay)
        found = average.weights(state)
        np.testing.assert_allclose(found["params"]["w"], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["batch_stats"]["m"], -wanted, rtol=1e-5, atol=1e-6)


def test_an_update_of_several_steps_forgets_as_much_as_they():
    before = state_of(90, np.zeros(2, np.float32))
    before = before._replace(average=average.begin(before.inner, 0.5))
    after = average.move(before, state_of(93, np.ones(2, np.float32)), 0.5)
    np.testing.assert_allclose(after.average["params"]["w"], 1 - 0.5**3)


def test_without_a_decay_there_is_no_average():
    state = state_of(3, np.ones(2))
    assert average.begin(state.inner, 0.0) == ()
    assert average.move(state, state, 0.0) is state
    assert average.weights(state)["params"] is state.inner.params


def config_of(tiles, steps, **train):
    config = lunet_bilevel.get_config()
    config.data.directory, config.data.cache = str(tiles), str(tiles.parent / "cache")
    config.model.update(name="pixels", width=2)
    config.train.update(steps=steps, batch_size=4, log_every=1, **train)
    config.hypergrad.update({"warmup": 3, "batch_size": 4, "every": 2})
    config.evaluation.update(every=10**6, panels=0)
    config.checkpoint.every = 6
    return config


def predict_by(net, variables, image):
    logits = net.module.apply(variables, to_float(jnp.asarray(image)), train=False)
    return net.head.probabilities(logits, jnp.float32(0))  # a sigmoid, whatever lambda


def test_an_averaged_run_resumes_and_predicts_by_the_average(tiles, tmp_path):
    whole = loop.run(config_of(tiles, 9, ema=0.8), tmp_path / "whole")
    loop.run(config_of(tiles, 5, ema=0.8), tmp_path / "parts")
    parts = loop.run(config_of(tiles, 9, ema=0.8), tmp_path / "parts")
    assert whole["parameters_sha256"] == parts["parameters_sha256"]
    assert parts["splits"] == whole["splits"]
    config, net, state = restore.open_net(tmp_path / "whole")
    _, _, again = restore.open_net(tmp_path / "parts")
    assert config.train.ema == 0.8
    jax.tree.map(np.testing.assert_array_equal, state.average, again.average)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    wanted = predict_by(net, state.average, image)
    found = tvjax.Predictor.load(tmp_path / "whole")(image)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    batch_stats = state.inner.model_state["batch_stats"]
    newest = predict_by(net, {"params": state.inner.params, "batch_stats": batch_stats}, image)
    assert np.abs(found - newest).max() > 1e-5
    exported = tvjax.Predictor.load(tmp_path / "whole").export(size=64, platforms=("cpu",))
    np.testing.assert_allclose(exported.call(to_float(jnp.asarray(image))), wanted, atol=1e-6)
    with pytest.raises(UserError, match=r"train\.ema"):
        loop.run(config_of(tiles, 12, ema=0.9), tmp_path / "whole")
    path = tmp_path / "whole" / "config.json"  # a damaged digit would predict by other weights
    damaged = json.loads(path.read_text())
    damaged["train"]["ema"] = 0.0
    path.write_text(json.dumps(damaged))
    with pytest.raises(UserError):
        restore.open_net(tmp_path / "whole")
