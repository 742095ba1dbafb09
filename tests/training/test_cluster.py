"""How processes find each other, and that several of them are one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from programs import ROOT
from test_devices import METHODS

from tvjax import interruption
from tvjax.errors import Outage, UserError
from tvjax.training import cluster
from tvjax.training.logs import read_metrics

NOTHING = {"multihost": None, "coordinator": None, "num_processes": None, "process_id": None}
SLURM = {
    "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
}  # fmt: skip
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
TPU_POD = {"TPU_WORKER_HOSTNAMES": "t0,t1"}


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` was called with, instead of calling it."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    monkeypatch.setattr(cluster.faulthandler, "disable", lambda: None)
    return calls


def join(monkeypatch, environment=(), **given):
    for name, value in dict(environment).items():
        monkeypatch.setenv(name, value)
    cluster.join(**NOTHING | given)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"coordinator": "node1:8476"}, ("--coordinator=node1:8476", "--num_processes and --pro")),
        ({"process_id": 1, "num_processes": 2}, ("--process_id=1", "needs --coordinator")),
        ({"coordinator": "node1", "num_processes": 2, "process_id": 0}, ("HOST:PORT",)),
        ({"coordinator": "n:1", "num_processes": 2, "process_id": 2}, ("--process_id=2", "0 to 1")),
        ({"coordinator": "n:1", "num_processes": 0, "process_id": 0}, ("--num_processes=0",)),
        ({"multihost": False, "process_id": 1}, ("--nomultihost contradicts --process_id=1",)),
    ],
)
def test_settings_given_by_halves_are_refused_in_words(monkeypatch, joined, given, words):
    with pytest.raises(UserError) as error:
        join(monkeypatch, **given)
    assert all(word in str(error.value) for word in words), error.value
    assert not joined


@pytest.mark.parametrize(
    "environment, name",
    [(SLURM, "SLURM"), (KUBERNETES, "Kubernetes"), (TPU_POD, "TPU pod")],
)
def test_an_environment_of_several_processes_is_left_to_jax(monkeypatch, joined, environment, name):
    join(monkeypatch, environment)
    assert cluster.found_environment() == name
    [options] = joined
    assert {options[k] for k in ("coordinator_address", "num_processes", "process_id")} == {None}
    join(monkeypatch, multihost=False)
    assert len(joined) == 1


def test_open_mpi_tells_all_but_the_address(monkeypatch, joined):
    join(monkeypatch, OPEN_MPI, coordinator="node1:8476")
    assert (joined[0]["num_processes"], joined[0]["process_id"]) == (4, 3)
    assert joined[0]["local_device_ids"] is None


@pytest.mark.parametrize("visible, own", [(None, [1]), ("0,1", [1]), ("1", None)])
def test_open_mpi_with_several_processes_a_node_gives_each_its_gpu(
    monkeypatch, joined, visible, own
):
    node = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    join(monkeypatch, OPEN_MPI | node | gpus, coordinator="node1:8476")
    assert joined[0]["local_device_ids"] == own


@pytest.mark.parametrize("environment", [{}, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_process_alone_joins_nobody(monkeypatch, joined, environment):
    join(monkeypatch, environment)
    assert not joined


def test_what_jax_cannot_find_out_is_passed_on(monkeypatch):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.\nsecond line")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match=r"no known environment.*should be defined\. Give"):
        join(monkeypatch, multihost=True)


@pytest.mark.parametrize("seconds", [0.2, 600])
def test_waiting_for_the_others_ends_in_time_or_by_a_signal(monkeypatch, seconds):
    """JAX waits in C++, deaf to signals, and aborts the process when its own time is over."""
    over = threading.Event()
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: over.wait(60))
    monkeypatch.setattr(cluster, "WAIT", seconds)
    given = {"coordinator": "nowhere.invalid:1", "num_processes": 2, "process_id": 1}
    with interruption.noted(75):
        if seconds > 1:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises((Outage, KeyboardInterrupt)) as ended:
            cluster.join(multihost=None, **given)
    over.set()
    assert (ended.type is KeyboardInterrupt) == (seconds > 1)
    told = "cannot join the other processes of this job .*: they were not there within 0.2 s"
    assert seconds > 1 or re.match(told, str(ended.value))


def test_processes_that_are_not_there_may_be_there_next_time(monkeypatch):
    def initialize(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(Outage, match=r"cannot join .*DEADLINE_EXCEEDED") as error:
        join(monkeypatch, coordinator="node1:8476", num_processes=2, process_id=1)
    assert error.value.status == 74


def settings(tiles, workdir, *flags):
    return [
        "--config=configs/lunet_bilevel.py", f"--workdir={workdir}",
        f"--config.data.directory={tiles}", f"--config.data.cache={tiles.parent / 'cache'}",
        "--config.train.steps=14", "--config.train.batch_size=4", "--config.train.log_every=1",
        "--config.model.width=2", "--config.model.depth=1", "--config.evaluation.every=100",
        "--config.hypergrad.warmup=3", "--config.hypergrad.every=1",
        "--config.hypergrad.batch_size=4", "--config.checkpoint.every=4", *flags,
    ]  # fmt: skip


def environment(devices):
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable,
    }  # fmt: skip


def alone(*settings, devices=1):
    command = [sys.executable, "-m", "tvjax.main", *settings]
    env = environment(devices)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def local(processes, devices, *settings):
    command = ["launch/local.sh", str(processes), *settings]
    env = environment(devices)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def start(processes, *settings, devices=1):
    """Starts the processes of a job by themselves, without a launcher that watches them."""
    flags = (f"--coordinator=localhost:{free_port()}", f"--num_processes={processes}")
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tvjax.main", *settings, *flags, f"--process_id={i}"],
            cwd=ROOT, env=environment(devices), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for i in range(processes)
    ]  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def two(script, *arguments, devices=1):
    """Runs both of two processes to their ends: their statuses and what they wrote."""
    env = environment(devices) | {"PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, f"tests/helpers/{script}", *(a.format(index=i) for a in arguments)],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=400)[0] for process in both]
    finally:
        for process in both:
            process.kill()  # SIGTERM ends none of them: JAX notes it
    return [process.returncode for process in both], said


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()[-3000:]
        time.sleep(0.05)


def same_run(one, other):
    a, b = read_metrics(one), read_metrics(other)
    assert [(m["step"], m["kind"]) for m in a] == [(m["step"], m["kind"]) for m in b]
    for x, y in zip(a, b, strict=True):
        names = ("loss", "lambda") if x["kind"] == "train" else ("bce",)
        np.testing.assert_allclose([x[k] for k in names], [y[k] for k in names], rtol=1e-4)


@pytest.fixture(scope="module")
def whole(tiles, tmp_path_factory):
    """One process, one device."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = alone(*settings(tiles, workdir))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.cluster
