"""Runs of two methods compared from the command line, by nets that need no training."""

import json
import re
import subprocess
import sys

import pytest
from programs import ROOT

# One process for many commands: red roofs seen with a bias that depends on method and seed.
PROGRAM = """
import contextlib, io, json, re, sys
from pathlib import Path
from typing import NamedTuple
import jax, jax.numpy as jnp, numpy as np
from absl import flags
from configs import base
from tvjax import evaluate, Predictor
from tvjax.data import sets
class State(NamedTuple):
    step: int
    bias: jnp.ndarray
def step(state, images):
    value = images[..., :1] - images[..., 2:] + state.bias
    return value, jax.nn.sigmoid(20 * value)
def open_net(workdir):
    method, seed = workdir.name.split("-")[0][0], int(workdir.name[-1])
    config = base.get_config()
    config.seed, config.data.directory = seed, sys.argv[1]
    if workdir.name.startswith("wide"):
        config.model.width = 32
    bias = {"a": 0.02, "b": -0.1, "w": 0.0}[method] + 0.004 * (seed % 3)
    state = State(7, jnp.float32(bias))
    return Predictor(state, evaluate._DENOISE.value or None, step), config
evaluate.open_net = open_net
data = sets.identify(sets.open_prepared(Path(sys.argv[1])), sys.argv[1])
evaluate.rundir.read_data = lambda workdir: data if workdir.name != "b-9" else None
evaluate.check_data = lambda *_: None
for command in json.loads(sys.argv[2]):
    flags.FLAGS.unparse_flags()
    for name in ("workdir", "against", "split", "out", "denoise"):
        flags.FLAGS[name].unparse()
    flags.FLAGS(["evaluate", *command])
    out, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            evaluate.main([])
        told = out.getvalue()
    except evaluate.UserError as error:
        told = f"error: {error}"
    print(json.dumps([told, errors.getvalue()]))
"""


@pytest.fixture(scope="module")
def told(tiles, tmp_path_factory):
    """What `evaluate` prints, by a name for the command."""
    here = tmp_path_factory.mktemp("runs")
    for name in ("a-0", "a-1", "a-2", "b-0", "b-1", "b-2", "b-3", "b-9", "wide-3"):
        (here / name).mkdir()
    (here / "link").symlink_to(here / "a-0")
    commands = {
        "paired": ["a-0,a-1,a-2", "b-2,b-0,b-1", "--split=train"],
        "unpaired": ["a-0,a-1", "b-0,b-3", "--split=test"],
        "mixed": ["a-0,wide-3", "b-0,b-9", "--split=test"],
        "two runs": ["a-0", "b-0", "--split=test", "--denoise=0.1", f"--out={here}/out"],
        "one against two": ["a-0", "b-0,b-1", "--split=test"],
        "itself": ["a-0", "a-0/"],
        "a link to itself": ["a-1,a-0", "b-1,link"],
        "twice on a side": ["a-0,a-1,a-0", "b-0,b-1"],
        "nothing to compare with": ["a-0,a-1"],
    }  # fmt: skip
    lines = [
        [
            f"--workdir={_under(here, first)}",
            *(f"--against={_under(here, x)}" for x in rest[:1]),
            *rest[1:],
        ]
        for first, *rest in commands.values()
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiles), json.dumps(lines)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = map(json.loads, done.stdout.splitlines())
    return dict(zip(commands, found, strict=True)) | {"out": here / "out"}


def _under(here, names):
    return ",".join(f"{here}/{name}" for name in names.split(","))


def test_methods_are_compared_by_their_seeds(told):
    *lines, last = told["paired"][0].splitlines()
    assert lines[0].startswith("Two methods are compared, by 3 and 3 runs, paired by seed, on 48 ")
    result = json.loads(last)
    compared = result["comparison"]
    assert compared["iou"]["paired"] and compared["seeds"] == [[0, 1, 2], [2, 0, 1]]
    means = [sum(r["pooled_iou"] for r in result[side]) / 3 for side in ("runs", "against")]
    assert compared["pooled_iou"]["difference"] == pytest.approx(means[1] - means[0], abs=1e-6)
    assert compared["claim"]["higher"] == ("second" if means[1] > means[0] else "first")
    assert compared["claim"]["words"] in lines[-1] and "pooled IoU is higher, by 0." in lines[-1]
    for report in [*result["runs"], *result["against"]]:
        assert {"scale": 1.0, "denoise": 0.0, "checkpoint": "newest"}.items() <= report.items()
    assert result["checkpoint"] == "newest" and not result["warnings"]
    assert (
        lines[1].startswith("first: ") and lines[4].startswith("second: ") and "seed 2" in lines[4]
    )


def test_runs_of_other_seeds_or_data_are_not_paired(told):
    for name, seeds in (("unpaired", [[0, 1], [0, 3]]), ("mixed", [[0, 3], [0, 9]])):
        compared = json.loads(told[name][0].splitlines()[-1])["comparison"]
        assert not compared["iou"]["paired"] and compared["seeds"] == seeds
    errors = told["mixed"][1]
    assert "warning: one of the runs has no tiles.json" in errors
    assert "are not seeds of one method: they differ in model.width (16 and 32)" in errors


def test_too_little_gives_no_claim(told):
    words = {
        "unpaired": "6 blocks of images are too few",
        "two runs": "two runs of each or more are needed; give several seeds",
        "one against two": "two runs of each or more are needed; give several seeds",
    }
    for name, reason in words.items():
        *lines, last = told[name][0].splitlines()
        claim = json.loads(last)["comparison"]["claim"]
        assert claim["higher"] is None and reason in claim["words"] and reason in lines[-1]


def test_two_runs_are_compared_by_image(told):
    *lines, last = told["two runs"][0].splitlines()
    assert lines[0].startswith("Two runs are compared, not two methods")
    result = json.loads(last)
    assert result["runs"][0]["denoise"] == result["denoise"] == 0.1
    compared = result["comparison"]
    assert {"p_value", "difference", "low", "high"} <= compared.keys()
    pooled = compared["pooled_iou"]
    assert pooled["low"] < pooled["difference"] < pooled["high"] and pooled["seed_error"] is None
    kept = sorted(str(path.relative_to(told["out"])) for path in told["out"].rglob("scores.json"))
    assert kept == ["1/scores.json", "2/scores.json"]
    assert json.loads((told["out"] / "comparison.json").read_text()) == result


@pytest.mark.parametrize(
    "name, words",
    [
        ("itself", "a-0 is given twice, and a run compared with itself says nothing"),
        ("a link to itself", "link is given twice"),
        ("twice on a side", "a-0 is given twice"),
        ("nothing to compare with", "--workdir names 2 runs; .* --against"),
    ],
)
def test_what_says_nothing_is_refused_in_one_line(told, name, words):
    text = told[name][0]
    assert text.startswith("error: ") and text.count("\n") == 0
    assert re.search(words, text.replace("/ is given", " is given")), text
