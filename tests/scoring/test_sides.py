"""The runs of a comparison: their folders, copies, seeds, data and configs."""

import pytest

from tvjax.errors import UserError
from tvjax.scoring import sides

DATA = {"sha256": 64 * "a", "directory": "tiles"}


def run(name, seed, *, net=None, width=16, data=DATA):
    return sides.Run(name, seed, {"model.width": width}, net or name, data)


def test_folders_stand_between_commas_that_names_may_hold_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "lambda=1,seed=0", "lambda=1,seed=1"):
        (tmp_path / name).mkdir()
    assert sides.folders(["a,b"]) == ["a", "b"]
    assert sides.folders(["a", "b"]) == ["a", "b"]
    assert sides.folders(["lambda=1,seed=0,lambda=1,seed=1,a"]) == [
        "lambda=1,seed=0", "lambda=1,seed=1", "a",
    ]  # fmt: skip
    assert sides.folders(["nowhere,b"]) == ["nowhere", "b"]
    assert sides.folders([]) == []


def test_one_run_is_given_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("a")
    sides.check_folders(["a"], ["b"])
    for first, second in ((["a"], ["a"]), (["a"], ["b", f"{tmp_path}/a/"]), (["link", "a"], ["b"])):
        with pytest.raises(UserError, match="is given twice, and a run compared with itself"):
            sides.check_folders(first, second)


def test_copies_and_equal_seeds_are_refused():
    sides.check([run("a", 0), run("b", 1)], [run("c", 0), run("d", 1)])
    with pytest.raises(UserError, match=r"^c is a copy of a,"):
        sides.check([run("a", 0, net="x")], [run("c", 0, net="x")])
    with pytest.raises(UserError, match=r"^a and b have the same seed, 3: "):
        sides.check([run("a", 3), run("b", 3)], [run("c", 0)])
    # Another method may well give the same net: a denoising whose weight was chosen to be 0.
    sides.check([run("a", 0, net="x")], [run("c", 0, net="x", width=8)])


def test_runs_are_paired_by_seeds_and_data():
    first = [run("a", 0), run("b", 1), run("c", 2)]
    assert sides.paired(first, [run("d", 2), run("e", 0), run("f", 1)]) == [1, 2, 0]
    assert sides.paired(first, [run("d", 2), run("e", 0)]) is None
    assert sides.paired(first, [run("d", 2), run("e", 0), run("f", 3)]) is None
    for data in (None, DATA | {"sha256": 64 * "b"}):
        assert sides.paired(first[:1], [run("d", 0, data=data)]) is None
    assert sides.paired(first[:1], [run("d", 0, data=DATA | {"directory": "moved"})]) == [0]


def test_other_data_and_configs_are_told():
    assert sides.warn([run("a", 0), run("b", 1)], [run("c", 0, width=8)]) == []
    (line,) = sides.warn([run("a", 0)], [run("c", 0), run("d", 1, width=8)])
    assert "c and d are not seeds of one method: they differ in model.width (16 and 8)" in line
    moved, embedded = DATA | {"directory": "moved"}, {"sha256": 64 * "0", "directory": None}
    assert sides.warn_of_data(DATA, moved) is None
    told = sides.warn_of_data(DATA, moved, embedded)
    assert "(aaaaaaaaaaaa of moved and 000000000000 of the embedded set)" in str(told)
    assert "has no tiles.json" in str(sides.warn_of_data(DATA, None))
