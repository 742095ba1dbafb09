"""The programs under experiments/ still fit the package: no renamed thing, no clash of flags."""

import contextlib
import importlib
import json
import sys

import jax
import pytest
from absl import flags
from devices import Pixels
from programs import ROOT

from tvjax import models

PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("experiments", "experiments/benchmarks")
    for path in (ROOT / folder).glob("[a-z]*.py")
    if "__main__" in path.read_text()
)


@contextlib.contextmanager
def program(name, **values):
    """The module of a program, its flags set. Afterwards the flags are as they were before."""

    def ours():
        defined = {n: flags.FLAGS.find_module_defining_flag(n, "") for n in flags.FLAGS}
        # "": flags that an earlier call has put back, of no module.
        return [n for n, by in defined.items() if not by or by.startswith(("tvjax", "experiments"))]

    others = {n: flags.FLAGS[n] for n in ours()}
    for n in others:
        delattr(flags.FLAGS, n)
    sys.modules.pop(name, None)
    try:
        module = importlib.import_module(name)
        flags.FLAGS.mark_as_parsed()
        for n, value in values.items():
            flags.FLAGS[n].parse(value)
        yield module
    finally:
        sys.modules.pop(name, None)
        for n in ours():
            delattr(flags.FLAGS, n)
        for n, flag in others.items():
            flags.FLAGS[n] = flag


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_imports(name):
    if name.endswith(".peers"):
        pytest.importorskip("torch", reason="PyTorch's libraries are what it compares with")
    with program(name) as module:
        assert callable(module.main) and f"python -m {name}" in module.__doc__


def test_the_steps_that_are_timed_can_be_traced(monkeypatch):
    monkeypatch.setitem(models.NETS, "unet", Pixels)  # which compiles in a moment
    sizes = {"width": "2", "size": "8", "batch": "2"}
    with program("experiments.benchmarks.steps", json="x", only="exact", **sizes) as steps:
        made, states, _ = steps.make_steps()
        assert set(made) == {"plain", "exact"}
        for name, (step, _, batches) in made.items():
            metrics = step.eval_shape(states[name], None, *batches)[1]
            assert ("hypergradient" in metrics) == (name == "exact")


@pytest.mark.slow
def test_the_audit_of_the_net_runs_on_any_tiles(x64, tiles, monkeypatch):
    from experiments import hypergradients
    from experiments.problems import segmentation

    monkeypatch.setattr(segmentation, "CROP", 8)
    monkeypatch.setattr(segmentation, "BATCH", 2)
    monkeypatch.setattr(segmentation, "WIDTH", 2)
    results = hypergradients.run("segmentation", 0, 1, str(tiles))
    found = {r["estimator"]: r for r in results["records"]}
    assert found["exact"]["relative_error"] < 1e-9
    assert found["reverse_3"]["value"] == pytest.approx(found["forward_3"]["value"], rel=1e-9)
    assert jax.config.jax_enable_x64


def test_every_aim_of_the_benchmarks_reads_its_result_and_every_check_has_one():
    with program("experiments.benchmarks.__main__") as benchmarks:
        folder = ROOT / "results" / "benchmarks"
        names = {aim.name for aim in benchmarks.AIMS}
        assert names | set(benchmarks.CHECKS) <= set(benchmarks.PROGRAMS)
        read = 0
        for aim in benchmarks.AIMS:
            path = folder / f"{aim.name}_x86_64_cpu_2cores.json"
            if path.exists():
                read += aim.figure(json.loads(path.read_text())) > 0
        assert read >= 10
        for name, (_, bounds) in benchmarks.CHECKS.items():
            assert len(list(benchmarks.bounded(name, bounds))) == len(bounds)


def test_the_table_of_benchmarks_says_what_is_met_and_what_is_not_measured(tmp_path):
    with program("experiments.benchmarks.__main__") as benchmarks:
        medians = {"plain": 2.0, "exact": 4.2, "exact_with_decay": 4.2}
        found = {"medians_s": medians, "commit": "abc"}
        benchmarks.result(tmp_path, "steps_w16").write_text(json.dumps(found))
        medians["exact"] = 9.0
        benchmarks.result(tmp_path, "steps_w64").write_text(json.dumps(found))
        text = benchmarks.table(tmp_path)
    assert "width 16 | 2.10 | <= 2.33 | yes | `steps_w16`" in text
    assert "the same, width 64 | 4.50 | <= 2.33 | **no** | `steps_w64`" in text
    assert (
        "| not measured | >= 10 |" in text and "| `steps_w16` | `steps --width=16` | abc |" in text
    )
