"""Small files of a run and of prepared tiles, damaged in every way: one line, or their content."""

import json
import os
import random
import resource
import shutil
from functools import partial

import jax
import pytest

from configs import base, lunet_bilevel, unet_tv
from tvjax import program, sweep
from tvjax.data import builder, identity, manifest, records, sets
from tvjax.data.embedded import synthetic
from tvjax.data.origins import Images
from tvjax.data.sources import Sources
from tvjax.errors import UserError
from tvjax.training import restore, rundir
from tvjax.training.logs import read_metrics
from tvjax.training.net import make_net

WHOLE = [
    "", "[]", "null", "{}", "0", '""', "true", "NaN", "{", '{"a": 1}\x00', "[" * 100_000,
    '{"a":' * 100_000, "9" * 5000, "\ud800",
]  # fmt: skip
VALUES = [None, [], {}, "", "x", -1, 0, 1.5, True, 1e400, 10**30, [None], {"a": {}}, "a\nb\0"]
SUMMARY = {"steps": 10**7, "lambda": 0.5, "lambda_per_pixel": None, "seconds": 1.0}
SUMMARY |= {"test_baselines": {"all_background": 0.1, "all_foreground": 0.2}}
SCORES = ("iou", "pooled_iou", "boundary_iou", "components", "true_components", "images")
SUMMARY["splits"] = {name: dict.fromkeys(SCORES, 0.5) for name in ("train", "val", "test")}
LINE = {"lambda": 1.0, "seed": 0, "final_lambda": 1.0, "seconds": 1.0}
LINE["splits"] = {name: dict.fromkeys((*SCORES, "bce"), 0.5) for name in ("train", "val", "test")}


def corrupted(content):
    """A JSON tree with one value of each path left out, or replaced."""
    for key in content if isinstance(content, dict) else range(min(len(content), 4)):
        others = content.copy()
        del others[key]
        yield others
        for value in VALUES:
            other = content.copy()
            other[key] = value
            yield other
        if isinstance(content[key], (dict, list)):
            for inner in corrupted(content[key]):
                other = content.copy()
                other[key] = inner
                yield other


def damages(text, number):
    """Contents of a damaged file: some of all kinds, the same ones each time."""
    rng = random.Random(0)
    fields = [json.dumps(tree) for tree in corrupted(json.loads(text))]
    cut = [text[: rng.randrange(len(text))] for _ in range(4)]
    noise = [rng.randbytes(50) for _ in range(3)]
    chosen = rng.sample(fields, min(number, len(fields)))
    return [x.encode("utf-8", "surrogatepass") if isinstance(x, str) else x
            for x in [*WHOLE, *cut, *noise, *chosen]]  # fmt: skip


def attack(file, use, number=150):
    """Uses a file damaged in each way, also where it is a folder; returns the refusals."""
    good = file.read_text()
    refused = []
    for content in [*damages(good, number), None]:
        file.unlink()
        if content is None:
            file.mkdir()
        else:
            file.write_bytes(content)
        try:
            use()
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 900, error
            refused.append(str(error))
        file.rmdir() if content is None else file.unlink()
        file.write_text(good)
    use()
    return refused


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "5").mkdir(parents=True)
    config = unet_tv.get_config()
    rundir.write_config(folder, config)
    rundir.write_data(folder, {"sha256": "0" * 64, "directory": None})
    rundir.write_summary(folder, SUMMARY)
    return folder


def test_the_config_of_a_run(run):
    def use():
        config = restore.read_config(run)
        assert config.model.name in ("unet", "x")

    refused = attack(run / "config.json", use)
    assert all("config.json is damaged" in line for line in refused) and len(refused) > 100

    def resume():
        rundir.check(run, unet_tv.get_config())

    refused = attack(run / "config.json", resume)
    assert all("config.json" in line or "holds a run with" in line for line in refused)


def test_the_summary_of_a_run(run):
    config = unet_tv.get_config()

    def use():
        rundir.format_summary(rundir.read_summary(run, config) or SUMMARY, run)

    for end in (None, {"trained": 20, "ended": True}):
        rundir.write_summary(run, SUMMARY | ({"patience": end} if end else {}))
        refused = attack(run / "summary.json", use)
        assert len(refused) > 50 and all("summary.json" in line for line in refused)
    for end in (None, "x", 1, [], {}, {"trained": "x", "ended": True}, {"trained": 1, "ended": 1}):
        rundir.write_summary(run, SUMMARY | {"patience": end})
        with pytest.raises(UserError, match=r"summary.json is damaged"):
            rundir.read_summary(run, config)


