"""Trained nets in careless and hostile hands: one line each, and nobody's files are harmed."""

import csv
import json
import shutil

import hostile
import pytest
from PIL import Image
from programs import ROOT, use_all

NET = "checkpoints/12/state"

SWEPT = f"--config={ROOT}/configs/lunet.py --lambdas=1 --seeds=0"
MISTAKES = {
    "export --out=run/config.json": "run holds a run, among whose files nothing else",
    "export --out=run/checkpoints/12/net": "run holds a run",
    "export --out=net --size=0": "--size must be at least 1; got 0",
    "export --out=net --size=99999999999": "--size=99999999999: give the side",
    "export --out=net --size=٦٤": "--size=٦٤: give the side",
    "export --out=net --batch=٣": "--batch=٣: write numbers in the digits 0 to 9",
    "export --out=net --batch=1_0": "--batch=1_0: write numbers",
    "export --out=net --batch=-1": "--batch must be at least 1; got -1",
    "export --out=net --platforms=": "--platforms is empty; give a value, or leave the flag out",
    "export --out=net --checkpoint= --mlir": "--checkpoint is empty; give a value",
    "export --out=net --platforms=cpu,cpu": "--platforms must be one or more of cpu, ",
    "export --onnx=net.onnx --out=net": "--onnx writes a file of its own",
    "export --onnx=net.onnx --mlir": "--onnx writes a file of its own",
    "export --onnx=net.onnx --platforms=cpu": "--onnx writes a file of its own, for any platform",
    "export --onnx=net.onnx --denoise=0.1": "--denoise=0.1: an ONNX file holds no denoising",
    "export --onnx=run/net.onnx": "run holds a run, among whose files nothing else",
    "export": "--workdir and --out (or --onnx) are needed",
    "export --out=net --checkpoint=٣": "checkpoint=٣: ",
    "evaluate --out=run": "run holds a run",
    "evaluate --out=. --images=. --annotations=a": "--out=. holds images; grid.png there would",
    "evaluate --out=hostile/images --images=. --annotations=a": "--out=hostile/images holds images",
    "evaluate --out=tiles": "tiles holds prepared tiles",
    "evaluate --out=run/tensorboard": "run holds a run",
    "predict --out=run": "run holds a run",
    "predict --out=out --images=": "--images is empty; give a value, or leave the flag out",
    "predict --out=out --scale=": "--scale= is no number",
    "predict --out=out --scale=x": "--scale=x is no number",
    "predict --out=out --tile=1.5": "--tile=1.5 is no whole number",
    f"main --config={ROOT}/configs/unet.py --config.model.width=x": "width=x is no whole number",
    f"main --config={ROOT}/configs/unet.py --config.data.resident=x": "resident=x is neither True",
    (
        f"main --config={ROOT}/configs/roofs.py --config.model.encoder=None "
        "--config.model.encoder_rate=0.5"
    ): "model.encoder_rate=0.5 needs model.encoder, which is None",
    "predict --out=tiles/tiles": "tiles holds prepared tiles",
    "predict --out=out --scale=1e-9": "scale=1e-09 must be in [0.001, 1000]",
    "predict --out=out --scale=1e9": "scale=1000000000.0 must be in [0.001, 1000]",
    "predict --out=out --batch=10000000000": "--batch=10000000000 --tile=512: these tiles need",
    "data.prepare --annotations=a --images=. --out=out --size=١٦": "--size=١٦: give a number of",
    f"main --config={ROOT}/configs/unet.py --workdir=tiles": "tiles holds prepared tiles; use ano",
    "evaluate --workdir=linked": "linked/checkpoints/8 is a link",
    "label_faults --out=run": "run holds a run",
    "label_faults --out=run/checkpoints/12/faults": "run holds a run",
    "label_faults --out=tiles": "tiles holds prepared tiles",
    "predict --out=foreign": "--out=foreign holds a.geojson, which is of something else",
    "predict --out=scored": "--out=scored holds results.json, which is of something else",
    "evaluate --out=foreign": "--out=foreign holds grid.png, which is of something else",
    "data.prepare --annotations=a --images=. --out=run/checkpoints/new": "run holds a run, among",
    "data.prepare --annotations=a --images=. --out=.": "--out=. is the working folder itself",
    "label_faults --out=foreign": "--out=foreign holds labels.csv, which is of something else",
    "evaluate --out=notes": "--out=notes holds scores.json, which is of something else (there",
    "evaluate --against=other_net --out=compared": "compared holds comparison.json, which is of",
    f"main --config={ROOT}/configs/unet.py --workdir=foreign": "foreign holds config.json, which",
    f"main --config={ROOT}/configs/unet.py --workdir=notes": "notes holds metrics.jsonl, which is",
    f"main --config={ROOT}/configs/unet.py --workdir=run/checkpoints/new": "run holds a run, am",
    f"main --config={ROOT}/configs/unet.py --workdir=swept/runs": "swept holds a sweep, among who",
    f"sweep --workdir=swept/runs {SWEPT}": "swept holds a sweep, among whose files nothing else is",
    f"sweep --workdir=swept/runs/new {SWEPT}": "swept holds a sweep, among whose files nothing el",
    f"sweep --workdir=foreign {SWEPT}": "foreign holds config.json, which is of something else",
    f"sweep --workdir=notes {SWEPT}": "notes holds metrics.jsonl, which is of something else (th",
    "label_faults --out=a.png": "--out=a.png cannot be written",
    "label_faults --out=/proc/nothing/out": "--out=/proc/nothing/out cannot be written",
    "label_faults --out=out --ranker=loss": "--ranker",
    "label_faults --out=out --worst=٣": "--worst=٣: write numbers",
    "label_faults --out=out --worst=-1": "--worst=-1",
    "label_faults --out=out --worst=10000": "--worst=10000: there are 48 training tiles",
    "label_faults --out=out --config.data.directory=nowhere": "nowhere: there is no such folder",
    "label_faults --out=out --config.train.batch_size=0": "train.batch_size=0 must be",
    "label_faults --out=out --config.train.batch_size=100": "batch size 100 does not suit",
    "label_faults": "--out must be given",
    # A flipped bit in a small file of the run.
    "export --out=a.png": "--out=a.png is there already, and may be of something else",
    "export --onnx=a.png": "--onnx=a.png is there already, and may be of something else",
    "export --workdir=other_net --out=net": "config.json has model.momentum=0.8",
    "export --workdir=no_net --out=net": "config.json is damaged",
}

