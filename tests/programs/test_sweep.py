"""A sweep's runs are the runs of the training program, whichever way they are trained."""

import json

import pytest

from configs import lunet, lunet_bilevel
from tvjax import sweep
from tvjax.errors import UserError
from tvjax.training import figures, loop, rundir


def config_of(tiles, base, **hypergrad):
    config = base.get_config()
    config.data.directory, config.data.cache = str(tiles), str(tiles.parent)
    config.model.width, config.model.depth = 2, 1
    config.train.steps, config.train.batch_size, config.evaluation.batch_size = 7, 4, 4
    config.augmentation.flips = True  # drawn by the run's seed
    config.hypergrad.update(warmup=2, every=2, batch_size=2, **hypergrad)
    return config


@pytest.fixture
def args(monkeypatch):
    class Flags:
        train, group = "together", 2

    return Flags


@pytest.mark.slow
@pytest.mark.parametrize(
    "base, hypergrad",
    [(lunet, {}), (lunet_bilevel, {}), (lunet_bilevel, {"method": "forward", "steps": 2})],
)
def test_runs_in_one_program_are_the_runs_one_by_one(tiles, tmp_path, base, hypergrad):
    config = config_of(tiles, base, **hypergrad)
    lams = ["0", "1e-3"] if base is lunet else ["1e-4", "1e-3"]
    todo = sweep.pairs(lams, ["0", "3"], config)
    splits = loop._open_sets(config)
    found = [x for lines in sweep.together(config, todo, splits, 3) for x in lines]
    wanted = [x for lines in sweep.singly(config, todo, tmp_path) for x in lines]
    assert [(x["lambda"], x["seed"]) for x in found] == [tuple(pair) for pair in todo]
    for one, other in zip(found, wanted, strict=True):
        assert one["final_lambda"] == pytest.approx(other["final_lambda"], rel=1e-4)
        for split in splits:
            a, b = one["splits"][split], other["splits"][split]
            # Rounding, which Adam's first steps make larger.
            assert a["bce"] == pytest.approx(b["bce"], rel=1e-4)
            assert a.keys() == b.keys() and a["images"] == b["images"]
    assert len({x["splits"]["val"]["bce"] for x in found}) == len(todo)


@pytest.mark.slow
def test_the_same_command_goes_on(tiles, tmp_path, monkeypatch, capsys, args):
    config = config_of(tiles, lunet)
    todo = sweep.pairs(["1e-4", "1e-3"], ["0", "1"], config)
    rundir.write_config(tmp_path, config)
    first = next(iter(sweep._train(config, todo, tmp_path, args)))
    sweep.write(tmp_path, first)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]
    trained = []
    monkeypatch.setattr(
        sweep, "_train", lambda config, todo, *rest: iter([[x | {"lambda": p.lam, "seed": p.seed}]
        for x, p in zip(first, todo, strict=True) if trained.append(p) is None])
    )  # fmt: skip
    for name, value in {
        "config": config, "workdir": str(tmp_path), "lambdas": ["1e-4", "1e-3"],
        "seeds": ["0", "1"],
    }.items():  # fmt: skip
        monkeypatch.setattr(args, name, value, raising=False)
    monkeypatch.setattr(sweep.flags, "FLAGS", args)
    sweep.main([])
    assert [tuple(p) for p in trained] == [(1e-3, 0), (1e-3, 1)]
    assert len(sweep.read(tmp_path)) == 4 and (tmp_path / "sweep.png").stat().st_size > 5_000
    assert "0.001" in capsys.readouterr().out


@pytest.mark.parametrize(
    "field, value",
    [
        ("train.patience", 1),
        ("denoise.weights", (0.3,)),
        ("hypergrad.guard", "hold"),
        ("hypergrad.learn", ("lambda", "decay")),
    ],
)
def test_what_one_program_does_not_know_is_trained_one_by_one(field, value):
    config = lunet_bilevel.get_config()
    assert sweep._are_alike(config, "together")
    config.update_from_flattened_dict({field: value})
    assert not sweep._are_alike(config, "auto")
    with pytest.raises(UserError, match=rf"^--train=together needs {field}"):
        sweep._are_alike(config, "together")


