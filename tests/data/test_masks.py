"""Images with mask PNGs: the same records as from a COCO file, and mistakes named."""

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import use

from tvjax.data import (
    builder,
    coco,
    manifest,
    mask_files,
    masks,
    mosaic,
    origins,
    pillow,
    plausible,
    records,
    sets,
    splits,
)
from tvjax.errors import UserError


@pytest.fixture
def source(tmp_path) -> Path:
    """12 tiles of 12x16, described twice: by annotation.json and by masks/ of several kinds."""
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for k in range(12):
        pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        name = f"{k:02d}." + ("png", "bmp", "tif")[k % 3]
        Image.fromarray(pixels).save(folder / "images" / name)
        x, y = rng.integers(0, 6, 2).tolist()
        mask = np.zeros((12, 16), np.uint8)
        mask[y : y + 5, x : x + 7] = 1
        opaque = np.full_like(mask, 255)
        written = (
            Image.fromarray(mask),
            Image.fromarray(255 * mask),
            Image.fromarray(mask > 0),
            Image.fromarray(mask.astype(np.uint16) * 65535),
            Image.fromarray(mask).convert("P"),
            Image.fromarray(np.stack([255 * mask, 255 * mask, 255 * mask, opaque], -1)),
            Image.fromarray(np.stack([mask, opaque], -1)),
        )[k % 7]
        if written.mode == "P":
            written.putpalette([200, 200, 200, 0, 0, 0])  # the index counts, not its colour
        written.save(folder / "masks" / f"{k:02d}.png")
        images.append({"id": k, "file_name": name, "height": 12, "width": 16})
        square = [x, y, x + 7, y, x + 7, y + 5, x, y + 5]
        annotations.append({"id": k, "image_id": k, "segmentation": [square]})
    content = {"images": images, "annotations": annotations}
    (folder / "annotation.json").write_text(json.dumps(content))
    (folder / "images" / "Thumbs.db").write_text("")
    (folder / "masks" / "._00.png").write_text("")
    return folder


def read_all(directory):
    found = {name: records.open_split(directory, name) for name in splits.NAMES}
    return {name: [split[k] for k in range(len(split))] for name, split in found.items()}


def test_masks_give_the_records_of_the_coco_file(source, tmp_path):
    for name, annotations in (("coco", "annotation.json"), ("masks", "masks")):
        builder.build(
            source / annotations, source / "images", tmp_path / name,
            size=(6, 8), seed=3, limit=10, progress=False,
        )  # fmt: skip
    coco, ours = read_all(tmp_path / "coco"), read_all(tmp_path / "masks")
    for split in splits.NAMES:
        assert [r["id"] for r in coco[split]] == [r["id"] for r in ours[split]]
        for a, b in zip(coco[split], ours[split], strict=True):
            assert a["file"] == b["file"] and 0 < b["mask"].mean() < 1
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["mask"], b["mask"])


def test_masks_of_nothing_are_not_counted_as_images(source, tmp_path):
    (source / "masks" / "03.png").unlink()
    for name in ("04.bmp", "06.png"):
        (source / "images" / name).unlink()
    with pytest.raises(UserError, match=r"^1 of 10 images and 2 files of labels cannot be used: "):
        builder.build(source / "masks", source / "images", tmp_path / "out", size=(6, 8))


def test_a_changed_mask_is_another_set(source, tmp_path):
    def build():
        return builder.build(
            source / "masks", source / "images", tmp_path / "out", size=(6, 8), progress=False
        )

    assert build() == build()
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(source / "masks" / "04.png")
    with pytest.raises(UserError, match=r"1 changed \(masks/04\.png\)"):
        build()


def test_a_folder_of_images_and_masks_is_data_for_training(source, tmp_path):
    (source / "annotation.json").unlink()
    options = {"cache": str(tmp_path / "cache"), "limit": None, "seed": 0}
    words = "another aspect ratio.* 12x16; cut it and its mask alike into tiles .* at most 10x10"
    with pytest.raises(UserError, match=words):
        sets.open_sets(directory=str(source), size=5, **options)