RUN = ["--workdir=run"]
NET_OF_FAULTS = [
    f"--config={ROOT}/configs/unet.py", "--config.data.directory=tiles",
    "--config.model.name=pixels", "--config.train.steps=4", "--config.train.batch_size=4",
]  # fmt: skip
EXPORT = ["export", *RUN, "--size=32", "--batch=1"]
FAULTS = ["label_faults", *NET_OF_FAULTS]
EVALUATE = ["evaluate", *RUN, "--split=test"]
USES = {
    "scored": [*EVALUATE, "--out=scores", "--denoise=0.125"],
    "damaged": ["export", "--workdir=damaged", "--out=damaged.net", "--size=32", "--batch=1"],
    "hostile": ["predict", *RUN, "--images=hostile/images", "--out=predicted"],
    "full while scoring": {"argv": [*EVALUATE, "--out=new/full"], "kilobytes": 8},
    "full in export": {"argv": [*EXPORT, "--out=new/full.net"], "kilobytes": 1},
    "struck while scoring": {
        "argv": [*EVALUATE, "--out=new/struck"], "strike": "tvjax.scoring.scores:write_csv"
    },
    "struck while drawing": {
        "argv": [*EVALUATE, "--out=new/drawn"], "strike": "tvjax.training.figures:save"
    },
    "full while ranking": {"argv": [*FAULTS, "--out=new/full"], "kilobytes": 1},
    "struck while ranking": {
        "argv": [*FAULTS, "--out=ranked"], "strike": "tvjax.training.loop:train"
    },
    "ranked": [*FAULTS, "--out=ranked"],
    "ranked otherwise": [*FAULTS, "--out=ranked", "--ranker=out_of_fold"],
    "struck in export": {"argv": [*EXPORT, "--out=new/net"], "strike": "jax.export:export"},
}  # fmt: skip


def command(line):
    program, *flags = line.split()
    used = RUN if program in ("export", "evaluate", "predict") and "--workdir" not in line else []
    used += NET_OF_FAULTS if program == "label_faults" else []
    return [program, *used, *flags, *(["--images=a.png"] if program == "predict" else [])]