def test_figure_names_lambdas_and_no_power_at_the_place_of_0(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    values = {"val": {"bce": 0.5, "iou": 0.5}}
    lines = [{"lambda": lam, "splits": values} for lam in (0, 1e-6, 1.1e-6, 1e-4)]
    figures.sweep_of_seeds(lines, tmp_path / "sweep.png", score="iou")
    for axis in drawn[0].axes:
        assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1e-06", "", "0.0001"]
    figures.plt.close(drawn[0])


def lines_of(**changes):
    names = "bce", "iou", "pooled_iou", "nonempty_iou", "components", "true_components"
    scores = {"val": dict.fromkeys(names, 0.5), "test": dict.fromkeys(names, 0.5)}
    lines = [
        {"lambda": lam, "seed": 0, "final_lambda": lam, "splits": scores} for lam in (1e-6, 1e-5)
    ]
    return [json.loads(json.dumps(lines[0])) | changes, lines[1]]


def test_lines_without_a_score_are_left_out_of_the_figure(tmp_path, monkeypatch):
    drawn, lines = [], lines_of()
    del lines[0]["splits"]["val"]["pooled_iou"]
    sweep.write(tmp_path, lines)
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    figures.sweep_of_seeds(sweep.read(tmp_path), tmp_path / "a.png", score="pooled_iou")
    assert [len(axis.lines[-1].get_xdata()) for axis in drawn[0].axes] == [2, 1]
    figures.plt.close(drawn[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": float("inf")}, "under seed: inf"),
        ({"seed": 0.5}, "under seed: 0.5"),
        ({"lambda": -1}, "under lambda: -1"),
        ({"lambda": 10**400}, "under lambda: 1000"),
        ({"final_lambda": 10**400}, "under final_lambda: 1000"),
        ({"final_lambda": True}, "under final_lambda: True"),
        ({"splits": {"val": {"bce": 10**400}}}, "under splits.val.bce: 1000"),
        ({"splits": {"val": {}}}, "under splits.val.bce: None"),
        ({"splits": {"val": {"bce": 1, "pooled_iou": True}}}, "under splits.val.pooled_iou: True"),
        ({"splits": {"val": {"bce": 1}}}, "under splits.test: None"),
        ({"splits": 1}, "under splits.val: None"),
        ({"lambda": 1e-5}, "holds lambda 1e-05, seed 0 twice"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_damaged_line_is_one_line(tmp_path, changes, message):
    sweep.write(tmp_path, lines_of())
    assert len(sweep.read(tmp_path)) == 2
    sweep.write(tmp_path, lines_of(**changes))
    with pytest.raises(UserError, match=rf"results.jsonl.*{message}.*; move the file away"):
        sweep.read(tmp_path)


@pytest.mark.parametrize(
    "lams, seeds, place, message",
    [
        (["1e-6", "x"], ["0"], "loss", "--lambdas: 'x' must be a number"),
        (["-1"], ["0"], "loss", "--lambdas: '-1' must be a number in"),
        (["1e-40"], ["0"], "loss", "--lambdas: '1e-40' must be 0 or at least 1.18e-38"),
        (["nan"], ["0"], "loss", "--lambdas: 'nan'"),
        ([], ["0"], "loss", "--lambdas must be given"),
        (["1"], ["0.5"], "loss", "--seeds: '0.5'"),
        (["1"], ["0"], "none", "regularizer.place='none'"),
        (["0"], ["0"], "head", "--lambdas: 0 needs"),
    ],
)
def test_pairs_that_cannot_be_are_refused(lams, seeds, place, message):
    config = lunet.get_config()
    config.regularizer.place = place
    with pytest.raises(UserError, match=message):
        sweep.pairs(lams, seeds, config)


def test_pairs_are_each_once():
    assert len(sweep.pairs(["1e-6", "0.000001", "1"], ["0", "1"], lunet.get_config())) == 4


def test_a_sweep_of_another_config_is_refused(tmp_path):
    config = lunet.get_config()
    rundir.write_config(tmp_path, config)
    sweep.write(tmp_path, [])
    config.seed, config.regularizer.weight = 5, 1e-3
    rundir.check_sweep(tmp_path, config)
    config.train.steps = 7
    with pytest.raises(UserError, match=r"train\.steps=400"):
        rundir.check_sweep(tmp_path, config)


def test_a_sweep_that_was_stopped_in_its_first_run_is_refused_other_steps(tmp_path):
    config = lunet.get_config()
    rundir.write_config(tmp_path, config)
    config.train.steps = 7
    rundir.check_sweep(tmp_path, config)  # nothing was trained
    (tmp_path / "runs" / "lambda=0,seed=0" / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train\.steps=400"):
        rundir.check_sweep(tmp_path, config)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("train.accumulate", 3, r"train\.accumulate=3 must divide train\.batch_size=16"),
        ("model.depth", 9, r"model\.depth=9 cannot be with tiles of 64x64"),
        ("regularizer.blocks", 100, r"regularizer\.blocks=100 cannot be"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_written(
    monkeypatch, tmp_path, field, value, message
):
    config = lunet.get_config()
    config.update_from_flattened_dict({field: value})

    class Flags:
        lambdas, seeds, workdir = ["1e-6"], ["0"], str(tmp_path / "sweep")

    Flags.config = config
    monkeypatch.setattr(sweep.flags, "FLAGS", Flags)
    with pytest.raises(UserError, match=message):
        sweep.main([])
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_and_a_run_keep_out_of_each_others_folder(tmp_path):
    config, run, swept = lunet.get_config(), tmp_path / "run", tmp_path / "sweep"
    (run / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run holds a run of tvjax\.main; use another --workdir"):
        rundir.check_sweep(run, config)
    swept.mkdir()
    sweep.write(swept, [])
    with pytest.raises(UserError, match="sweep holds a sweep"):
        rundir.check(swept, config)
    for folder in (run, swept):
        (folder / "config.json").write_text("{}")
    for inner in (swept / "runs", swept / "runs" / "new", run / "checkpoints" / "new"):
        with pytest.raises(UserError, match=r"holds a (sweep|run), among whose files nothing else"):
            rundir.check_sweep(inner, config)


def test_a_table_is_of_one_set(monkeypatch, tmp_path):
    found, tiles = {"sha256": "a" * 64, "directory": "A"}, {"train": range(16)}
    monkeypatch.setattr(sweep.sets, "open_section", lambda data: tiles)
    monkeypatch.setattr(sweep.sets, "identify", lambda splits, directory: dict(found))
    config = lunet.get_config()
    rundir.write_data(tmp_path, sweep._check_data(config, tmp_path))
    sweep.write(tmp_path, [])
    found["directory"] = "B"  # moved
    rundir.write_data(tmp_path, sweep._check_data(config, tmp_path))
    found["sha256"] = "b" * 64
    with pytest.raises(UserError, match="was trained on the tiles aaaaaaaaaaaa of B, but"):
        sweep._check_data(config, tmp_path)
    found["sha256"], tiles["train"] = "a" * 64, range(15)
    with pytest.raises(UserError, match=r"train\.batch_size: batch size 16 does not suit"):
        sweep._check_data(config, tmp_path)


def test_each_weight_has_a_folder_of_its_own():
    assert [sweep._short(x) for x in (0.0, 1.0, 1e-6, 1e-4)] == ["0", "1", "1e-06", "0.0001"]
    assert sweep._short(1e-6 + 1e-14) != sweep._short(1e-6)


def test_the_table_has_a_row_a_lambda_and_says_what_was_learned():
    names = "bce", "iou", "pooled_iou", "nonempty_iou", "components", "true_components"
    scores = dict.fromkeys(names, 0.5) | {"images": 9, "empty_images": 4}
    splits = dict.fromkeys(("val", "test"), scores)
    lines = [
        {"lambda": lam, "seed": s, "final_lambda": 2 * lam, "splits": splits}
        for lam in (1e-6, 1e-5) for s in (0, 1)
    ]  # fmt: skip
    rows = sweep.table(lines).splitlines()
    assert len(rows) == 4 and "lambda became 2e-06, 2e-06" in rows[1]
    assert rows[3] == "4 of 9 validation tiles are empty"
    del scores["nonempty_iou"], scores["empty_images"]  # of a sweep of before
    assert " nan " in sweep.table(lines).splitlines()[1]


def test_weights_are_those_that_are_asked_for():
    config = lunet.get_config()
    assert sweep.pairs(["0", "0.0", "0e5"], ["0"], config) == [(0.0, 0)]
    for name, lam, seed in (("lambdas", "1e-400", "0"), ("lambdas", "1_0", "0"),
                            ("lambdas", "\u0661", "0"), ("seeds", "1", "1_0")):  # fmt: skip
        with pytest.raises(UserError, match=f"--{name}: "):
            sweep.pairs([lam], [seed], config)
