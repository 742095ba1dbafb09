"""Tiles that a list leaves out of a build."""

import csv

import pytest

from tvjax.data import builder, left_out, manifest, records, splits
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
    with pytest.raises(manifest.Differs, match="leave_out_sha256"):
        build(coco, tmp_path / "some", **given)
    build(coco, tmp_path / "ids", leave_out=worst, limit=19)  # the draw is of what is left
    assert sorted(ids(tmp_path / "ids")) == sorted({*range(20)} - {3})
    with pytest.raises(UserError, match="limit=20"):
        build(coco, tmp_path / "more", leave_out=worst, limit=20)


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
    file.write_text("1,bad.jpg\n4\n")  # what cannot be used may be on the list too
    assert left_out.without("xyz", [1, 1, 2], names, file, unknown=["bad.jpg"]) == list("xyz")
