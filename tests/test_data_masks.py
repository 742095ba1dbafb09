"""Images with mask PNGs: the same records as from a COCO file, and mistakes named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvjax.data import builder, masks, pictures, records, sets, splits
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
            Image.fromarray(mask.astype(np.uint16) * 256),
            Image.fromarray(mask).convert("P"),
            Image.fromarray(np.stack([0 * mask, 7 * mask, 0 * mask, opaque], -1)),
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
    with pytest.raises(UserError, match="another aspect ratio"):  # so it found them
        sets.open_sets(directory=str(source), size=12, **options)


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
        pictures.read_size(source / "nowhere.png")


def test_program(source, tmp_path):
    def prepare(*flags):
        command = [sys.executable, "-m", "tvjax.data.prepare", f"--images={source / 'images'}"]
        command += ["--size=6x8", f"--out={tmp_path / 'out'}", *flags]
        return subprocess.run(command, capture_output=True, text=True)

    result = prepare(f"--masks={source / 'masks'}")
    assert result.returncode == 0 and "12 tiles" in result.stdout, result.stderr
    both = prepare(f"--masks={source / 'masks'}", f"--annotations={source / 'annotation.json'}")
    assert both.returncode == 2
    assert (
        both.stderr == "error: give either --annotations (a COCO file) or --masks (a directory)\n"
    )
