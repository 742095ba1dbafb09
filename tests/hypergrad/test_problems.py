import json

import jax
import pytest

from experiments import hypergradients, problems
from tvjax import hypergrad


def test_unknown_problems_are_named():
    with pytest.raises(ValueError, match="'lasso'"):
        problems.make("lasso", 0)
    with pytest.raises(ValueError, match="ridge has its own"):
        problems.make("ridge", 0, "tiles")


@pytest.mark.parametrize(
    "name",
    ["ridge", *(pytest.param(p, marks=pytest.mark.slow) for p in ("logistic", "tv_denoising"))],
)
def test_results_hold_what_a_figure_and_a_reader_need(x64, tmp_path, monkeypatch, name):
    setting = problems.make(name, seed=1)
    few = {"exact": setting.estimators["exact"], "cg_40": hypergrad.cg(40, loop=hypergrad.SCANNED)}
    snapshots = (1, 300)
    setting = setting._replace(estimators=few, snapshots=snapshots, draws=setting.draws[:3])
    monkeypatch.setattr(problems, "make", lambda name, seed, data: setting)
    results = json.loads(json.dumps(hypergradients.run(name, seed=1), allow_nan=False))
    assert {"config", "seed", "commit", "versions", "hardware", "records"} <= set(results)
    assert results["versions"]["jax"] == jax.__version__
    assert [(r["step"], r["estimator"]) for r in results["records"]] == [
        (step, estimator) for step in snapshots for estimator in few
    ]
    wanted = "estimator value reference relative_error sign_agrees seconds bytes".split()
    assert all(set(wanted) <= set(r) for r in results["records"])
    # The references were found by another way than any estimator's; near the optimum CG agrees.
    assert results["records"][-1]["relative_error"] < 0.1
    hypergradients.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
