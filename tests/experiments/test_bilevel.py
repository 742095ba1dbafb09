"""The benchmark of solvers, on a small instance of its quadratic."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bilevel import __main__ as program
from experiments.bilevel import figure, quadratic, runs
from experiments.bilevel.known import by_newton, projected_norm
from experiments.bilevel.solvers import SOLVERS
from tvjax.errors import UserError


@pytest.fixture
def known(x64, monkeypatch):
    monkeypatch.setattr(quadratic, "INNER", 512)
    monkeypatch.setattr(quadratic, "OUTER", 128)
    monkeypatch.setattr(quadratic, "DIM_Y", 12)
    monkeypatch.setattr(quadratic, "DIM_X", 3)
    made = quadratic.make(0)
    return made._replace(rates=(0.3,), moves=(0.1,), budget=6_000)


def test_the_value_function_is_that_of_newtons_method_and_of_differences(known):
    xs = np.stack([np.asarray(known.hyper), known.best, known.best + 0.1])
    h, gradient = known.values(xs)
    newton = by_newton(
        lambda y, x: known.inner_loss(y, x, known.train),
        lambda y, x: known.outer_loss(y, x, known.validation), known.params,
    )  # fmt: skip
    found = newton(xs)
    np.testing.assert_allclose(found[0], h, rtol=1e-10)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-8, atol=1e-10)
    step = 1e-4 * np.eye(xs.shape[1])
    ends = [known.values(xs[0] + sign * step)[0] for sign in (1, -1)]
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-4, gradient[0], rtol=1e-7)
    np.testing.assert_allclose(gradient[1], 0, atol=1e-12)
    assert h[1] == h.min()


def test_the_ends_that_theory_foretells_are_those_of_noiseless_runs(known):
    """Whole sets, and inner rates that do not decay."""
    for name in ("exact", "f2sa"):
        solver = SOLVERS[name]._replace(batch=None, decays=False)
        course = runs.play(known, runs.compiled(known, solver, 2500), [(0.3, 0.3, 0)])
        assert solver.fixed is not None
        np.testing.assert_allclose(course.hyper[0, -1], solver.fixed(known, 0.3, 0.3), atol=2e-4)


def test_a_gradient_that_leads_out_of_the_box_is_none():
    x, gradient = np.array([1.0, 1.0, 0.0]), np.array([-2.0, 0.5, 0.25])
    np.testing.assert_allclose(projected_norm(x, gradient, (-1, 1)), np.hypot(0.5, 0.25))


def test_results_go_on_where_they_stopped_and_are_drawn(known, tmp_path, monkeypatch):
    monkeypatch.setattr(quadratic, "make", lambda seed: known)
    file = tmp_path / "found.json"
    program.run("quadratic", 1, ["soba"], file)
    first = json.loads(file.read_text())
    program.run("quadratic", 1, ["soba", "exact"], file)
    second = json.loads(file.read_text())
    for other, text in ((("quadratic", 2), None), (("quadratic", 1), '{"a": 1}')):
        file.write_text(text or file.read_text())
        before = file.read_bytes()
        with pytest.raises(UserError, match=r"found.json is .*seeds=1, not 2|damaged"):
            program.run(*other, ["exact"], file)
        assert file.read_bytes() == before
    soba, exact = second["solvers"]["soba"], second["solvers"]["exact"]
    assert first["solvers"] == {"soba": soba}
    assert soba["grid"] == [{"rate": 0.3, "move": 0.1, "gap": soba["grid"][0]["gap"]}]
    assert soba["should_reach"] and not exact["should_reach"]
    assert soba["final_gap_of_best"] < 0.01 < exact["final_gap_of_best"]
    shape = 1, len(soba["at_calls"])
    assert np.shape(soba["gap"]) == np.shape(soba["gradient_norm"]) == shape
    assert soba["at_calls"][-1] == soba["calls"] and soba["seconds_per_call"] > 0
    table = program.table(second)
    assert "soba" in table and "exact" in table
    figure.draw(second, tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_a_solver_may_be_left_out_with_its_reason(known):
    many = known._replace(hyper=jnp.zeros(200))
    assert "200" in SOLVERS["forward_online"].refuses(many)
    assert all(s.refuses(many) is None for k, s in SOLVERS.items() if k != "forward_online")


def test_marks_of_a_run_end_with_its_last_call():
    for calls in (16, 100, 5000):
        found = runs.marks(calls)
        assert found[0] == 1 and found[-1] == calls and np.all(np.diff(found) > 0)


def test_lanes_are_those_of_runs_alone(known):
    run = runs.compiled(known, SOLVERS["f2sa"], 20)
    together = runs.play(known, run, [(0.1, 0.03, 0), (0.3, 0.1, 1)])
    alone = runs.play(known, run, [(0.3, 0.1, 1)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b[0], rtol=1e-9), together, alone)
