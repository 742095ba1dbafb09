"""The guard of what is learned: when it warns, what it holds, and that a held run resumes."""

import itertools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from configs import lunet_bilevel
from tvjax import hypergrad
from tvjax.errors import UserError
from tvjax.training import guard, loop
from tvjax.training.guard import Watch

NET = SimpleNamespace(regularizer=SimpleNamespace(lam=jnp.exp))


def setup_of(kind, estimator=None):
    plan = SimpleNamespace(estimator=estimator or hypergrad.exact(), guard=kind)
    return SimpleNamespace(net=NET, plan=plan)


def watched(losses, alphas, kind="warn", method="exact", estimator=None):
    """The watch after evaluations of these losses, one per step, at these hyperparameters."""
    config = lunet_bilevel.get_config()
    config.hypergrad.method = method
    watch = Watch()
    for step, (loss, alpha) in enumerate(zip(losses, alphas, strict=True)):
        state = SimpleNamespace(step=step, hyper=jnp.float32(alpha))
        watch = guard.look(watch, config, setup_of(kind, estimator), state, {"bce": loss})
    return watch


def test_it_warns_of_a_loss_that_rose_while_lambda_moved():
    watch = watched([0.7, 0.4, 0.5, 0.6], [-14.0, -13.0, -12.0, -11.0])
    assert watch.said == (
        "step 3: the validation loss is 0.6, and was 0.4 at step 1; since then lambda went from "
        "2.26e-06 to 1.67e-05. hypergrad.method='exact' sees 1 step ahead, and may mislead; if the "
        "training goes wrong, take hypergrad.guard='hold' or a smaller hypergrad.learning_rate"
    )
    assert not watch.held and watch.step == 1 and watch.hyper == (-13.0,)
    assert json.loads(json.dumps(watch._asdict())) == {**watch._asdict(), "hyper": [-13.0]}


@pytest.mark.parametrize(
    "method, estimator, sight",
    [
        ("forward", hypergrad.forward(5), "sees 5 steps ahead"),
        ("reverse", hypergrad.reverse(5), "sees 5 steps ahead"),
        ("forward_online", hypergrad.forward_online(), "sees the steps so far, none that follow"),
        ("soba", hypergrad.soba(0.1), "takes the net to be at its inner optimum"),
        ("f2sa", hypergrad.f2sa(10.0, steps=2), "takes the net to be at its inner optimum"),
        ("paper", hypergrad.paper(0.1), "sees 1 step ahead"),
        ("training_loss", hypergrad.training_loss(), "does not see the validation loss"),
    ],
)
def test_it_says_what_the_method_sees(method, estimator, sight):
    watch = watched([0.4, 0.5, 0.6], [-14, -13, -12], method=method, estimator=estimator)
    assert f". hypergrad.method={method!r} {sight}, and may mislead; if the" in watch.said


@pytest.mark.parametrize(
    ("losses", "alphas"),
    [
        ([0.7, 0.4, 0.5, 0.42], [0, 1, 2, 3]),  # a single evaluation that is worse
        ([0.7, 0.4, 0.5, 0.42, 0.5], [0, 1, 2, 3, 4]),  # two, but not one after the other
        ([0.7, 0.4, 0.43, 0.43], [0, 1, 2, 3]),  # by less than a tenth
        ([0.7, 0.4, 0.5, 0.6], [0, 1, 1.2, 1.4]),  # by overfitting, while lambda stood nearly still
        ([0.7, 0.6, 0.5, 0.4], [0, 1, 2, 3]),
    ],
)
def test_it_is_silent_otherwise(losses, alphas):
    assert watched(losses, alphas).said == ""


def test_it_can_be_switched_off():
    assert watched([0.4, 0.5, 0.6], [0, 1, 2], kind="none") == Watch()


def test_a_quantity_that_reaches_0_has_moved_and_one_that_stays_there_has_not():
    config = lunet_bilevel.get_config()
    still = guard._moves(config, setup_of("warn"), jnp.float32(-np.inf), jnp.float32(-np.inf))
    gone = guard._moves(config, setup_of("warn"), jnp.float32(-14), jnp.float32(-np.inf))
    assert still == [] and gone == ["lambda went from 8.32e-07 to 0"]


def config_of(tiles, steps):
    config = lunet_bilevel.get_config()
    config.data.directory, config.data.cache = str(tiles), str(tiles.parent / "cache")
    config.model.width, config.model.depth = 2, 1
    config.train.steps, config.train.batch_size, config.train.log_every = steps, 4, 1
    config.hypergrad.update(
        {"warmup": 3, "batch_size": 4, "every": 1, "learning_rate": 0.4, "guard": "hold"}
    )
    config.evaluation.every = config.checkpoint.every = 6
    return config


def test_a_held_run_goes_back_stays_there_and_resumes(tiles, tmp_path, monkeypatch, capsys):
    risen = itertools.count(1.0)
    monkeypatch.setattr(guard, "loss_of", lambda *_: next(risen))
    whole = loop.run(config_of(tiles, 16), tmp_path / "whole")
    capsys.readouterr()
    risen = itertools.count(1.0)
    loop.run(config_of(tiles, 14), tmp_path / "parts")
    said = capsys.readouterr().err
    parts = loop.run(config_of(tiles, 16), tmp_path / "parts")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    lams = [x["lambda"] for x in map(json.loads, lines) if x["kind"] == "train"]
    assert lams[0] == pytest.approx(1e-6) and lams[11] != lams[0]
    assert set(lams[12:]) == {lams[0]} and whole["lambda"] == lams[0]
    assert whole["guard"]["held"] and whole["guard"]["lowest_loss_step"] == 0
    assert "warning: step 12: the validation loss is 3, and was 1 at step 0; since" in said
    assert "back to step 0 with what is learned, where it stays" in said
    assert parts["parameters_sha256"] == whole["parameters_sha256"]
    assert "warning" not in capsys.readouterr().err


def test_evaluations_that_decide_cannot_be_moved(tiles, tmp_path):
    loop.run(config_of(tiles, 6), tmp_path / "run")
    config = config_of(tiles, 8)
    config.evaluation.every = 4
    with pytest.raises(UserError, match=r"evaluation\.every"):
        loop.run(config, tmp_path / "run")
