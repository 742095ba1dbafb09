"""The list of runs at its smallest, the report of it, and the rules of its verdicts."""

import errno
import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from devices import Pixels
from programs import ROOT

from experiments import claims, document, findings, report, run, runs
from experiments.lambda_claims import best_of
from experiments.trainer import Trainer, load, save, summary
from tvjax import interruption, models
from tvjax.data import pipeline, sets
from tvjax.errors import Outage, UserError
from tvjax.training import loop

SMOKE = runs.SCALES["smoke"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """All runs of the smallest scale: the folder of results and the names that were done."""
    folder = tmp_path_factory.mktemp("smoke")
    lab = run.Lab(SMOKE, {}, folder / "nets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETS, "unet", Pixels)  # which compiles in a moment
        done, failed, left = run.execute(lab, runs.runs(SMOKE, "tiny"), folder / "smoke")
    assert not failed and not left
    return folder, done


def test_every_run_leaves_its_result_and_is_not_done_again(smoke):
    folder, done = smoke
    todo, lab = runs.runs(SMOKE, "tiny"), run.Lab(SMOKE, {}, folder / "nets")
    assert done == [r.name for r in todo]
    for r in todo:
        content = json.loads((folder / "smoke" / f"{r.name}.json").read_text())
        assert content["run"] == json.loads(json.dumps(r._asdict()))
        assert {"commit", "versions", "hardware", "seed", "seconds"} <= set(content)
        assert r.kind != "train" or content["config"]["seed"] == r.seed
        assert content["tiles_sha256"] == lab.digest("tiny") and len(lab.digest("tiny")) == 64
    assert run.execute(lab, todo, folder / "smoke") == ([], [], [])


def test_a_run_waits_for_the_net_that_it_measures(tmp_path, capsys):
    lab = run.Lab(SMOKE, {}, tmp_path / "nets")
    wanted = [runs.Run("denoise", "tiny", 0, "unet")]
    assert run.execute(lab, wanted, tmp_path) == ([], [], [wanted[0].name])
    assert "waits for tiny_unet_s0" in capsys.readouterr().out


def test_a_run_whose_net_is_gone_says_how_to_get_it_again(tmp_path, capsys):
    lab = run.Lab(SMOKE, {}, tmp_path / "nets")
    wanted = [runs.Run("denoise", "tiny", 0, "unet")]
    (tmp_path / "tiny_unet_s0.json").write_text("{}")
    assert run.execute(lab, wanted, tmp_path) == ([], [wanted[0].name], [])
    assert f"delete {tmp_path / 'tiny_unet_s0.json'}, and the same" in capsys.readouterr().err


def test_an_interruption_ends_the_list_and_not_one_run_alone(tmp_path, monkeypatch):
    def interrupt(lab, run, folder):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    for kind in ("cost", "figure1"):
        monkeypatch.setitem(run.items.KINDS, kind, interrupt)
    wanted = [runs.Run("cost", "tiny"), runs.Run("figure1", "tiny")]
    lab = run.Lab(SMOKE, {}, tmp_path)
    with pytest.raises(KeyboardInterrupt), interruption.noted(75):
        run.execute(lab, wanted, tmp_path)
    assert [path.name for path in tmp_path.glob("*.json")] == [f"{wanted[0].name}.json"]


def test_a_full_disk_ends_the_list(tmp_path, monkeypatch):
    def fill(lab, run, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(run.items.KINDS, "cost", fill)
    wanted = [runs.Run("cost", "tiny"), runs.Run("figure1", "tiny")]
    with pytest.raises(Outage, match=f"cost_tiny_s0: {tmp_path}.*cannot be written: .*No space"):
        run.execute(run.Lab(SMOKE, {}, tmp_path), wanted, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_figures_of_something_else_are_not_replaced(smoke, tmp_path, monkeypatch):
    (tmp_path / "out" / "report").mkdir(parents=True)
    given = {"scale": "smoke", "results": str(smoke[0]), "others": str(tmp_path),
             "out": str(tmp_path / "out"), "readme": ""}  # fmt: skip
    values = {name: SimpleNamespace(value=value) for name, value in given.items()}
    values = type("Flags", (dict,), {"__getattr__": lambda self, name: self[name].value})(values)
    monkeypatch.setattr(report.flags, "FLAGS", values)
    with pytest.raises(UserError, match="holds report, which is of something else"):
        report.main([])
    assert not any((tmp_path / "out" / "report").iterdir())


def test_a_run_that_fails_stops_no_other(tmp_path, monkeypatch, capsys):
    def fail(lab, run, folder):
        raise RuntimeError("this one")

    monkeypatch.setitem(run.items.KINDS, "cost", fail)
    wanted = [runs.Run("cost", "tiny"), runs.Run("figure1", "tiny")]
    done, failed, _ = run.execute(run.Lab(SMOKE, {}, tmp_path), wanted, tmp_path)
    assert (done, failed) == ([wanted[1].name], [wanted[0].name])
    assert "this one" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_stops_no_other(tmp_path, monkeypatch, capsys):
    def refuse(lab, run, folder):
        raise UserError("net.msgpack cannot be read")

    monkeypatch.setitem(run.items.KINDS, "cost", refuse)
    wanted = [runs.Run("cost", "tiny"), runs.Run("figure1", "tiny")]
    done, failed, _ = run.execute(run.Lab(SMOKE, {}, tmp_path), wanted, tmp_path)
    assert (done, failed) == ([wanted[1].name], [wanted[0].name])
    assert capsys.readouterr().err == "cost_tiny_s0: error: net.msgpack cannot be read\n"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": ["a=b", "c=d", "a=e"]}, "--data: 'a' is given twice"),
        ({"data": ["buildings=/nosuch"]}, "--data=buildings=/nosuch: there is no such file or"),
        ({"data": ["buildings=nosuch.npz"]}, "--data=buildings=nosuch.npz: there is no such file"),
        ({"data": ["buildings=file"]}, "data.directory=file holds neither prepared tiles"),
        ({"budget_minutes": float("nan")}, "--budget_minutes=nan must be positive"),
        ({"budget_minutes": -1.0}, "--budget_minutes=-1 must be positive"),
        ({"results": "file"}, "--results=.* cannot be written"),
        ({"nets": "file"}, "--nets=.* cannot be written"),
        ({"nets": "/proc"}, "--nets=/proc/cpu cannot be written"),
    ],
)
def test_mistakes_are_told_before_the_work(tmp_path, monkeypatch, changes, message):
    def work(*args, **options):
        raise AssertionError("no run is begun")

    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "execute", work)
    given = {"scale": "cpu", "data": ["buildings=file"], "budget_minutes": 1e9, "commit": None}
    places = {"results": "results", "nets": "nets"}
    monkeypatch.setattr(run.flags, "FLAGS", SimpleNamespace(**given | places | changes))
    with pytest.raises(UserError, match=message):
        run.main(["run", "buildings_unet_s0"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_results_of_other_tiles_are_not_gone_on_with(tiles, make_tiles, tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETS, "unet", Pixels)
    wanted = [runs.Run("figure1", "mine"), runs.Run("figure1", "mine", 1)]
    first = run.Lab(SMOKE, {"mine": str(tiles)}, tmp_path)
    assert run.execute(first, wanted[:1], tmp_path)[0] == ["figure1_mine_s0"]
    run.check_tiles(first, wanted, tmp_path)
    other = run.Lab(SMOKE, {"mine": str(make_tiles(1))}, tmp_path)
    with pytest.raises(UserError, match=r"figure1_mine_s0.json is of other tiles; .* --results"):
        run.check_tiles(other, wanted, tmp_path)
    net = runs.Run("train", "mine", method="unet", epochs=SMOKE.epochs)
    assert run.execute(first, [net], tmp_path / "more")[0] == [net.name]
    measured = runs.Run("noise", "mine", method="unet")
    assert run.execute(other, [measured], tmp_path / "others")[1] == [measured.name]
    assert run.execute(first, [measured], tmp_path / "more")[0] == [measured.name]
    path = tmp_path / "figure1_mine_s0.json"
    content = json.loads(path.read_text())
    del content["tiles_sha256"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    run.check_tiles(other, wanted, tmp_path)


def copied(smoke, tmp_path):
    """The smallest results, to be changed."""
    shutil.copytree(smoke[0] / "smoke", tmp_path / "smoke")
    return tmp_path / "smoke"


def change(path, name, value):
    """Puts a value at a place in a JSON file, named with dots; ... removes what is there."""
    content = found = json.loads(path.read_text())
    *names, last = name.split(".")
    for key in names:
        found = found[key]
    if value is ...:
        del found[last]
    else:
        found[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name, value",
    [("tiles_sha256", "0" * 64), ("config.train.steps", 1), ("config.model.width", 3),
     ("tiles.test", 5), ("scores.test.true_tv", 5.0), ("scores.val.true_components", 5.0)],
)  # fmt: skip
def test_what_no_table_can_hold_together_is_refused(smoke, tmp_path, name, value):
    path = copied(smoke, tmp_path) / "tiny_lunet_1e-06_s1.json"
    change(path, name, value)
    if name.startswith("scores"):  # also of earlier versions' files, which have no digest
        change(path, "tiles_sha256", ...)
    with pytest.raises(UserError, match=rf"{path.name} has .*{name}=.* different folders"):
        findings.Findings(tmp_path, SMOKE, "smoke")
    if name == "tiles_sha256":  # earlier versions wrote none
        change(path, name, ...)
        assert len(findings.Findings(tmp_path, SMOKE, "smoke").files) == len(smoke[1])


@pytest.mark.parametrize(
    "file, name, value",
    [
        ("tiny_unet_s0", "scores.test.iou", 56.8),
        ("tiny_unet_s0", "scores.test.iou", float("nan")),
        ("tiny_unet_s0", "scores.val.iou", None),
        ("tiny_unet_s0", "test_iou_permille", []),
        ("tiny_unet_s0", "config", ...),
        ("tiny_unet_s0", "versions", ...),
        ("tiny_unet_s0", "hardware", ...),
        ("tiny_unet_s0", "seconds", 10**400),
        ("tiny_unet_s0", "final_lambda", ...),
        ("tiny_unet_s0", "course.val_iou", [0.5]),
        ("tiny_unet_s0", "run.seed", 1),
        ("tiny_unet_s0", "run.seed", "0"),
        ("tiny_unet_s0", "run", []),
        ("cost_tiny_s0", "seconds_per_step.unet", ...),
        ("cost_tiny_s0", "seconds_per_step.unet", [0, 0]),
        ("denoise_tiny_unet_s0", "best", ...),
        ("denoise_tiny_unet_s0", "weights", [0.05, 0.2]),
        ("noise_tiny_unet_s0", "sigmas", [0.0, 0.5]),
        ("denoise_tiny_unet_s0", "iou.test", [0.5]),
        ("noise_tiny_unet_s0", "iou", [[0.5]]),
        ("figure1_tiny_s0", "images.exact", ...),
        ("figure2_tiny_s0", "picture", "none.png"),
        ("figure2_tiny_s0", "picture", "../figure2_tiny_s0.png"),
        ("figure2_tiny_s0", "picture", "/etc/hostname"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_a_damaged_result_is_one_line(smoke, tmp_path, file, name, value):
    path = copied(smoke, tmp_path) / f"{file}.json"
    change(path, name, value)
    with pytest.raises(UserError, match=rf"{path}: .*{name.partition('.')[0]}.*move the file away"):
        findings.Findings(tmp_path, SMOKE, "smoke")


def test_a_result_of_a_copy_without_its_commit_is_reported(smoke, tmp_path):
    change(copied(smoke, tmp_path) / "tiny_unet_s0.json", "commit", ...)
    (_, text) = report.origin(findings.Findings(tmp_path, SMOKE, "smoke"))
    assert "None" in text.text


@pytest.mark.parametrize(
    "file, name, value",
    [
        ("lambda/curve_embedded_0.json", "members", []),
        ("lambda/curve_embedded_0.json", "members", ...),
        ("lambda/curve_embedded_0.json", "members", [{"seed": 0}]),
        ("lambda/whole_embedded_00.json", "config", ...),
        ("lambda/curve_embedded_0.json", "config.width", ...),
        ("lambda/learn_embedded_exact.json", "hardware", ...),
        ("leakage/buildings/result.json", "share.random", ...),
        ("leakage/buildings/result.json", "config", ...),
        ("leakage/buildings/result.json", "difference.test_iou.low", "x"),
        ("lunet_bilevel/summary.json", "splits.test", ...),
        ("lunet_bilevel/summary.json", "splits.test.iou", float("nan")),
    ],
)
def test_damage_in_other_results_is_one_line(tmp_path, file, name, value):
    path = tmp_path / file
    path.parent.mkdir(parents=True)

    def read():
        (tmp_path / "lambda").mkdir(exist_ok=True)
        (tmp_path / "lambda/notes_mine.json").write_text("mine")
        report.read_studies(tmp_path / "lambda")
        claims.read_leaks(tmp_path)
        report._shown_run(tmp_path)

    shutil.copy(ROOT / "results" / file, path)
    read()
    change(path, name, value)
    with pytest.raises(UserError, match=rf"{path}: .* must be .*; move the file away"):
        read()
    path.write_text("[]")
    with pytest.raises(UserError, match=rf"{path} cannot be read .*; move it away"):
        read()


@pytest.mark.parametrize("text", ["", "[1]", "null", "{}", "[" * 100_000])
def test_a_foreign_file_among_results_is_one_line(tmp_path, text):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke/mine.json").write_text(text)
    with pytest.raises(UserError, match=r"mine\.json.*move"):
        findings.Findings(tmp_path, SMOKE, "smoke")


def test_no_run_begins_that_would_not_end_in_time(tmp_path, monkeypatch):
    monkeypatch.setitem(run.items.KINDS, "cost", lambda lab, r, folder: {})
    ticks = iter(range(0, 10**6, 40))
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(ticks))
    wanted = [runs.Run("cost", "tiny", seed) for seed in range(3)]
    done, _, left = run.execute(run.Lab(SMOKE, {}, tmp_path), wanted, tmp_path, minutes=3)
    assert done == ["cost_tiny_s0"] and left == ["cost_tiny_s1", "cost_tiny_s2"]


def test_the_smallest_report_has_every_item_of_the_paper(smoke):
    folder, _ = smoke
    f = findings.Findings(folder, SMOKE, "smoke")
    blocks = report.build(f, folder / "none", folder / "figures")
    text = document.markdown(blocks, folder)
    for title in (
        "Claims", "Table 1", "Figures 5 and 6", "Section 7",
        "By the solvers of the field", "Figure 8", "Cost", "Three readings",
        "Figures 1, 2, 4 and 7", f"All {len(f.files)} runs of the list have a result.",
    ):  # fmt: skip
        assert title in text
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (folder / picture).stat().st_size > 1000
    assert "nan" not in text
    page = document.page(blocks, "title")
    assert page.count("src='data:image/png;base64,") == text.count("![")
    assert not re.search(r"(src|href)='(?!data:|lambda/)", page)
    paper = next(
        b for b in blocks if isinstance(b, document.Table) and "paper: train" in b.header[2]
    )
    assert [row[2] for row in paper.rows if row[0] == "LU-Net"] == ["76.90 / 63.09 / 63.72"]


def test_the_table_of_the_readme_is_the_reports():
    name = report.choose(ROOT / "results/runs")
    f = findings.Findings(ROOT / "results/runs", runs.SCALES[name], name)
    text = (ROOT / "README.md").read_text()
    assert report.readme(f, ROOT / "results") in text, "run python -m experiments.report"


def test_the_readmes_table_is_written_between_its_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_readme(path, f"{report.BEGIN}\nnew\n{report.END}")
    assert path.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    path.write_text("none")
    with pytest.raises(UserError, match="lacks the lines"):
        report.write_readme(path, "")


def difference(value, half):
    return findings.Difference(value, value - half, value + half, 5, 1.0)


@pytest.mark.parametrize(
    "value, half, verdict",
    [(3, 1, claims.HOLDS), (1, 0.5, claims.SMALLER), (0, 1, claims.NOT), (-3, 1, claims.NOT),
     (1, 2, claims.OPEN)],
)  # fmt: skip
def test_the_verdict_on_a_gain_goes_by_its_interval(value, half, verdict):
    assert claims.gains(difference(value, half), 2.2) == verdict


@pytest.mark.parametrize(
    "value, half, verdict",
    [(0.2, 0.5, claims.HOLDS), (0.2, 0.9, claims.OPEN), (3, 1, claims.NOT), (-3, 1, claims.NOT)],
)
def test_the_verdict_on_an_equality_goes_by_its_interval(value, half, verdict):
    assert claims.equals(difference(value, half)) == verdict


def test_nothing_is_claimed_of_one_seed():
    assert claims.gains(None, 2.2) == claims.equals(None) == claims.OPEN
    assert findings.difference(members([0.5]), members([0.9])) is None


def members(means, val=None, tiles=40):
    """Contents of result files with these test IoUs, one per seed."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 50, tiles)
    val = means if val is None else val
    return [
        {
            "run": {"seed": s},
            "scores": {"test": {"iou": m}, "val": {"iou": v}},
            "test_iou_permille": list(1000 * m + noise - noise.mean()),
        }
        for s, (m, v) in enumerate(zip(means, val, strict=True))
    ]


def test_a_difference_is_paired_by_seed():
    base = [0.5, 0.6, 0.4, 0.55]
    found = findings.difference(members(base), members([b + 0.02 for b in base])[::-1])
    assert found is not None and found.value == pytest.approx(2.0) and found.seeds == 4
    assert found.low == pytest.approx(2.0) and found.high == pytest.approx(2.0)


def test_choosing_among_equal_nets_is_no_gain_over_choosing_among_seeds():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(60):
        test = rng.normal(0.6, 0.04, 12)
        grid = rng.normal(0.6, 0.04, (4, 8))  # four weights that do nothing
        found = findings.selection(members(test), members(grid.max(0)), 4)
        hits += found is not None and found.low <= 0 <= found.high
    assert hits >= 54


def test_luck_in_the_seeds_of_one_side_is_no_gain():
    test = np.array([0.6, 0.61, 0.6, 0.61, 0.5, 0.51, 0.5, 0.51])  # bad luck after the fourth seed
    found = findings.selection(members(test), members(test[:4] + 0.02), 2)
    alone = best_of(test, test, 2) - test.mean()
    assert found is not None and found.value == pytest.approx(2 - 100 * alone)


def test_the_lambdas_of_the_readings_weigh_as_the_readings_do():
    from tvjax.training.steps import Regularizer

    scale = runs.SCALES["cpu"]
    shape = (16, 64, 64)
    weights = {
        name: Regularizer("loss", "anisotropic", name, "log").pixel_weight(runs.PAPER_LAMBDA, shape)
        for name in ("sum", "image", "pixel")
    }
    summed = Regularizer("loss", "anisotropic", "sum", "log")
    for name, lam in runs.readings(scale).items():
        assert summed.pixel_weight(lam, shape) == pytest.approx(weights[name], rel=5e-3)


@pytest.mark.parametrize("scale", list(runs.SCALES.values()))
def test_names_tell_runs_apart(scale):
    found = runs.runs(scale, scale.main or "buildings")
    assert len({r.name for r in found}) == len(found)


def test_a_training_is_that_of_the_program(tiles, tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETS, "unet", Pixels)
    wanted = runs.Run("train", "tiles", 1, "exact", 1e-5)
    config = runs.config_of(wanted, SMOKE, steps=8)
    config.data.directory = str(tiles)
    config.hypergrad.every = 2
    expected = loop.run(config, tmp_path / "run")
    opened = sets.open_prepared(tiles)
    trainer = Trainer({name: pipeline.resident(split) for name, split in opened.items()})
    trained = trainer.train(config)
    scores = summary(trainer.score(trainer.programs(config), trained.state, "test"))
    assert scores == pytest.approx(expected["splits"]["test"], rel=1e-4)
    lam = float(np.exp(trained.state.hyper))
    assert lam == pytest.approx(expected["lambda"], rel=1e-5) and lam != 1e-5
    save(tmp_path / "net", trained.state)
    again = load(tmp_path / "net", trainer.start(config))
    assert summary(trainer.score(trainer.programs(config), again, "test")) == scores
    save(tmp_path / "net", trained.state, "a")
    load(tmp_path / "net", trainer.start(config), "a")
    with pytest.raises(UserError, match=r"net was trained on other tiles; name another .* --nets"):
        load(tmp_path / "net", trainer.start(config), "b")
    whole = (tmp_path / "net").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "other").write_bytes(whole)
    with pytest.raises(UserError, match=r"other is of another net \(net\); delete it and"):
        load(tmp_path / "other", trainer.start(config), "a")
    for content in (b"", b"text", whole[:-9], bytes(40), bytes(flipped)):
        (tmp_path / "net").write_bytes(content)
        with pytest.raises(UserError, match=r"net is damaged; delete it and .* trains it anew"):
            load(tmp_path / "net", trainer.start(config), "a")


def test_tiles_may_be_packed(tiles, tmp_path):
    opened = sets.open_prepared(tiles)
    arrays = {name: pipeline.resident(split) for name, split in opened.items()}
    packed = {f"{s}_{k}": v for s, batch in arrays.items() for k, v in batch._asdict().items()}
    np.savez(tmp_path / "tiles.npz", **packed)
    lab = run.Lab(SMOKE, {"mine": str(tmp_path / "tiles.npz")}, tmp_path)
    assert np.array_equal(lab.trainer("mine").tiles["val"].image, arrays["val"].image)
    assert lab.original("mine", 0) is None
    assert lab.digest("mine") == run.Lab(SMOKE, {"mine": str(tiles)}, tmp_path).digest("mine")


def test_the_papers_scale_starts(tiles, tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETS, "unet", Pixels)
    small = {**SMOKE.fields, "train.batch_size": 8}
    scale = runs.SCALES["paper"]._replace(fields=small, epochs=1, train_scored=4)
    lab = run.Lab(scale, {"buildings": str(tiles)}, tmp_path / "nets")
    wanted = runs.runs(scale, "buildings")[:2]
    done, failed, _ = run.execute(lab, wanted, tmp_path)
    assert done == ["buildings_unet_s0", "buildings_lunet_1e-06_s0"] and not failed
    config = json.loads((tmp_path / f"{done[0]}.json").read_text())["config"]
    assert config["optimizer"]["learning_rate"] == 5e-5 and config["train"]["steps"] == 6
