"""The report of the study of lambda: its arithmetic against known answers, and a report of all."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments import false_claims, lambda_figures, lambda_report
from experiments import lambda_claims as claims
from tvjax.errors import UserError


def test_the_best_of_seven_normal_runs_is_1_35_deviations_above_the_mean():
    x = np.random.default_rng(0).normal(3.0, 2.0, 20_000)
    assert claims.best_of(x, x, 7) == pytest.approx(3 + 2 * 1.352, abs=0.05)
    blind = np.random.default_rng(1).normal(size=20_000)  # it knows nothing, and gains nothing
    assert claims.best_of(blind, x, 7) == pytest.approx(3, abs=0.1)


def test_the_best_of_some_runs_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(2)
    choice, score = rng.normal(size=(2, 6))
    subsets = [list(s) for s in itertools.combinations(range(6), 3)]
    wanted = np.mean([score[s[np.argmax(choice[s])]] for s in subsets])
    assert claims.best_of(choice, score, 3) == pytest.approx(wanted, rel=1e-12)


def test_the_interval_of_a_selection_covers_what_selection_gains():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(100):
        val, other = rng.normal(size=(2, 30))
        found = claims.selection_gain(val, 0.6 * val + 0.8 * other)
        hits += found.low <= 0.6 * 1.352 <= found.high
    assert hits >= 88


def test_a_mean_has_students_interval():
    found = claims.mean([1.0, 2.0, 3.0, 4.0])
    assert found == pytest.approx((2.5, 2.5 - 2.0542604, 2.5 + 2.0542604))  # 3.182446 s / 2
    assert math.isnan(claims.mean([1.0]).low)


def test_what_can_be_detected_is_detected_in_four_of_five_cases():
    rng, size = np.random.default_rng(4), claims.detectable(0.5, 8)
    found = [claims.mean(rng.normal(size, 0.5, 8)) for _ in range(1000)]
    assert np.mean([m.low > 0 for m in found]) == pytest.approx(0.8, abs=0.04)


def test_the_minimum_of_a_curve_and_how_sure_it_is():
    losses = np.array([[3.0, 3.1], [1.0, 1.2], [2.0, 2.2]])
    found = claims.minimum(losses, [0.0, 1e-6, 1e-5], np.random.default_rng(0))
    assert (found["best"], found["low"], found["high"]) == (1e-6, 1e-6, 1e-6)
    crossing = np.array([[0.0, 1.0], [1.0, 0.1]])
    found = claims.minimum(crossing, [0.0, 1e-6], np.random.default_rng(0))
    assert (found["best"], found["low"], found["high"]) == (0.0, 0.0, 1e-6)
    assert found["shares"][1e-6] == pytest.approx(0.25, abs=0.03)  # of both being the second seed


def test_equal_lambdas_are_called_equal_as_often_as_the_level_says():
    rng = np.random.default_rng(6)
    seeds = rng.normal(size=(400, 1, 8))  # a seed's own level is no noise
    found = [claims.flatness(x) for x in 10 * seeds + rng.normal(0, 0.5, (400, 6, 8))]
    assert np.mean([p < 0.05 for p, _ in found]) == pytest.approx(0.05, abs=0.03)
    assert np.mean([s for _, s in found]) == pytest.approx(0.5, abs=0.02)
    steps = np.arange(6.0)[:, None] + rng.normal(0, 0.5, (6, 8))
    assert claims.flatness(steps)[0] < 1e-6


LAMS, STARTS = (0.0, 1e-8, 1e-6, 1e-4), (1e-8, 1e-4)


def member(seed, lam, loss, *, rate=0.0, final=None, seconds=1.0, **more):
    scores = {"bce": loss, "iou": 1 - loss, "components": 5.0, "true_components": 4.0,
              "tv": 90.0, "true_tv": 80.0}  # fmt: skip
    return {"seed": seed, "lam": lam, "rate": rate, "final_lambda": final or lam, "val": scores,
            "test": scores, "train": scores, "slope": None, "seconds": seconds, **more}  # fmt: skip


def loss_at(lam, seed):
    """A minimum at 1e-6, and a level of each seed."""
    return 0.2 + 0.01 * seed + {0.0: 0.02, 1e-8: 0.01, 1e-6: 0.0, 1e-4: 0.3}[lam]


def study_files(learned=1e-6, whole=True):
    config = {"starts": list(STARTS), "warmup": 2, "rate": 0.05, "width": 2, "depth": 1,
              "size": 8, "steps": 4, "batch": 2}  # fmt: skip
    common = {"config": config, "commit": "abc", "hardware": "none", "python": "3",
              "versions": {"jax": "0"}}  # fmt: skip
    step = {"mean": -1e-5, "late_mean": -2e-5}
    seeds = range(3)
    files = {
        "curve_toy_0": [member(s, lam, loss_at(lam, s)) for s in seeds for lam in LAMS],
        "select_toy": [member(s, 0.0, 0.2 + 0.01 * (s % 5)) for s in range(3, 12)],
        "learn_toy_exact": [
            member(s, lam, loss_at(learned, s) + 0.001, rate=0.05, final=learned, seconds=2.0)
            for lam in STARTS for s in seeds
        ],
        "learn_toy_online": [
            member(s, lam, loss_at(1e-8, s), rate=0.05, final=1e-8, seconds=3.0)
            for lam in STARTS for s in seeds
        ],
        "slope_toy_whole_0": [
            {**member(s, 1e-6, loss_at(1e-6, s) + 0.002 * s), "slope": 0.5 - s,
             "hypergradient": step} for s in seeds
        ],
        "slope_toy_1_0": [
            {**member(s, 1e-6, loss_at(1e-6, s)), "hypergradient": step} for s in seeds
        ],
    }  # fmt: skip
    if whole:
        for k, lam in enumerate((1e-8, 1e-6)):
            files[f"whole_toy_{k:02d}"] = [
                {**member(s, lam, loss_at(lam, s), seconds=3.0), "start": i, "slope": -1.0,
                 "walk": None, "hypergradient": step}
                for i in range(len(STARTS)) for s in seeds
            ]  # fmt: skip
    return {name: {**common, "members": members} for name, members in files.items()}


def cells(text, title, row):
    """The cells of the row of a table that begins with `row`."""
    part = text.split(f"### {title}")[1].split("###")[0]
    (line,) = [x for x in part.splitlines() if x.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_regret_is_the_loss_above_the_curves_minimum_of_the_same_seed():
    text, _ = lambda_report.report(study_files())
    row = cells(text, "What each estimator learned", "exact | 0.0001")
    assert row[3] == "1.0e-06 [1.0e-06, 1.0e-06]"
    assert row[5] == "-0.0190 [-0.0190, -0.0190]"  # less lambda = 0
    assert row[6] == "-0.0090 [-0.0090, -0.0090]"  # less 1e-8
    assert row[7] == "-0.2990 [-0.2990, -0.2990]"  # less its start, held fixed
    assert row[8] == "+0.0010 [+0.0010, +0.0010]"  # regret
    assert row[9] == "-0.0090 [-0.0090, -0.0090]"  # less the mean of 0, 1e-8 and 1e-6
    assert row[12] == "2.0"  # plain runs
    assert cells(text, "What each estimator learned", "whole | 1e-08")[-1] == "6.0"  # both steps
    row = cells(text, "Against the exact one-step estimator", "online")
    assert row[1] == "+0.0090 [+0.0090, +0.0090]"


def test_tables_of_slopes_and_of_noise():
    text, studies = lambda_report.report(study_files())
    row = cells(text, "Derivatives at fixed lambda", "1e-06")
    assert row[2:6] == ["-5.0e-01 +- 6e-01", "-1.5e+00 to +5.0e-01", "2, 1", "-1.0e-05 +- 0e+00"]
    wanted = (loss_at(1e-4, 0) - loss_at(1e-8, 0)) / math.log(1e4)
    assert studies[0].secants()[1e-6] == pytest.approx([wanted] * 3)
    # Pairs of runs of one seed and lambda, 0.000, 0.002 and 0.004 apart; others are the same run.
    deviation, degrees = claims.reruns(studies[0])
    assert degrees == 2 and deviation == pytest.approx(math.sqrt((0.002**2 + 0.004**2) / 2 / 2))
    assert "Least mean at 1e-06" in text and "12 plain U-Nets" in text


def test_a_report_of_what_is_there(tmp_path):
    for files in (study_files(), {"curve_toy_0": study_files()["curve_toy_0"]}):
        text, studies = lambda_report.report(files)
        assert "nan" not in text
        lambda_figures.curves(studies, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").stat().st_size > 10_000
    _, studies = lambda_report.report(study_files())
    lambda_figures.slopes(studies, tmp_path / "slopes.png")
    assert (tmp_path / "slopes.png").exists()


def test_the_committed_tables_are_those_of_the_committed_files():
    folder = Path(__file__).parents[2] / "results" / "lambda"
    files = {f.stem: json.loads(f.read_text()) for f in sorted(folder.glob("*_*.json"))}
    assert lambda_report.report(files)[0] == (folder / "lambda_study.md").read_text()


def test_pieces_of_other_sizes_or_tiles_are_not_put_together(tmp_path):
    made = study_files()
    for name, piece in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(piece | {"tiles_sha256": "a"}))
    assert claims.read_pieces(tmp_path).keys() == made.keys()
    path, piece = tmp_path / "select_toy.json", made["select_toy"]
    masks = [m | {"val": m["val"] | {"true_tv": 1e6}} for m in piece["members"]]
    path.write_text(json.dumps(piece | {"members": masks}))
    with pytest.raises(UserError, match=r"was made of other tiles than the pieces before: .* val"):
        claims.read_pieces(tmp_path)
    for other in ({"tiles_sha256": "b"}, {"config": piece["config"] | {"steps": 5}}):
        path.write_text(json.dumps(piece | other))
        with pytest.raises(UserError, match=r"select_toy.json is of another config: .*, not "):
            claims.read_pieces(tmp_path)
    committed = Path(__file__).parents[2] / "results"
    found = claims.read_pieces(committed / "lambda")
    assert len(found) == len(list((committed / "lambda").glob("*_*.json")))
    assert len(false_claims.read(committed / "lambda")) >= 20
