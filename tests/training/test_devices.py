"""One device = several, in losses, lambda and parameters, to 1e-10: see `devices`."""

import json
import os
import subprocess
import sys

import pytest
from programs import ROOT, STRICT

METHODS = (
    "exact", "sgd_formula", "paper", "preconditioned", "darts", "reverse", "forward",
    "forward_online", "training_loss", "head", "soba", "amigo", "stocbio", "f2sa",
)  # fmt: skip
# `stream`: from the records; `many`: several steps in one program.
LAYOUTS = ("pmap:2", "pmap:4:stream", "pmap:8", "jit:2", "jit:4:stream", "jit:8")


def same_on(net, method, *layouts):
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [
        sys.executable,
        *STRICT,
        "tests/helpers/devices.py",
        net,
        method,
        *layouts,
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(json.loads(done.stdout.splitlines()[-1])[method]) == set(layouts)


@pytest.mark.parametrize(
    "layout", ["pmap:4:many", pytest.param("jit:4:stream", marks=pytest.mark.cluster)]
)
def test_a_run_of_a_small_net_is_the_same_on_one_device_and_on_four(layout):
    same_on("pixels", "exact", layout)


@pytest.mark.parametrize(
    "layout", ["pmap:4:many", pytest.param("jit:4:stream", marks=pytest.mark.cluster)]
)
def test_all_that_can_be_learned_is_the_same_on_one_device_and_on_four(layout):
    same_on("pixels", "everything", layout)


@pytest.mark.cluster
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_on_any_number_of_devices(method):
    same_on("unet", method, *LAYOUTS)


@pytest.mark.cluster
@pytest.mark.parametrize("method", ["exact", "forward"])
def test_several_steps_in_one_program_change_nothing(method):
    same_on("unet", method, "pmap:1:many", "pmap:2:many", "jit:2:many")


@pytest.mark.cluster
def test_a_run_over_a_hundred_thousand_records_holds_memory_flat(tiles, tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    script = "tests/helpers/lives.py"
    command = [sys.executable, script, str(tiles), str(tmp_path / "run"), "stream"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    held = json.loads(done.stdout.splitlines()[-1])
    print([round(x / 2**20) for x in held])
    assert len(held) == 10
    assert held[-1] - held[1] < 16 * 2**20, held  # the records themselves are 102 MB
