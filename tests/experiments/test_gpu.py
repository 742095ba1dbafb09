"""What `make gpu` runs on a GPU works here too, at a tiny size."""

import json
import os
import subprocess
import sys

from programs import ROOT

from experiments.accelerator.report import Job, Report, bounded

PIECES = "numerics", "step_times", "training", "denoising", "resuming"


def run(out, *flags):
    command = [sys.executable, "-m", "experiments.gpu", f"--out={out}", "--scale=tiny", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_piece_keeps_its_bounds(tiles, tmp_path):
    done = run(tmp_path, f"--data={tiles}", "--minutes=60", "--commit=abc")
    log = (tmp_path / "gpu.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
    for piece in PIECES:
        report = json.loads((tmp_path / f"{piece}.json").read_text())
        assert report["complete"] and report["found"] and report["scale"] == "tiny"
        assert {"versions", "hardware", "seed", "seconds"} <= report.keys()
        assert [k for k, found in report["found"].items() if not found.get("ok", True)] == []


def test_a_piece_whose_time_runs_out_does_not_cost_the_others(tiles, tmp_path):
    done = run(tmp_path, "--pieces=resuming", f"--data={tiles}", "--minutes=0.09")
    assert done.returncode == 1 and "its time ran out" in done.stdout
    assert not json.loads((tmp_path / "resuming.json").read_text() or "{}").get("complete")


def test_a_mistake_is_one_line(tmp_path):
    done = run(tmp_path, "--pieces=nonsense")
    assert done.returncode == 2 and "--pieces=nonsense: choose among numerics" in done.stderr
    done = run(tmp_path, "--scale=full", "--piece=numerics", "--data=x")
    assert done.returncode == 2 and "sees no GPU" in done.stderr


def test_a_finding_that_fails_is_kept_and_breaks_the_bounds(tmp_path):
    job = Job(True, tmp_path, 1.0, tmp_path)
    report = Report(tmp_path / "x.json", "x", None, job)
    report.add("good", lambda: bounded(1e-7, 1e-6))
    report.add("not a number", lambda: bounded(float("nan"), 1e-6))
    report.add("broken", lambda: {"y": 1 // 0})
    assert not report.finish()
    found = json.loads((tmp_path / "x.json").read_text())["found"]
    assert [found[k]["ok"] for k in ("good", "not a number", "broken")] == [True, False, False]
    assert "ZeroDivisionError" in found["broken"]["error"]


def test_what_travels_is_what_the_project_needs():
    """Every package that the wheels' script names is pinned, but for one that is not installed."""
    script = (ROOT / "launch" / "wheels.sh").read_text()
    names = [*script.split("names=(")[1].split(")")[0].split(), "promise"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert {n.lower().replace("_", "-") for n in names} - pinned == {"importlib-resources"}
    assert os.access(ROOT / "launch" / "gpu.sh", os.X_OK)