def test_a_flipped_digit_changes_no_prediction_without_a_word(run):
    config = unet_tv.get_config()
    scores = [(0.01, 0.5), (0.09, 0.75), (0.19, 0.25)]  # as `evaluation.choose_denoising` gives
    rundir.write_summary(run, SUMMARY | {"denoise_weight": 0.09, "denoise_val_score": scores})
    assert rundir.read_summary(run, config)["denoise_weight"] == 0.09
    for weight, others in ((0.19, scores), (0.09, {}), (0.09, []), (0.09, [["x", 1]]), (0.09, 1)):
        rundir.write_summary(run, SUMMARY | {"denoise_weight": weight, "denoise_val_score": others})
        with pytest.raises(UserError, match=r"summary.json is damaged"):
            rundir.read_summary(run, config)
    kept = rundir.describe_net(config)
    assert {"model.head_iterations", "regularizer.weight", "denoise.kind"} <= kept.keys()
    for before in (kept, {}, kept | {"model.of_another_version": 1}):
        rundir.check_net(run, restore.read_config(run), {"net": before}, None)
    rundir.check_net(run, restore.read_config(run), {}, {"sha256": "a"})  # of an earlier version
    config.model.head_iterations = 3
    with pytest.raises(UserError, match=r"model.head_iterations=3, and the checkpoint was trained"):
        rundir.check_net(run, config, {"net": kept}, None)
    rundir.write_summary(run, SUMMARY | {"seed": 1})
    with pytest.raises(UserError, match=r"summary.json is of seed 1, and .*config.json of seed 0"):
        rundir.read_summary(run, config)


def test_the_identity_of_a_run_s_tiles(run):
    use = lambda: rundir.check_data(run, {"sha256": "0" * 64, "directory": "x"}, advice="")  # noqa: E731
    refused = attack(run / "tiles.json", use)
    assert refused and all("tiles" in line for line in refused)
    kept = rundir.read_data(run) or {}
    for number in ("x", -1, 0, 1.5, [], True, None, 10**12, 10**30):
        rundir.write_data(run, kept | {"train_tiles": number})
        with pytest.raises(UserError, match=r"tiles.json is damaged"):
            rundir.read_data(run)


def test_weights_of_any_number_of_tiles_take_no_memory_before_they_are_used():
    config = lunet_bilevel.get_config()
    config.hypergrad.learn = "lambda", "tile_weights"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    net = make_net(config, tiles=10**9)
    shapes = jax.eval_shape(partial(net.create, image_shape=restore.ANY_SHAPE), 0, net.hyper)
    assert shapes.hyper["tile_weights"].shape == (10**9,)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6  # KiB


def test_what_is_whole_of_a_log_is_used(tmp_path, capsys):
    log = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step, "kind": "train", "loss": 0.5}) for step in (1, 2)]
    huge = json.dumps({"step": 1, "kind": "train", "loss": 10**400})
    bad = [huge] + [d.decode("utf-8", "replace").replace("\n", " ") for d in damages(good[0], 40)]
    for line in bad:
        log.write_text("\n".join([good[0], line, good[1]]))
        found = read_metrics(tmp_path)
        assert found[0] == json.loads(good[0]) and found[-1] == json.loads(good[1])
        assert all(type(x["step"]) is int and type(x["kind"]) is str for x in found)
        assert all(abs(x) < 2**63 for line in found for x in line.values() if type(x) is int)
        told = capsys.readouterr().err.splitlines()
        assert len(found) == 3 or "line 2 is damaged" in told[0]
        assert all(x.startswith("warning: ") and x.endswith("is left out") for x in told)


def test_the_results_of_a_sweep(tmp_path):
    sweep.write(tmp_path, [LINE])
    refused = attack(tmp_path / "results.jsonl", lambda: sweep.read(tmp_path))
    assert len(refused) > 50 and all("results.jsonl" in line for line in refused)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "coco"
    synthetic.write(folder, tiles=20, seed=0, progress=False)
    return folder


@pytest.fixture(scope="module")
def prepared(coco):
    out = coco.parent / "records"
    builder.build(coco / "annotation.json", coco / "images", out, size=16, progress=False)
    return out


@pytest.mark.parametrize("name", ["source.json", "sources.json", "identity.json"])
def test_what_lies_beside_prepared_tiles(coco, prepared, tmp_path, name):
    tiles = tmp_path / "tiles"
    shutil.copytree(prepared, tiles)
    asked = manifest.request(
        Images(coco / "annotation.json", coco / "images").describe(),
        size=(16, 16), limit=None, seed=0, split=(0.8, 0.1, 0.1),
    )  # fmt: skip
    sources = Sources(coco / "annotation.json", coco / "images")
    sha256 = identity.of(tiles)

    def use():
        assert manifest.is_built(tiles, asked, sources)
        sets.tile_shape(str(tiles), 16)
        if name == "identity.json":
            assert len(identity.of(tiles)) == 64

    refused = attack(tiles / name, use, 40)
    assert bool(refused) == (name != "identity.json")  # which is computed anew
    assert identity.of(tiles) == sha256


