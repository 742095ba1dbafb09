"""The parts of the loop, without a run."""

from types import SimpleNamespace
from typing import Any, cast

import devices
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from traces import jitted

from configs import base, lunet_bilevel
from tvjax.data import pipeline
from tvjax.errors import UserError
from tvjax.scoring.mask_scores import describe_band, summarise
from tvjax.training import evaluation, feeds, parallel, resident, steps
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.plan import make_hyper_plan
from tvjax.training.setup import make_setup
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


def setup_of(plan, *, resident=True, most=1):
    layout = parallel.make_layout(map="jit")
    return SimpleNamespace(layout=layout, plan=plan, resident=resident, most=most)


def bilevel_config(**changes):
    config = lunet_bilevel.get_config()
    config.train.batch_size, config.hypergrad.batch_size = 4, 2
    config.train.steps, config.evaluation.every, config.checkpoint.every = 20, 7, 10
    config.hypergrad.update(changes)
    return config, make_hyper_plan(config.optimizer, **config.hypergrad.to_dict())


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("held", [True, False])
def test_each_step_gets_the_batches_of_its_own_split(start, held):
    config, plan = bilevel_config(warmup=3, every=2)
    splits = {"train": Tiles(0, 30), "val": Tiles(1, 9)}
    indices = {
        name: pipeline.TrainIndices(len(splits[name]), batch_size=size, seed=config.seed)
        for name, size in (("train", 4), ("val", 2))
    }
    setup = setup_of(plan, resident=held)
    for step, dispatch in enumerate(feeds.dispatches(config, setup, splits, start), start):
        assert (dispatch.before, dispatch.after) == (step, step + 1)
        tiles, (inner,), *outer = dispatch.arguments
        found = jax.jit(resident.take)(tiles[0], inner).image[:, 0, 0, 0]
        np.testing.assert_array_equal(found, indices["train"][step])
        assert dispatch.bilevel == plan.is_due(step) == bool(outer)
        if outer:
            found = jax.jit(resident.take)(tiles[1], outer[0]).image[:, 0, 0, 0]
            np.testing.assert_array_equal(found, 100 + indices["val"][plan.updates(step)])
    assert step == 19


@pytest.mark.parametrize("held, most", [(True, 1), (False, 1), (True, 3)])
def test_batches_beyond_those_of_the_steps_are_read_ahead(held, most):
    """Curvature takes the batches of the steps that follow, which get them all the same."""
    config, plan = bilevel_config(method="amigo", steps=2, every=3, warmup=4)
    assert plan.estimator.batches == 7
    splits = {"train": Tiles(0, 30), "val": Tiles(1, 9)}
    setup = setup_of(plan, resident=held, most=most)
    indices = pipeline.TrainIndices(30, batch_size=4, seed=config.seed)
    for dispatch in feeds.dispatches(config, setup, splits, 3):
        tiles, inner, *_ = dispatch.arguments
        if most > 1:
            tiles, inner = tiles[0], np.asarray(inner)
            inner = [jnp.asarray(inner[:, 0, k]) for k in range(inner.shape[2])]
        assert len(inner) == (7 if dispatch.bilevel else 1)
        for k, batch in enumerate(inner):
            found = resident.take(tiles[0], batch).image[:, 0, 0, 0]
            np.testing.assert_array_equal(found, indices[dispatch.before + k])
    assert dispatch.after == 20


@pytest.mark.parametrize("changes, message", [
    ({"method": "f2sa"}, r"needs hypergrad\.warmup=0 \(not 40\)"),
    ({"method": "f2sa", "warmup": 0, "steps": 2}, r"at most hypergrad\.steps=2 \(not 4\)"),
])  # fmt: skip
def test_solvers_that_cannot_serve_say_why(changes, message):
    with pytest.raises(UserError, match=message):
        bilevel_config(**changes)


def test_a_batch_larger_than_its_split_names_the_field():
    config, plan = bilevel_config(batch_size=10)
    with pytest.raises(UserError, match=r"hypergrad\.batch_size"):
        feeds.dispatches(config, setup_of(plan), {"train": Tiles(0, 30), "val": Tiles(1, 9)}, 0)


