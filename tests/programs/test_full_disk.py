"""A full disk, at any moment: one line, earlier results whole, nothing left behind."""

import contextlib
import json
import os
import resource
import subprocess
from pathlib import Path

import lives
import numpy as np
import pytest
from PIL import Image
from programs import use

from tvjax import files
from tvjax.data import builder, records
from tvjax.data.embedded import synthetic
from tvjax.errors import Outage, UserError
from tvjax.inference import writing
from tvjax.training import loop, restore


class Disk:
    """A small file system where one can be mounted, else a folder whose files cannot grow."""

    def __init__(self, folder: Path):
        self.folder, self.mounted = folder, False
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        folder.mkdir()
        self.mounted = os.geteuid() == 0 and self._mount("size=64m")

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        with contextlib.suppress(FileNotFoundError):
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        return False

    def holds(self, kilobytes: int | None) -> None:
        """Sets how much more than now it takes; None: enough."""
        if not self.mounted:
            most = self._limit[0] if kilobytes is None else 1024 * kilobytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, self._limit[1]))
            return
        found = os.statvfs(self.folder)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize // 1024
        size = 65536 if kilobytes is None else used + kilobytes
        assert self._mount(f"remount,size={size}k")

    def names(self):
        """All that is there."""
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*")}

    def close(self):
        self.holds(None)
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.close()


def is_one_line(error):
    return isinstance(error, Outage) and "\n" not in str(error)


def outcomes(disk, work, sizes):
    """Does the work with so many kilobytes left; yields the error, until there is none."""
    for kilobytes in sizes:
        disk.holds(kilobytes)
        try:
            work()
            return
        except UserError as error:
            assert is_one_line(error), error
        disk.holds(None)
        yield kilobytes


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "coco"
    synthetic.write(folder, tiles=30, seed=0, progress=False)
    return folder


def test_tiles_are_prepared_whole_or_not_at_all(disk, coco, capfd):
    def prepare():
        out = disk.folder / "tiles"
        builder.build(coco / "annotation.json", coco / "images", out, size=32, progress=False)

    failed = list(outcomes(disk, prepare, [4, 100, 300, 1000]))
    assert len(failed) >= 2 and disk.names()
    assert not [name for name in disk.names() if "building" in name]
    assert len(records.open_split(disk.folder / "tiles", "train")) > 1
    disk.holds(None)
    for step in (lambda: None, prepare):  # the finished ones stay as they are
        before = disk.names()
        step()
        assert disk.names() == before
    assert "Traceback" not in capfd.readouterr().err


def test_nothing_stays_of_tiles_that_were_not_finished(disk, coco):
    for kilobytes in (4, 60, 130):
        disk.holds(kilobytes)
        with pytest.raises(Outage, match="tiles cannot be written"):
            out = disk.folder / "tiles"
            builder.build(coco / "annotation.json", coco / "images", out, size=64, progress=False)
        assert not disk.names()
    disk.holds(8)
    with pytest.raises(Outage, match="drawn cannot be written"):
        synthetic.write(disk.folder / "drawn", tiles=30, seed=0, progress=False)
    assert not disk.names()


@pytest.fixture
def config(tiles, disk):
    config = lives.config_of(tiles, disk.folder, 1)
    config.hypergrad.method = "none"
    return config


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_training_keeps_what_was_saved_and_resumes(config, disk):
    run = disk.folder / "run"
    for kilobytes in (4, 80, 110):
        steps = lives.saved(run)
        disk.holds(kilobytes)
        with contextlib.suppress(Outage):
            loop.run(config, run)
        disk.holds(None)
        left = {n for n in disk.names() if "tmp" in n or ".part" in n or "/." in n}
        assert left <= {"run/.lock"}, left
        assert lives.saved(run) >= steps
    assert loop.run(config, run)["steps"] == 12
    assert int(restore.open_net(run)[2].step) == 12


def test_a_full_cache_ends_a_training_in_one_line(config, disk, tmp_path):
    config.data.directory = None
    disk.holds(100)
    with pytest.raises(Outage, match=r"embedded-.* cannot be written"):
        loop.run(config, tmp_path / "run")
    assert not [name for name in disk.names() if "building" in name]


def red(images):
    return np.asarray(images)[..., :1]


def test_predictions_of_complete_images_stay(disk, tmp_path):
    paths = []
    rng = np.random.default_rng(0)
    for name in "ab":
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(paths[-1])
    out = disk.folder / "out"
    images = list(enumerate(paths, 1))
    disk.holds(4)
    with pytest.raises(Outage, match=f"--out={out} cannot be written"):
        writing.predict_images(images, out, red)
    assert disk.names() <= {"out"}


def test_what_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", Path("/proc/nothing/out")):
        with pytest.raises(UserError, match=f"--out={out} cannot be written: "):
            files.check_folder("out", out)
    with pytest.raises(UserError, match="name a file"):
        files.check_file("out", tmp_path)
    with pytest.raises(UserError, match="a device or a pipe; name a file"):
        files.check_file("out", Path("/dev/null"))
    with pytest.raises(UserError, match="File name too long"):
        files.check_folder("out", tmp_path / ("x" * 300))
    files.check_folder("out", tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    # There is no run either, and that would be found as its work begins.
    flags = "--workdir=nowhere", "--out=/proc/nothing/out"
    more = {"evaluate": [], "export": [], "predict": [f"--images={tmp_path}/a.png"]}
    for name in more:
        done = use(name, *flags, *more[name], python=("-W", "ignore"))
        [line] = done.stderr.splitlines()
        assert done.returncode == 2 and "--out=/proc/nothing/out cannot be" in line


def test_earlier_results_stay_whole_where_the_new_ones_do_not_fit(disk):
    path = disk.folder / "summary.json"
    files.write_text(path, json.dumps({"steps": 1}))
    disk.holds(4)
    with pytest.raises(OSError):
        files.write_text(path, "x" * 200_000)
    assert files.read_object(path) == {"steps": 1} and disk.names() == {"summary.json"}
