"""A run's net opens without its training: on any device, and with nothing but the net's arrays."""

import json
import os
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import ROOT

import tvjax
from configs import base, unet_tv
from tvjax.errors import UserError
from tvjax.hypergrad import InnerState
from tvjax.training import checkpoint, checksums, restore, rundir, setup
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.state import TrainState

FOUR_DEVICES = """
import sys
import types
import warnings
from pathlib import Path
from configs import lunet_bilevel
from tvjax.training import rundir
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.setup import make_setup
workdir, config = Path(sys.argv[1]), lunet_bilevel.get_config()
config.model.update(width=2, depth=1)
config.parallel.update(devices=4, map="jit")
config.train.steps_per_dispatch = 1
state = make_setup(config, (8, 8)).create()
assert len(state.hyper.sharding.device_set) == 4
with Checkpoints(workdir / "checkpoints") as checkpoints:
    checkpoints.save(state, {"seconds": 0.0}, wait=True)
rundir.write_config(workdir, config)
"""


@pytest.fixture(scope="module")
def of_four_devices(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("four") / "run"
    workdir.mkdir()
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-c", FOUR_DEVICES, str(workdir)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return workdir


def test_a_run_of_four_devices_opens_on_one_without_its_training(of_four_devices, monkeypatch):
    read, check = [], checksums.check
    monkeypatch.setattr(
        checksums,
        "check",
        lambda sums, arrays, run: check(sums, read.append(arrays) or arrays, run),
    )
    monkeypatch.setattr(setup, "make_functions", None)
    monkeypatch.setattr(tvjax.hypergrad, "adam", None)
    assert jax.device_count() == 1
    config, net, state = restore.open_net(of_four_devices)
    assert config.parallel.devices == 4
    assert state.inner.opt_state == state.hyper_opt_state == state.carry == ()
    first = jax.jit(lambda: net.create(config.seed, net.hyper, (8, 8)))()
    jax.tree.map(np.testing.assert_array_equal, state, first)
    assert read and all(
        name.startswith(("inner/params/", "inner/model_state/")) or name in ("hyper", "step")
        for name in read[0]
    )
    predictor = tvjax.Predictor.load(of_four_devices)
    image = np.random.default_rng(0).random((8, 8, 3), np.float32)
    _, wanted = net.predict(first, jnp.asarray(image[None]))
    np.testing.assert_allclose(predictor(image), wanted[0], atol=1e-6)


def test_damage_to_what_a_net_reads_is_seen_and_another_net_is_refused(of_four_devices):
    folder = of_four_devices / "checkpoints" / "0"
    path = folder / checksums.ITEM / "metadata"
    whole = path.read_text()
    _, _, state = restore.open_net(of_four_devices)
    arrays = {"hyper": np.asarray(state.hyper) + 1}
    content = checksums.take(arrays, {}, None)
    content = json.loads(whole) | {"arrays": json.loads(whole)["arrays"] | content["arrays"]}
    del content["self"]
    path.write_text(json.dumps(content | {"self": checksums._of_json(content)}))
    with pytest.raises(UserError, match="none of the checkpoints"):
        restore.open_net(of_four_devices)
    path.write_text(whole)
    deeper = base.get_config()
    deeper.model.update(width=2, depth=2)
    rundir.write_config(of_four_devices, deeper)
    with pytest.raises(UserError, match="is of another architecture"):
        restore.open_net(of_four_devices)


def test_a_checkpoint_is_denoised_by_a_weight_that_was_chosen_for_it(tmp_path, capsys):
    config = unet_tv.get_config()
    config.model.update(width=2, depth=1)
    config.train.steps = 8
    net = restore.make_net(config)
    state = jax.jit(lambda: net.create(0, net.hyper, (8, 8)))()
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (4, 8):
            checkpoints.save(state._replace(step=state.step + step), {}, wait=True)
    rundir.write_config(tmp_path, config)
    unfinished = tvjax.Predictor.load(tmp_path)
    assert unfinished.denoise is None
    assert "no denoising weight was chosen for checkpoint 8" in capsys.readouterr().err
    rundir.write_summary(tmp_path, {"steps": 8, "lambda": 0.0, "denoise_weight": 0.07})
    assert tvjax.Predictor.load(tmp_path).denoise == 0.07
    assert capsys.readouterr().err == ""
    assert tvjax.Predictor.load(tmp_path, checkpoint=4).denoise is None
    assert "no denoising weight was chosen for checkpoint 4" in capsys.readouterr().err
    assert tvjax.Predictor.load(tmp_path, checkpoint=4, denoise=0.2).denoise == 0.2
    assert "not finished" not in capsys.readouterr().err
    config.train.steps = 12
    rundir.write_config(tmp_path, config)
    tvjax.Predictor.load(tmp_path, denoise=0)
    assert "is of step 8 of 12: its training is not finished" in capsys.readouterr().err
    rundir.write_summary(tmp_path, {"steps": 8, "lambda": 0.0, "denoise_weight": "much"})
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        tvjax.Predictor.load(tmp_path)


def test_what_earlier_versions_saved_beside_is_passed_over(tmp_path):
    """Lambda was in the model state too."""
    params, stats = {"w": jnp.arange(3.0)}, {"batch_stats": {"mean": jnp.ones(2)}}
    inner = InnerState(params, optax.adam(1.0).init(params), stats)
    now = TrainState(jnp.int32(4), inner, jnp.float32(-3), optax.adam(1.0).init(jnp.ones(())), ())
    earlier = inner._replace(model_state=stats | {"lam": jnp.float32(0.05)})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(now._replace(inner=earlier), {}, wait=True)
    bare = now._replace(inner=inner._replace(opt_state=()), hyper_opt_state=())
    for like in (now, bare):
        found = restore.open_state(tmp_path, like)
        assert jax.tree.structure(found) == jax.tree.structure(like)
        jax.tree.map(np.testing.assert_array_equal, found, like)
    other = now._replace(inner=inner._replace(params=params | {"v": jnp.ones(1)}))
    with pytest.raises(UserError, match="is of another architecture"):
        restore.open_state(tmp_path, other)


def test_only_tasks_that_a_failed_save_dropped_are_not_told_of(monkeypatch):
    told = []
    for name in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, lambda *args: told.append(args))
    with warnings.catch_warnings():
        checkpoint._never_tell_of_dropped_tasks.__wrapped__()
        for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), None):
            sys.excepthook(type(error), error, None)
            sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert len(told) == 4 and "Event loop" not in str(told)