def test_a_set_too_large_for_the_device_is_streamed_which_is_said(monkeypatch, capsys):
    config, _ = bilevel_config()
    splits = {"train": Tiles(0, 30), "val": Tiles(1, 10)}  # 16 bytes a tile
    for memory, held in ((4 * 640, True), (4 * 640 - 4, False)):
        monkeypatch.setattr(feeds, "_memory", lambda memory=memory: memory)
        assert feeds.streamed_if_large(config, splits).data.resident == held
    assert capsys.readouterr().err.startswith("40 tiles of 0.0 GiB in all are streamed")
    assert config.data.resident


def test_an_evaluation_adds_up_beyond_what_float32_counts():
    tiles = [2.0**24, *[1.0] * 59]  # pixels of the first tile, and of the others
    found = evaluation.add_up({"iou": np.float32(x), "true_positive": np.float32(1)} for x in tiles)
    assert found == {"iou": 2**24 + 59, "true_positive": 60}


def test_multiples_are_passed_by_steps_of_any_length():
    assert [s for s in range(1, 13) if feeds.passes(s - 1, s, 4)] == [4, 8, 12]
    assert feeds.passes(3, 8, 5) and not feeds.passes(5, 9, 5)


def test_dispatches_hold_steps_of_one_kind_and_end_at_each_pause():
    _, plan = bilevel_config(warmup=9, every=4)
    work = list(feeds.schedule(plan, 0, 20, most=4, pauses=(6, 10)))
    ends = [(d.after, d.bilevel) for d in work]
    assert ends == [
        (4, False), (6, False), (9, False), (10, True), (12, False), (13, False), (14, True),
        (17, False), (18, True), (20, False),
    ]  # fmt: skip
    assert [d.before for d in work] == [0, *(d.after for d in work[:-1])]
    _, plan = bilevel_config(method="forward", steps=3, warmup=2, every=3)
    work = list(feeds.schedule(plan, 0, 16, most=2, pauses=(100,)))
    assert [(d.before, d.size, d.count) for d in work] == [
        (0, 1, 2), (2, 3, 2), (8, 3, 2), (14, 1, 2),
    ]  # fmt: skip


def test_several_steps_in_one_program_are_the_steps_one_by_one():
    tiles = jnp.arange(5.0), jnp.arange(3.0)

    def step(state, tiles, inner, outer):
        moved = sum(tiles[0][rows].sum() for rows in inner) + tiles[1][outer].sum()
        return 2 * state + moved, {"moved": moved}

    rng = np.random.default_rng(0)
    inner, outer = rng.integers(0, 5, (6, 4, 2)), rng.integers(0, 3, (2, 4))  # [B, most, K]
    many, traces = jitted(resident.repeat(step))
    for n in (1, 3, 4):
        state, moved = jnp.float32(1), []
        for t in range(n):
            state, metrics = step(state, tiles, list(inner[:, t].T), outer[:, t])
            moved.append(metrics["moved"])
        found, metrics = many(jnp.float32(1), (tiles, n), inner, outer)
        assert found == state
        np.testing.assert_array_equal(metrics["moved"][:n], moved)
    assert len(traces) == 1


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

    with Checkpoints(Path("run/checkpoints"), keep=2, keep_best=0) as checkpoints:
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
    with Checkpoints(Path("run/checkpoints"), keep=2, keep_best=0) as checkpoints:
        restored, _ = checkpoints.restore(state(0))
        assert int(restored.step) == 2 and checkpoints.steps == [2]
    assert "checkpoints/3 cannot be read" in capsys.readouterr().err
    assert (tmp_path / "run/damaged_checkpoints/3").is_dir()


@pytest.mark.parametrize("score, best", [("iou", 0.1), ("pooled_iou", 0.05)])
def test_the_denoising_weight_is_the_best_on_validation(monkeypatch, score, best):
    found = {
        0.01: {"iou": 0.5, "pooled_iou": 0.5},
        0.05: {"iou": 0.6, "pooled_iou": 0.7},
        0.1: {"iou": 0.7, "pooled_iou": 0.6},  # gives up objects: better where tiles are empty
    }
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, denoise, **__: found[denoise])
    nothing = (cast(Any, None),) * 3
    chosen = evaluation.choose_denoising(*nothing, list(found), score=score, batch_size=1)
    assert chosen == (best, [(weight, found[weight][score]) for weight in found])


