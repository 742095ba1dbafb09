"""Early stopping: when it ends a training, what is its result, and that it resumes."""

import devices  # noqa: F401  its net, which compiles in a moment
import pytest

from configs import base
from tvjax.errors import UserError
from tvjax.training import interrupt, loop, restore
from tvjax.training.logs import read_metrics

SCORES = {2: 0.3, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.2, 12: 0.9}


def config_of(tiles, patience, steps=14):
    config = base.get_config()
    config.data.directory, config.data.cache = str(tiles), str(tiles.parent / "cache")
    config.model.update(name="pixels", width=2)
    config.train.update(steps=steps, batch_size=4, log_every=1, patience=patience)
    config.evaluation.update(every=2, panels=0)
    config.checkpoint.every = 3
    return config


@pytest.fixture
def scored(monkeypatch):
    """Evaluations of a training find `SCORES`, and draw nothing."""

    def evaluate(session, state, step):
        return SCORES.get(step, 0.0)

    monkeypatch.setattr(loop._Session, "_evaluate", evaluate)
    monkeypatch.setattr(loop._Session, "_draw", lambda *_: None)


@pytest.mark.usefixtures("scored")
def test_it_ends_after_as_many_evaluations_without_a_better_one(tiles, tmp_path):
    summary = loop.run(config_of(tiles, 3), tmp_path / "run")
    assert summary["steps"] == 4 and summary["patience"] == {"trained": 10, "ended": True}
    assert max(line["step"] for line in read_metrics(tmp_path / "run")) == 10
    _, _, state = restore.open_net(tmp_path / "run")  # the newest, for predict and all others
    assert int(state.step) == 4 and loop.parameters_sha256(state) == summary["parameters_sha256"]
    exact = loop.run(config_of(tiles, 0, steps=4), tmp_path / "four")
    assert exact["parameters_sha256"] == summary["parameters_sha256"]
    assert exact["splits"] == summary["splits"] and "patience" not in exact
    # Once more there is nothing to do, with other steps too; evaluations cannot be moved.
    assert loop.run(config_of(tiles, 3, steps=40), tmp_path / "run") == summary
    other = config_of(tiles, 3)
    other.evaluation.every = 4
    with pytest.raises(UserError, match=r"evaluation\.every"):
        loop.run(other, tmp_path / "run")


@pytest.mark.usefixtures("scored")
def test_a_run_in_parts_ends_where_the_whole_one_does(tiles, tmp_path):
    first = loop.run(config_of(tiles, 3, steps=7), tmp_path / "run")  # result: step 4
    assert first["steps"] == 4 and first["patience"] == {"trained": 7, "ended": False}
    summary = loop.run(config_of(tiles, 3), tmp_path / "run")
    assert summary["steps"] == 4 and summary["patience"] == {"trained": 10, "ended": True}


def test_an_interruption_makes_no_other_step_the_best(tiles, tmp_path, monkeypatch):
    """Step 8 scores as high as the best, and is saved for the interruption alone."""
    evaluated, asked = [], []

    def evaluate(session, state, step):
        evaluated.append(step)
        return SCORES.get(step, 0.0)

    def is_asked(stop):
        asked.extend([stop] * (evaluated[-1:] == [6]))
        return len(asked) == 2

    config = config_of(tiles, 3)
    monkeypatch.setattr(loop._Session, "_evaluate", evaluate)
    monkeypatch.setattr(loop._Session, "_draw", lambda *_: None)
    with monkeypatch.context() as patched, pytest.raises(interrupt.Interrupted):
        patched.setattr(interrupt.Stop, "asked", is_asked)
        loop.run(config, tmp_path / "run")
    assert restore.open_net(tmp_path / "run")[2].step == 8
    assert restore.open_net(tmp_path / "run", "best")[2].step == 4
    assert loop.run(config, tmp_path / "run")["steps"] == 4


@pytest.mark.usefixtures("scored")
def test_with_enough_patience_the_best_is_the_result(tiles, tmp_path):
    summary = loop.run(config_of(tiles, 4), tmp_path / "run")
    assert summary["steps"] == 12 and summary["patience"] == {"trained": 14, "ended": False}


@pytest.mark.usefixtures("scored")
def test_a_kill_after_the_end_and_before_the_scores_changes_nothing(tiles, tmp_path, monkeypatch):
    def die(*_):
        raise KeyError("killed")

    with monkeypatch.context() as patched, pytest.raises(KeyError, match="killed"):
        patched.setattr(loop, "_scores", die)
        loop.run(config_of(tiles, 3), tmp_path / "run")
    summary = loop.run(config_of(tiles, 3), tmp_path / "run")
    assert summary["steps"] == 4 and summary["patience"] == {"trained": 10, "ended": True}


def test_a_picture_that_cannot_be_drawn_costs_no_steps(tiles, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("font")

    config = config_of(tiles, 0, steps=6)
    config.checkpoint.every = config.evaluation.every = 4
    monkeypatch.setattr(loop._Session, "_draw", fail)
    with pytest.raises(KeyError, match="font"):
        loop.run(config, tmp_path / "run")
    assert restore.open_net(tmp_path / "run")[2].step == 4
