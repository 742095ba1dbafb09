"""Programs in odd surroundings: names, streams, variables and limits beside the usual."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from programs import ROOT

import tvjax
from configs import lunet
from tvjax import home, program
from tvjax.data import records
from tvjax.errors import Outage, UserError, shortage
from tvjax.training import checkpoint, loop, restore, rundir
from tvjax.training.checkpoint import Checkpoints


def run(script, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=ROOT, capture_output=True,
        text=True, env=os.environ | environment,
    )  # fmt: skip


def test_the_home_directory_stands_for_a_tilde_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    typed = ["x", "--workdir=~/a,b,~/c", "--out", "~", "--group=~/x", "--images=~no-one.tif"]
    meant = ["x", "--workdir=/home/me/a,b,/home/me/c", "--out", "/home/me", *typed[4:]]
    assert program._at_home(typed) == meant
    assert home.expanded("~no-one") == Path("~no-one")  # as in shells
    monkeypatch.setenv("HOME", "")
    with pytest.raises(UserError, match="~/a: there is no home directory"):
        program._at_home(typed)


def test_every_flag_of_a_program_that_names_a_file_or_folder_is_known_as_one():
    found = set()
    for file in ROOT.glob("tvjax/**/*.py"):
        for name, words in re.findall(
            r'DEFINE_(?:multi_)?string\(\s*"(\w+)",\s*(?:None|\[\]),\s*"([^"]*)', file.read_text()
        ):
            if re.search("[Ff](older|ile)|director|TILES|polygons on a map", words):
                found.add(name)
    assert {"workdir", "out", "data", "labels", "split_file"} < found
    assert found <= set(program.PATHS)


FULL_STDERR = """
import os, sys
from tqdm import tqdm
from tvjax import program
from tvjax.errors import Outage

def main(argv):
    with tqdm(total=3, mininterval=0) as bar:
        for _ in range(3):
            bar.update()
    print("warning: said", file=sys.stderr)
    print("done", flush=True)
    raise Outage("of some kind")

os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
program.run(main)
"""


def test_where_stderr_is_full_the_work_goes_on():
    done = run(FULL_STDERR)
    assert (done.returncode, done.stdout) == (74, "done\n")


def test_a_workdir_whose_name_is_no_text_is_refused_before_the_work(tmp_path):
    workdir = tmp_path / os.fsdecode(b"d\xff")
    config = lunet.get_config()
    for check in (rundir.check, rundir.check_sweep):
        with pytest.raises(UserError, match=r"d\\xff: the bytes of its name are no UTF-8"):
            check(workdir, config)
    with pytest.raises(UserError, match="no UTF-8"):
        Checkpoints(workdir / "checkpoints")
    with pytest.raises(UserError, match="no UTF-8"):
        records.open_split(workdir, "val")
    assert not list(tmp_path.iterdir())


ASKS_JAX = """
import jax
from tvjax import program
program.run(lambda argv: jax.numpy.zeros(3))
"""


@pytest.mark.parametrize("name", ["cpu,odd", "cuda"])
def test_a_device_that_is_not_there_is_one_line(name):
    if name == "cuda" and any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("it is there")
    done = run(ASKS_JAX, JAX_PLATFORMS=name)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={name}: JAX finds no such device here")


def test_programs_compute_in_float32_whatever_the_environment_says():
    script = ASKS_JAX.replace("jax.numpy.zeros(3)", "print(jax.numpy.zeros(3).dtype)")
    done = run(script, JAX_ENABLE_X64="1", JAX_PLATFORMS="cpu")
    assert (done.returncode, done.stdout) == (0, "float32\n")
    assert done.stderr.startswith("note: JAX_ENABLE_X64 is set")


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    workdir, config = tmp_path_factory.mktemp("run"), lunet.get_config()
    config.model.update(width=2, depth=1)
    net = restore.make_net(config)
    state = jax.jit(lambda: net.create(0, net.hyper, (8, 8)))()
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state._replace(step=jnp.int32(4)), {}, wait=True)
    rundir.write_config(workdir, config)
    return workdir


def test_a_net_is_read_the_same_where_jax_computes_in_float64(a_run):
    wanted = tvjax.Predictor.load(a_run)
    images = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    with jax.enable_x64(True):
        found = tvjax.Predictor.load(a_run)
        probabilities = found(images)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, wanted(images), rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (found.state, wanted.state)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_training_computes_in_float32_where_its_caller_does_not(monkeypatch, tmp_path):
    asked = []

    def check(*_):
        asked.append(jnp.ones(()).dtype)
        raise UserError("far enough")

    monkeypatch.setattr(loop.rundir, "check", check)
    with jax.enable_x64(True), pytest.raises(UserError, match="far enough"):
        loop.run(lunet.get_config(), tmp_path)
    assert asked == [jnp.float32]


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_what_a_process_lacks_is_no_damage(a_run, tiles, monkeypatch):
    assert shortage(ValueError("no array record")) is None
    threads = RuntimeError("can't start new thread")
    monkeypatch.setattr(tfds, "builder_from_directory", failing(threads))
    with pytest.raises(Outage, match="cannot be read: can't start new thread; give this process"):
        records.open_split(tiles, "val")
    monkeypatch.undo()
    split = records.open_split(tiles, "val")
    monkeypatch.setattr(records, "_plain", failing(threads))
    with pytest.raises(Outage, match="can't start new thread"):
        split[0]
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for error in (full, MemoryError(), threads):
        monkeypatch.setattr(checkpoint, "_read_run", failing(error))
        with pytest.raises(Outage, match="checkpoints/4 cannot be read: "):
            restore.open_net(a_run)
    assert (a_run / "checkpoints" / "4").is_dir()


def test_a_program_without_memory_ends_in_one_line():
    script = "from tvjax import program\nprogram.run(lambda argv: bytearray(2**60))"
    done = run(script)
    told = "error: Cannot allocate memory; give this process more"
    assert done.returncode == 74 and done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


def test_pictures_are_drawn_whatever_backend_the_environment_names():
    done = run("import tvjax.training.figures", MPLBACKEND="of_a_notebook")
    assert done.returncode == 0, done.stderr
