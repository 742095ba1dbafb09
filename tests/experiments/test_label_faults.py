"""Planted faults: what they are, and how rankings of them are counted."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import label_faults
from tvjax.data import records
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.training import rankers


@pytest.fixture
def masks():
    """Eighty masks of a square of 8 pixels each, but for five that are empty."""
    masks = np.zeros((80, 24, 24, 1), np.uint8)
    rng = np.random.default_rng(0)
    for mask in masks[5:]:
        y, x = rng.integers(4, 12, 2)
        mask[y : y + 8, x : x + 8] = 1
    return masks


def test_faults_are_of_four_kinds_and_all_are_wrong(masks):
    planted = label_faults.plant(masks, 3, share=0.2)
    kinds, counts = np.unique(planted.kind, return_counts=True)
    assert dict(zip(kinds, counts, strict=True)) == {
        "": 64, **dict.fromkeys(label_faults.KINDS, 4)
    }  # fmt: skip
    same = (planted.masks == masks).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, planted.kind == "")
    at = {kind: np.flatnonzero(planted.kind == kind) for kind in label_faults.KINDS}
    assert not planted.masks[at["emptied"]].any()
    np.testing.assert_array_equal(planted.masks[at["inverted"]], 1 - masks[at["inverted"]])
    swapped = [m.tobytes() for m in planted.masks[at["swapped"]]]
    assert sorted(swapped) == sorted(m.tobytes() for m in masks[at["swapped"]])
    for k in at["shifted"]:
        moves = [np.roll(masks[k], (y, x), (0, 1)) for y, x in ((4, 0), (-4, 0), (0, 4), (0, -4))]
        assert sum((planted.masks[k] == move).all() for move in moves) == 1
    again = label_faults.plant(masks, 4, share=0.2)
    assert (again.kind != planted.kind).any() and masks[5:].sum() == 75 * 64


def test_what_a_shift_brings_in_is_background():
    mask = np.ones((8, 8, 1), np.uint8)
    for down, right in ((4, 0), (-4, 0), (0, 4), (0, -4)):
        moved = label_faults._shifted(mask, down, right)[..., 0]
        assert moved.sum() == 32 and moved[2 + down // 2, 2 + right // 2 + 1] in (0, 1)
    moved = label_faults._shifted(mask, 4, 0)[..., 0]
    assert not moved[:4].any() and moved[4:].all()


def test_too_few_tiles_with_objects_are_refused(masks):
    with pytest.raises(UserError, match=r"80 tiles, 75 of which hold objects, are too few for 80"):
        label_faults.plant(masks, 0, share=1.0)
    with pytest.raises(UserError, match="take more --tiles"):
        label_faults.plant(masks[:20], 0)


def test_a_faulty_split_has_other_masks_and_the_same_records(tiles, masks):
    split = records.open_split(tiles, "train")
    wrong = np.ones((len(split), 16, 16, 1), np.uint8)
    wrong[3] = 0
    faulty = Split(split.directory, "train", label_faults.Faulty(split, wrong))
    for found, before in zip(faulty.__getitems__([3, 7]), split.__getitems__([3, 7]), strict=True):
        assert {k: found[k] for k in ("id", "file")} == {k: before[k] for k in ("id", "file")}
        np.testing.assert_array_equal(found["image"], before["image"])
    assert not faulty[3]["mask"].any() and faulty[7]["mask"].all()
    assert faulty.part([7])[0]["mask"].all()


def test_precision_is_the_share_of_wrong_ones_among_the_first():
    kind = np.array(["", "emptied", "", "shifted", "", "swapped", "", "inverted"])
    score = np.array([1, 9, 8, 7, 2, 6, 3, 0.5])
    line = label_faults.measure(kind, score) | {"ranker": "a", "seed": 0}
    expected = [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5, 3 / 6, 3 / 7, 4 / 8]
    np.testing.assert_allclose(line["precision"], expected, atol=1e-4)
    assert line["faults"] == 4 and line["found"] == {
        "shifted": 1, "emptied": 1, "inverted": 0, "swapped": 1
    }  # fmt: skip
    other = line | {"seed": 1, "precision": [1.0] * 3 + [0.8] * 5}
    found = label_faults.summarise([line, other])["a"]
    mean, half = (0.75 + 0.8) / 2, 12.7062 * 0.05 / 2
    np.testing.assert_allclose(found["at_faults"], [mean, mean - half, 1], atol=1e-3)
    assert found["seeds"] == 2 and found["of_each"] == 2 and found["at_half"] == [0.75, 0, 1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the program's `main` in this process, with a ranker that trains nothing."""
    chance = {
        "chance": lambda work: rankers.Ranking(np.arange(40.0), np.zeros(40), [], np.zeros(40, int))
    }

    def made(**changes):
        args = {"name": "x", "workdir": str(tmp_path / "w"), "size": 16, "tiles": 40, "seeds": 1,
                "steps": 1, "width": 2, "rate": 0.1, "variants": 0} | changes  # fmt: skip
        monkeypatch.setattr(label_faults, "flags", SimpleNamespace(FLAGS=SimpleNamespace(**args)))
        label_faults.main([])

    monkeypatch.setattr(label_faults.plant, "__defaults__", (0.2,))
    monkeypatch.setattr(label_faults, "LEAST", 0.0)
    monkeypatch.setattr(label_faults.label_faults, "RANKERS", chance)
    return made


def test_results_and_trainings_are_of_one_set_and_config(tiles, other_tiles, tmp_path, run):
    one, other, out = str(tiles), str(other_tiles), tmp_path / "out"
    run(data=one, out=str(out))
    kept = (out / "x.json").read_bytes()
    for changes, words in (
        ({"data": other}, "out/x.json is of another config: tiles_sha256="),
        ({"rate": 0.2}, "out/x.json is of another config: net.optimizer.learning_rate=0.1"),
        ({"data": other, "out": "b"}, "w/x/made_of.json is of another config: tiles_sha256="),
        ({"tiles": 44, "out": "b"}, "w/x/made_of.json is of another config: tiles=40, not 4"),
    ):
        with pytest.raises(UserError, match=words):
            run(**{"data": one, "out": str(out)} | changes)
    run(data=one, out=str(out), seeds=2)
    assert len((out / "x.json").read_bytes()) > len(kept)


def test_foreign_files_are_refused_before_the_work(tiles, tmp_path, run):
    for name, words in (
        ("label_faults.png", "holds label_faults.png, which is of something else"),
        ("y.json", "y.json is damaged or of something else"),
    ):
        (tmp_path / name).write_text("{}")
        with pytest.raises(UserError, match=words):
            run(data=str(tiles), out=str(tmp_path))
        assert not (tmp_path / "w").exists()
        (tmp_path / name).unlink()
