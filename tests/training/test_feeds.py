"""A run keeps to its data: other data are refused, the same ones are taken wherever they are."""

import json
import os
import re
import shutil
import subprocess
import sys

import lives
import pytest

from tvjax.errors import UserError
from tvjax.training import loop, parallel, restore, rundir


@pytest.fixture(scope="module")
def other(make_tiles):
    """Tiles other than those of `tiles`, of the same number and size."""
    return make_tiles(1)


@pytest.fixture(scope="module")
def begun(tiles, tmp_path_factory):
    """A run of 4 steps, by a relative path, and the working directory that this is relative to."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiles, folder / "here" / "tiles")
    before = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "here")
        train(folder / "here" / "run", "tiles", steps=4)
    assert os.getcwd() == before
    return folder / "here"


@pytest.fixture
def run(begun, tmp_path):
    """A copy of it that may be spoilt."""
    shutil.copytree(begun, tmp_path / "here", copy_function=shutil.copy)
    return tmp_path / "here" / "run"


def train(workdir, directory, steps):
    config = lives.config_of(directory, workdir.parent, 1)
    config.hypergrad.method, config.train.steps, config.data.resident = "none", steps, False
    config.data.size = 16
    return loop.run(config, workdir)


def refused(run):
    own = rundir.read_data(run)
    return rf"trained on the tiles {own['sha256'][:12]} of \S+, but those of \S+ are \w{{12}}; "


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_a_run_names_its_data_and_where_they_are(begun):
    data = rundir.read_data(begun / "run")
    known = {"size": [16, 16], "scale": [16 / 192] * 2}  # the embedded set is drawn larger
    assert data == {"sha256": data["sha256"], "directory": str(begun / "tiles")} | known
    assert rundir.read_size(begun / "run") == (16, 16)
    assert summary(begun / "run")["data"] == data
    config = json.loads((begun / "run" / "config.json").read_text())
    assert config["data"]["directory"] == str(begun / "tiles")


@pytest.mark.parametrize(
    "steps", [pytest.param(4, marks=pytest.mark.slow), 8]
)  # of a run that is finished, and of one that goes on
def test_a_run_goes_on_with_its_own_data_alone(run, begun, other, tmp_path, monkeypatch, steps):
    own = rundir.read_data(run)["sha256"]
    shutil.copytree(other, tmp_path / "tiles")
    monkeypatch.chdir(tmp_path)
    for directory in (str(other), "tiles"):  # another folder; the same name, from another place
        with pytest.raises(UserError, match=refused(run)) as error:
            train(run, directory, steps)
        assert "--config.data.directory" in str(error.value) and "\n" not in str(error.value)
    assert rundir.read_data(run)["directory"] == str(begun / "tiles")
    (run.parent / "tiles").rename(tmp_path / "moved")
    assert train(run, "moved", steps)["steps"] == steps
    if steps == 8:
        assert rundir.read_data(run)["sha256"] == own
        assert rundir.read_data(run)["directory"] == str(tmp_path / "moved")


def test_data_replaced_in_place_are_refused(run, other, tmp_path):
    tiles = run.parent / "tiles"
    train(run, str(tiles), 8)
    shutil.rmtree(tiles)
    assert train(run, str(tiles), 8)["steps"] == 8  # what is gone is not needed any more
    shutil.copytree(other, tiles)
    config = restore.read_config(run)
    for use in (lambda: train(run, str(tiles), 8), lambda: restore.open_splits(run, config)):
        with pytest.raises(UserError, match=refused(run)):
            use()


@pytest.mark.slow
def test_data_made_at_first_use_are_refused_when_they_are_others(tiles, run, tmp_path):
    coco = tmp_path / "coco"
    shutil.copytree(tiles.parent / "coco", coco)
    workdir = tmp_path / "other run"
    train(workdir, str(coco), 4)
    os.replace(coco / "images" / "000003.jpg", coco / "images" / "000004.jpg")
    shutil.copy(coco / "images" / "000005.jpg", coco / "images" / "000003.jpg")
    with pytest.raises(UserError, match=f"{coco}, but those of {coco} are"):
        train(workdir, str(coco), 8)


@pytest.mark.parametrize("same", ["seed", "tiles"])
def test_checkpoints_of_another_run_are_not_taken_for_a_run_s_own(run, other, tmp_path, same):
    """Two folders of runs may have been copied into each other."""
    config = lives.config_of(
        str(run.parent / "tiles") if same == "tiles" else str(other), tmp_path, 1
    )
    config.hypergrad.method, config.train.steps, config.data.resident = "none", 8, False
    config.data.size, config.seed = 16, int(same == "tiles")
    loop.run(config, tmp_path / "another")
    newest = max((tmp_path / "another" / "checkpoints").glob("[0-9]*"), key=lambda x: int(x.name))
    shutil.copytree(newest, run / "checkpoints" / newest.name)
    words = "seed=0, and the checkpoint was trained with 1"
    if same == "seed":
        words = r"trained on the tiles '\w+', and the run on \w{12}: checkpoints of another run"
    with pytest.raises(UserError, match=words):
        restore.open_net(run)
    with pytest.raises(UserError, match=words):
        train(run, str(run.parent / "tiles"), 12)
    restore.open_net(run, "4")  # its own


def test_a_run_of_an_earlier_version_takes_the_data_at_hand_and_keeps_to_them(run, other, capsys):
    (run / "tiles.json").unlink()
    train(run, str(run.parent / "tiles"), 8)
    assert (
        "has no tiles.json, which says what data the run was trained on" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=refused(run)):
        train(run, str(other), 12)


def test_a_finished_run_writes_anew_what_it_knows_of_its_tiles(run):
    own = rundir.read_data(run)
    (run / "tiles.json").unlink()
    train(run, str(run.parent / "tiles"), 4)
    assert rundir.read_data(run) == own is not None


def test_what_an_early_end_left_behind_binds_no_run(run, other):
    data = {"sha256": 64 * "0", "directory": str(other)}
    with pytest.raises(UserError, match=refused(run)):
        rundir.check_data(run, data, advice="advice")
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    rundir.check_data(run, data, advice="advice")


EVALUATE = """
import sys, devices
from absl import flags
from tvjax import evaluate
flags.FLAGS(sys.argv[:2])
for place in sys.argv[2:]:
    flags.FLAGS["data"].value = place or None
    try:
        evaluate.main([])
    except evaluate.UserError as error:
        print(error)
