"""Rankers of labels: derivatives, wrong labels that they find, interruptions, and refusals."""

import os
import signal

import devices  # noqa: F401  its net, which compiles in a moment
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import unet
from tvjax import label_faults
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.training import interrupt, loop, rankers, slopes

SIZE, WRONG = 16, [3, 11, 20]


class Source:
    """Raw records of bright discs on dark ground; the masks of some are inverted."""

    def __init__(self, seed, length, wrong=()):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:SIZE, :SIZE]
        centres, radii = rng.uniform(3, 13, (2, length, 1, 1)), rng.uniform(3, 6, (length, 1, 1))
        mask = (x - centres[0]) ** 2 + (y - centres[1]) ** 2 < radii**2
        noise = rng.uniform(0, 60, (length, SIZE, SIZE, 3))
        self.image = (150 * mask[..., None] + noise).astype(np.uint8)
        self.mask = mask[..., None].astype(np.uint8)
        for k in wrong:
            self.mask[k] = 1 - self.mask[k]

    def __len__(self):
        return len(self.image)

    def __getitems__(self, indices):
        return [
            {"image": self.image[k], "mask": self.mask[k], "id": 100 + k, "file": b"%d.png" % k}
            for k in indices
        ]


def config_of(**optimizer):
    config = unet.get_config()
    config.model.update(name="pixels", width=4)
    config.optimizer.update(name="adam", learning_rate=0.05, **optimizer)
    config.train.update(steps=24, batch_size=4)
    config.checkpoint.every = 10
    return config


@pytest.fixture
def work(tmp_path):
    def made(folder="runs", config=None, stop=None):
        splits = {
            name: Split(tmp_path, name, Source(seed, length, wrong))
            for name, seed, length, wrong in (("train", 0, 24, WRONG), ("val", 1, 9, ()))
        }
        config = config or config_of()
        return rankers.make_work(config, splits, tmp_path / folder, stop or interrupt.Stop())

    return made


@pytest.mark.parametrize("name", label_faults.RANKERS)
def test_wrong_labels_come_first(work, name):
    found = label_faults.RANKERS[name](work())
    order = np.argsort(-found.score, kind="stable")
    assert sorted(order[:3]) == WRONG
    assert found.score.shape == found.iou.shape == found.net.shape == (24,)
    right = np.delete(found.iou, WRONG)
    assert found.iou[WRONG].max() < 0.2 < 0.7 < right.min()
    probabilities = rankers.predict(work(), found, 0)
    assert probabilities.shape == (SIZE, SIZE, 1) and 0 <= probabilities.min() < 0.5


def test_the_hypergradient_is_the_finite_difference(x64, work):
    """All steps of a run are differentiated, in a direction of all weights at once."""
    config = config_of()
    config.model.dtype = "float64"
    job, run = work(config=config), slopes.Run(np.arange(1, 20, 2), 2, 5, 9)
    momentum = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    functions = slopes.make_weighted(job.config, job.splits["train"], momentum)
    state = jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        slopes.first(functions, job.config, run),
    )
    functions = functions._replace(
        net=functions.net._replace(hyper={"tile_weights": jnp.zeros(24, jnp.float64)})
    )
    batches = slopes.batches_of(run, job.splits, 4)
    assert len(batches[0]) == 4 and len(batches[1].image) == 9

    @jax.jit
    def loss(hyper):
        inner, hyper = state, {"tile_weights": hyper}
        for batch in batches[0]:
            inner, _ = functions.problem.inner_step(inner, hyper, batch)
        return functions.problem.outer(inner.params, hyper, batches[1], inner.model_state)[0]

    found = slopes.through(functions, state, batches, stop=job.stop, label="here")
    direction, h = np.cos(np.arange(24.0)), 1e-3
    at = [float(loss(k * h * direction)) for k in (-2, -1, 1, 2)]
    truth = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
    np.testing.assert_allclose(found @ direction, truth, rtol=1e-6)
    assert np.flatnonzero(found).tolist() == sorted(np.unique([b.row for b in batches[0]]))