def test_source_json_says_what_the_labels_were(source, tmp_path):
    def build(labels, out):
        builder.build(
            source / labels, source / "images", tmp_path / out, size=(6, 8), progress=False
        )
        return manifest.read(tmp_path / out)

    content = build("masks", "masks")
    assert content["request"]["labels"] == "masks"
    assert "annotations_sha256" not in content["request"]
    coco = build("annotation.json", "coco")["request"]
    assert coco["labels"] == "COCO file" and len(coco["annotations_sha256"]) == 64
    with pytest.raises(UserError, match="prepared with labels='masks', now asked for 'COCO file'"):
        build("annotation.json", "masks")
    with pytest.raises(UserError, match="prepared with labels='COCO file', now asked for 'masks'"):
        build("masks", "coco")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda f: (f / "masks" / "03.png").unlink(), r"images/03\.png: has no mask .*03\.png"),
        (lambda f: (f / "images" / "04.bmp").unlink(), r"masks/04\.png: is the mask of no image"),
        (
            lambda f: Image.new("L", (16, 11)).save(f / "masks" / "05.png"),
            r"masks/05\.png: is 16x11 pixels, but its image .*05\.tif is 16x12",
        ),
        (lambda f: (f / "masks" / "06.png").write_text("no"), r"masks/06\.png: cannot be decoded"),
        (
            lambda f: Image.new("RGB", (16, 12)).save(f / "images" / "07.png"),
            r"images/07\.png: 07\.bmp has the same stem",
        ),
        (lambda f: [m.unlink() for m in (f / "masks").iterdir()], r"masks: holds no masks"),
    ],
)
def test_mistakes_name_the_file(source, spoil, words):
    spoil(source)
    with pytest.raises(UserError, match=words):
        masks.read(source / "images", source / "masks")


def test_a_truncated_mask_is_named(source):
    file = source / "masks" / "00.png"
    file.write_bytes(file.read_bytes()[:-30])
    tile = masks.read(source / "images", source / "masks")[0]
    with pytest.raises(UserError, match=r"masks/00\.png: cannot be decoded"):
        tile.load()
    with pytest.raises(UserError, match=r"nowhere\.png"):
        pillow.read_size(source / "nowhere.png")


def test_program(source, tmp_path):
    def prepare(*flags):
        coco = f"--images={source / 'images'}", f"--out={tmp_path / 'out'}"
        return use("data.prepare", *coco, "--size=6x8", *flags)

    result = prepare(f"--masks={source / 'masks'}")
    assert result.returncode == 0 and "12 tiles" in result.stdout, result.stderr
    both = prepare(f"--masks={source / 'masks'}", f"--annotations={source / 'annotation.json'}")
    assert both.returncode == 2
    assert both.stderr.startswith("error: give either --annotations (a COCO file), --masks (a d")
    same = prepare(f"--masks={source / '..' / source.name / 'images'}")
    assert same.returncode == 2 and "is the directory of the images too" in same.stderr


def write_masks(source, write):
    """Replaces the masks by what `write` makes of each, bool `[12, 16]`; none is left alone."""
    for file in (source / "masks").glob("[!.]*.png"):
        mask = mask_files.read_mask(file)
        file.unlink()
        write(mask).save(file)


def build(source, tmp_path, **options):
    options = {"size": (6, 8), "progress": False} | options
    return builder.build(source / "masks", source / "images", tmp_path / "out", **options)


def colored(mask, inside, outside):
    return Image.fromarray(np.where(mask[..., None], inside, outside).astype(np.uint8))