@pytest.mark.parametrize("map", ["pmap", "jit"])
def test_two_processes_of_two_devices_are_one_of_one(whole, tiles, tmp_path, map):
    workdir = tmp_path / "run"
    done = local(2, 2, *settings(tiles, workdir, f"--config.parallel.map={map}"))
    assert done.returncode == 0, done.stderr[-3000:]
    same_run(whole, workdir)
    # The first process alone printed and wrote.
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(printed) == 1 and json.loads(printed[0])["hardware"].startswith("4 x")
    assert len(list((workdir / "tensorboard").iterdir())) == 1


@pytest.mark.cluster
def test_sigterm_to_one_of_two_saves_in_both_and_resumes_on_another_number_of_devices(
    tiles, tmp_path
):
    steps = "--config.train.steps=40"  # JAX looks for a signal once a second
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    done = alone(*settings(tiles, whole, steps))
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = start(2, *settings(tiles, workdir, steps))
    wait_for(lambda: len(read_metrics(workdir)) >= 6, one)
    two.send_signal(signal.SIGTERM)
    _, errors = one.communicate(timeout=120)
    two.communicate(timeout=120)
    assert (one.returncode, two.returncode) == (75, 75), errors.decode()[-3000:]
    assert b"the same command resumes" in errors
    done = alone(*settings(tiles, workdir, steps), devices=4)
    assert done.returncode == 0, done.stderr[-3000:]
    same_run(whole, workdir)


@pytest.mark.cluster
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_job_which_then_resumes(whole, tiles, tmp_path, victim):
    workdir = tmp_path / "run"
    processes = start(2, *settings(tiles, workdir, "--config.train.steps=100000"))
    wait_for(lambda: (workdir / "checkpoints" / "8").is_dir(), processes[0])
    processes[victim].kill()
    survivor = processes[1 - victim]
    _, errors = survivor.communicate(timeout=60)
    processes[victim].communicate()
    assert survivor.returncode != 0
    assert b"another task died" in errors, errors.decode()[-3000:]
    for line in (workdir / "checkpoints").iterdir():
        assert not line.name.isdigit() or int(line.name) % 4 == 0
    step = max(m["step"] for m in read_metrics(workdir))
    done = local(2, 1, *settings(tiles, workdir, f"--config.train.steps={step + 8}"))
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = [m["step"] for m in read_metrics(workdir) if m["kind"] == "train"]
    assert metrics == list(range(1, step + 9))