def test_what_is_finished_is_not_done_again_and_the_rest_goes_on(work, monkeypatch):
    """A signal in the second of two trainings; later the result of an uninterrupted ranking."""
    whole = rankers.out_of_fold(2)(work("whole"))
    train, calls = loop.train, []

    def struck(*arguments):
        calls.append(arguments[3].name)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(*arguments)

    monkeypatch.setattr(loop, "train", struck)
    with pytest.raises(interrupt.Interrupted), interrupt.Stop() as stop:
        rankers.out_of_fold(2)(work(stop=stop))
    assert calls == ["without_part_1_of_2", "without_part_2_of_2"]
    steps = []
    monkeypatch.setattr(loop, "train", lambda *arguments: steps.append(0) or train(*arguments))
    with interrupt.Stop() as stop:
        again = rankers.out_of_fold(2)(work(stop=stop))
    np.testing.assert_array_equal(again.score, whole.score)
    np.testing.assert_array_equal(again.net, whole.net)


def test_a_run_of_the_hypergradient_is_kept_and_a_damaged_one_is_told(work, monkeypatch):
    ranker = rankers.hypergradient(runs=2, epochs=1)
    first = ranker(work())
    monkeypatch.setattr(slopes, "through", None)
    np.testing.assert_array_equal(ranker(work()).score, first.score)
    path = work().folder / "hypergradient_2_1.npy"
    for content in (path.read_bytes()[:50], b"", b"x" * 300):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"hypergradient_2_1.npy is damaged; delete it"):
            ranker(work())


def test_many_tiles_are_taken_in_several_runs(work, monkeypatch):
    monkeypatch.setattr(rankers, "TOGETHER", 10)
    found = rankers.hypergradient(runs=1, epochs=1)(work())
    kept = sorted(path.name for path in work().folder.glob("*.npy"))
    assert kept == [f"hypergradient_1_{k}.npy" for k in (1, 2, 3)] and np.any(found.score)


@pytest.mark.parametrize("sizes", [[1] * 24, [5, 4, 4, 4, 3, 3, 1], [10, 1, 1]])
def test_parts_hold_whole_clusters_and_are_of_about_one_size(sizes):
    clusters = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    found = rankers.parts(clusters, 3, 1)
    for label in np.unique(clusters):
        assert len(np.unique(found[clusters == label])) == 1
    counts = np.bincount(found, minlength=3)
    assert counts.min() > 0 and counts.max() <= max(-(-len(clusters) // 3) + 2, max(sizes))


def test_fewer_clusters_than_parts_are_refused():
    with pytest.raises(UserError, match=r"9 training tiles in 2 clusters .* in 3 parts; take"):
        rankers.parts(np.arange(9) // 5, 3, 0)


def test_a_part_of_a_split_is_its_records(work):
    split = work().splits["train"]
    part = split.part([5, 3, 8]).part([2, 0])
    assert len(part) == 2 and [record["id"] for record in part] == [108, 105]
    assert part[1]["file"] == "5.png" and part.directory == split.directory
    np.testing.assert_array_equal(part[0]["image"], split[8]["image"])


def test_an_edited_list_is_not_written_over(tmp_path, capsys):
    split = Split(tmp_path, "train", Source(0, 24))
    ranking = rankers.Ranking(*([np.linspace(0, 1, 24)] * 2), [], np.zeros(24, int))
    order, path = np.arange(24), tmp_path / "worst.csv"
    first = label_faults.write(tmp_path, split, ranking, order, 3, {})
    label_faults.keep(tmp_path, first)
    assert path.read_text().split() == ["id,file", "100,0.png", "101,1.png", "102,2.png"]
    second = label_faults.write(tmp_path, split, ranking, order, 2, first)
    assert path.read_text().split() == ["id,file", "100,0.png", "101,1.png"]  # it was not edited
    path.write_text("id,file\n100,0.png\n")
    assert label_faults.check_same(tmp_path, {}) == first
    assert label_faults.write(tmp_path, split, ranking, order, 3, second) == second
    assert path.read_text() == "id,file\n100,0.png\n"
    assert "worst.csv was edited, and stays as it is" in capsys.readouterr().err
    path.unlink()
    assert label_faults.write(tmp_path, split, ranking, order, 3, second) == first


def test_links_and_foreign_trainings_in_its_folder_are_refused(work, tmp_path):
    foreign, out = tmp_path / "foreign", tmp_path / "out"
    (foreign / "on_all").mkdir(parents=True)
    out.mkdir()
    (out / "runs").symlink_to(foreign)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "on_all").symlink_to(foreign / "on_all")
    for folder in ("out/runs", "runs"):
        with pytest.raises(UserError, match=r"runs(/on_all)? is a link"):
            work(folder)
    (out / "runs").unlink()
    (out / "runs").mkdir()
    with pytest.raises(
        UserError, match=r"holds runs, which is of something else \(there is no rank"
    ):
        label_faults.check_same(out, {})
