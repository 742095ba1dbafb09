"""The identity of records, and whether the files that they were made from are still the same."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvjax.data import builder, identity, manifest, records, sets, stamps
from tvjax.errors import UserError
from tvjax.scoring.examples import Examples


def draw(folder: Path, number: int, seed: int) -> None:
    """An image and its mask, uncompressed: all files of a kind have one size."""
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 256, (12, 12, 3)), 255 * (rng.random((12, 12)) < 0.4)
    for kind, pixels in (("images", image), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        path = folder / kind / f"{number:02d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path, compress_level=0)


@pytest.fixture
def source(tmp_path) -> Path:
    """12 tiles, twice: with masks, and in a COCO file."""
    folder = tmp_path / "source"
    for k in range(12):
        draw(folder, k, k)
    images = [{"id": k, "file_name": f"{k:02d}.png", "height": 12, "width": 12} for k in range(12)]
    square = [[2, 2, 9, 2, 9, 9, 2, 9]]
    annotations = [
        {"id": k, "image_id": k, "category_id": 1, "segmentation": square} for k in range(12)
    ]
    content = {"images": images, "annotations": annotations}
    (folder / "annotation.json").write_text(json.dumps(content))
    return folder


def build(source, out, annotations="masks", **options):
    options = {"size": 6, "progress": False} | options
    return builder.build(source / annotations, source / "images", out, **options)


def test_the_identity_is_that_of_all_pixels_and_of_nothing_else(source, tmp_path, monkeypatch):
    build(source, tmp_path / "a")
    found = hashlib.sha256()
    for name in ("train", "val", "test"):
        for record in records.open_split(tmp_path / "a", name):
            found.update(f"{name} (6, 6, 3)\n".encode())
            found.update(record["image"].tobytes() + record["mask"].tobytes())
    assert identity.of(tmp_path / "a") == found.hexdigest()
    # Elsewhere, at another time, from files of other names: the same.
    shutil.copytree(source, tmp_path / "copy")
    for kind in ("images", "masks"):
        for file in (tmp_path / "copy" / kind).iterdir():
            file.rename(file.with_name(f"tile{file.name}"))
    build(tmp_path / "copy", tmp_path / "b")
    assert identity.of(tmp_path / "b") == identity.of(tmp_path / "a")
    build(source, tmp_path / "c", seed=1)
    assert identity.of(tmp_path / "c") != identity.of(tmp_path / "a")
    with Image.open(source / "masks" / "03.png") as mask:
        pixels = 255 - np.asarray(mask)
    Image.fromarray(pixels).save(source / "masks" / "03.png")
    build(source, tmp_path / "d")
    assert identity.of(tmp_path / "d") != identity.of(tmp_path / "a")


def test_records_of_earlier_versions_get_an_identity_and_no_record_is_read_twice(
    source, tmp_path, monkeypatch
):
    build(source, tmp_path / "a")
    expected = identity.of(tmp_path / "a")
    (tmp_path / "a" / identity.FILE).unlink()
    assert identity.of(tmp_path / "a") == expected
    monkeypatch.setattr(records.Split, "__getitems__", None)
    assert identity.of(tmp_path / "a") == expected
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)
    assert identity.of(tmp_path / "b") == expected
    monkeypatch.undo()
    (tmp_path / "a" / identity.FILE).write_text("{")
    assert identity.of(tmp_path / "a") == expected
    # Where it cannot be kept, it is computed each time.
    (tmp_path / "a" / identity.FILE).unlink()
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    assert identity.of(tmp_path / "a") == expected
    assert not (tmp_path / "a" / identity.FILE).exists()


def test_records_put_in_place_of_others_have_their_own_identity(source, tmp_path):
    build(source, tmp_path / "a")
    build(source, tmp_path / "b", seed=1)
    one, two = identity.of(tmp_path / "a"), identity.of(tmp_path / "b")
    for name in (*manifest.read(tmp_path / "b")["files"], manifest.FILE):
        (tmp_path / "a" / name).unlink(missing_ok=True)
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    assert identity.of(tmp_path / "a") == two != one


def mend(source):
    """Writes other pixels into a file of the same size and time."""
    path = source / "images" / "04.png"
    before = path.stat()
    draw(source, 4, 99)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "mended": (mend, "images/04.png"),
    "mask": (lambda s: Image.new("L", (12, 12), 9).save(s / "masks" / "05.png"), "masks/05.png"),
    "replaced": (lambda s: os.replace(s / "images" / "01.png", s / "images" / "02.png"), "1 remo"),
    "removed": (lambda s: (s / "images" / "07.png").unlink(), r"1 removed \(images/07.png\)"),
    "added": (lambda s: draw(s, 30, 30), r"2 added \(images/30.png"),
}


@pytest.mark.parametrize("change, words", CHANGES.values(), ids=CHANGES)
def test_other_images_are_another_set(source, tmp_path, change, words):
    made = build(source, tmp_path / "out", limit=10)
    assert build(source, tmp_path / "out", limit=10) == made
    change(source)
    with pytest.raises(UserError, match=f"out: its images or masks are others now.*{words}") as e:
        build(source, tmp_path / "out", limit=10)
    assert "\n" not in str(e.value) and "delete" in str(e.value)


def test_an_image_left_out_as_bad_may_be_mended(source, tmp_path):
    good = (source / "images" / "03.png").read_bytes()
    (source / "images" / "03.png").write_bytes(good[:60])
    (source / "images" / "05.png").unlink()
    for kind in ("masks", "annotation.json"):
        options = {"annotations": kind, "skip_bad": True}
        made = build(source, tmp_path / kind, **options)
        assert build(source, tmp_path / kind, **options) == made
    draw(source, 5, 5)
    for kind in ("masks", "annotation.json"):
        with pytest.raises(UserError, match=r"1 added \(images/05.png\)"):
            build(source, tmp_path / kind, annotations=kind, skip_bad=True)
    (source / "images" / "05.png").unlink()
    (source / "images" / "03.png").write_bytes(good)
    for kind in ("masks", "annotation.json"):
        with pytest.raises(UserError, match=r"1 changed \(images/03.png\)"):
            build(source, tmp_path / kind, annotations=kind, skip_bad=True)


def test_a_copy_a_checkout_and_a_touch_are_no_change(source, tmp_path):
    for kind in ("masks", "annotation.json"):
        made = build(source, tmp_path / kind, annotations=kind)
        for file in (source / "images").iterdir():
            os.utime(file)
        assert build(source, tmp_path / kind, annotations=kind) == made
        shutil.copytree(source, tmp_path / f"moved {kind}", copy_function=shutil.copy)
        assert build(tmp_path / f"moved {kind}", tmp_path / kind, annotations=kind) == made


def test_an_edit_within_the_tick_of_a_coarse_clock_is_seen(source, tmp_path, monkeypatch):
    fine = stamps.signature

    def coarse(file):
        size, *times = fine(file)
        return [size, *(time // 10**9 * 10**9 for time in times)]

    monkeypatch.setattr(stamps, "signature", coarse)
    monkeypatch.setattr(stamps, "RECENT", 10**11)  # the tick ends at no time that suits the test
    build(source, tmp_path / "out")
    mend(source)
    with pytest.raises(UserError, match=r"images/04\.png"):
        build(source, tmp_path / "out")


def test_what_has_not_been_touched_is_not_read_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "RECENT", -(10**11))  # as if all were old
    build(source, tmp_path / "out")
    monkeypatch.setattr(hashlib, "file_digest", None)
    build(source, tmp_path / "out")
    build(source, tmp_path / "out")


def test_an_image_that_changes_while_it_is_read_ends_the_build(source, tmp_path, monkeypatch):
    load = builder.masks.Tile.load

    def slow(tile):
        loaded = load(tile)
        if tile.id == 4:
            draw(source, 4, 99)
        return loaded

    monkeypatch.setattr(builder.masks.Tile, "load", slow)
    with pytest.raises(UserError, match=r"04\.png: was changed while it was read"):
        build(source, tmp_path / "out")


def test_all_that_changes_the_records_belongs_to_the_request(source, tmp_path, monkeypatch):
    def build_it(**options):
        return build(source, tmp_path / "out", "annotation.json", **options)

    made = build_it(categories=[1])
    assert build_it(categories=[1, 1]) == made
    for options, words in (
        ({}, r"categories=\[1\]"),
        ({"categories": [1], "size": 4}, "size="),
        ({"categories": [1], "seed": 1}, "seed="),
        ({"categories": [1], "split": (0.6, 0.2, 0.2)}, "split="),
    ):
        with pytest.raises(UserError, match=words):
            build_it(**options)
    monkeypatch.setattr(manifest, "BUILDER", manifest.BUILDER + 1)
    with pytest.raises(UserError, match="by another version"):
        build_it(categories=[1])
    assert len(records.open_split(tmp_path / "out", "train")) == 10  # it is read all the same


def test_the_cache_keeps_a_set_for_each_state_of_the_images(source, tmp_path):
    def open_it():
        splits = sets.open_sets(
            directory=str(source), cache=str(tmp_path / "cache"), size=6, limit=None, seed=0
        )
        return sets.identify(splits, str(source))

    (source / "annotation.json").unlink()
    first = open_it()
    assert first["directory"] == str(source)
    before = (source / "images" / "04.png").read_bytes(), (source / "masks" / "04.png").read_bytes()
    mend(source)
    second = open_it()
    assert second["sha256"] != first["sha256"] and open_it() == second
    for kind, content in zip(("images", "masks"), before, strict=True):
        (source / kind / "04.png").write_bytes(content)
    assert open_it() == first
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_images_of_one_name_in_two_folders_keep_their_folders(source, tmp_path):
    images = source / "images"
    content = json.loads((source / "annotation.json").read_text())
    for image in content["images"]:
        name = f"{image['id'] % 2}/{image['id'] // 2}.png"
        (images / name).parent.mkdir(exist_ok=True)
        (images / image["file_name"]).rename(images / name)
        image["file_name"] = name
    (source / "annotation.json").write_text(json.dumps(content))
    expected = {image["id"]: image["file_name"] for image in content["images"]}
    build(source, tmp_path / "out", "annotation.json")
    splits = [records.open_split(tmp_path / "out", name) for name in ("train", "val", "test")]
    kept = [split[k] for split in splits for k in range(len(split))]
    assert {record["id"]: record["file"] for record in kept} == expected
    examples = Examples.of_coco(source / "annotation.json", images)
    found = [examples.get(k) for k in range(len(examples.sizes))]
    assert {example.id: example.name for example in found} == expected
