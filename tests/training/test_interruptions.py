"""Full disks, damaged files, kills: a clear error, the older checkpoint, nothing else lost."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import lives
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from programs import ROOT

from tvjax import provenance
from tvjax.data import records, workspace
from tvjax.errors import Outage, UserError
from tvjax.hypergrad import InnerState
from tvjax.training import loop, restore, rundir
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.interrupt import Interrupted
from tvjax.training.logs import Logs, read_metrics
from tvjax.training.state import TrainState
from tvjax.training.steps import Regularizer


def state(step, size=3):
    w = jax.random.normal(jax.random.key(step), (size,))
    return TrainState(jnp.int32(step), InnerState({"w": w}, (), ()), w[0], optax.EmptyState(), ())


@pytest.fixture
def small_files():
    """No file may grow beyond 64 KB: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Orbax leaves a coroutine behind where a write fails; that it says so at the end is not ours.
unfinished = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@unfinished
def test_a_disk_that_fills_in_mid_save_keeps_the_older_checkpoint(tmp_path, small_files):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(state(1), {}, wait=True)
        with pytest.raises(Outage, match=r"written \(.*: File too large\); checkpoint 1 is kept"):
            checkpoints.save(state(2, 100_000), {}, wait=True)
    small_files()  # room was made
    with Checkpoints(folder, keep=2) as checkpoints:
        restored, _ = checkpoints.restore(state(0))
        jax.tree.map(np.testing.assert_array_equal, restored, state(1))
        checkpoints.save(state(2), {}, wait=True)
        assert checkpoints.steps == [2, 1]


@unfinished
def test_a_save_that_fails_unseen_is_reported_by_the_next_one_or_at_the_end(tmp_path, small_files):
    with pytest.raises(UserError, match="there is none before it"):
        with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
            checkpoints.save(state(1, 100_000), {})