"""


def test_evaluation_refuses_other_data_unless_they_are_named(run, begun, other, tmp_path):
    """Evaluates in a process of its own: two programs' flags cannot be in one."""
    shutil.copytree(begun / "tiles", tmp_path / "moved")
    shutil.rmtree(run.parent / "tiles")
    shutil.copytree(other, run.parent / "tiles")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(str(begun), str(run.parent)))
    rundir.write_data(run, rundir.read_data(run) | {"resolution": 0.3})
    places = ["", str(tmp_path / "moved"), str(other)]
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, f"--workdir={run}", *places],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    error, *lines = done.stdout.splitlines()
    assert re.search(refused(run) + ".*--data=DIR", error)
    own, another = map(json.loads, lines)
    made = {**rundir.read_data(run), "directory": str(tmp_path / "moved")}
    assert own["data"] == {k: v for k, v in made.items() if k != "resolution"}
    assert own["iou"] == pytest.approx(summary(run)["val_iou"], abs=1e-6)
    assert another["data"]["directory"] == str(other)
    [note, unlike] = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert str(other) in note and "and are scored" in note
    assert "that are scored differ in metres per pixel: 0.3 and None" in unlike


def test_all_processes_of_a_job_must_have_the_same_data(run, monkeypatch):
    monkeypatch.setattr(parallel, "as_the_first", lambda value: value + (value > 1))
    monkeypatch.setattr(parallel, "in_all", lambda value: value)
    with pytest.raises(UserError, match="the processes of this job find different tiles"):
        train(run, str(run.parent / "tiles"), 8)
