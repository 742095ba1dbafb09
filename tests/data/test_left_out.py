"""Tiles that a list leaves out of a build."""

import csv

import numpy as np
import pytest
from PIL import Image

from tvjax.data import builder, left_out, manifest, origins, records, splits
from tvjax.data.embedded import synthetic
from tvjax.errors import UserError


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("left_out") / "coco"
    synthetic.write(folder, tiles=20, seed=0, size=64, progress=False)
    return folder


def build(coco, out, **options):
    coco = coco / "annotation.json", coco / "images"
    return builder.build(*coco, out, size=16, progress=False, **options)


def ids(out):
    return [r["id"] for name in splits.NAMES for r in records.open_split(out, name)]


def test_what_a_list_names_is_left_out_and_the_others_stay_where_they_were(coco, tmp_path):
    build(coco, tmp_path / "all")
    with open(tmp_path / "all" / "splits.csv", newline="") as file:
        before = {row["id"]: row["split"] for row in csv.DictReader(file)}
    worst = tmp_path / "worst.csv"
    worst.write_text("score,id,file\n9,3,000003.jpg\n\n8,17,000017.jpg\n")
    given = {"leave_out": worst, "split_file": tmp_path / "all" / "splits.csv"}
    build(coco, tmp_path / "some", **given)
    assert sorted(ids(tmp_path / "some")) == sorted({*range(20)} - {3, 17})
    with open(tmp_path / "some" / "splits.csv", newline="") as file:
        after = {row["id"]: row["split"] for row in csv.DictReader(file)}
    assert after.items() <= before.items() and len(after) == 18
    build(coco, tmp_path / "some", **given)  # the same again is nothing
    worst.write_text("3\n")
    with pytest.raises(manifest.Differs, match="with other contents of leave_out"):
        build(coco, tmp_path / "some", **given)
    build(coco, tmp_path / "ids", leave_out=worst, limit=19)  # the draw is of what is left
    assert sorted(ids(tmp_path / "ids")) == sorted({*range(20)} - {3})
    with pytest.raises(UserError, match="limit=20"):
        build(coco, tmp_path / "more", leave_out=worst, limit=20)


def pictures(folder, kind):
    """Twelve images, and masks or YOLO polygons of a square in each."""
    rng = np.random.default_rng(0)
    for name in ("images", kind):
        (folder / name).mkdir()
    for k in range(12):
        image = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(image).save(folder / "images" / f"{k:02d}.png")
        if kind == "masks":
            mask = np.zeros((16, 16), np.uint8)
            mask[:8, : 4 + k % 8] = 255
            Image.fromarray(mask).save(folder / kind / f"{k:02d}.png")
        else:
            (folder / kind / f"{k:02d}.txt").write_text("0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    return origins.Images([folder / kind], [folder / "images"], is_yolo=kind == "yolo"), 8


def town(folder):
    """A GeoTIFF that is cut into tiles, and polygons."""
    towns = pytest.importorskip("towns", reason="needs rasterio and shapely")
    from tvjax.data.vector import Request, Scenes

    shapes = towns.roofs(260, 330)
    towns.write_tif(folder / "town.tif", 260, 330, shapes)
    towns.write_geojson(folder / "roofs.geojson", [towns.in_degrees(shape) for shape in shapes])
    return Scenes(Request([str(folder / "town.tif")], folder / "roofs.geojson", 48)), 48


@pytest.mark.parametrize("kind", ["masks", "yolo", "polygons"])
def test_labels_of_every_kind_can_be_left_out_by_the_list_of_their_tiles(kind, tmp_path):
    origin, size = town(tmp_path) if kind == "polygons" else pictures(tmp_path, kind)
    builder.build_from(origin, tmp_path / "all", size=size, progress=False)
    with open(tmp_path / "all" / "splits.csv", newline="") as file:
        before = list(csv.DictReader(file))
    worst = next(row for row in before if row["split"] == "train")
    (tmp_path / "worst.csv").write_text(f"id,file\n{worst['id']},{worst['file']}\n")
    given = {"split_file": tmp_path / "all" / "splits.csv"}
    clean, leave_out = tmp_path / "clean", tmp_path / "worst.csv"
    builder.build_from(origin, clean, size=size, progress=False, leave_out=leave_out, **given)
    with open(clean / "splits.csv", newline="") as file:
        after = {row["file"]: row["split"] for row in csv.DictReader(file)}
    rest = {row["file"]: row["split"] for row in before if row is not worst}
    assert after == rest


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,file\n3,000004.jpg\n", r"line 2: there is no image 3 called '000004.jpg'; the one he"),
        ("3\n77\n", "line 2: there is no image 77; give the list that was made of these images"),
        ("id\n000003.jpg\n", "line 2 is '000003.jpg'; each line is the id of an image"),
        ("1.5\n", "line 1 is '1.5'"),
        ("\u0663\n", "line 1 is"),
        ("file,id\na.jpg\n", "line 2 is 'a.jpg'"),
    ],
)
def test_a_list_of_other_images_is_refused(coco, tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        build(coco, tmp_path / "out", leave_out=tmp_path / "list.csv")
    assert f"--leave_out={tmp_path}/list.csv: " in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_list_that_cannot_be_read_is_refused(coco, tmp_path):
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("list.csv", "none.csv"):
        with pytest.raises(UserError, match=name) as error:
            build(coco, tmp_path / "out", leave_out=tmp_path / name)
        assert "\n" not in str(error.value)


def test_ids_that_several_files_share_are_told_apart_by_their_names(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("1,a/x.jpg\n2\n")
    names = ["a/x.jpg", "b/x.jpg", "b/y.jpg"]
    assert left_out.without("xyz", [1, 1, 2], names, file) == ["y"]
    file.write_text("1,a/x.jpg\n1,b/x.jpg\n2\n")
    with pytest.raises(UserError, match=r"list.csv: leaves out all 3 images; shorten it"):
        left_out.without("xyz", [1, 1, 2], names, file)
    file.write_text("1,bad.jpg\n4\n")  # what cannot be used may be on the list too
    assert left_out.without("xyz", [1, 1, 2], names, file, unknown=["bad.jpg"]) == list("xyz")


@pytest.mark.parametrize("identity", ["9" * 5000, "\u0663", "1.0", "--1", ""])
def test_what_is_no_id_is_named(tmp_path, identity):
    (tmp_path / "a.csv").write_text(f"id,file\n1,a\n{identity},b\n")
    with pytest.raises(UserError, match=r"a.csv: line 3 is .*; each line is the id of an image"):
        left_out.read(tmp_path / "a.csv")