def damage(folder, how):
    files = [f for f in sorted((folder / "3").rglob("*")) if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    if how == "truncated":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif how == "deleted":
        largest.unlink()
    else:
        shutil.rmtree(folder / "3" / "run")


@pytest.mark.parametrize("how", ["truncated", "deleted", "half"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, capsys, how):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (2, 3):
            checkpoints.save(state(step), {"seconds": float(step)}, wait=True)
    damage(folder, how)
    with Checkpoints(folder, keep=2) as checkpoints:
        restored, run = checkpoints.restore(state(0))
        assert run == {"seconds": 2.0}
        jax.tree.map(np.testing.assert_array_equal, restored, state(2))
    assert "checkpoints/3 cannot be read" in capsys.readouterr().err


def test_a_save_that_was_cut_off_is_reported_and_not_used(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(state(2), {}, wait=True)
    shutil.copytree(folder / "2", folder / "4.orbax-checkpoint-tmp-7")
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps == [2]
    assert "checkpoint 4 was cut off" in capsys.readouterr().err


def test_the_best_checkpoint_outlives_newer_ones(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=2, keep_best=1) as checkpoints:
        assert checkpoints.best is None
        for step, val_iou in ((1, None), (2, 0.5), (3, 0.9), (4, 0.2), (5, None)):
            checkpoints.save(state(step), {}, val_iou=val_iou, wait=True)
    with Checkpoints(folder, keep=2, keep_best=1) as checkpoints:
        checkpoints.save(state(6), {}, wait=True)
        assert (checkpoints.steps, checkpoints.best) == ([6, 5, 3], 3)
    with Checkpoints(folder, read_only=True) as checkpoints:
        for which, step in (("newest", 6), ("best", 3), (5, 5), ("5", 5)):
            assert int(checkpoints.restore(state(0), which)[0].step) == step
        with pytest.raises(UserError, match=r"checkpoint=4: .*newest \(6\), best \(3\), .*6, 5, 3"):
            checkpoints.restore(state(0), 4)
        with pytest.raises(UserError, match="checkpoint=bset"):
            checkpoints.restore(state(0), "bset")


def test_without_a_validation_iou_none_is_the_best(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(state(1), {}, wait=True)
        with pytest.raises(
            UserError, match=r"checkpoint=best.*choose newest \(1\), or a step that was kept: 1"
        ):
            checkpoints.choose("best")


def test_a_record_file_cut_off_is_named_in_one_line(tiles, tmp_path):
    cut = tmp_path / "records"
    shutil.copytree(tiles, cut)
    [file] = cut.rglob("*train*.array_record*")
    whole = records.open_split(cut, "train")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match=rf"{file.name}: has \d+ bytes instead of \d+"):
        records.open_split(cut, "train")
    with pytest.raises(UserError, match=r"record of the split 'train' cannot be read") as error:
        [whole[i] for i in range(len(whole))]  # cut off while the run has it open
    assert "\n" not in str(error.value)


@pytest.fixture
def config(tiles, tmp_path):
    """The config of a run of 12 steps that saves every 4, with a net that compiles in a moment."""
    config = lives.config_of(tiles, tmp_path, 1)
    config.hypergrad.method = "none"
    return config


def strike(*_):
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_before_and_after_the_steps_ends_the_run_which_then_resumes(
    config, tmp_path, monkeypatch
):
    for part, steps in (("_open_sets", []), ("_scores", [12, 8])):
        with monkeypatch.context() as patch:
            patch.setattr(loop, part, strike)
            with pytest.raises(Interrupted, match="the same command resumes"):
                loop.run(config, tmp_path / "run")
        saved = lives.saved(tmp_path / "run")
        assert saved == max(steps, default=0)
    under_way = tmp_path / "run" / "checkpoints" / "16.orbax-checkpoint-tmp"
    under_way.mkdir()
    restore.open_net(tmp_path / "run")  # as every program does that uses a run
    assert under_way.is_dir()
    with rundir.lock(tmp_path / "run"), pytest.raises(Outage, match="in use by another"):
        loop.run(config, tmp_path / "run")
    assert loop.run(config, tmp_path / "run")["steps"] == 12
    assert not under_way.exists()


@unfinished
def test_a_disk_that_fills_while_a_run_logs_ends_it_in_one_line(config, tmp_path, small_files):
    config.train.steps, config.checkpoint.every = 1000, 40
    with pytest.raises(Outage, match=r"--workdir=\S+ cannot be written \(File too large\)"):
        loop.run(config, tmp_path / "run")
    assert lives.saved(tmp_path / "run") >= 40


@unfinished
def test_a_disk_that_becomes_read_only_ends_a_run_in_one_line(config, tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def refuse(self, step, **options):
        if step > 4:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return save(self, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)
    with pytest.raises(Outage, match=r"Read-only file system\); checkpoint 4 is kept"):
        loop.run(config, tmp_path / "run")


def test_a_run_that_ends_before_lambda_may_move_says_so(config, tmp_path, capsys):
    config.hypergrad.update(method="exact", warmup=4)
    config.train.steps = 4
    loop.run(config, tmp_path / "run")
    words = "hypergrad.warmup=4 and hypergrad.steps=1 leave no update in train.steps=4: nothing is"
    assert words in capsys.readouterr().err
    config.train.steps = 8
    loop.run(config, tmp_path / "longer")
    assert words[:16] not in capsys.readouterr().err


def test_a_run_that_goes_on_with_other_cores_says_so(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PJRT_NPROC", "3")  # XLA has counted its threads already
    config.train.steps = 4
    assert loop.run(config, tmp_path / "run")["visible_cores"] == 3
    for steps, cores, notes in ((6, "3", 0), (8, "4", 1)):
        monkeypatch.setenv("PJRT_NPROC", cores)
        config.train.steps = steps
        loop.run(config, tmp_path / "run")
        told = capsys.readouterr().err
        assert told.count("trained on 3 CPU cores up to here and goes on with 4") == notes
    monkeypatch.delenv("PJRT_NPROC")
    if hasattr(os, "sched_getaffinity"):
        assert provenance.visible_cores() == len(os.sched_getaffinity(0))


def test_where_the_file_system_knows_no_locks_work_goes_on_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with rundir.lock(tmp_path / "run") as free, workspace.beside(tmp_path / "out") as work:
        assert free and work.is_dir()


def test_a_damaged_line_of_the_log_is_left_out_and_only_the_last_one_unsaid(tmp_path, capsys):
    lines = [json.dumps({"step": step, "kind": "train"}) for step in (1, 2, 3)]
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join([*lines, '{"step": 4, "ki']))
    with Logs(tmp_path, start=2, steps=9):
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    log.write_text("\n".join([lines[0], "\0\0\0", *lines[1:]]))
    assert "warning" not in capsys.readouterr().err
    with Logs(tmp_path, start=2, steps=9):
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    told = [x for x in capsys.readouterr().err.splitlines() if "warning" in x]
    assert len(told) == 1 and "metrics.jsonl: line 2 is damaged" in told[0]


@pytest.mark.parametrize("warmup", [5, 7])  # found at the next step, and after the last
def test_an_infinite_lambda_stops_a_run_which_then_goes_on_with_what_its_error_advises(
    config, tmp_path, monkeypatch, warmup
):
    config.hypergrad.update(method="training_loss", warmup=warmup, learning_rate=1.0)
    config.train.steps = 8
    with monkeypatch.context() as patch:
        patch.setattr(Regularizer, "project", lambda self, alpha: alpha + 1000)
        with pytest.raises(UserError, match="lambda is inf, training stops") as error:
            loop.run(config, tmp_path / "run")
    assert "checkpoint 4 is kept" in str(error.value) and "\n" not in str(error.value)
    assert "smaller hypergrad.learning_rate" in str(error.value)
    assert not (tmp_path / "run" / "summary.json").exists() and lives.saved(tmp_path / "run") == 4
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate = 1e-4
    with pytest.raises(UserError, match=r"optimizer\.learning_rate.*use another --workdir"):
        loop.run(other, tmp_path / "run")
    config.hypergrad.learning_rate = 1e-3
    summary = loop.run(config, tmp_path / "run")
    change = {"step": 4, "field": "hypergrad.learning_rate", "from": 1.0, "to": 1e-3}
    assert summary["changes"] == [change] and np.isfinite(summary["lambda"])


def test_a_loss_that_is_not_finite_names_what_the_same_workdir_takes(config, tmp_path):
    config.optimizer.update(name="sgd", learning_rate=1e30)
    for rate in (1e25, 1e20):  # nothing was saved: all may change
        with pytest.raises(UserError, match=r"no checkpoint was saved yet; try a smaller optimiz"):
            loop.run(config, tmp_path / "run")
        config.optimizer.learning_rate = rate
    config.optimizer.learning_rate, config.train.steps = 1e-3, 4
    loop.run(config, tmp_path / "run")


@pytest.mark.cluster
def test_twenty_kills_leave_the_run_bit_for_bit_what_it_is_without(tiles, tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/helpers/lives.py", str(tiles), str(tmp_path / "lives"), "20"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert len(report["lost"]) == 20 and report["in_save"] > 0
