"""Signals at any moment: the status, one line, and nothing that is half written."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from programs import ROOT

from tvjax import interruption
from tvjax.data.embedded import synthetic

# Runs a program, with a net that is no net, in forks that are struck after some seconds each.
PROGRAM = """
import collections, json, os, signal, sys, time
from configs import base
from tvjax import program
name, moments, *flags = sys.argv[1:]
State = collections.namedtuple("State", "step")
def net(images):
    time.sleep(0.02)
    return images[..., :1]
net.state, net.denoise, net.denoise_kind = State(0), None, "anisotropic"
if name == "prepare":
    from tvjax.data.prepare import main
elif name == "predict":
    from tvjax import predict
    predict.Predictor.load, main = (lambda *_, **__: net), predict.main
else:
    from tvjax import evaluate
    evaluate.open_net, main = (lambda workdir: (net, base.get_config())), evaluate.main
    evaluate.rundir.read_data = lambda workdir: None
statuses = []
for k, seconds in enumerate(json.loads(moments)):
    child = os.fork()
    if not child:
        sys.argv = [name, *(flag.replace("OUT", f"{k}/out") for flag in flags)]
        os.dup2(os.open(f"{k}.log", os.O_CREAT | os.O_WRONLY), 2)
        try:
            program.run(main)
        except SystemExit as error:
            os._exit(error.code or 0)
        os._exit(99)
    time.sleep(seconds)
    os.kill(child, [signal.SIGTERM, signal.SIGINT][k % 2])
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals") / "coco"
    synthetic.write(folder, tiles=60, size=64, progress=False)
    return folder


def flags_of(name, source):
    coco = [f"--annotations={source}/annotation.json", f"--images={source}/images"]
    return {
        "prepare": [*coco, "--out=OUT", "--size=16"],
        "predict": [f"--images={source}/images", "--workdir=run", "--out=OUT"],
        "evaluate": [*coco, "--workdir=run", "--out=OUT"],
    }[name]


@pytest.mark.parametrize(
    "name",
    ["prepare", *(pytest.param(n, marks=pytest.mark.slow) for n in ("predict", "evaluate"))],
)
def test_a_signal_at_any_moment_ends_a_program_in_one_line(source, tmp_path, name):
    rng = random.Random(name)
    moments = [0.1 + rng.uniform(0, 0.4) for _ in range(6)]
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, name, json.dumps(moments)]
    done = subprocess.run(
        [*command, *flags_of(name, source)], cwd=tmp_path, text=True, check=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    statuses = json.loads(done.stdout.splitlines()[-1])
    assert set(statuses) <= {0, 130} and 130 in statuses, done.stderr
    for k, status in enumerate(statuses):
        errors, out = (tmp_path / f"{k}.log").read_text(), tmp_path / str(k) / "out"
        assert "Traceback" not in errors and "Exception" not in errors
        if status == 130:
            assert errors.splitlines()[-1].startswith("interrupted"), errors
            assert name == "predict" or not out.exists()
        for path in out.parent.rglob("*"):
            assert ".building-" not in path.name and not path.name.startswith("."), path
        for path in out.glob("*") if name == "predict" else ():
            if path.suffix == ".png":
                assert np.asarray(Image.open(path)).shape == (64, 64)
            else:
                text = path.read_text()
                for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
                    json.loads(part)


def test_a_second_signal_ends_a_program_at_once():
    script = (
        "import time\n"
        "from tvjax import program\n"
        "def main(argv):\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60)\n"
        "program.run(main, interrupted=75)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None  # nobody has asked yet
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 75 and errors.split() == ["interrupted", "at", "once"]


def test_signals_are_noted_within_and_python_s_own_without():
    before = signal.getsignal(signal.SIGINT)
    with interruption.noted(1):
        with interruption.noted(2):
            interruption.check()
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.came()
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
    assert signal.getsignal(signal.SIGINT) is before and not interruption.came()
    interruption.check()


HEARING = [
    sys.executable, "-c",
    "import os, signal, sys; signal.signal(2, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
]  # fmt: skip
"""Python for which Ctrl-C is what it is, where the tests run in the background: it is ignored."""

STRIKE = """
import importlib.abc, os, signal, sys
class Strike(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Strike())
"""
"""A `sitecustomize` that sends Ctrl-C in the midst of a program's imports."""


@pytest.mark.parametrize(
    "name", ["main", "evaluate", "predict", "export", "sweep", "data.prepare", "experiments.run"]
)
def test_ctrl_c_while_a_program_is_imported_ends_it_without_a_word(name, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(STRIKE)
    module = name if name.startswith("experiments") else f"tvjax.{name}"
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    found = subprocess.run(
        [*HEARING, "-m", module], env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGINT, "", "")


def test_a_library_keeps_python_s_ctrl_c():
    code = "import signal, tvjax; assert signal.getsignal(2) is signal.default_int_handler"
    subprocess.run([*HEARING, "-c", code], check=True, cwd=ROOT)