def state(folder):
    """All files that are there, with sizes and times."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def flip(file, before, after):
    content = file.read_bytes()
    assert content.count(before) == 1 and len(before) == len(after)
    file.write_bytes(content.replace(before, after))


@pytest.fixture(scope="module")
def place(tiles, tmp_path_factory):
    """A folder with a tiny run, damaged copies of it, its tiles, and images."""
    folder = tmp_path_factory.mktemp("mistakes")
    [(status, _, errors)] = use_all(["train", str(tiles), str(folder)])
    assert status == 0, errors
    shutil.copytree(tiles, folder / "tiles")
    for name in ("other_net", "no_net", "damaged", "linked"):
        shutil.copytree(folder / "run", folder / name)
    shutil.move(folder / "linked/checkpoints/8", folder / "8")
    (folder / "linked/checkpoints/8").symlink_to("../../8")
    flip(folder / "other_net" / "config.json", b'"momentum": 0.9', b'"momentum": 0.8')
    flip(folder / "no_net" / "config.json", b'"model": {', b'"model": [')
    arrays = max((folder / "damaged" / NET / "d").glob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 16
    arrays.write_bytes(content)
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"roofs": 3}')
    for name in ("a.geojson", "grid.png"):
        (folder / "foreign" / name).write_text("by hand")
    (folder / "swept" / "runs").mkdir(parents=True)
    for name in ("config.json", "results.jsonl"):
        (folder / "swept" / name).write_text("")
    for name in ("notes", "compared", "scored"):
        (folder / name).mkdir()
    (folder / "compared" / "comparison.json").write_text("{}")
    for name in ("metrics.jsonl", "sweep.png", "scores.json", "grid.png"):
        (folder / "notes" / name).write_text('["by hand"]')
    (folder / "scored" / "results.json").write_text("[]")
    (folder / "foreign" / "labels.csv").write_text("file,roofs\na.png,3\n")
    return folder


@pytest.fixture(scope="module")
def hostile_images(place):
    (place / "hostile").mkdir()
    hostile.write_images(place / "hostile")


@pytest.fixture(scope="module")
def outcomes(place, hostile_images):
    """What came of all: status, stdout and stderr by the names of the commands."""
    before = state(place)
    known = json.loads((place / "tiles" / "identity.json").read_text())["sha256"]
    listed = {line: command(line) for line in MISTAKES} | USES
    found = dict(zip(listed, use_all(*listed.values(), cwd=place), strict=True))
    changed = {path for path, _ in state(place).items() ^ before.items()}
    asked = ("scores", "damaged.net", "predicted", "ranked")  # by the uses
    # Its stamps of files are renewed once the clock has moved on; what it identifies stays.
    identity = place / "tiles" / "identity.json"
    found["identities"] = known, json.loads(identity.read_text())["sha256"]
    changed.discard(identity)
    found["changes"] = {p for p in changed if p.relative_to(place).parts[0] not in asked}
    return found


def test_mistakes_are_one_line_and_touch_nothing(outcomes):
    for line, words in MISTAKES.items():
        status, _, errors = outcomes[line]
        assert status == 2 and errors.count("\n") == 1, (line, errors[-2000:])
        assert errors.startswith("error: ") and words in errors, (line, errors)
    assert not outcomes["changes"]
    known, now = outcomes["identities"]
    assert known == now


def test_scores_say_how_they_were_made(place, outcomes):
    status, out, _ = outcomes["scored"]
    assert status == 0
    kept = json.loads((place / "scores" / "scores.json").read_text())
    for found in (json.loads(out), kept):
        made = {name: found[name] for name in ("checkpoint", "step", "scale", "denoise")}
        assert made == {"checkpoint": "newest", "step": 12, "scale": 1.0, "denoise": 0.125}


def test_labels_are_ranked_and_a_signal_loses_nothing(place, outcomes):
    status, _, errors = outcomes["struck while ranking"]
    assert status == 75 and errors.splitlines()[-1].startswith("interrupted"), errors
    status, _, errors = outcomes["full while ranking"]
    assert status == 74 and errors.splitlines()[-1].startswith("error: --out=new/full cannot be")
    status, out, errors = outcomes["ranked"]
    assert status == 0 and "48 training tiles" in out and "--leave_out=ranked/worst.csv" in out
    with open(place / "ranked" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 48 and scores == sorted(scores, reverse=True)
    assert all(0 <= float(row["iou"]) <= 1 and row["file"].endswith(".jpg") for row in rows)
    worst = [f"{row['id']},{row['file']}" for row in rows[:2]]
    assert (place / "ranked" / "worst.csv").read_text().split() == ["id,file", *worst]
    assert (place / "ranked" / "worst.png").stat().st_size > 5_000
    status, _, errors = outcomes["ranked otherwise"]
    told = "error: --out=ranked holds a ranking with ranker='training_loss', and now it is 'out_of"
    assert status == 2 and errors.startswith(told) and errors.count("\n") == 1


def test_a_damaged_checkpoint_is_not_used_without_a_word(outcomes):
    status, out, errors = outcomes["damaged"]
    assert status == 0 and json.loads(out)["step"] == 8
    assert errors.startswith("warning: checkpoint ") and "12 cannot be read" in errors


def test_hostile_images_are_skipped_in_a_line_each(place, outcomes):
    status, out, errors = outcomes["hostile"]
    assert status == 1 and "Traceback" not in errors
    found, lines = json.loads(out.splitlines()[-1]), errors.splitlines()
    skipped = [line for line in lines if line.startswith("skipped: ")]
    assert found["skipped"] == len(skipped) > 30 and found["images"] > 2
    assert all(len(line) < 700 and line.isprintable() for line in skipped)
    written = {path.name for path in (place / "predicted").iterdir()}
    lists = {"results.json", "predicted.jsonl"}
    assert len(written - lists) == 2 * found["images"] and {"a_mask.png", *lists} <= written


def test_a_full_disk_and_a_signal_leave_nothing_behind(place, outcomes):
    for name in ("full while scoring", "full in export"):
        status, out, errors = outcomes[name]
        assert status == 74 and not out and errors.count("\n") == 1, (name, errors)
        assert "cannot be written: File too large" in errors
    for name in ("struck while scoring", "struck while drawing", "struck in export"):
        status, out, errors = outcomes[name]
        assert status == 130 and not out
        assert errors.splitlines()[-1].startswith("interrupted; run the same"), (name, errors)
    assert not (place / "new").exists()
    assert not list(place.glob("tmp*"))
