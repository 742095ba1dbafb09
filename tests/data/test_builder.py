"""Records made from a COCO file: pixels, subset, splits, reruns, interruptions, damage."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from programs import SHARED, use
from skimage.morphology import dilation, erosion

from configs import lunet_bilevel, roofs
from tvjax.data import (
    area,
    builder,
    coco,
    faults,
    manifest,
    prepare,
    records,
    sets,
    splits,
    workspace,
)
from tvjax.errors import UserError

REAL = SHARED / "data" / "crowdai" / "train"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """24 random tiles of 30x30; tiles 1 to 3 are rotated and flipped copies of tile 0."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for k in range(24):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        pixels = pixels.repeat(5, axis=0).repeat(5, axis=1)
        if k == 0:
            original = pixels
        elif k < 4:
            pixels = (np.rot90(original), original[::-1], np.rot90(original[:, ::-1]))[k - 1]
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
        images.append({"id": 100 - k, "file_name": f"{k}.png", "height": 30, "width": 30})
        x, y = rng.integers(0, 15, 2).tolist()
        square = [x, y, x + 12, y, x + 12, y + 12, x, y + 12]
        annotations.append({"id": k, "image_id": 100 - k, "segmentation": [square]})
    content = {"images": images, "annotations": annotations}
    (folder / "annotation.json").write_text(json.dumps(content))
    return folder


def build(source: Path, out: Path, **options):
    options = {"size": 10, "progress": False} | options
    return builder.build(source / "annotation.json", source / "images", out, **options)


def read_all(directory: Path) -> dict[str, list[dict]]:
    found = {name: records.open_split(directory, name) for name in splits.NAMES}
    return {name: [split[k] for k in range(len(split))] for name, split in found.items()}


def test_records_equal_the_reshape_oracle(source, tmp_path):
    content = build(source, tmp_path / "out")
    tiles = {tile.id: tile for tile in coco.read(source / "annotation.json", source / "images")}
    found = read_all(tmp_path / "out")
    assert sorted(r["id"] for split in found.values() for r in split) == sorted(tiles)
    for name, split in found.items():
        assert len(split) == content["splits"][name]["tiles"]
        assert [r["id"] for r in split] == sorted(r["id"] for r in split)
        foreground = np.mean([r["mask"] for r in split])
        assert foreground == pytest.approx(content["splits"][name]["foreground"], abs=1e-6)
        for record in split:
            tile = tiles[record["id"]]
            image, mask, _ = tile.load()
            mean = image.reshape(10, 3, 10, 3, 3).mean((1, 3))
            np.testing.assert_array_equal(record["image"], np.floor(mean + 0.5))
            majority = mask.reshape(10, 3, 10, 3, 1).sum((1, 3)) >= 5
            np.testing.assert_array_equal(record["mask"], majority)
            assert record["mask"].dtype == record["image"].dtype == np.uint8
            assert record["file"] == tile.file.name


@pytest.mark.parametrize(
    "empty, words",
    [("train", "nothing is learned from it"), ("val", "scores on it say"), ("test", "scores")],
)  # fmt: skip
def test_a_split_without_objects_is_told_of(source, tmp_path, capsys, empty, words):
    content = json.loads((source / "annotation.json").read_text())
    lines = [f"{k}.png,{splits.NAMES[k % 3]}\n" for k in range(24)]
    (tmp_path / "splits.csv").write_text("".join(lines))
    build(source, tmp_path / "all", split_file=tmp_path / "splits.csv")
    assert "has no object" not in capsys.readouterr().err
    number = splits.NAMES.index(empty)
    content["annotations"] = [a for a in content["annotations"] if a["id"] % 3 != number]
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    builder.build(
        tmp_path / "annotation.json", source / "images", tmp_path / "out", size=10,
        progress=False, split_file=tmp_path / "splits.csv",
    )  # fmt: skip
    told = [line for line in capsys.readouterr().err.splitlines() if "has no object" in line]
    assert len(told) == 1
    assert told[0].startswith(f"warning: the split {empty} has no object pixel, so that {words}")