@pytest.mark.parametrize("file, before, after", [
    ("features.json", '"pythonClassName": "tensorflow_datasets.core.features.features_dict.Feat',
     '"pythonClassName": "innocent.Feat'),
    ("features.json", '"pythonClassName": "tensorflow_datasets.core.features.scalar.Scalar',
     '"python_class_name": "innocent.Scalar'),
    ("features.json", '"featuresDict":', '"type": "innocent.Dict", "content": {}, "featuresDict":'),
    ("features.json", '"text": {}', '"jsonFeature": {"json": "{}"}'),
    ("features.json", '"16",', '"8",'),
    ("dataset_info.json", "{DATASET}-{SPLIT}", "/elsewhere/{SPLIT}"),
    ("dataset_info.json", "array_record", "tfrecord"),
    ("dataset_info.json", '"moduleName": "tvjax', '"moduleName": "innocent'),
])  # fmt: skip
def test_descriptions_of_records_lead_nowhere(prepared, tmp_path, monkeypatch, file, before, after):
    """tfds imports the classes that are named there, from the working folder too."""
    tiles = tmp_path / "tiles"
    shutil.copytree(prepared, tiles)
    (tmp_path / "innocent.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path, content = tiles / "tiles" / "1.0.0" / file, manifest.read(tiles)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    content["files"][f"tiles/1.0.0/{file}"] = path.stat().st_size
    manifest.write(tiles, content)
    with pytest.raises(
        UserError, match=r"1\.0\.0: .*is damaged .*which no tiles have|and tiles \["
    ):
        records.open_split(tiles, "val")


def test_the_descriptions_of_records(prepared, tmp_path):
    tiles = tmp_path / "tiles"
    shutil.copytree(prepared, tiles)
    sizes = manifest.read(tiles)

    def use():
        for name in sizes["files"]:
            file = tiles / name
            sizes["files"][name] = file.stat().st_size
        manifest.write(tiles, sizes)  # as if the damage had kept the size
        split = records.open_split(tiles, "val")
        split[len(split) - 1]

    for name in ("dataset_info.json", "features.json"):
        [file] = tiles.rglob(name)
        assert attack(file, use, 25)


def test_a_run_s_folder_chooses_no_place_that_is_written(run, tmp_path, monkeypatch):
    config = base.get_config()
    config.data.cache = str(tmp_path / "theirs")
    rundir.write_config(run, config)
    monkeypatch.setattr(program, "CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(sets, "EMBEDDED_TILES", 12)
    asked = []
    monkeypatch.setattr(program, "cache_compilations", lambda place: asked.append(str(place)))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        restore.open_net(run)
    assert asked == [str(tmp_path / "own" / "compiled")]
    splits, _ = restore.open_data(restore.read_config(run))
    assert splits["val"].directory.is_relative_to(tmp_path / "own")
    assert not (tmp_path / "theirs").exists()
    shutil.move(tmp_path / "own", tmp_path / "theirs")
    splits, data = restore.open_data(restore.read_config(run))  # what is there is read
    assert splits["val"].directory.is_relative_to(tmp_path / "theirs")
    assert data["directory"] is None and not (tmp_path / "own").exists()


def test_no_link_of_a_run_s_folder_leads_to_what_is_written(run, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("whole")
    (run / ".summary.part.json").symlink_to(outside)
    rundir.write_summary(run, SUMMARY)
    assert not (run / "summary.json").is_symlink()
    (run / ".lock").symlink_to(outside)
    with pytest.raises(UserError, match="cannot be written"), rundir.lock(run):
        pass
    assert outside.read_text() == "whole"
    (run / ".lock").unlink()
    with rundir.lock(run) as free:
        assert free
    (tmp_path / "elsewhere").mkdir()
    for name in ("checkpoints", "tensorboard", "damaged_checkpoints"):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=f"{name} is a link"):
            rundir.check(run, unet_tv.get_config())
        (run / name).unlink()
    (run / "checkpoints" / "5").mkdir(parents=True)
    for name in ("4", "5/state"):
        (run / "checkpoints" / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=f"{name} is a link"):
            rundir.check(run, unet_tv.get_config())
        (run / "checkpoints" / name).unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="runs is a link"):
        (run / "summary.json").unlink()
        (run / "runs").symlink_to(tmp_path / "elsewhere")
        rundir.check_sweep(run, unet_tv.get_config())


@pytest.mark.parametrize("name", ["metrics.jsonl", "stopped.json", "checkpoints/5/run/metadata"])
def test_pipes_in_a_run_s_folder_are_not_waited_for(run, name):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(run / name)
    for use in (lambda: rundir.check(run, unet_tv.get_config()), lambda: restore.open_net(run)):
        with pytest.raises(UserError, match=f"{name}: cannot be read, it is a pipe and no file"):
            use()


def test_a_run_without_its_config_is_told_of(run, capsys):
    rundir.check(run, unet_tv.get_config())
    assert not capsys.readouterr().err
    (run / "config.json").unlink()
    rundir.check(run, unet_tv.get_config())
    assert "has checkpoints and no config.json: they are taken for a run" in capsys.readouterr().err


def test_another_program_s_config_makes_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"train": {"lr": 0.1}, "mine": 1}')
    (tmp_path / "metrics.jsonl").write_text("by hand")
    with pytest.raises(UserError, match=r"holds config\.json, which is of something else"):
        rundir.check(tmp_path, unet_tv.get_config())
