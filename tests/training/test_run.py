"""The program as users run it: train, kill, resume; interruptions; mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from jax import export
from PIL import Image
from programs import ROOT, STRICT, use

import tvjax
from configs import lunet_bilevel
from tvjax.data import pictures
from tvjax.errors import UserError
from tvjax.inference import tiles as tiles_
from tvjax.inference import writing
from tvjax.training import loop, pretrained, rundir
from tvjax.training.logs import read_metrics

STEPS = 14


def flags_of(tiles, workdir, *flags, config="lunet_bilevel"):
    return [
        f"--config=configs/{config}.py", f"--workdir={workdir}",
        f"--config.data.directory={tiles}", f"--config.data.cache={tiles.parent / 'cache'}",
        f"--config.train.steps={STEPS}", "--config.train.batch_size=4",
        "--config.train.log_every=2",
        "--config.model.width=2", "--config.model.depth=1",
        "--config.hypergrad.warmup=3", "--config.hypergrad.batch_size=4",
        "--config.checkpoint.every=4", "--config.evaluation.every=6",
        "--config.hypergrad.every=1", *flags,
    ]  # fmt: skip


def run(tiles, workdir, *flags, **options):
    return use("main", *flags_of(tiles, workdir, *flags, **options), python=STRICT)


def start_and_wait_for(tiles, workdir, step, *flags, **options):
    """Starts a run and returns its process once it has logged this step."""
    process = subprocess.Popen(
        [sys.executable, *STRICT, "-m", "tvjax.main", *flags_of(tiles, workdir, *flags, **options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    log = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and any(
            json.loads(line)["step"] >= step
            for line in log.read_text().splitlines()
            if line.endswith("}")
        ):
            return process
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1].decode())


@pytest.fixture(scope="module")
def whole(tiles, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = run(tiles, workdir)
    assert result.returncode == 0, result.stderr
    return workdir, result


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_a_run_leaves_what_the_contract_names(whole):
    workdir, result = whole
    found = summary(workdir)
    for name in ("train_iou", "val_iou", "test_iou", "test_pooled_iou", "lambda", "seconds"):
        assert np.isfinite(found[name])
    assert found["steps"] == STEPS and len(found["parameters_sha256"]) == 64
    assert found["precision"] == "highest"
    assert json.loads(result.stdout.splitlines()[-1]) == found
    assert found["score"] == "pooled_iou"
    headline = found["splits"]["test"]["pooled_iou"]
    assert (
        found["test_pooled_iou"] == headline and f"test pooled IoU {headline:.4f}" in result.stdout
    )
    assert "all background: 0.0000" in result.stdout and "boundary IoU counts" in result.stdout
    for name in ("curves.png", "lambda.png", "predictions.png", "config.json"):
        assert (workdir / name).stat().st_size > 100
    assert list((workdir / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lambdas = {m["step"]: m["lambda"] for m in lines if m["kind"] == "train"}
    assert lambdas[2] == pytest.approx(1e-6) and lambdas[STEPS] != pytest.approx(1e-6)
    assert [m["step"] for m in lines if m["kind"] == "val"] == [0, 6, 12, STEPS]
    assert all(0 <= m["pooled_iou"] <= 1 and "union" not in m for m in lines)
    saved = json.loads((workdir / "checkpoints" / str(STEPS) / "metrics/metrics").read_text())
    assert saved["val_iou"] == lines[-1]["pooled_iou"] != lines[-1]["iou"]


def test_a_run_of_before_the_score_was_chosen_goes_on_by_its_own(tmp_path):
    """The mean over images chose its best checkpoint, and goes on to choose."""
    config = lunet_bilevel.get_config()
    stored = config.to_dict()
    del stored["evaluation"]["score"]
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"score='iou'.*or --config\.evaluation\.score=iou$"):
        rundir.check(tmp_path, config)
    config.evaluation.score, config.evaluation.every = "iou", 7
    rundir.check(tmp_path, config)
    assert lunet_bilevel.get_config("paper").evaluation.score == "iou"


def test_evaluate_gives_the_summary_s_scores(whole, tiles):
    evaluate = partial(use, "evaluate")
    workdir, _ = whole
    result = evaluate(f"--workdir={workdir}", "--split=val")
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout.splitlines()[-1])
    assert scores["iou"] == pytest.approx(summary(workdir)["val_iou"], abs=1e-6)
    fails_with(evaluate("--workdir=/nowhere/run"), "/nowhere/run", "config.json")
    coco = ("--annotations=a.json", "--images=images")
    fails_with(evaluate(f"--workdir={workdir}", "--split=test", *coco), "--split=test")
    fails_with(evaluate(f"--workdir={workdir}", "--checkpoint=3"), "checkpoint=3", "newest (14)")


def test_a_run_predicts_and_says_what_it_skipped(whole, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    Image.fromarray(pixels[:32, :32]).save(tmp_path / "images" / "c.png")
    (tmp_path / "images" / "b.png").write_text("no image")
    out = tmp_path / "out"
    flags = (f"--workdir={whole[0]}", f"--images={tmp_path}/images/*.png", f"--out={out}")
    result = use(
        "predict", *flags, "--threshold=0.4", "--scale=0.5", "--simplify=1", "--denoise=0.1",
        "--probabilities",
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "skipped: " in result.stderr and "b.png" in result.stderr
    numbers = json.loads(result.stdout.splitlines()[-1])
    assert (numbers["images"], numbers["skipped"]) == (2, 1)
    names = [f"{name}{end}" for name in "ac" for end in writing.ENDINGS if ".tif" not in end]
    assert sorted(p.name for p in out.iterdir()) == [*names, "predicted.jsonl", "results.json"]
    assert len(json.loads((out / "results.json").read_text())) == numbers["objects"]
    # At this scale the second has the size of the run's tiles, and is taken as those are.
    net, tiling = tvjax.Predictor.load(whole[0], denoise=0.1), tiles_.Tiling((16, 16), 0, 0)
    raster = pictures.from_array(pixels[:32, :32])
    (wanted,) = tiles_.probabilities(raster, net, tiling._replace(whole=(16, 16)), 0.5)
    with Image.open(out / "c_probability.png") as found:
        np.testing.assert_allclose(np.asarray(found) / 65535, wanted[..., 0], atol=1e-4)


@pytest.mark.slow
def test_a_run_is_not_compared_with_itself_and_is_exported(whole, tmp_path):
    workdir = f"--workdir={whole[0]}"
    fails_with(use("evaluate", workdir, f"--against={whole[0]}"), "is given twice")
    shutil.copytree(whole[0], tmp_path / "copy")
    result = use("evaluate", workdir, f"--against={tmp_path}/copy", f"--out={tmp_path}/out")
    fails_with(result, f"copy is a copy of {whole[0]}")
    result = use("evaluate", workdir, f"--out={tmp_path}/out")
    assert result.returncode == 0, result.stderr
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {"scores.json", "per_image.csv", "results.json", "grid.png"}
    result = use("export", workdir, f"--out={tmp_path}/net", "--size=16", "--batch=1")
    assert result.returncode == 0, result.stderr
    exported = export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    images = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    net = tvjax.Predictor.load(whole[0])
    np.testing.assert_allclose(exported.call(images), net(images), atol=1e-5)
    fails_with(use("export", workdir, f"--out={tmp_path}/net", "--size=big"), "--size=big")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs the model")
    result = use("export", workdir, f"--onnx={tmp_path}/net.onnx", "--size=16")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["images"] == "float32[batch,3,16,16]"
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), net(images), atol=1e-5)
    fails_with(use("predict", workdir, "--images=nowhere/*.tif", "--out=x"), "nowhere/*.tif")


def test_a_finished_run_is_not_done_again(whole, tiles):
    workdir, _ = whole
    before = (workdir / "metrics.jsonl").stat().st_mtime_ns
    again = run(tiles, workdir)
    assert again.returncode == 0
    assert json.loads(again.stdout.splitlines()[-1]) == summary(workdir)
    assert (workdir / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "sig, status", [(signal.SIGKILL, -9), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_resumes_bit_for_bit(whole, tiles, tmp_path, sig, status):
    workdir = tmp_path / "run"
    process = start_and_wait_for(tiles, workdir, 6)
    process.send_signal(sig)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors.decode()
    assert not (workdir / "summary.json").exists()
    if sig == signal.SIGTERM:
        assert b"the same command resumes" in errors and b"Traceback" not in errors
    result = run(tiles, workdir)
    assert result.returncode == 0, result.stderr
    resumed, uninterrupted = summary(workdir), summary(whole[0])
    assert resumed["parameters_sha256"] == uninterrupted["parameters_sha256"]
    assert resumed["lambda"] == uninterrupted["lambda"]
    assert (workdir / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("config", [
    "lunet_online", "lunet_forward", "runet", "unet_tv", "segnet", "soba", "amigo", "stocbio",
    "f2sa",
])  # fmt: skip
def test_other_models_and_estimators_resume_bit_for_bit(tiles, tmp_path, config):
    """What an estimator remembers rides in the checkpoint; segnet has augmentation too."""
    flags = ["--config.hypergrad.every=1", "--config.hypergrad.steps=2"]
    if not (ROOT / f"configs/{config}.py").exists():
        flags.append(f"--config.hypergrad.method={config}")
        flags += ["--config.hypergrad.warmup=0"] if config == "f2sa" else []
        config = "lunet_bilevel"
    result = run(tiles, tmp_path / "whole", *flags, config=config)
    assert result.returncode == 0, result.stderr
    process = start_and_wait_for(tiles, tmp_path / "run", 8, *flags, config=config)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run(tiles, tmp_path / "run", *flags, config=config).returncode == 0
    resumed, uninterrupted = summary(tmp_path / "run"), summary(tmp_path / "whole")
    assert resumed["parameters_sha256"] == uninterrupted["parameters_sha256"]
    assert resumed["lambda"] == uninterrupted["lambda"]


@pytest.mark.slow
def test_streamed_records_give_the_same_run_as_resident_ones(whole, tiles, tmp_path):
    result = run(tiles, tmp_path / "run", "--config.data.resident=False")
    assert result.returncode == 0, result.stderr
    # Two programs, so not the same bits; the same batches, or the loss would differ in a digit.
    a, b = (read_metrics(w) for w in (whole[0], tmp_path / "run"))
    assert [m["step"] for m in a] == [m["step"] for m in b]
    losses = [[m["loss"] for m in metrics if m["kind"] == "train"] for metrics in (a, b)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def fails_with(result, *words):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_mistakes_in_flags_are_one_line(tiles, tmp_path):
    """What parsing alone can tell is in `test_program`."""
    result = run(tiles, tmp_path / "run", "--config.hypergrad.method=exat")
    fails_with(result, "hypergrad.method='exat'", "exact")


def test_what_is_refused_leaves_no_run_behind(tiles, tmp_path, monkeypatch):
    config = lunet_bilevel.get_config()
    config.data.directory, config.data.cache = str(tiles), str(tiles.parent / "cache")
    config.model.width, config.model.depth, config.train.batch_size = 2, 1, 4

    def refused(words):
        with pytest.raises(UserError, match=words):
            loop.run(config, tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]

    for section, size in (("hypergrad", 64), ("train", 4096)):
        with config.unlocked():
            before, config[section].batch_size = config[section].batch_size, size
        refused(rf"{section}\.batch_size: batch size {size} does not suit a split of")
        config[section].batch_size = before
    config.hypergrad.batch_size = 4

    def put(*_):
        raise UserError("weights of another encoder")

    monkeypatch.setattr(pretrained, "put", put)
    refused("of another encoder")


def test_a_workdir_keeps_to_its_config(whole, tiles):
    workdir, _ = whole
    fails_with(run(tiles, workdir, "--config.model.width=3"), "model.width=2", "--workdir")
    assert summary(workdir)["steps"] == STEPS


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused(whole, tiles, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0] / "checkpoints", workdir / "checkpoints")
    fails_with(
        run(tiles, workdir, "--config.model.width=3"),
        "another architecture",
        "shape (2,)",
        "--workdir",
    )
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == sorted(
        p.name for p in (whole[0] / "checkpoints").iterdir()
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiles, tmp_path
):
    workdir = tmp_path / "run"
    flags = ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e38")
    result = run(tiles, workdir, *flags, config="unet")
    fails_with(result, "step ", "optimizer.learning_rate")
    assert not (workdir / "summary.json").exists()


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform != "linux", reason="root writes anywhere")
def test_an_unwritable_workdir_is_named(tiles):
    fails_with(run(tiles, Path("/proc/nothing/run")), "--workdir=/proc/nothing/run")


def test_a_directory_without_data_is_named(tiles, tmp_path):
    (tmp_path / "empty").mkdir()
    flag = f"--config.data.directory={tmp_path / 'empty'}"
    fails_with(run(tiles, tmp_path / "run", flag), str(tmp_path / "empty"), "annotation.json")
    fails_with(run(tiles, tmp_path / "run", "--config.data.directory="), "data.directory")
    assert not (tmp_path / "run" / "config.json").exists()
