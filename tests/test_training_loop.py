"""The parts of the loop, without a run."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import lunet_bilevel
from tvjax.data import pipeline
from tvjax.errors import UserError
from tvjax.training import parallel
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.loop import _feeds, _passes
from tvjax.training.setup import make_hyper_plan
from tvjax.training.state import TrainState


class Tiles:
    """A split whose tile i of split s is constant: `100 s + i`."""

    def __init__(self, number, length):
        self.number, self.length = number, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        value = np.uint8(100 * self.number + i)
        return {"image": np.full((2, 2, 3), value), "mask": np.full((2, 2, 1), value)}


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("resident", [True, False])
def test_feeds_give_the_batches_of_their_own_split(start, resident):
    config = lunet_bilevel.get_config()
    config.train.batch_size, config.hypergrad.batch_size = 4, 2
    config.data.resident = resident
    plan = make_hyper_plan(1.0, **(config.hypergrad.to_dict() | {"warmup": 3, "every": 2}))
    setup = SimpleNamespace(layout=parallel.make_layout(map="jit"), plan=plan)
    splits = {"train": Tiles(0, 30), "val": Tiles(1, 9)}
    arrays, *feeds = _feeds(config, setup, splits, start)
    expected = (("train", 4, start), ("val", 2, plan.updates(start)))
    for held, feed, (name, batch_size, position) in zip(arrays, feeds, expected, strict=True):
        split = splits[name]
        indices = pipeline.train_indices(len(split), batch_size=batch_size, seed=config.seed)
        for t, batch in enumerate(itertools.islice(feed, 6), position):
            found = jax.jit(parallel.take)(held, batch).image[:, 0, 0, 0]
            np.testing.assert_array_equal(found, 100 * split.number + indices[t])


def test_a_batch_larger_than_its_split_names_the_field():
    config = lunet_bilevel.get_config()
    config.hypergrad.batch_size = 10
    plan = make_hyper_plan(1.0, **config.hypergrad.to_dict())
    setup = SimpleNamespace(layout=parallel.make_layout(map="jit"), plan=plan)
    with pytest.raises(UserError, match=r"hypergrad\.batch_size"):
        _feeds(config, setup, {"train": Tiles(0, 30), "val": Tiles(1, 9)}, 0)


def test_multiples_are_passed_by_steps_of_any_length():
    assert [s for s in range(1, 13) if _passes(s - 1, s, 4)] == [4, 8, 12]
    assert _passes(3, 8, 5) and not _passes(5, 9, 5)


def state(value):
    leaf = jnp.full((3,), value)
    inner = parallel_inner(leaf)
    return TrainState(jnp.int32(value), inner, leaf[0], optax.adam(1.0).init(leaf[0]), ())


def parallel_inner(leaf):
    from tvjax.hypergrad import InnerState

    return InnerState({"w": leaf}, optax.adam(1.0).init({"w": leaf}), {"lam": leaf[0]})


def test_checkpoints_take_a_relative_folder_keep_the_newest_and_skip_a_damaged_one(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    with Checkpoints(Path("run/checkpoints"), keep=2) as checkpoints:
        assert checkpoints.restore(state(0)) is None
        for step in (1, 2, 3):
            checkpoints.save(state(step), {"seconds": float(step)}, wait=True)
        assert checkpoints.steps == [3, 2]
        restored, run = checkpoints.restore(state(0))
        assert run == {"seconds": 3.0} and int(restored.step) == 3
        jax.tree.map(np.testing.assert_array_equal, restored, state(3))
    for file in (tmp_path / "run/checkpoints/3/state").rglob("*"):
        if file.is_file():
            file.unlink()
    with Checkpoints(Path("run/checkpoints"), keep=2) as checkpoints:
        restored, _ = checkpoints.restore(state(0))
        assert int(restored.step) == 2 and checkpoints.steps == [2]
    assert "checkpoints/3 cannot be read" in capsys.readouterr().out
    assert (tmp_path / "run/damaged_checkpoints/3").is_dir()