@pytest.mark.cluster
@pytest.mark.parametrize("methods", [("none", *METHODS)[k::4] for k in range(4)], ids="-".join)
def test_two_processes_of_two_devices_are_one_to_rounding(tmp_path, methods):
    """All of the state is compared, in float64, and the batches are of the same tiles."""
    file = str(tmp_path / "one")
    env = environment(1) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/helpers/devices.py", "keep", file, "pixels", *methods]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    port = str(free_port())
    codes, said = two("devices.py", "join", file, port, "{index}", "pixels", *methods, devices=2)
    assert codes == [0, 0], said[0][-3000:]
    report = json.loads(said[0].splitlines()[-1])
    print(report)
    assert len(report) == 2 * len(methods)


@pytest.mark.cluster
def test_two_processes_end_together_and_take_the_same_checkpoint(tiles, tmp_path):
    def run(fault, steps, codes):
        found, said = two(
            "member.py", str(tiles), str(tmp_path), str(free_port()), "{index}", fault, str(steps)
        )
        assert found == codes, said
        return said

    finished = tmp_path / "run" / "summary.json"
    said = run("struck in the final evaluation", 12, [75, 75])
    assert "the same command resumes" in said[0] and not finished.exists()
    run("the first takes long to end", 12, [0, 0])
    assert json.loads(finished.read_text())["steps"] == 12
    said = run("the second cannot read 12", 16, [0, 0])
    assert "checkpoints/12 cannot be read (by another process)" in said[0]
    assert (tmp_path / "run" / "damaged_checkpoints" / "12").is_dir()
    files = [f for f in (tmp_path / "run" / "checkpoints" / "16").rglob("*") if f.is_file()]
    os.truncate(max(files, key=lambda f: f.stat().st_size), 10)
    said = run("none", 20, [0, 0])
    assert "checkpoints/16 cannot be read" in said[0]
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert steps == list(range(1, 21))


@pytest.mark.cluster
def test_the_launcher_ends_the_others_and_says_which_process_failed(tiles, tmp_path):
    done = local(2, 1, *settings(tiles, tmp_path / "run", "--config.train.batch_size=3"))
    assert done.returncode == 2
    assert "train.batch_size=3" in done.stderr and "ended with status 2" in done.stderr


FAKE = """#!/bin/bash
case $1 in -c) echo 4444; exit;; esac
echo "$* sees $CUDA_VISIBLE_DEVICES"
[[ "$*" != *=1* ]] && sleep 0.5 || exit 3
"""


def launch(script, path, *flags, **env):
    env = (
        os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "PYTHON": str(path / "python")} | env
    )
    return subprocess.run([script, *flags], cwd=ROOT, env=env, capture_output=True, text=True)


def put(path, **programs):
    for name, text in programs.items():
        (path / name).write_text(text)
        (path / name).chmod(0o755)


def test_the_local_launcher_shares_the_gpus_and_ends_with_the_first_failure(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    put(tmp_path, python=FAKE)
    put(tmp_path, **{"nvidia-smi": "#!/bin/bash\necho 'GPU 0: A'; echo '  MIG'; echo 'GPU 1: B'"})
    done = launch("launch/local.sh", tmp_path, "2", CUDA_VISIBLE_DEVICES="4,7,6,5")
    assert done.returncode == 3 and "process 1 of 2 ended with status 3" in done.stderr
    assert "--process_id=0 sees 4,7" in done.stdout and "--process_id=1 sees 6,5" in done.stdout
    done = launch("launch/local.sh", tmp_path, "2")
    assert "--process_id=0 sees 0\n" in done.stdout and "--process_id=1 sees 1\n" in done.stdout
    assert launch("launch/local.sh", tmp_path, "3").returncode == 2


@pytest.mark.parametrize(
    "status, restarts, again", [(75, 99, 1), (134, 0, 1), (74, 0, 1), (134, 20, 0), (2, 0, 0)]
)
def test_the_slurm_script_submits_itself_again_where_that_may_help(
    tmp_path, status, restarts, again
):
    put(tmp_path, srun=f"#!/bin/bash\necho $*; exit {status}", scontrol="#!/bin/bash\necho again")
    env = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "9", "SLURM_CPUS_PER_TASK": "8"}
    done = launch("launch/slurm.sh", tmp_path, "--x", SLURM_RESTART_COUNT=str(restarts), **env)
    assert done.returncode == status and done.stdout.count("again") == again
    assert "--cpus-per-task=8" in done.stdout and "tvjax.main --x" in done.stdout
