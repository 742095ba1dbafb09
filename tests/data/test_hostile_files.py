"""Files made to harm: refused in one line, before much is done, and never opened elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tvjax.data import builder, coco, gdal, local, pictures, pillow, regions, stamps
from tvjax.errors import UserError, escaped, short
from tvjax.inference import tiles, writing

SECONDS = 2
"""Seconds of the processor, for any file."""


def outcomes(kind, folder):
    command = [sys.executable, hostile.__file__, kind, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {name: rest for name, *rest in map(json.loads, ran.stdout.splitlines())}


@pytest.mark.parametrize(
    ("kind", "least", "read"),
    [("coco", 150, {"whole"}), ("images", 50, {"exif.png"})],
)
def test_hostile_files_are_read_or_refused_in_one_line(kind, least, read, tmp_path):
    if kind == "images":
        pytest.importorskip("rasterio")
    found = outcomes(kind, tmp_path)
    assert len(found) >= least
    for name, (outcome, seconds) in found.items():
        told = outcome.startswith("refused: ") and str(tmp_path) in outcome
        assert outcome == "read" or told, (name, outcome)
        assert outcome.isprintable() and len(outcome) < 700, (name, outcome)
        assert seconds < SECONDS, (name, seconds)
    for name in read:
        assert found[name][0] == "read"


def test_messages_are_one_line_of_visible_characters():
    text = "a\nb\x1b[2J\x7f\x9b\u202e\u2028\udcff\U000e0001 \u00e9"
    shown = r"a\x0ab\x1b[2J\x7f\x9b\u202e\u2028\xff\U000e0001 " + "\u00e9"
    assert escaped(text) == str(UserError(text)) == shown == escaped(shown)
    assert len(short("x" * 10**6)) <= 60 and len(short([[1] * 10**6] * 9)) <= 60


def write_coco(folder, name, **more):
    file = folder / "annotation.json"
    file.write_text(json.dumps(hostile.content(name=name, **more)))
    return file


def test_what_a_coco_file_names_lies_in_its_folder(tmp_path):
    images = hostile.lay_out(tmp_path)
    (images / "inside.png").symlink_to("a.png")
    for name in ("a.png", "inside.png", "folder.png/../a.png", str(images / "a.png")):
        (tile,) = coco.read(write_coco(tmp_path, name), images)
        assert tile.load()[1].any()
    (tmp_path / "linked").symlink_to("images")  # by who names it
    assert coco.read(write_coco(tmp_path, "a.png"), tmp_path / "linked")
    for name in ("../a.png", "out.png", "outside/a.png", "outside/../a.png", "/etc/hostname"):
        with pytest.raises(UserError, match=r"image id 7: file_name=.* leads out of the folder"):
            coco.read(write_coco(tmp_path, name), images)


def test_pipes_are_not_waited_for(tmp_path):
    images = hostile.lay_out(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    for read in (
        lambda path: coco.read(path, images),
        lambda path: writing.number_images([images / "a.png"], str(path)),
        lambda path: builder.build(path, images, tmp_path / "out", size=8),
        pillow.read_header, pictures.read_size,
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"pipe.json: cannot be read, it is a pipe and no file"):
            read(tmp_path / "pipe.json")
    assert stamps.take(images / "pipe.png") is None
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "pipe.png", "socket.png", "folder.png"):
        Image.new("L", (40, 32)).save(tmp_path / "masks" / name)
    (tmp_path / "masks" / "pipe.png").unlink()
    os.mkfifo(tmp_path / "masks" / "pipe.png")
    for skip_bad in (False, True):
        with pytest.raises(UserError, match=r"cannot be used: |nothing to learn"):
            builder.build(tmp_path / "masks", images, tmp_path / "out", size=8, skip_bad=skip_bad)
    assert not (tmp_path / "out").exists()


def test_outlines_are_measured_before_they_are_drawn():
    circle = np.exp(2j * np.pi * np.arange(10_000) / 10_000) * 400 + 500 * (1 + 1j)
    points = np.stack([circle.real, circle.imag], 1).ravel().tolist()
    length = regions.check([points], 1000, 1000)
    assert length == pytest.approx(8 * 400 / np.sqrt(2), rel=1e-3)  # pixel by pixel, diagonals one
    mask = regions.rasterise([[points]], 1000, 1000)
    assert mask.sum() == pytest.approx(np.pi * 400**2, rel=3e-3)
    with pytest.raises(ValueError, match="whose outline is 12000000 pixels long; at most 2097152"):
        regions.check(hostile.zigzag(10_000, 600), 300, 300)


def test_all_outlines_of_an_image_count_together(tmp_path):
    images = hostile.lay_out(tmp_path)
    content = hostile.content(hostile.zigzag(2000, 500))  # 2 million pixels each
    content["annotations"] *= 9
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"makes the outlines of this image \d+ pixels long"):
        coco.read(tmp_path / "a.json", images)


def test_run_length_codes_of_any_length_are_decoded_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for pixels in (1, 40, 10_000, 2**29):
        ends = np.unique(rng.integers(0, pixels, 50))  # of which the first may be 0
        counts = np.diff(ends, prepend=0, append=pixels).tolist()
        code: Any = coco_mask.frPyObjects({"size": [pixels, 1], "counts": counts}, pixels, 1)
        text = str(code["counts"], "ascii")
        assert regions._decompress(text) == counts
        regions.check({"size": [pixels, 1], "counts": text}, pixels, 1)


def test_many_regions_are_united(tmp_path):
    squares = [
        [[x, y, x + 1, y, x + 1, y + 1, x, y + 1]] for y in range(0, 32, 2) for x in range(0, 40, 2)
    ]
    expected = np.zeros((32, 40), bool)
    expected[::2, ::2] = True
    np.testing.assert_array_equal(regions.rasterise(squares, 32, 40), expected)
    assert len(squares) > 2 * regions.TOGETHER


def test_sizes_that_are_only_declared_are_refused_before_the_work(tmp_path):
    tiling = tiles.Tiling((512, 512), 128, 60)
    tiles.check_size(Path("a.tif"), (100_000, 100_000), tiling)
    with pytest.raises(UserError, match=r"a.tif: is 20000000x10 pixels, whose row of tiles needs"):
        tiles.check_size(Path("a.tif"), (10, 20_000_000), tiling)
    with pytest.raises(UserError, match=r"a.tif: is 300000x300000 pixels, more than \d+; cut it"):
        tiles.check_size(Path("a.tif"), (300_000, 300_000), tiling)


def geotiff(path, *, height=32, width=32, count=3, **options):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype="uint8",
        sparse_ok=True, transform=rasterio.Affine(1, 0, 9, 0, -1, 9), **options,
    ) as file:  # fmt: skip
        if height == 32:
            file.write(np.full((count, height, width), 9, np.uint8))
    return path


def test_a_large_raster_is_read_in_windows(tmp_path):
    path = geotiff(
        tmp_path / "a.tif", height=100_000, width=100_000, tiled=True, blockxsize=512,
        blockysize=512, compress="deflate",
    )  # fmt: skip
    with pictures.open_raster(path) as raster:
        assert raster.read(99_000, 99_100, 99_000, 99_100).shape == (100, 100, 3)
    with pytest.raises(UserError, match="too large for a tile"):
        pictures.read_image(path)


def test_an_image_that_declares_too_much_is_skipped_and_others_are_not(tmp_path, capsys):
    wide = geotiff(
        tmp_path / "wide.tif", height=64, width=20_000_000, tiled=True, blockxsize=16_384,
        blockysize=64, compress="deflate", count=1,
    )  # fmt: skip
    good = geotiff(tmp_path / "good.tif")
    done, skipped = writing.predict_images(
        [(1, wide), (2, good)], tmp_path / "out", lambda images: np.ones_like(images[..., :1])
    )
    assert done == 1 and len(skipped) == 1
    assert "is 20000000x64 pixels, whose row of tiles needs" in skipped[0]


VRT_AWAY = hostile.VRT.format("/vsicurl/http://127.0.0.1:9/x.tif")


@pytest.mark.parametrize("end", gdal.BESIDE)
def test_masks_and_overviews_beside_an_image_name_no_others(tmp_path, end):
    path = geotiff(tmp_path / "a.tif")
    Path(f"{path}{end}").write_text(VRT_AWAY)
    with pytest.raises(UserError, match=rf"a.tif{end}: is no TIFF, and would be read as a part of"):
        pictures.read_image(path)


@pytest.mark.parametrize("name", ["a.tfw", "a.TFW", "a.wld", "a.tif.aux.xml", "a.tif.msk"])
def test_pipes_beside_an_image_are_not_waited_for(tmp_path, name):
    path = geotiff(tmp_path / "a.tif")
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: cannot be read, it is a pipe and no file"):
        pictures.read_image(path)


@pytest.mark.parametrize("key", ["OVERVIEW_FILE", "overview_file", "Overview_File:a"])
def test_metadata_name_no_others(tmp_path, key):
    rasterio = pytest.importorskip("rasterio")
    away = {key: "/vsicurl/http://127.0.0.1:9/x.tif"}
    with rasterio.open(geotiff(tmp_path / "a.tif"), "r+") as file:
        file.update_tags(ns="OVERVIEWS", **away)
    geotiff(tmp_path / "b.tif")
    (tmp_path / "b.tif.aux.xml").write_text(
        f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="{key}">'
        "/vsicurl/http://127.0.0.1:9/x.tif</MDI></Metadata></PAMDataset>"
    )
    for name in ("a.tif", "b.tif"):
        with pytest.raises(UserError, match="names another file as its overviews"):
            pictures.read_image(tmp_path / name)
        (tmp_path / "c.vrt").write_text(hostile.VRT.format(tmp_path / name))
        with pytest.raises(UserError, match="names another file as its overviews"):
            pictures.read_image(tmp_path / "c.vrt")


def test_a_virtual_raster_of_local_files_is_read_by_its_name_only(tmp_path):
    geotiff(tmp_path / "a.tif", count=1)
    text = hostile.VRT.replace("<SourceFilename", '<SourceFilename relativeToVRT="1"')
    (tmp_path / "b.vrt").write_text(text.format("a.tif"))
    assert pictures.read_image(tmp_path / "b.vrt").max() == 9
    (tmp_path / "b.vrt").rename(tmp_path / "b.tif")
    with pytest.raises(UserError, match="it begins like no picture and no TIFF"):
        pictures.read_image(tmp_path / "b.tif")


ATTRIBUTES = {
    '<SimpleSource SourceFilename="http://127.0.0.1:9/a.tif">': "<SimpleSource>",
    '<SourceFilename subclass="x">': "<SourceFilename>",
    'band="1" subclass="VRTRawRasterBand" SourceFilename="/etc/passwd"': 'band="1"',
    'band="1" PixelFunctionType="sum"': 'band="1"',
}


@pytest.mark.parametrize("text", ATTRIBUTES)
def test_attributes_of_a_virtual_raster_say_nothing_of_other_files(tmp_path, text):
    """GDAL takes attributes for elements within, in capitals or not."""
    geotiff(tmp_path / "a.tif", count=1)
    written = hostile.VRT.replace(ATTRIBUTES[text], text).format(tmp_path / "a.tif")
    assert text in written
    (tmp_path / "b.vrt").write_text(written)
    with pytest.raises(UserError, match="of virtual rasters those are read that join files"):
        pictures.read_image(tmp_path / "b.vrt")


def test_a_georeference_that_is_no_map_is_refused(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = geotiff(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as file:
        file.transform = rasterio.Affine(0, 0, 9, 0, 0, 9)
    with pytest.raises(UserError, match="its georeference is no map"):
        pictures.read_image(path)


def test_names_that_no_file_can_have_are_told():
    for name in ("a\0", "x" * 5000):
        with pytest.raises(UserError, match="no such image, or none in there"):
            writing.find_images([name])
    assert local.wrong_name("a/b.png") is None
    assert local.wrong_name("\u00e9" * 127 + "/" + "x" * 255) is None
    for name in ("\ud800.png", "a\0", "\u00e9" * 128, "a/" + "x" * 256):
        assert local.wrong_name(name)