SOFT = np.add.outer(np.arange(12), np.arange(16)).astype(np.uint8)
IMPLAUSIBLE = {
    "classes": (lambda m: Image.fromarray(m + np.eye(12, 16, dtype=np.uint8)), r"1 \(\d.*2 \("),
    "255 is no data": (
        lambda m: Image.fromarray(np.where(np.eye(12, 16), 255, m).astype(np.uint8)), r"255 \(6.25%"
    ),
    "soft edges": (lambda m: Image.fromarray(m * np.uint8(200) + SOFT), "besides 0.* and 2"),
    "red on blue": (
        lambda m: colored(m, (250, 0, 0), (0, 0, 250)), r"\(0, 0, 250\) \(.*\(250, 0, 0\) \("
    ),
    "white on grey": (lambda m: Image.fromarray(np.where(m, 255, 100).astype(np.uint8)), "100 "),
    "in alpha": (
        lambda m: colored(m, (0, 0, 0, 255), (0, 0, 0, 0)),
        r"all pixels of its 12 tiles are background.*\(0, 0, 0\) \(100.00%\), and alpha, which",
    ),
    "in the alpha of white": (
        lambda m: colored(m, (255, 255, 255, 255), (255, 255, 255, 0)),
        r"are object .*\(255, 255, 255\) \(100.00%\), and alpha",
    ),
    "all 0": (lambda m: Image.new("L", (16, 12)), r"background at 8x6 pixels.*0 \(100.00%\)"),
    "all 1": (lambda m: Image.new("L", (16, 12), 1), r"are object at 8x6 .* 1 \(100.00%\)"),
    "thin": (
        lambda m: Image.fromarray(np.pad([[255]], ((5, 6), (7, 8))).astype(np.uint8)),
        r"background at 8x6 pixels.*0 \(99.48%\), 255 \(0.52%\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMPLAUSIBLE)
def test_masks_that_do_not_say_what_is_object_are_refused(source, tmp_path, kind):
    write, words = IMPLAUSIBLE[kind]
    write_masks(source, write)
    with pytest.raises(UserError, match=words) as error:
        build(source, tmp_path)
    assert "--object=" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_masks_of_which_some_need_a_flag_are_not_advised_to_be_left_out(source, tmp_path):
    for name in ("00", "01"):
        file = source / "masks" / f"{name}.png"
        mask = mask_files.read_mask(file)
        file.unlink()
        Image.fromarray(mask + np.eye(12, 16, dtype=np.uint8)).save(file)
    with pytest.raises(UserError, match=r"2 of 12 .*--object=") as error:
        build(source, tmp_path)
    assert "--skip_bad" not in str(error.value)


def test_swapped_folders_are_told_in_a_short_line(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for k in range(12):
            name = tmp_path / folder / f"{'long_name_' * 8}{k}.png"
            image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(image if folder == "images" else image[..., 0] // 128).save(name)
    with pytest.raises(UserError, match=r"^12 of 12 images .* swapped\?.*; and 9 more$") as error:
        builder.build(tmp_path / "images", tmp_path / "masks", tmp_path / "out", size=10)
    said = str(error.value).replace(str(tmp_path), "")
    assert len(said) < 700 and "\n" not in said


def test_the_values_of_objects_can_be_said(source, tmp_path, capsys):
    def masks_of(name, **options):
        folder = tmp_path / name
        builder.build(
            source / "masks", source / "images", folder, size=(6, 8), progress=False, **options
        )
        return {r["id"]: r["mask"] for split in read_all(folder).values() for r in split}

    wanted = masks_of("plain")
    assert "name objects by several values, which are all taken" in capsys.readouterr().err
    # Background is 1 and 3, objects are 2 and 0: also masks that are inverted can be told.
    edge = np.eye(12, 16, dtype=np.uint8)
    write_masks(source, lambda m: Image.fromarray(np.where(m, 2 - 2 * edge, 1 + 2 * edge)))
    found = masks_of("said", categories=(2, 0))
    assert capsys.readouterr().err == ""
    for number, mask in wanted.items():
        np.testing.assert_array_equal(found[number], mask)
    with pytest.raises(UserError, match="categories"):  # it belongs to what was asked for
        masks_of("said", categories=(2,))
    with pytest.raises(UserError, match=r"background .*values are 1 \("):
        masks_of("none", categories=(9,))
    colored(edge, (1, 2, 3), 0).save(source / "masks" / "03.png")
    with pytest.raises(UserError, match="has colours, not numbers"):
        masks_of("colours", categories=(2,))


def test_sets_that_are_nearly_all_object_are_built_with_a_note(source, tmp_path, capsys):
    dot = np.pad([[1, 1], [1, 1]], ((4, 6), (6, 8)))
    write_masks(source, lambda m: Image.fromarray(((1 - dot) * 255).astype(np.uint8)))
    build(source, tmp_path)
    note = capsys.readouterr().err
    assert note.startswith("note: ") and note.count("\n") == 1
    assert "97.9% of all pixels are object; the masks' values are 255 (97.92%), 0 (2.08%)" in note


def test_masks_are_read_as_they_are_numbered_and_shown(tmp_path):
    numbers = np.arange(16, dtype=np.uint8).reshape(4, 4) % 4
    image = Image.fromarray(numbers)
    image.save(tmp_path / "8.png")
    image.convert("P").save(tmp_path / "p.png", bits=2)
    Image.fromarray(numbers * 85).save(tmp_path / "2.png", bits=2)
    for name in "8p2":
        found = mask_files.read_mask(tmp_path / f"{name}.png", (2,))
        np.testing.assert_array_equal(found, numbers == 2)
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(np.array([[0, 9, 0], [0, 0, 0]], np.uint8)).save(
        tmp_path / "turned.png", exif=turned
    )
    np.testing.assert_array_equal(
        mask_files.read_mask(tmp_path / "turned.png"),
        [[False, False], [False, True], [False, False]],
    )
    assert pillow.read_size(tmp_path / "turned.png") == (3, 2)


LAND, ROOF, WATER = (132, 41, 246), (60, 16, 152), (226, 169, 41)


def classes(mask):
    """Indices of land, roofs and some water."""
    return np.where(np.eye(12, 16, dtype=bool), 2, mask.astype(np.uint8)).astype(np.uint8)


def palette(mask):
    image = Image.fromarray(classes(mask)).convert("P")
    image.putpalette([*LAND, *ROOF, *WATER])
    return image


def rgb(mask):
    return Image.fromarray(np.array([LAND, ROOF, WATER], np.uint8)[classes(mask)])


def clear(mask):
    """The same colours, transparent where there is no roof."""
    return Image.fromarray(np.dstack([np.asarray(rgb(mask)), 255 * mask]).astype(np.uint8))


def dark(mask):
    """Levels 0, 3 and 7 of grey, stored as colours."""
    return Image.fromarray(np.array([0, 3, 7], np.uint8)[classes(mask)]).convert("RGB")


CODED = {
    "palette, colour": (palette, ["#3C1098"]),
    "palette, index": (palette, ["1"]),
    "colour": (rgb, ["#3c1098"]),
    "transparent": (clear, ["#3C1098"]),
    "grey as colour": (dark, ["#030303"]),
    "colour as grey": (dark, ["3"]),
}


@pytest.mark.parametrize("kind", CODED)
def test_coded_masks_give_the_objects_that_are_named(source, tmp_path, kind):
    write, objects = CODED[kind]
    write_masks(source, write)
    truth = {}
    for k, line in enumerate(json.loads((source / "annotation.json").read_text())["annotations"]):
        x, y = line["segmentation"][0][:2]
        mask = np.zeros((12, 16), bool)
        mask[y : y + 5, x : x + 7] = True
        truth[k] = mask & ~np.eye(12, 16, dtype=bool)
    named = list(map(mask_files.parse_object, objects))
    found = {k: mask_files.read_mask(source / "masks" / f"{k:02d}.png", named) for k in truth}
    for k, mask in truth.items():
        np.testing.assert_array_equal(found[k], mask)
    result = use(
        "data.prepare", f"--images={source}/images", f"--masks={source}/masks", "--size=6x8",
        f"--out={tmp_path}/out", *(f"--object={text}" for text in objects),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "contact.png").is_file()


def test_coded_sets_that_no_rule_explains_are_refused(source, tmp_path):
    """Each mask is of two values, but of other ones: classes, one per tile."""
    number = iter(range(99))
    write_masks(source, lambda m: Image.fromarray(m * np.uint8(1 + next(number) % 2)))
    with pytest.raises(
        UserError, match=r"no rule says which .* 0 \(\d.*, [12] \(9.*, [12] \(9.*--object="
    ):
        build(source, tmp_path)
    build(source, tmp_path, categories=[1, 2])
    write_masks(source, rgb)
    words = r"#8429F6 \(132, 41, 246\) \(\d+\.\d\d%\), #3C1098 \(60, 16, 152\) .*--object=\"#RRGGBB"
    with pytest.raises(UserError, match=words):
        builder.build(
            source / "masks", source / "images", tmp_path / "new", size=(6, 8), progress=False
        )


def test_colours_that_are_in_no_mask_are_told(source, tmp_path, capsys):
    write_masks(source, rgb)
    with pytest.raises(UserError, match=r"all pixels .* background .*#8429F6 \(132, 41, 246\)"):
        build(source, tmp_path, categories=[(60, 16, 153)])
    build(source, tmp_path, categories=[ROOF, (1, 2, 3)])
    assert "no mask has #010203 (1, 2, 3); the masks' values are #8429F6" in capsys.readouterr().err
    soft = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(soft).resize((160, 120)).save(source / "masks" / "00.png")
    with pytest.raises(UserError, match="was it stored with loss"):
        mask_files.read_mask(source / "masks" / "00.png", [ROOF])
    with pytest.raises(UserError, match="has colours, not numbers of which --object names some"):
        mask_files.read_mask(source / "masks" / "01.png", [3])
    for text in ("#12345", "red", "-1", "3.5"):
        with pytest.raises(UserError, match="give a number such as 3, or a colour"):
            mask_files.parse_object(text)


def test_several_processes_tell_of_the_same_values(source, tmp_path):
    write_masks(source, rgb)
    told = []
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"#8429F6 .* #3C1098 ") as error:
            origin = origins.Images(source / "masks", source / "images", [(60, 16, 153)])
            builder.build_from(
                origin, tmp_path / "out", size=(6, 8), progress=False, workers=workers
            )
        told.append(str(error.value))
    assert told[0] == told[1]


def test_images_of_16_bits_that_became_white_or_black_are_noted():
    images = np.full((3, 4, 4, 3), 120, np.uint8)
    assert not plausible.check_brightness(images, [255.0])
    images[:2] = 255
    [note] = plausible.check_brightness(images, [255.0])
    assert note == "67% of all pixels are white: is --white=255 too small, or --black?"
    [note] = plausible.check_brightness(images // 64, [9000, 8000.5, 1])
    assert note.startswith("images are nearly black (2.3 of 255 in the mean): is --white=9000 ")
    assert note.endswith("--white=8000.5 --white=1 too large, or --black?")


@pytest.mark.parametrize(
    "value, words",
    [(255, "20% of the tiles are white: is --white=255 too small"),
     (7, "20% of the tiles are nearly black: is --white=255 too large")],
)  # fmt: skip
def test_images_of_16_bits_that_became_white_or_black_among_others_are_noted(value, words):
    images = np.full((10, 4, 4, 3), 120, np.uint8)
    images[0] = value
    assert not plausible.check_brightness(images, [255.0])
    images[1] = value
    assert plausible.check_brightness(images, [255.0]) == [f"{words}, or --black?"]


def test_many_object_pixels_are_noted(tmp_path):
    tile = coco.Tile(0, tmp_path, 8, 8, (), ())
    masks = np.zeros((2, 8, 8), np.uint8)
    for rows, number in ((4, 0), (7, 1)):
        masks[:, :rows] = 1
        assert len(plausible.check([tile] * 2, masks, tmp_path)) == number


def hide(source, share):
    """Gives the images alpha, 0 on a share of the rows of each object, and counts what it hides."""
    hidden = labelled = 0
    for k in range(12):
        (file,) = (source / "images").glob(f"{k:02d}.*")
        record = json.loads((source / "annotation.json").read_text())["annotations"][k]
        x, y = record["segmentation"][0][:2]
        opaque = np.full((12, 16), 255, np.uint8)
        opaque[y : y + round(5 * share), x : x + 7] = 0
        image = Image.open(file).convert("RGB")
        image.putalpha(Image.fromarray(opaque))
        file.unlink()
        image.save(file.with_suffix(".png"))
        hidden, labelled = hidden + (opaque == 0).sum(), labelled + 5 * 7
    return hidden / labelled


@pytest.mark.parametrize("kind", ["masks", "annotation.json"])
def test_labels_where_images_have_no_data_are_told_of(source, tmp_path, kind, capsys):
    share = hide(source, 0.4)
    text = (source / "annotation.json").read_text()
    (source / "annotation.json").write_text(text.replace(".bmp", ".png").replace(".tif", ".png"))
    origin = origins.Images(source / kind, source / "images")
    builder.build_from(origin, tmp_path / "tiles", size=(12, 16), progress=False)
    assert (
        f"{share:.1%} of the pixels that are labelled as object have no data"
        in capsys.readouterr().err
    )
    hide(source, 1)
    with pytest.raises(UserError, match=r"lies where the images have no data \(alpha 0") as told:
        builder.build_from(origin, tmp_path / "other", size=(12, 16), progress=False)
    assert "values" not in str(told.value) and "annotations are" not in str(told.value)


def test_palettes_that_differ_are_refused_unless_colours_are_named(source, tmp_path):
    for file in sorted((source / "masks").glob("[0-9]*.png")):
        mask = np.asarray(Image.open(file).convert("RGB")).max(axis=-1) > 0
        mask = (mask if 0 < mask.mean() < 0.5 else np.eye(12, 16)).astype(np.uint8)
        is_odd = int(file.stem) % 2  # the objects come first in every second palette
        written = Image.fromarray(1 - mask if is_odd else mask).convert("P")
        written.putpalette([255, 0, 0, 0, 0, 0] if is_odd else [0, 0, 0, 255, 0, 0])
        written.save(file)
    for objects in ((), (1,)):
        with pytest.raises(UserError, match=r"palettes: index 0 is #000000 .* and #FF0000 "):
            builder.build(
                source / "masks", source / "images", tmp_path / "out", size=(12, 16),
                categories=objects, progress=False,
            )  # fmt: skip
    builder.build(
        source / "masks", source / "images", tmp_path / "out", size=(12, 16),
        categories=[(255, 0, 0)], progress=False,
    )  # fmt: skip
    found = manifest.read(tmp_path / "out")["splits"]
    assert all(split["foreground"] < 0.3 for split in found.values())


def test_what_lies_in_folders_within_is_told_of(source, tmp_path, capsys):
    build(source, tmp_path, size=(12, 16), progress=False)
    assert "left out" not in capsys.readouterr().err
    for name in ("images", "masks"):
        (source / name / "more").mkdir()
        for file in (source / name).glob("0[0-3].*"):
            file.rename(source / name / "more" / file.name)
    masks.read(source / "images", source / "masks")
    told = f"note: 4 images in folders within {source}/images are left out"
    assert told in capsys.readouterr().err
    assert len(mosaic.images_in(source / "images", as_map=True, is_tms=False)) == 8
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_masks_with_other_values_than_the_chosen_ones_are_noted(source, tmp_path, capsys, workers):
    """Some are 0 and 255 and others 0 and 1, of which only one is named; some are empty."""

    def notes(ones, empty, objects):
        for k in range(12):
            mask = np.zeros((12, 16), np.uint8)
            mask[:6] = 1 if k in ones else 0 if k in empty else 255
            Image.fromarray(mask).save(source / "masks" / f"{k:02d}.png")
        origin = origins.Images(source / "masks", source / "images", objects)
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        builder.build_from(origin, out, size=(6, 8), progress=False, workers=workers)
        return capsys.readouterr().err

    told = notes({2, 3}, {0}, [255])
    assert "note: " in told and "2 of 12 masks hold none of the chosen values (255)" in told
    assert f"such as {source}/masks/02.png: 0 (50.00%), 1 (50.00%)" in told
    for quiet in (({2}, {0}, [255]), ({2, 3}, {0}, [255, 1]), ((), range(6), [255])):
        assert "none of the chosen" not in notes(*quiet)


def test_masks_with_other_colours_than_the_chosen_ones_are_noted(source, tmp_path, capsys):
    write_masks(source, rgb)
    for k in (4, 5):
        colored(np.eye(12, 16, dtype=bool), WATER, (0, 0, 0)).save(
            source / "masks" / f"{k:02d}.png"
        )
    build(source, tmp_path, categories=[ROOF])
    told = capsys.readouterr().err
    assert "2 of 12 masks hold none of the chosen values (#3C1098 (60, 16, 152)), but" in told


def test_masks_of_many_values_are_described_at_once():
    """A mask of 16 bits may number its objects, and none may be the chosen one."""
    begin = time.monotonic()
    words = mask_files.describe(Counter(dict.fromkeys(range(1 << 15), 2)))
    assert words.startswith("0 (0.00%), 1 (0.00%), ") and words.endswith(" and 32760 more")
    assert time.monotonic() - begin < 5
