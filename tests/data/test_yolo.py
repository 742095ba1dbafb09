"""YOLO polygons: the records of the same COCO file, and mistakes named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import use

from tvjax.data import builder, class_lists, origins, records, splits, yolo
from tvjax.data.faults import Faults
from tvjax.errors import UserError

HEIGHT, WIDTH = 24, 32


@pytest.fixture
def source(tmp_path):
    """12 images in two folders, described by annotation.json and by labels/."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for k in range(12):
        name = f"{('train', 'val')[k % 2]}/{k:02d}.png"
        for folder in ("images", "labels"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
        images.append({"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH})
        lines = []
        for kind in (0, 3) if k else ():
            x, y = rng.integers(-3, 12, 2).tolist()
            corners = [x, y, x + 13, y + 2, x + 9, y + 12]
            if kind == 3:
                number = len(annotations)
                annotations.append({"id": number, "image_id": k, "segmentation": [corners]})
            shares = np.array(corners) / np.array([WIDTH, HEIGHT] * 3)
            lines.append(f"{kind} " + " ".join(f"{share:.9f}" for share in shares))
        if lines:  # the first image has no file: background
            (tmp_path / "labels" / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "labels" / "classes.txt").write_text("tree\nroof\n")
    (tmp_path / "annotation.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )
    return tmp_path


def read_all(directory):
    found = [records.open_split(directory, name) for name in splits.NAMES]
    return {r["file"]: r for split in found for r in split.__getitems__(range(len(split)))}


def test_polygons_give_the_records_of_the_coco_file(source):
    for name, labels, options in (
        ("coco", source / "annotation.json", {}),
        ("yolo", source / "labels", {"categories": [3], "is_yolo": True}),
    ):
        origin = origins.Images(labels, source / "images", **options)
        builder.build_from(origin, source / name, size=(12, 16), boundaries=3, progress=False)
    coco, ours = read_all(source / "coco"), read_all(source / "yolo")
    assert coco.keys() == ours.keys() and len(ours) == 12
    for name in coco:
        np.testing.assert_array_equal(coco[name]["image"], ours[name]["image"])
        np.testing.assert_array_equal(coco[name]["mask"], ours[name]["mask"])
        np.testing.assert_array_equal(coco[name]["contact"], ours[name]["contact"])
    assert ours["train/00.png"]["mask"].max() == 0


def test_a_class_of_many_digits_is_shortened(source):
    with open(source / "labels" / "train" / "02.txt", "a") as file:
        file.write("1" * 4000 + " 0.1 0.1 0.2 0.1 0.2 0.2\n")
    origin = origins.Images(source / "labels", source / "images", is_yolo=True)
    with pytest.raises(UserError, match=r"has the classes 0, 3, 1{9,}\.\.\.1+; say") as error:
        builder.build_from(origin, source / "out", size=(12, 16), progress=False)
    assert len(str(error.value)) < 400


def test_program(source):
    def prepare(*flags):
        places = f"--labels={source}/labels", f"--images={source}/images", f"--out={source}/out"
        return use("data.prepare", *places, "--size=12x16", *flags)

    result = prepare()
    assert result.returncode == 2 and "has the classes 0, 3; say which" in result.stderr
    result = prepare("--category=3", "--gap=3")
    assert result.returncode == 2 and "--gap: does not go with --labels" in result.stderr
    result = prepare("--category=3")
    assert result.returncode == 0 and "12 tiles" in result.stdout, result.stderr
    (source / "labels" / "train" / "02.txt").write_text("")
    result = prepare("--category=3")
    assert result.returncode == 2 and "1 changed (masks/train/02.txt)" in result.stderr


def test_images_and_labels_side_by_side_in_the_folders_of_splits(source, capsys):
    """The layout train/images, train/labels, beside files that are no labels."""
    tiles = yolo.read(source / "images", source / "labels", categories=[3])
    expected = [tile.load().mask for tile in tiles]
    both = source / "set"
    for place in ("train", "val"):
        for kind in ("images", "labels"):
            (both / place).mkdir(parents=True, exist_ok=True)
            (source / kind / place).rename(both / place / kind)
    (both / "README.dataset.txt").write_text("A set of roofs.")
    (both / "data.yaml").write_text("train: ../train/images\n")
    found = yolo.read(both, both, categories=[3])
    names = [str(tile.file.relative_to(both)) for tile in found]
    assert names == sorted(names) and names[0] == "train/images/00.png"
    for mask, tile in zip(expected, found, strict=True):
        np.testing.assert_array_equal(mask, tile.load().mask)
    (both / "train" / "more").mkdir()
    (both / "train" / "images" / "00.png").rename(both / "train" / "more" / "00.png")
    yolo.read(both, both, categories=[3], faults=Faults())
    assert "1 of 12 images lie in no folder named images" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a/b without the folder images, and so is"):
        yolo._within({"images/a/b": both, "a/images/b": both}, "images")
    assert yolo._within({"a/images/images/b": both}, "images") == {"a/images/b": both}
    assert yolo._within({"images": both, "a/b": both}, "images") == {}


@pytest.mark.parametrize("place", ["{}/images", "images/{}", "export/{}/images"])
def test_folders_of_splits_are_found_wherever_they_stand(place):
    names = [f"{place.format(name)}/{k}.png" for name in ("train", "valid", "test") for k in (0, 1)]
    assert list(yolo.splits_of(names).values()) == [0, 0, 1, 1, 2, 2]


MISTAKES = {
    "box": ("0 0.5 0.5 0.1 0.1", "line 1 is a box"),
    "odd": ("\n0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "line 2 has 7 numbers after the class"),
    "few": ("0 0.1 0.1", "line 1 has 2 numbers"),
    "pixels": ("0 10 10 20 10 20 20", "line 1 has 10; coordinates are shares"),
    "nan": ("0 nan 0.1 0.2 0.1 0.2 0.2", "line 1 has nan; coordinates are shares"),
    "word": ("roof 0.1 0.1 0.2 0.1 0.2 0.2", "line 1: its word 1 is no class, a whole number; m"),
    "number": ("0 0.1 0.1 0.2 low 0.2 0.2", "line 1: its word 5 is no number; mend the line"),
    "underscore": ("1_0 0.1 0.1 0.2 0.1 0.2 0.2", "line 1: its word 1 is no class"),
    "between": ("0 0.1 0.1 0.2 0.1 0.2 0.2_5", "line 1: its word 7 is no number"),
    "other digits": ("\u0663 0.1 0.1 0.2 0.1 0.2 0.2", "line 1: its word 1 is no class"),
    "shares": ("0 0.1 0.1 0.2 0.1 0.2 \u0660.2", "line 1: its word 7 is no number"),
    "bytes": ("\udcff", "cannot be read"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_name_the_file_and_line(source, kind):
    text, words = MISTAKES[kind]
    file = source / "labels" / "val" / "01.txt"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=words) as error:
        yolo.read(source / "images", source / "labels", categories=[3])
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_what_a_link_leads_to_is_not_told(source):
    (source / "private").write_text("root:x:0:0 secret\n")
    file = source / "labels" / "val" / "01.txt"
    file.unlink()
    file.symlink_to(source / "private")
    with pytest.raises(UserError, match=r"01\.txt: line 1: its word 1 is no class") as error:
        yolo.read(source / "images", source / "labels", categories=[3])
    assert ":x:" not in str(error.value) and "secret" not in str(error.value)


def test_labels_of_nothing_are_named(source):
    (source / "labels" / "train" / "no.txt").write_text("")
    with pytest.raises(UserError, match=r"no\.txt: is the label of no image in"):
        yolo.read(source / "images", source / "labels", categories=[3])
    with pytest.raises(UserError, match="none of its files has the name of an image"):
        yolo.read(source / "images" / "val", source / "labels" / "train")
    with pytest.raises(UserError, match=r"no object is of --category=7; there are 0, 3"):
        (source / "labels" / "train" / "no.txt").unlink()
        yolo.read(source / "images", source / "labels", categories=[7])


def assigned(directory):
    found = {name: records.open_split(directory, name) for name in splits.NAMES}
    return {r["file"]: name for name, s in found.items() for r in s.__getitems__(range(len(s)))}


def test_folders_of_splits_are_the_splits(source, capsys):
    def build(out, **options):
        origin = origins.Images(source / "labels", source / "images", categories=[3], is_yolo=True)
        builder.build_from(origin, source / out, size=(12, 16), progress=False, **options)
        return assigned(source / out), capsys.readouterr().err

    found, notes = build("drawn")
    assert {name.split("/")[0] for name, s in found.items() if s == "train"} == {"train", "val"}
    assert "note: splits are drawn from all images, also across the folders train, val" in notes
    for folder in ("images", "labels"):
        (source / folder / "test").mkdir()
        for file in (source / folder / "val").glob("0[59].*"):
            file.rename(source / folder / "test" / file.name)
    found, notes = build("given")
    assert len(found) == 12 and all(name.split("/")[0] == split for name, split in found.items())
    assert "note: the folders test, train, val are the splits" in notes
    for part in ("images", "labels"):
        (source / part / "train").rename(source / part / "Train")
    capitals, notes = build("capitals")
    assert {name.lower(): split for name, split in capitals.items()} == found
    assert "note: the folders Train, test, val are the splits" in notes
    for part in ("images", "labels"):
        (source / part / "Train").rename(source / part / "train")
    file = source / "splits.csv"
    other = {"train": "val", "val": "test", "test": "train"}
    file.write_text("".join(f"{name},{other[split]}\n" for name, split in found.items()))
    turned, notes = build("turned", split_file=file)
    assert turned == {name: other[split] for name, split in found.items()}
    assert "the folders" not in notes


def test_labels_that_are_no_files_are_no_background(source, capsys):
    read = lambda: yolo.read(source / "images", source / "labels", categories=[3])  # noqa: E731
    file = source / "labels" / "val" / "01.txt"
    read()
    told = "note: 1 of 12 images have no file of labels in"
    assert capsys.readouterr().err.startswith(told)
    file.unlink()
    file.symlink_to("nothing")
    with pytest.raises(UserError, match=r"01.txt: cannot be read \(No such file"):
        read()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"01.txt: cannot be read, it is a pipe"):
        read()
    (source / "labels" / "val").rename(source / "elsewhere")
    (source / "labels" / "val").symlink_to("../elsewhere")
    with pytest.raises(UserError, match=r"labels/val: is a link to a folder"):
        read()


def test_prepared_tiles_among_the_images_are_no_images(source):
    for out in ("images/tiles", "images/val/tiles"):
        origin = origins.Images(source / "labels", source / "images", [3], is_yolo=True)
        for _ in range(2):
            builder.build_from(origin, source / out, size=(12, 16), progress=False)
        assert len(read_all(source / out)) == 12
        (source / out / ".hidden").mkdir()
        (source / out / ".hidden" / "a.png").write_bytes(b"no picture")
    (source / "images" / ".tiles.building-x").mkdir()
    (source / "images" / ".tiles.building-x" / "contact.png").write_bytes(b"no picture")
    assert len(yolo.read(source / "images", source / "labels", categories=[3])) == 12


@pytest.fixture
def sides(source):
    """The layout train/images, train/labels, with folders train and val."""
    for place in ("train", "val"):
        for kind in ("images", "labels"):
            (source / "set" / place).mkdir(parents=True, exist_ok=True)
            (source / kind / place).rename(source / "set" / place / kind)
    return source / "set"


FOREST = "tree\n\n\nroof\n"
TWO_LISTS = {
    "text": ("{}/labels/classes.txt", FOREST, "roof\n\n\ntree\n", "class 3 is {1}, and in {0} {2}"),
    "yaml": (
        "{}/data.yaml", "names: [tree, a, b, roof]", "names:\n- roof\n- a\n- b\n- 'tree'\nnc: 4",
        "class 3 is {1}, and in {0} {2}",
    ),
    "by number": (
        "{}/data.yaml", "names: {3: roof}", "names:\n  0: roof\n  3: tree # high",
        "class 3 is {1}, and in {0} {2}",
    ),
    "shorter": (
        "{}/data.yaml", "names: [tree, a, b, roof]", "names: [roof]",
        "roof is class 0, and in {0} class 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", TWO_LISTS)
def test_lists_of_classes_that_differ_are_refused(sides, kind, turned):
    place, *texts, words = TWO_LISTS[kind]
    files = [sides / place.format(name) for name in ("train", "val")]
    names = "roof", "tree"
    if turned:
        texts, names = texts[::-1], names[::-1]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    which = files[::-1] if turned and kind == "shorter" else files
    words = words.format(which[0], names[1], names[0])
    with pytest.raises(UserError) as error:
        yolo.read(sides, sides, categories=[3])
    assert str(error.value).startswith(f"{which[1]}: {words}; give each class the same number in")


@pytest.mark.parametrize(
    "texts",
    [
        ("names: [tree, a, b, roof]", "nc: 1\nnames: {3: 'roof', 1: c}"),  # 1 does not count
        ("names: [tree, a, b, roof]", "names: [tree]"),
        ("names: [tree, a, b, roof]", "train: ../train/images\n"),
        ("names: [tree, a, b, roof]", "names: other.names"),
        ("names: [tree, a, b, roof]", ""),
        (b"\xff", None),  # there is none to compare it with
    ],
)
def test_lists_of_classes_that_agree_are_taken(sides, texts):
    (sides / "train" / "labels" / "classes.txt").unlink(missing_ok=True)
    for name, text in zip(("train", "val"), texts, strict=True):
        if text is not None:
            write = Path.write_bytes if isinstance(text, bytes) else Path.write_text
            write(sides / name / "data.yaml", text)
    assert len(yolo.read(sides, sides, categories=[3])) == 12


HOSTILE = {
    "deep": ("data.yaml", b"[" * 60000, "is no YAML with names: "),
    "half": ("data.yaml", b"names: [a\nsecret: c", "is no YAML with names: "),
    "object": ("data.yaml", b"names: !!python/object/apply:os.getcwd []", None),
    "nested": ("data.yaml", b"names: &a [*a]", "is no YAML with names: "),
    "keys": ("data.yaml", b"names: {<<: roof}", "is no YAML with names: "),
    "digits": ("data.yaml", b"names: {" + b"1" * 5000 + b": roof}", "is no YAML with names: "),
    "bytes": ("classes.txt", b"\xffsecret", "is no text in UTF-8"),
    "large": ("classes.txt", b"a" * 70000, "has more than 65536 bytes"),
    "long": ("classes.txt", b"\n\n\n" + b"a\x1b" * 9000, r"class 3 is a\\x1ba.*\.\.\..*, and in"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_lists_of_classes_are_one_line(sides, kind):
    name, content, words = HOSTILE[kind]
    (sides / "train" / "labels" / "classes.txt").write_text(FOREST)
    (sides / "val" / "labels" / name).write_bytes(content)
    if words is None:
        yolo.read(sides, sides, categories=[3])
        return
    with pytest.raises(UserError, match=words) as error:
        yolo.read(sides, sides, categories=[3])
    assert str(error.value).startswith(str(sides / "val" / "labels" / name))
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_lists_of_classes_may_be_links_or_nothing_readable(sides, tmp_path, monkeypatch):
    (sides / "train" / "labels" / "classes.txt").write_text(FOREST)
    file = sides / "val" / "labels" / "classes.txt"
    (tmp_path / "private").write_text("a\nb\nc\nsecret\n")
    file.symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match="class 3 is a name in another place, to which") as error:
        yolo.read(sides, sides, categories=[3])
    assert "secret" not in str(error.value)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"classes\.txt: cannot be read, it is a pipe"):
        yolo.read(sides, sides, categories=[3])
    monkeypatch.setattr(class_lists, "MOST", 1)
    with pytest.raises(UserError, match=r"set: has 2 files classes\.txt or data\.yaml, and at"):
        yolo.read(sides, sides, categories=[3])