@pytest.mark.parametrize("old, new", [(12, 6), (12, 4), (13, 5), (12, 2), (11, 11)])
def test_area_means_of_any_ratio(old, new):
    rng = np.random.default_rng(old)
    image = rng.integers(0, 256, (old, 2 * old, 3), dtype=np.uint8)
    mask = rng.random((old, 2 * old)) < 0.5
    # By brute force: every pixel becomes new x new equal parts, every new pixel old x old of them.
    parts = image.repeat(new, axis=0).repeat(new, axis=1).reshape(new, old, 2 * new, old, 3)
    sums = parts.astype(int).sum((1, 3))
    half_up = (2 * sums + old * old) // (2 * old * old)
    np.testing.assert_array_equal(area.shrink_image(image, (new, 2 * new)), half_up)
    covered = mask.repeat(new, axis=0).repeat(new, axis=1).reshape(new, old, 2 * new, old)
    majority = 2 * covered.sum((1, 3)) > old * old
    np.testing.assert_array_equal(area.shrink_mask(mask, (new, 2 * new))[..., 0], majority)


@pytest.mark.parametrize("side, new", [(200, 1), (300, 2), (512, 1), (150, 4), (99, 3)])
def test_a_majority_by_one_pixel_is_one_and_a_tie_is_none(side, new):
    edge = -(-side // new)
    for covered in range(edge * edge // 2 - 2, edge * edge // 2 + 3):
        mask = np.zeros((side, side), bool)
        mask[:edge, :edge] = (np.arange(edge * edge) < covered).reshape(edge, edge)
        parts = mask.repeat(new, axis=0).repeat(new, axis=1)[:side, :side]
        majority = 2 * parts.sum() > side * side
        assert area.shrink_mask(mask, (new, new))[0, 0, 0] == majority, covered
        value = area.shrink_image(mask[..., None].astype(np.uint8), (new, new))[0, 0, 0]
        assert value == (2 * parts.sum() >= side * side), covered


def test_near_duplicates_share_a_split(source, tmp_path):
    for seed in range(4):
        content = build(source, tmp_path / str(seed), seed=seed)
        assert content["near_duplicate_clusters"] == 21
        found = read_all(tmp_path / str(seed))
        copies = {f"{k}.png" for k in range(4)}
        holding = [name for name, split in found.items() if copies & {r["file"] for r in split}]
        assert len(holding) == 1


def test_subset_is_drawn_by_seed(source, tmp_path):
    def ids(name, **options):
        build(source, tmp_path / name, limit=12, **options)
        found = read_all(tmp_path / name)
        return {split: [r["id"] for r in found[split]] for split in found}

    first, again, other = ids("a", seed=3), ids("b", seed=3), ids("c", seed=4)
    assert first == again != other
    assert sum(len(split) for split in first.values()) == 12


def test_a_limit_beyond_the_images_that_are_there_says_what_is_wrong_with_the_others(
    source, tmp_path
):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"24 of 24 images cannot be used: .*has no such file"):
        builder.build(
            source / "annotation.json", tmp_path / "elsewhere", tmp_path / "out", size=10, limit=8
        )


def test_rerun_does_nothing_and_never_overwrites(source, tmp_path):
    out = tmp_path / "out"
    content = build(source, out)
    stamps = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert build(source, out) == content
    for options, field in (({"seed": 1}, "seed=0"), ({"size": 15}, "size="), ({"limit": 9}, "lim")):
        with pytest.raises(UserError, match=f"out: was prepared with {field}"):
            build(source, out, **options)
    assert stamps == {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"full: is there already .* or delete"):
        build(source, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    build(source, tmp_path / "empty")


def test_bad_input_leaves_no_trace(source, tmp_path):
    out = tmp_path / "out"
    for options, pattern in (
        ({"size": 31}, r"size=31x31 .* larger than .*\.png, which is 30x30; give .*--size=30x30"),
        ({"size": (10, 15)}, "has another aspect ratio"),
        ({"size": 0}, "size="),
        ({"size": 1}, "size=.*at least 2 pixels"),
        ({"limit": 25}, "limit=25: .*annotation.json has 24 images"),
        ({"limit": 2}, "2 tiles in 2 clusters"),
    ):
        with pytest.raises(UserError, match=pattern):
            build(source, out, **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        build(source, tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_moved_set_is_read_and_a_damaged_one_is_not(source, tmp_path):
    build(source, tmp_path / "old")
    moved = (tmp_path / "old").rename(tmp_path / "new")
    assert len(records.open_split(moved, "train")) == 20
    with pytest.raises(IndexError):
        records.open_split(moved, "val")[2]
    with pytest.raises(ValueError, match="split='dev'"):
        records.open_split(moved, "dev")
    (file,) = moved.rglob("*test.array_record*")
    whole = file.read_bytes()
    file.write_bytes(whole[:5000])
    with pytest.raises(UserError, match=r"test\.array_record.* has 5000 bytes instead of"):
        records.open_split(moved, "train")
    file.write_bytes(whole[:5] + bytes(len(whole) - 5))
    with pytest.raises(UserError, match="new"):
        records.open_split(moved, "test")[0]
    file.unlink()
    with pytest.raises(UserError, match=r"test\.array_record.* is missing"):
        records.open_split(moved, "train")
    with pytest.raises(UserError, match="nowhere: is not a directory of prepared tiles"):
        records.open_split(tmp_path / "nowhere", "train")


def test_all_bad_images_are_told_at_once_and_may_be_left_out(source, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(source / "images", images)
    (images / "5.png").write_text("no image")
    (images / "7.png").unlink()
    Image.new("RGB", (30, 29)).save(images / "9.png")
    (images / "20.png").write_bytes((images / "20.png").read_bytes()[:90])
    content = json.loads((source / "annotation.json").read_text())
    content["annotations"][11]["segmentation"] = [[1, 2, 3]]
    content["images"][12] |= {"height": 30, "width": 60}  # of another shape, as is declared
    (tmp_path / "a.json").write_text(json.dumps(content))

    def build(**options):
        return builder.build(
            tmp_path / "a.json", images, out, size=10, progress=False, **options
        )  # fmt: skip

    before = sorted(tmp_path.iterdir())
    told = r"^6 of 24 images cannot be used: .*; and 3 more. Mend them, or .*--skip_bad$"
    with pytest.raises(UserError, match=told) as error:
        build()
    bad = (5, 7, 9, 11, 12, 20)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    assert sorted(tmp_path.iterdir()) == before
    made = build(skip_bad=True)
    reasons = " ".join(made["left_out"]["reasons"])
    assert made["left_out"]["images"] == 6 == len(made["left_out"]["reasons"])
    assert all(f"/{k}.png" in reasons for k in bad if k != 11)
    assert "annotation 11 of image id 89" in reasons
    assert "6 images were left out" in prepare.summary(made, str(out))
    kept = {r["file"] for split in read_all(out).values() for r in split}
    assert kept == {f"{k}.png" for k in range(24) if k not in bad}
    assert build(skip_bad=True) == made
    with pytest.raises(UserError, match="without 6 bad images"):
        build()


def test_of_many_bad_images_the_first_are_named(source, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"24 of 24 images .*; and 21 more$") as error:
        builder.build(source / "annotation.json", tmp_path / "images", tmp_path / "out", size=10)
    assert str(error.value).count(".png: ") == 3


@pytest.mark.parametrize(
    "corners, words",
    [
        (None, "24 tiles are background at 10x10 pixels.*there are no annotations, or their"),
        ([0, 0, 1, 0, 1, 1, 0, 1], "24 tiles are background at 10x10 pixels"),
        ([0, 0, 30, 0, 30, 30, 0, 30], "24 tiles are object .*the annotations cover their images"),
    ],
)
def test_sets_without_object_or_background_are_refused(source, tmp_path, corners, words):
    content = json.loads((source / "annotation.json").read_text())
    content["annotations"] = [
        annotation | {"segmentation": [corners]}
        for annotation in content["annotations"] * (corners is not None)
    ]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as error:
        builder.build(
            tmp_path / "a.json", source / "images", tmp_path / "out", size=10, progress=False
        )
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def run_prepare(source: Path, out: Path, *more: str, images: Path | None = None):
    flags = [f"--annotations={source / 'annotation.json'}", f"--out={out}", "--size=10"]
    return use("data.prepare", *flags, f"--images={images or source / 'images'}", *more)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_build_is_never_read(source, tmp_path, number):
    out = tmp_path / "out"
    script = (
        "import signal, time\n"
        "from tvjax import program\n"
        "from tvjax.data import coco, prepare\n"
        "load = coco.Tile.load\n"
        "def slow(tile):\n"
        "    if tile.id == 90: print('half', flush=True); time.sleep(1)\n"
        "    return load(tile)\n"
        "coco.Tile.load = slow\n"
        # A job in the background starts deaf to it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "program.run(prepare.main)"
    )
    flags = [f"--annotations={source / 'annotation.json'}", f"--images={source / 'images'}"]
    command = [sys.executable, "-c", script, *flags, f"--out={out}", "--size=10"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    left = [path.name for path in tmp_path.iterdir() if ".building-" in path.name]
    assert not out.exists()
    if number == signal.SIGINT:
        assert process.returncode == 130 and "nothing was written" in errors
        assert not left
    else:
        assert process.returncode == -signal.SIGKILL
        assert len(left) == 1
    build(source, out)
    assert len(records.open_split(out, "train")) == 20
    assert not [path for path in tmp_path.iterdir() if ".building-" in path.name]


def test_a_build_in_progress_is_left_alone(source, tmp_path):
    with workspace.beside(tmp_path / "out") as other:
        build(source, tmp_path / "out")
        assert other.exists()
        (other / "finished").mkdir()
        (other / "finished" / "late").write_text("")
        workspace.move(other / "finished", tmp_path / "out")  # the first to finish stays
    assert not (tmp_path / "out" / "late").exists()


def test_the_second_of_two_builds_into_one_place_is_told(source, tmp_path, monkeypatch):
    write = builder._write_records

    def slower(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(builder, "_write_records", write)
            builder.build(
                source / "annotation.json", source / "images", tmp_path / "out", size=12,
                progress=False,
            )  # fmt: skip
        write(*arguments)

    monkeypatch.setattr(builder, "_write_records", slower)
    with pytest.raises(UserError, match=r"prepared with size=\[12, 12\], now asked for \[10, 10\]"):
        build(source, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if ".building-" in path.name]


def test_a_link_is_followed_and_one_to_itself_refused_before_the_work(source, tmp_path):
    (tmp_path / "there").mkdir()
    for name, place in (("dangling", "new"), ("empty", "there"), ("loop", "loop")):
        (tmp_path / name).symlink_to(tmp_path / place)
    for name, place in (("dangling", "new"), ("empty", "there")):
        build(source, tmp_path / name)
        assert (tmp_path / name).is_symlink() and (tmp_path / place / "source.json").is_file()
    with pytest.raises(UserError, match="loop: is a link that leads nowhere"):
        with workspace.beside(tmp_path / "loop"):
            raise AssertionError("the work began")


def test_a_working_directory_without_a_lock_is_removed_when_it_is_old(tmp_path):
    young, old = (tmp_path / f".out.building-{name}" for name in ("young", "old"))
    young.mkdir(), old.mkdir()
    os.utime(old, (1, 1))
    with workspace.beside(tmp_path / "out"):
        assert young.is_dir() and not old.exists()


def test_folders_whose_names_are_no_text_are_refused_before_the_work(source, tmp_path):
    with pytest.raises(UserError, match="the bytes of its name are no UTF-8"):
        build(source, tmp_path / os.fsdecode(b"s\xff"))
    assert not list(tmp_path.iterdir())


def test_a_flag_that_was_given_is_not_advised():
    found = faults.Faults()
    found.add(Path("a.tif"), "a.tif: is cut short")
    for skip_bad in (False, True):
        with pytest.raises(UserError, match=r"^1 of 33 images cannot be used: a.tif") as error:
            found.check(33, skip_bad=skip_bad)
        assert ("--skip_bad" in str(error.value)) != skip_bad


def test_a_limit_that_comes_too_late_is_told(source, tmp_path, capsys):
    options = {"cache": str(tmp_path), "size": 16, "seed": 0}
    made = tmp_path / "out"
    build(source, made)
    capsys.readouterr()
    for limit in (None, 24, 5000):
        sets.open_sets(directory=str(made), limit=limit, **options)
    assert "data.limit" not in capsys.readouterr().err
    found = sets.open_sets(directory=str(made), limit=5, **options)
    assert sum(map(len, found.values())) == 24
    assert f"data.limit=5 is of folders that are prepared at first use; all 24 tiles of {made}" in (
        capsys.readouterr().err
    )


def test_without_a_home_one_line_says_so(monkeypatch):
    monkeypatch.setenv("HOME", "")
    with pytest.raises(UserError, match="there is no home directory"):
        sets.open_sets(directory=None, cache="~/.cache/tvjax", size=16, limit=None, seed=0)


def test_its_hint_knows_the_batches_of_the_configs():
    config = lunet_bilevel.get_config()
    assert config.train.batch_size == config.hypergrad.batch_size == prepare.BATCH
    assert roofs.get_config().train.batch_size == prepare.BATCH
    names = {"train": 12, "val": 3, "test": 3}
    content = {
        "request": {"boundaries": 4}, "clusters": 9, "near_duplicate_clusters": 17,
        "splits": {name: {"tiles": n, "foreground": 0.2} for name, n in names.items()},
    }  # fmt: skip
    told, _, first, second = prepare.summary(content, "T").splitlines()[-4:]
    words = "in 9 clusters that stay in one split each (by near-duplicates alone: 17)"
    assert told == f"18 tiles are in T, {words}"
    wanted = "--config.data.directory=T --config.data.boundaries=True --config.train.batch_size=12"
    assert first.endswith(f" --config=configs/roofs.py {wanted}")
    assert second.endswith(f"lunet_bilevel.py {wanted} --config.hypergrad.batch_size=3")


def test_program(source, tmp_path):
    done = run_prepare(source, tmp_path / "out", "--seed=2")
    assert done.returncode == 0
    assert "train       20" in done.stdout and "21 clusters" in done.stdout
    assert done.stdout.endswith(
        f"python -m tvjax.main --config=configs/lunet_bilevel.py --config.data.directory={tmp_path}"
        "/out --config.hypergrad.batch_size=2\n"
    )
    done = run_prepare(source, tmp_path / "no", images=tmp_path / "nowhere")
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and "nowhere" in line
    assert prepare.parse_size("100x120") == (100, 120) and prepare.parse_size("64") == (64, 64)
    with pytest.raises(UserError, match="--size=10by10"):
        prepare.parse_size("10by10")


@pytest.mark.skipif(not REAL.exists(), reason="needs shared/data/crowdai beside the checkout")
def test_real_tiles(tmp_path):
    content = build(REAL, tmp_path / "out", size=100)
    found = read_all(tmp_path / "out")
    tiles = {r["id"]: r for split in found.values() for r in split}
    assert len(tiles) == 20
    assert [content["splits"][name]["tiles"] for name in splits.NAMES] == [16, 2, 2]
    raw = json.loads((REAL / "annotation.json").read_text())
    for image in raw["images"]:
        fine = Image.new("1", (300, 300))
        for entry in raw["annotations"]:
            if entry["image_id"] == image["id"]:
                for polygon in entry["segmentation"]:
                    ImageDraw.Draw(fine).polygon(polygon, fill=1)
        coarse = np.asarray(fine).reshape(100, 3, 100, 3).sum((1, 3)) >= 5
        mask = tiles[image["id"]]["mask"][..., 0].astype(bool)
        square = np.ones((3, 3), bool)
        # What lies at the border of the tile is boundary too: erode as if nothing were beyond.
        certain = erosion(np.pad(coarse, 1), square)[1:-1, 1:-1]
        assert np.all(mask[certain]) and not np.any(mask[~dilation(coarse, square)])
        assert np.mean(mask != coarse) < 0.02
    assert manifest.read(tmp_path / "out")["request"]["size"] == [100, 100]


def test_a_folder_may_be_named_by_one_that_is_not_there(source, tmp_path):
    content = build(source, tmp_path / "nothing" / ".." / "out")
    assert content == manifest.read(tmp_path / "out") and not (tmp_path / "nothing").exists()
