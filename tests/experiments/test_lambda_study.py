"""The study of lambda: its derivative of a whole run, its schedules, and a piece of it."""

import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lambda_study as study
from tvjax import hypergrad, interruption
from tvjax.errors import UserError
from tvjax.training import members
from tvjax.training.setup import make_functions
from tvjax.types import Batch

SCALE = study.SCALES["smoke"]._replace(size=8, steps=6, chunk=3, warmup=2, train_scored=8)


def tiles(count, size=8, seed=0):
    rng = np.random.default_rng(seed)
    mask = (rng.random((count, size, size, 1)) < 0.4).astype(np.uint8)
    image = 60 * mask + rng.integers(0, 190, (count, size, size, 3))
    return Batch(image.astype(np.uint8), mask)


SETS = {"train": tiles(13), "val": tiles(6, seed=1), "test": tiles(5, seed=2)}


@pytest.mark.slow
def test_slope_of_a_whole_run_is_the_difference_of_whole_runs(x64):
    config = study.config_of(SCALE)
    config.model.dtype = None  # as wide as the parameters
    functions = make_functions(config, (8, 8), net_of=members.Products)
    learners = study.estimators(config.optimizer.learning_rate)
    plan = study.slots([study.Member(3, 1e-3)], SCALE, {s: len(SETS[s].image) for s in SETS})
    plan = jax.tree.map(lambda x: x[:, 0], plan)
    data, online = jax.tree.map(jnp.asarray, SETS), hypergrad.forward_online()
    valid = jnp.ones(6, bool)

    def start(alpha):
        state = jax.tree.map(
            lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            functions.create(3, jnp.asarray(alpha)),
        )
        return state._replace(carry=online.init(functions.problem, state.inner, state.hyper))

    def finish(step, state):
        for t in range(SCALE.steps):
            state, _ = step(state, data, jax.tree.map(lambda x: x[t], plan))  # noqa: B023
        return state

    plain = jax.jit(study.member_step(functions, learners["plain"]))
    memory = jax.jit(study.member_step(functions, learners["memory"]))
    loss = jax.jit(lambda s: jnp.sum(functions.evaluation(s, None, data["val"])[1]))

    # Convolutions and Adam in float64 leave some 1e-11 of the loss, the difference h^2.
    alpha, h = float(np.log(1e-3)), 1e-6
    ends = [float(loss(finish(plain, start(alpha + d)))) for d in (h, -h)]
    wanted = (ends[0] - ends[1]) / (2 * h)
    found = float(study.final_slope(functions)(finish(memory, start(alpha)), data["val"], valid))
    assert abs(wanted) > 1e-4
    assert found == pytest.approx(wanted, rel=1e-4)


def test_updates_follow_those_of_training():
    from tvjax.training.feeds import schedule

    config = study.config_of(SCALE._replace(steps=29))
    for method, k, every in (("exact", 1, 4), ("forward", 5, 1), ("exact", 1, 1)):
        config.hypergrad.update(method=method, steps=k, every=every, warmup=3)
        plan = make_functions(config, (8, 8)).plan
        ends = [
            d.before + d.size - 1
            for d in schedule(plan, 0, 29, most=1, pauses=(100,)) if d.bilevel
        ]  # fmt: skip
        member = study.Member(0, 1.0, every=every, warmup=3, horizon=k)
        sizes = {"train": 13, "val": 6}
        slots = study.slots([member], SCALE._replace(steps=29), sizes)
        assert np.flatnonzero(slots.due[:, 0]).tolist() == ends
        firsts = [e - k + 1 for e in ends]
        assert not slots.decay[firsts, 0].any()  # each looks back to its own beginning
        order = members.rows(6, batch_size=4, seeds=[0], positions=np.arange(len(ends)))
        np.testing.assert_array_equal(slots.outer[ends, 0], order[:, 0])


def test_descent_halves_its_step_where_the_slope_turns():
    group = [{"lam": 1.0, "start": 0, "slope": s, "walk": None} for s in (-2.0, float("nan"), 1.0)]
    assert study.next_lambdas(group, step=1.0) == [pytest.approx(np.e)]
    turned = [{"lam": 1.0, "start": 0, "slope": 1.0, "walk": [-1.0, 1.0]}]
    assert study.next_lambdas(turned) == [pytest.approx(np.exp(-0.5))]


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_a_piece_is_run_once_and_says_what_it_is(tmp_path, together):
    lab = study.Lab(SCALE._replace(together=together), {"embedded": SETS}, minutes=10)
    study.run(lab, tmp_path, only="curve_embedded_0", commit="abc")
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert content["commit"] == "abc" and len(content["members"]) == 6
    assert {m["lam"] for m in content["members"]} == set(SCALE.lambdas)
    written = file.stat().st_mtime_ns
    study.run(lab, tmp_path, only="curve_embedded_0")
    assert file.stat().st_mtime_ns == written


def test_pieces_of_other_sizes_or_tiles_are_not_gone_on_with(tmp_path):
    lab = SimpleNamespace(
        scale=SCALE, sets={"embedded": SETS}, digests={"embedded": "a"}, convolutions="direct",
        say=print,
    )  # fmt: skip
    path = tmp_path / "curve_embedded_0.json"
    config = {**SCALE._asdict(), "convolutions": "direct", "piece": "curve_embedded_0"}
    good = {"config": config, "members": [], "tiles_sha256": "a"}
    for content, words in (
        (good, None),
        ({k: v for k, v in good.items() if k != "tiles_sha256"}, None),  # of earlier versions
        (good | {"tiles_sha256": "b"}, "of another config: tiles_sha256='b', not 'a'"),
        (good | {"members": [{k: {"true_tv": 3.0} for k in ("val", "test")}]}, "of other tiles"),
        (good | {"config": config | {"width": 3}}, "of another config"),
        ([], "is damaged"),
    ):
        path.write_text(json.dumps(content))
        refused = nullcontext() if words is None else pytest.raises(UserError, match=words)
        with refused:
            study.run(lab, tmp_path, only="none of them")


def test_a_result_file_keeps_the_course_of_what_moves():
    steps = np.arange(40.0)
    log = {"bce": steps, "loss": steps, "lambda": np.full(40, 1e-6), "hypergradient": steps}
    held = study._summary(log, np.ones(40, bool))
    assert "lambda_path" not in held and set(held["curves"]) == {"bce", "hypergradient"}
    assert held["curves"]["bce"] == [1.5 + 4 * k for k in range(10)]
    assert held["hypergradient"]["late_mean"] == 34.5
    moved = study._summary(log | {"lambda": 1e-6 * (1 + steps)}, np.ones(40, bool))
    assert len(moved["lambda_path"]) == 40


def test_a_signal_ends_the_study_before_its_next_piece(tmp_path):
    lab = SimpleNamespace(scale=SCALE, sets={"embedded": SETS}, digests={}, convolutions="direct",
                          say=print, left=lambda: 1.0, prepare=lambda *_: [])  # fmt: skip
    with interruption.noted(75):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            study.run(lab, tmp_path)
    assert not list(tmp_path.iterdir())