def sparse_masks():
    """Ten tiles, of which two hold a roof."""
    masks = np.zeros((10, 16, 16, 1), np.uint8)
    masks[:2, 4:12, 4:12] = 1
    return masks


def scores_of(predictions, masks):
    """The scores of an evaluation, for a net that predicts just that."""
    net: Any = SimpleNamespace(apply=lambda variables, images, train: images)
    head: Any = SimpleNamespace(
        probabilities=lambda logits, lam: logits[..., :1],
        cross_entropy=lambda logits, lam, mask: jnp.zeros(len(mask)),
    )
    step = steps.evaluation_step(net, head, cast(Any, SimpleNamespace(lam=lambda hyper: hyper)))
    inner = SimpleNamespace(params={}, model_state={"batch_stats": {}})
    state: Any = SimpleNamespace(inner=inner, hyper=jnp.float32(0), average=())
    images = (255 * predictions.repeat(3, axis=-1)).astype(np.uint8)
    batch = pipeline.Batch(jnp.asarray(images), jnp.asarray(masks))
    found, bce = jax.device_get(step(state, None, batch))
    valid = np.ones(len(masks), bool)
    scores = evaluation.image_scores(found, masks, bce, valid)
    return summarise(evaluation.add_up([evaluation.sums(scores)]))


def test_giving_up_objects_does_not_raise_the_headline_of_sparse_roofs():
    """One net finds both roofs and a speck on each empty tile; the other half a roof, no speck."""
    masks = sparse_masks()
    finds, shy = masks.copy(), np.zeros_like(masks)
    finds[2:, 0, 0] = 1
    shy[0, 4:8, 4:12] = 1
    finds, shy = (scores_of(p, masks) for p in (finds, shy))
    score = base.get_config().evaluation.score
    assert finds["iou"] < shy["iou"]  # the mean over images rewards empty tiles
    assert finds[score] == pytest.approx(128 / 136) and shy[score] == pytest.approx(32 / 128)
    assert finds["empty_images"] == shy["empty_images"] == 8
    assert finds["nonempty_iou"] == 1 and shy["nonempty_iou"] == pytest.approx(0.25)
    nothing = scores_of(np.zeros_like(masks[2:]), masks[2:])
    assert nothing["nonempty_iou"] is None and nothing["empty_images"] == 8


def test_most_objects_inside_the_band_of_boundary_iou_are_warned_of():
    mask = np.zeros((64, 64, 1), np.uint8)  # a band of 2 pixels
    mask[4:8, 4:30] = mask[20:22, 2:5] = mask[40:45, 40:45] = 1  # two lie in it whole
    found = evaluation.describe_boundary(cast(Any, [{"mask": mask}, {"mask": 0 * mask}]))
    assert found == {"pixels": 2, "objects": 3, "narrow_objects": 2}
    told = describe_band(*found.values())
    assert "2 pixels" in told and "warning: the band covers 67 % of the objects" in told.replace(
        "%", " %"
    )
    assert "warning" not in describe_band(2, 3, 1) + describe_band(2, 0, 0)


@pytest.mark.parametrize("method", ["forward_online", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("soba", "amigo", "stocbio", "f2sa")
)])  # fmt: skip
def test_what_an_estimator_remembers_survives_a_checkpoint(tmp_path, method):
    """Four steps, a save, two more; and two more from what was saved: the same bits."""
    config = devices.config_of("pixels", method, "jit", 1)
    config.model.dtype, config.train.steps = "float32", 7
    setup = make_setup(config, (devices.SIZE, devices.SIZE))

    def advance(state, start, steps):
        for dispatch in feeds.dispatches(config, setup, devices.SPLITS, start):
            if dispatch.before == start + steps:
                break
            take = setup.bilevel if dispatch.bilevel else setup.plain
            state, _ = take(state, *dispatch.arguments)
        return state

    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        state = advance(setup.create(), 1, 4)  # past the warm-up: one program to compile
        checkpoints.save(state, {}, wait=True)
        whole = advance(state, 5, 2)
        restored, _ = checkpoints.restore(setup.create())
    remembers = any(np.any(np.asarray(x)) for x in jax.tree.leaves(restored.carry))
    assert remembers == (method != "stocbio") and restored.hyper != setup.create().hyper
    again = advance(restored, 5, 2)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
