"""Images of any size to masks and polygons; the net is a stub that reads the red channel."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import use
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tvjax.data import area, coco, pictures, scaling
from tvjax.data.reading import Reading
from tvjax.errors import UserError
from tvjax.inference import polygons, resample, tiles, writing
from tvjax.inference.scales import Scales

rasterio = pytest.importorskip("rasterio")
geopandas = pytest.importorskip("geopandas")
shapely = pytest.importorskip("shapely")
from roofs import METRES, TOP_LEFT, draw_roofs, expected_outline, write_raster  # noqa: E402

GroundControlPoint = pytest.importorskip("rasterio.control").GroundControlPoint


def red(images):
    """A net that is right: the probability of a roof is its redness."""
    return np.asarray(images)[..., :1]


def assert_roofs_found(tmp_path, size, number):
    mask, roofs = draw_roofs(size, number)
    write_raster(tmp_path / "town.tif", mask)
    out = tmp_path / "out"
    options = writing.Options(probabilities=True)
    objects, skipped = writing.predict_images(
        [(1, tmp_path / "town.tif")], out, red, options=options, tile=128
    )
    assert (objects, skipped) == (len(roofs), [])
    found = geopandas.read_file(out / "town.geojson")
    assert found.crs.to_epsg() == 32633 and found.is_valid.all()
    wanted = [expected_outline(roof) for roof in roofs]
    # Exact, not only within a pixel: the net is.
    assert {g.normalize().wkt for g in found.geometry} == {g.wkt for g in wanted}
    assert all(g.exterior.is_ccw for g in found.geometry)
    assert found.score.min() > 0.999
    with rasterio.open(out / "town_mask.tif") as file, rasterio.open(tmp_path / "town.tif") as raw:
        assert (file.crs, file.transform, file.dtypes[0]) == (raw.crs, raw.transform, "uint8")
        np.testing.assert_array_equal(file.read(1), np.where(mask, 255, 0))
    with rasterio.open(out / "town_probability.tif") as file:
        np.testing.assert_allclose(file.read(1), mask, atol=1e-6)
    results = json.loads((out / "results.json").read_text())
    pixels = sum(coco_mask.area(result["segmentation"]) for result in results)
    assert len(results) == len(roofs) and pixels == mask.sum()
    assert sorted(p.name for p in out.iterdir()) == [
        "predicted.jsonl", "results.json", "town.geojson", "town_mask.tif", "town_probability.tif",
    ]  # fmt: skip


def test_every_roof_of_a_georeferenced_raster_is_found(tmp_path):
    assert_roofs_found(tmp_path, 600, 90)


@pytest.mark.parametrize("how", ["nodata", "mask", "alpha"])
def test_there_are_no_roofs_where_there_is_no_data(tmp_path, how):
    bands = np.full((4 if how == "alpha" else 3, 60, 80), 255, np.uint8)
    bands[:3, :, :30] = 0
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=60, width=80, count=len(bands),
        dtype="uint8", crs="EPSG:32633", transform=rasterio.Affine(1, 0, 9, 0, -1, 9),
        nodata=0 if how == "nodata" else None,
    ) as file:  # fmt: skip
        if how == "alpha":
            bands[3, :, :30] = 0
            file.colorinterp = [
                rasterio.enums.ColorInterp[c] for c in ("red", "green", "blue", "alpha")
            ]
        file.write(bands)
        if how == "mask":
            file.write_mask(bands[0] > 0)
    everything = writing.Options(probabilities=True)
    for scale in (1.0, 0.5):
        objects, skipped = writing.predict_images(
            [(1, tmp_path / "a.tif")], tmp_path / "out", lambda x: np.ones_like(x[..., :1]),
            options=everything._replace(scales=Scales(scale)),
        )  # fmt: skip
        assert (objects, skipped) == (1, [])
        for name, one in (("mask", 255), ("probability", 1)):
            with rasterio.open(tmp_path / "out" / f"a_{name}.tif") as file:
                np.testing.assert_array_equal(file.read(1), np.where(bands[0] > 0, one, 0))


@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0])
def test_the_net_is_not_asked_where_there_is_no_data(scale):
    """What comes out is the same; pixels along a diagonal take as many tiles as it crosses."""
    rng, side = np.random.default_rng(0), 400
    valid = np.zeros((side, side), bool)
    for k in range(0, side, 40):
        valid[k : k + 40, k : k + 40] = True
    image = np.where(valid[..., None], rng.integers(0, 256, (side, side, 3)), 0).astype(np.uint8)
    raster, asked = pictures.from_array(image, valid), []

    def net(images):
        asked.append(len(images))
        return 0.2 + 0.7 * smooth_net(images)

    tiling = tiles.Tiling((64, 64), 32, 8)
    found = np.concatenate(list(tiles.probabilities(raster, net, tiling, scale)))
    few, total = sum(asked), tiles.count(round(side * scale), round(side * scale), tiling)
    whole = tiles.strips(
        scaling.scaled(raster, scale).read, *2 * [round(side * scale)], net, tiling
    )
    axis = resample.Axis(round(side * scale), side)
    expected = np.concatenate(list(resample.resample_strips(whole, axis, axis)))
    np.testing.assert_array_equal(found, np.where(valid[..., None], expected, np.float32(0)))
    assert few <= total * (1 if scale < 1 else 0.6)  # shrunk, each tile crosses the diagonal


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_little_data_and_no_coordinate_system_get_a_note(tmp_path, capsys):
    mask, _ = draw_roofs(160, 6)
    infrared = np.where(np.arange(160 * 160).reshape(160, 160) % 10 < 4, 80, 0)

    def notes(name, *, band=200, **options):
        write_raster(tmp_path / name, mask, **options)
        with rasterio.open(tmp_path / name, "r+") as file:
            file.write(np.broadcast_to(band, (160, 160)).astype(np.uint8), 4)
        writing.predict_images([(1, tmp_path / name)], tmp_path / f"out_{name}", red)
        return [line for line in capsys.readouterr().err.splitlines() if "note: " in line]

    assert notes("a.tif") == notes("b.tif", band=infrared) == []
    (note,) = notes("c.tif", band=infrared, alpha="yes")
    assert "c.tif: 60.0% of it has no data" in note
    (note,) = notes("d.tif", crs=None)
    assert "d.tif: has a georeference without a coordinate system" in note
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(tmp_path / "e.png")
    writing.predict_images([(1, tmp_path / "e.png")], tmp_path / "out", red)
    assert "e.png: 100.0% of it has no data" in capsys.readouterr().err


@pytest.mark.parametrize("latitude", [95, -90.5, 1e6])
def test_a_latitude_beyond_a_pole_is_refused(tmp_path, latitude):
    mask, _ = draw_roofs(160, 6)
    for name, north in (("a.tif", latitude), ("b.tif", 60)):
        write_raster(tmp_path / name, mask, crs="EPSG:4326")
        with rasterio.open(tmp_path / name, "r+") as file:
            file.transform = rasterio.Affine(1e-5, 0, 13, 0, -1e-5, north)
    images = [(1, tmp_path / "a.tif"), (2, tmp_path / "b.tif")]
    for scales in (Scales(), Scales(resolution=0.8)):
        _, (told,) = writing.predict_images(
            images, tmp_path / "out", red, options=writing.Options(scales)
        )
        assert re.search(
            r"a\.tif: its georeference is of latitude .*, and there are none bey", told
        )
        assert (tmp_path / "out" / "b.geojson").exists() > (tmp_path / "out/a.geojson").exists()


def test_sixteen_bits_a_channel_are_scaled_by_the_value_of_white(tmp_path):
    mask, roofs = draw_roofs(160, 6)
    write_raster(tmp_path / "a.tif", mask)
    write_raster(tmp_path / "b.tif", mask, white=10_000)
    with (
        pictures.open_raster(tmp_path / "a.tif") as bytes_,
        pictures.open_raster(tmp_path / "b.tif", Reading(white=(10_000,))) as deep,
        pictures.open_raster(tmp_path / "b.tif", Reading(white=(2_000,))) as bright,
    ):
        window = (3, 130, 7, 144)
        np.testing.assert_array_equal(deep.read(*window), bytes_.read(*window))
        assert bright.read(*window).max() == 255 and bright.read(*window)[..., 1].min() == 200
    images = [(1, tmp_path / "b.tif")]
    options = writing.Options(reading=Reading(white=(10_000,)))
    objects, skipped = writing.predict_images(images, tmp_path / "out", red, options=options)
    assert (objects, skipped) == (len(roofs), [])
    _, skipped = writing.predict_images(images, tmp_path / "out", red)
    assert len(skipped) == 1 and "--white" in skipped[0]


@pytest.mark.slow
def test_every_roof_of_a_large_raster_is_found(tmp_path):
    assert_roofs_found(tmp_path, 4000, 5000)


@pytest.mark.parametrize("shape", [(3072, 256), (128, 12_288)])
def test_memory_grows_neither_with_the_height_nor_with_the_width(tmp_path, shape, monkeypatch):
    monkeypatch.setattr(tiles, "ROW", 0)  # what a short row of tiles takes is allowed besides
    peaks = []
    for height, width in ((192, 2048), (192, 2048), shape):  # twice, to load what is loaded once
        mask = np.zeros((height, width), bool)
        mask[20:40, 30:60] = True
        write_raster(tmp_path / "a.tif", mask)
        options = writing.Options(Scales(0.5), probabilities=True)
        tracemalloc.start()
        try:
            images = [(1, tmp_path / "a.tif")]
            writing.predict_images(images, tmp_path / "out", red, options=options, tile=128)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1], peaks


def test_a_row_of_tiles_in_a_file_gives_the_same(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (288, 320, 3), dtype=np.uint8)
    tiling = tiles.make_tiling(128, 10, batch=2)

    def predict():
        raster = pictures.from_array(image)
        return np.concatenate(list(tiles.strips(raster.read, 288, 320, smooth_net, tiling)))

    in_memory = predict()
    monkeypatch.setattr(tiles, "ROW", 0)
    np.testing.assert_array_equal(predict(), in_memory)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(UserError, match=r"/nowhere.*TMPDIR"):
        predict()


def smooth_net(images):
    """Sees 10 pixels around: five box filters of 5."""
    x = np.asarray(images).mean(-1, keepdims=True)
    for _ in range(5):
        for axis in (1, 2):
            padded = np.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(4)])
            x = sum(np.roll(padded, -k, axis) for k in range(5)) / 5
            x = np.take(x, np.arange(images.shape[axis]), axis)
    return x


@pytest.mark.parametrize("size", [(288, 320), (301, 130), (97, 401)])
def test_tiles_give_what_one_pass_gives(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    reach = tiles.measure_reach(smooth_net, (2, 128, 128, 3))
    assert reach == 10
    tiling = tiles.make_tiling(128, reach, batch=2)
    raster = pictures.from_array(image)
    strips = list(tiles.strips(raster.read, *size, smooth_net, tiling))
    padded = np.pad(image, [(0, -size[0] % 32), (0, -size[1] % 32), (0, 0)], "symmetric")
    tall = np.pad(padded, [(0, max(0, 128 - s)) for s in padded.shape[:2]] + [(0, 0)], "symmetric")
    whole = smooth_net(tall[None].astype(np.float32) / 255)[0, : size[0], : size[1]]
    np.testing.assert_allclose(np.concatenate(strips), whole, atol=1e-6)


@pytest.mark.parametrize("size", [(520, 600), (1500, 300), (1040, 780), (769, 1333)])
def test_tiles_that_are_fitted_give_what_others_give(size):
    def near(images):  # sees one pixel around
        x = np.pad(np.asarray(images)[..., :1], ((0, 0), (1, 1), (1, 1), (0, 0)))
        beside = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
        return (x[:, 1:-1, 1:-1] + beside) / 5

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    fitted = tiles.choose_tiling({size}, near)
    plain = tiles.choose_tiling({size}, near, tiles.TILE)
    assert plain.tile == (512, 512) and plain[1:3] == fitted[1:3]
    assert all(side % 32 == 0 and side <= tiles.FITTED for side in fitted.tile)
    assert tiles.count(*size, fitted) <= tiles.count(*size, plain)
    for length, side in zip(size, fitted.tile, strict=True):
        cut = tiles.windows(length, side, *fitted[1:3])
        if length > tiles.TILE:  # smaller ones would not do
            ends = [w.start + side for w in cut]
            assert length <= ends[-1] < length + 32
            assert len(cut) == 1 or len(tiles.windows(length, side - 32, *fitted[1:3])) > len(cut)
    found = [
        np.concatenate(list(tiles.probabilities(pictures.from_array(image), near, tiling)))
        for tiling in (fitted, plain)
    ]
    np.testing.assert_allclose(*found, atol=1e-6)


def test_tiles_are_fitted_to_one_size_alone_and_to_nets_that_see_little():
    def mean(images):
        return np.broadcast_to(images.mean((1, 2, 3), keepdims=True), (*images.shape[:3], 1))

    assert tiles.choose_tiling({(600, 600)}, mean).tile == (512, 512)
    assert tiles.choose_tiling({(600, 600), (700, 600)}, red).tile == (512, 512)
    assert tiles.choose_tiling({(600, 600)}, red).tile == (608, 608)
    assert max(tiles.choose_tiling({(600, 900)}, red, batch=2).tile) <= 512


def test_an_image_s_probabilities_do_not_depend_on_other_images():
    rng, seen = np.random.default_rng(0), set()

    def net(images):
        seen.add(images.shape)
        return smooth_net(images)

    image = rng.integers(0, 256, (150, 170, 3), dtype=np.uint8)
    mirrored = np.pad(image, [(0, 42), (0, 22), (0, 0)], "symmetric").astype(np.float32) / 255
    wanted = smooth_net(mirrored[None])[0, :150, :170]
    others = [set(), {(60, 100)}, {(160, 500)}, {(150, 171), (151, 170)}, {(900, 30)}]
    for beside in others:
        for tile in (None, 256):
            tiling = tiles.choose_tiling({(150, 170), *beside}, net, tile)
            raster = pictures.from_array(image)
            (found,) = tiles.probabilities(raster, net, tiling)
            np.testing.assert_array_equal(found, wanted)
    assert (1, 192, 192, 3) in seen  # more than need be, so that there are few sizes to compile


def test_images_of_any_size_need_few_sizes_of_tiles_and_those_of_training_are_taken_as_they_are():
    tiling = tiles.choose_tiling({(500, 500)}, red, whole=(100, 90))
    found = {tiling.fit(side, 600).tile[0] for side in range(1, 700)}
    assert sorted(found) == [32, 64, 96, 128, 192, 256, 384, 512]
    assert tiling.fit(100, 90).tile == (100, 90) and tiling.fit(90, 100).tile == (96, 128)
    large = tiles.choose_tiling({(9, 9)}, red, 128, whole=(150, 150))
    assert large.fit(150, 150).tile == (128, 128)


def test_a_net_that_reaches_everywhere_is_blended_without_seams():
    def mean_net(images):
        return np.broadcast_to(images.mean((1, 2, 3), keepdims=True), (*images.shape[:3], 1))

    assert tiles.measure_reach(mean_net, (1, 128, 128, 3)) is None
    tiling = tiles.make_tiling(128, None)
    ramp = np.broadcast_to(np.linspace(0, 255, 640)[None, :, None], (64, 640, 3)).astype(np.uint8)
    blend = np.concatenate(
        list(tiles.strips(pictures.from_array(ramp).read, 64, 640, mean_net, tiling))
    )
    assert np.abs(np.diff(blend[0, :, 0])).max() < 0.003  # tiles of their own would jump by 0.1


def test_the_scale_shrinks_as_training_does_and_masks_keep_the_image_s_size(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (300, 240, 3), dtype=np.uint8)
    small = scaling.scaled(pictures.from_array(image), 1 / 3)
    shrunk = area.shrink_image(image, (100, 80))
    np.testing.assert_array_equal(small.read(0, 100, 0, 80), shrunk)
    np.testing.assert_array_equal(small.read(33, 71, 5, 64), shrunk[33:71, 5:64])
    for scale in (1 / 3, 2.0):
        mask = np.zeros((300, 300), bool)
        mask[60:150, 90:240] = True
        write_raster(tmp_path / "a.tif", mask)
        options = writing.Options(Scales(scale))
        writing.predict_images([(1, tmp_path / "a.tif")], tmp_path / "out", red, options=options)
        with rasterio.open(tmp_path / "out" / "a_mask.tif") as file:
            # Interpolation rounds the corners.
            assert np.sum((file.read(1) > 0) != mask) <= 4


@pytest.mark.parametrize("old, new", [(300, 1), (300, 7), (70, 9), (9, 70), (5, 15), (64, 64)])
def test_what_is_resized_is_exact_and_so_are_ties(old, new):
    """Whole numbers are the oracle; a tie at a half is no object, a hair above it is one."""
    image = (np.random.default_rng(old).random((old, old, 1)) < 0.5).astype(np.uint8)
    image[: old // 2] = 1 - image[: old - old // 2 - 1 : -1, ::-1]  # half of its pixels, or so
    rows = resample.Axis(old, new)
    weights = rows.weights(0, new).toarray().astype(int).astype(object)
    low, high = rows.source(0, new)
    sums = weights @ image[low:high, low:high, 0].astype(object) @ weights.T
    assert (weights.sum(1) == rows.total).all()
    strips = resample.resample_strips([image[:1], image[1:]], rows, rows)
    found = np.concatenate(list(strips))[..., 0]
    if old != new:
        np.testing.assert_array_equal(found, (sums / rows.total**2).astype(np.float32))
    np.testing.assert_array_equal(found > 0.5, 2 * sums > rows.total**2)
    raster = scaling.scaled(pictures.from_array(image), new / old)
    half_up = (2 * sums + rows.total**2) // (2 * rows.total**2)
    np.testing.assert_array_equal(raster.read(0, new, 0, new)[..., 0], half_up)


def test_pictures_give_png_and_bad_files_are_skipped(tmp_path):
    mask, roofs = draw_roofs(160, 6)
    picture = np.where(mask[..., None], (255, 40, 40), 0).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[:, :90]).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:150])
    write_raster(tmp_path / "d.tif", mask)
    (tmp_path / "d.tif").write_bytes((tmp_path / "d.tif").read_bytes()[:900])
    (tmp_path / "notes.txt").write_text("no image")
    paths = writing.find_images([str(tmp_path), str(tmp_path / "*.png")])
    assert [p.name for p in paths] == ["a.png", "b.png", "c.png", "d.tif"]
    out = tmp_path / "out"
    _, skipped = writing.predict_images(
        list(enumerate(paths, 5)), out, red, options=writing.Options(probabilities=True)
    )
    assert len(skipped) == 2 and "c.png" in skipped[0] and "d.tif" in skipped[1]
    assert all("\n" not in reason for reason in skipped)
    names = ["a.geojson", "a_mask.png", "a_probability.png", "b.geojson", "b_mask.png"]
    names += ["b_probability.png", "predicted.jsonl", "results.json"]
    assert sorted(p.name for p in out.iterdir()) == names
    with Image.open(out / "a_mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.where(mask, 255, 0))
    with Image.open(out / "a_probability.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.where(mask, 65535, 0))
    found = geopandas.read_file(out / "a.geojson")
    outlines = {shapely.box(left, top, right, bottom).area for top, left, bottom, right, _ in roofs}
    assert {shapely.Polygon(g.exterior).area for g in found.geometry} == outlines
    assert found.total_bounds[0] >= 0 and found.total_bounds[3] <= 160  # in pixels, y down
    assert {result["image_id"] for result in json.loads((out / "results.json").read_text())} == {
        5, 6,
    }  # fmt: skip


def test_files_of_an_image_that_is_skipped_now_are_told_of(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40), "red").save(tmp_path / name)
    images, out = [(1, tmp_path / "a.png"), (2, tmp_path / "b.png")], tmp_path / "out"
    assert writing.predict_images(images, out, red) == (2, [])
    before = sorted(out.glob("b*"))
    assert capsys.readouterr().err == ""
    (tmp_path / "b.png").write_bytes(b"no image")
    objects, (reason,) = writing.predict_images(images, out, red)
    assert objects == 1 and "b.png" in reason
    note = "2 files of an earlier call stay (b.geojson): their images were skipped now"
    assert note in capsys.readouterr().err
    assert sorted(out.glob("b*")) == before and len(before) == 2
    assert len(json.loads((out / "results.json").read_text())) == 1


def test_a_name_that_is_no_text_is_said_to_be_one(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.png")
    Image.new("RGB", (40, 40), "red").save(path)
    _, (reason,) = writing.predict_images([(1, path)], tmp_path / "out", red)
    assert "the bytes of its name are no UTF-8; rename it" in reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_leaves_complete_files_only(tmp_path, number):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((160, 160, 3), 200, np.uint8)).save(tmp_path / name)
    out = tmp_path / "out"
    script = (
        "import pathlib, time\n"
        "from tvjax import program\nfrom tvjax.inference import writing\n"
        "calls = []\n"
        "def slow(images):\n"
        "    calls.append(images)\n"
        "    if len(calls) == 2: print('half', flush=True); time.sleep(1)\n"
        "    return images[..., :1]\n"
        "def main(argv):\n"
        f"    paths = writing.find_images([{str(tmp_path)!r}])\n"
        f"    writing.predict_images([*enumerate(paths, 1)], pathlib.Path({str(out)!r}), slow)\n"
        "program.run(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    left = sorted(p.name for p in out.iterdir())
    if number == signal.SIGTERM:
        assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
        assert left == ["a.geojson", "a_mask.png", "predicted.jsonl"]
    else:
        assert len(left) == 4 and left[0].startswith(".results.json.building-")
    images = [*enumerate(writing.find_images([str(tmp_path)]), 1)]
    writing.predict_images(images, out, red)
    names = [
        "a.geojson",
        "a_mask.png",
        "b.geojson",
        "b_mask.png",
        "predicted.jsonl",
        "results.json",
    ]
    assert sorted(p.name for p in out.iterdir()) == names


@pytest.mark.parametrize(
    "name", ["a.geojson", "a_mask.png", "a_mask.tif", "a_probability.png", "results.json"]
)
def test_what_is_of_something_else_is_not_replaced(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    for image in "ab":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{image}.png")
    (out / name).write_text("by hand")
    if name != "results.json":
        (out / "results.json").write_text("[]")  # perhaps of another program
    images = [(1, tmp_path / "a.png")]
    with pytest.raises(UserError, match=r"holds .*, which is of something else \(predicted.jsonl"):
        writing.predict_images(images, out, red)
    assert (out / name).read_text() == "by hand" and len([*out.iterdir()]) <= 2
    for file in out.iterdir():
        file.unlink()
    for probabilities in (False, True, False):
        options = writing.Options(probabilities=probabilities)
        writing.predict_images(images, out, red, options=options)  # its own
        assert (out / "a_probability.png").exists() == probabilities
    (out / "b.geojson").write_text("by hand")
    both = [*images, (2, tmp_path / "b.png")]
    with pytest.raises(UserError, match=r"holds b\.geojson, which is of something else"):
        writing.predict_images(both, out, red)
    (out / "b.geojson").unlink()
    kept = (out / "results.json").read_bytes()
    with pytest.raises(UserError, match=r"results of other images \(a.geojson, of .*a.png\)"):
        writing.predict_images(both[1:], out, red)
    assert (out / "results.json").read_bytes() == kept
    writing.predict_images(both, out, red)
    (out / "a.geojson").write_text("by hand")
    with pytest.raises(UserError, match=r"a.geojson, which was changed since it was written"):
        writing.predict_images(both, out, red)
    (out / "a.geojson").unlink()
    writing.predict_images(both, out, red)
    (tmp_path / "other").mkdir()
    same_name = (tmp_path / "a.png").rename(tmp_path / "other" / "a.png")
    with pytest.raises(UserError, match=r"results of other images .* be lost; predict them"):
        writing.predict_images([(1, same_name), both[1]], out, red)
    same_name.rename(tmp_path / "a.png")
    for damaged in ("[]\n", "{\n", '{"file": 1}\n', "[" * 9999 + "\n", "\0\n", "1\n"):
        (out / "predicted.jsonl").write_text(damaged)
        with pytest.raises(UserError, match=r"predicted.jsonl cannot be read; name another --out"):
            writing.predict_images(both, out, red)


def test_an_error_of_any_kind_costs_one_image(tmp_path, monkeypatch):
    mask, roofs = draw_roofs(160, 6)
    for name in "ab":
        write_raster(tmp_path / f"{name}.tif", mask)

    def fail_once(polygon, height, width, image_id, category):
        if image_id == 1:
            raise OverflowError("too large\nby far")
        return {"image_id": image_id}

    monkeypatch.setattr(polygons, "coco_result", fail_once)
    images = [(1, tmp_path / "a.tif"), (2, tmp_path / "b.tif")]
    objects, skipped = writing.predict_images(images, tmp_path / "out", red)
    assert objects == len(roofs)
    assert skipped == [f"{tmp_path}/a.tif: OverflowError: too large"]
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == len(roofs)


def test_rasters_beyond_coco_s_codes_have_polygons_all_the_same(tmp_path, monkeypatch, capsys):
    mask, roofs = draw_roofs(160, 6)
    write_raster(tmp_path / "a.tif", mask)
    monkeypatch.setattr(polygons, "MOST_CODED", 160 * 160 - 1)
    out = tmp_path / "out"
    objects, skipped = writing.predict_images([(1, tmp_path / "a.tif")], out, red)
    assert (objects, skipped) == (len(roofs), [])
    assert "results.json lacks it" in capsys.readouterr().err
    assert len(geopandas.read_file(out / "a.geojson")) == len(roofs)
    assert json.loads((out / "results.json").read_text()) == []


@contextlib.contextmanager
def disk_of(size):
    """Files end there: to who writes it is what a full disk is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_full_disk_ends_the_run_in_one_line(tmp_path, name):
    mask = np.random.default_rng(0).random((200, 200)) < 0.5
    out, seen = tmp_path / "out", []
    for path in (tmp_path / name, tmp_path / f"b{name}"):
        if path.suffix == ".tif":
            write_raster(path, mask)
        else:
            Image.fromarray(np.where(mask[..., None], (255, 9, 9), 0).astype(np.uint8)).save(path)
    images = list(enumerate(writing.find_images([str(tmp_path)]), 1))

    def net(images):
        seen.append(1)
        return red(images)

    options = writing.Options(min_area=10**6)  # masks only
    for size in (0, 300, 5_000):
        seen.clear()
        with disk_of(size), pytest.raises(UserError, match=f"--out={out} cannot be written") as e:
            writing.predict_images(images, out, net, options=options)
        assert "\n" not in str(e.value) and len(seen) <= 1
        assert {path.name for path in out.glob("*")} <= {"a.geojson", "predicted.jsonl"}  # complete


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_ground_control_points_are_a_georeference(tmp_path):
    mask, roofs = draw_roofs(160, 6)
    write_raster(tmp_path / "a.tif", mask)
    with rasterio.open(tmp_path / "a.tif") as file:
        transform, pixels = file.transform, file.read()

    x, y = TOP_LEFT

    def write(path, moved=0.0, **options):
        points = [
            GroundControlPoint(r, c, x + (c + moved * (r > 0 and c > 0)) * METRES, y - r * METRES)
            for r in (0, 160)
            for c in (0, 80, 160)
        ]
        with rasterio.open(
            path, "w", driver="GTiff", height=160, width=160, count=4, dtype="uint8",
            crs="EPSG:32633", **(options or {"gcps": points}),
        ) as file:  # fmt: skip
            file.write(pixels)

    write(tmp_path / "b.tif")
    write(tmp_path / "c.tif", moved=8.0)
    write(tmp_path / "d.tif", transform=rasterio.Affine.identity())
    images = list(enumerate(writing.find_images([str(tmp_path)]), 1))
    out = tmp_path / "out"
    _, skipped = writing.predict_images(images, out, red)
    assert len(skipped) == 1 and "c.tif" in skipped[0] and "gdalwarp" in skipped[0]
    for name in "ab":
        found = geopandas.read_file(out / f"{name}.geojson")
        assert found.crs.to_epsg() == 32633
        wanted = {expected_outline(roof).wkt for roof in roofs}
        assert {shapely.set_precision(g, 1e-3).normalize().wkt for g in found.geometry} == wanted
        with rasterio.open(out / f"{name}_mask.tif") as file:
            assert file.crs.to_epsg() == 32633 and file.transform.almost_equals(transform, 1e-6)
    # A CRS without a transform says nothing: its polygons are in pixels, and must not claim it.
    assert "crs" not in json.loads((out / "d.geojson").read_text())
    with rasterio.open(out / "d_mask.tif") as file:
        assert file.crs is None and file.transform.is_identity


def test_results_have_the_category_of_the_coco_file(tmp_path):
    mask, _ = draw_roofs(160, 6)
    write_raster(tmp_path / "a.tif", mask)
    file = tmp_path / "coco.json"
    content = {"images": [{"id": 7, "file_name": "a.tif", "height": 160, "width": 160}]}

    def choose(*numbers, chosen=None):
        content["categories"] = [{"id": number, "name": f"kind {number}"} for number in numbers]
        file.write_text(json.dumps(content))
        return coco.choose_category(file, chosen)

    assert (choose(), coco.choose_category(None), coco.choose_category(None, 5)) == (1, 1, 5)
    assert choose(3, 100, chosen=100) == 100
    with pytest.raises(UserError, match=r"3 \(kind 3\), 100 \(kind 100\).*--category"):
        choose(3, 100)
    with pytest.raises(UserError, match=r"100 \(kind 100\); choose one by --category=ID"):
        choose(3, 100, chosen=99)
    for number in ("1_0", "10", 7.0, True):
        with pytest.raises(UserError, match=r"its list 'categories' is malformed"):
            choose(number)
    with pytest.raises(UserError, match=r"--category=-5 must be a COCO category, 0 to 2"):
        coco.choose_category(None, -5)
    for number in (7.9, "7", True, 10**30, None):
        images = [{"id": number, "file_name": "a.tif"}]
        file.write_text(json.dumps({"images": images}))
        with pytest.raises(UserError, match=r"is no COCO file with images \(id .* no integer"):
            writing.number_images([tmp_path / "a.tif"], str(file))
    options = writing.Options(category=choose(100))
    images = writing.number_images([tmp_path / "a.tif"], str(file))
    writing.predict_images(images, tmp_path / "out", red, options=options)
    content["annotations"] = [
        {
            "id": k, "image_id": 7, "category_id": 100, "iscrowd": 0, "bbox": [0, 0, 1, 1],
            "segmentation": result["segmentation"], "area": result["area"],
        }
        for k, result in enumerate(json.loads((tmp_path / "out/results.json").read_text()), 1)
    ]  # fmt: skip
    file.write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools
        truth = COCO(file)
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "out/results.json")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_a_large_png_that_was_cut_off_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "WHOLE", 0)
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-8])
    with pytest.raises(UserError, match="cut off"), pictures.open_raster(tmp_path / "b.png"):
        pass


def test_without_the_extra_pictures_work_and_maps_say_what_is_missing(tmp_path, monkeypatch):
    mask, roofs = draw_roofs(160, 6)
    Image.fromarray(np.where(mask[..., None], (255, 9, 9), 0).astype(np.uint8)).save(
        tmp_path / "a.png"
    )
    write_raster(tmp_path / "b.tif", mask)
    for name in ("rasterio", "shapely"):
        monkeypatch.setitem(sys.modules, name, None)
    images = [(1, tmp_path / "a.png"), (2, tmp_path / "b.tif")]
    objects, skipped = writing.predict_images(images, tmp_path / "out", red)
    assert objects == len(roofs)
    assert len(skipped) == 1 and "b.tif" in skipped[0] and "tvjax[geo]" in skipped[0]
    with pytest.raises(UserError, match=r"shapely.*tvjax\[geo\]"):
        options = writing.Options(simplify=1.0)
        writing.predict_images(images, tmp_path / "out", red, options=options)


def test_one_file_named_twice_is_one_image(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    names = [".", str(tmp_path), "a.png", str(tmp_path / "..") + f"/{tmp_path.name}/*.png"]
    assert writing.find_images(names) == [Path("a.png")]


@pytest.mark.parametrize(
    "names",
    [("a/1.png", "b/1.png"), ("1.png", "1.tif"), ("e\u0301.png", "\u00e9.png"), ("a.png", "A.png")],
)
def test_images_whose_results_would_overwrite_each_other_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="under the same name") as error:
        writing.find_images([str(tmp_path / name) for name in names])
    assert all(name in str(error.value) for name in names) and "\n" not in str(error.value)


def test_ids_of_images_are_those_of_their_whole_names(tmp_path, capsys):
    def number(path, *names):
        records = [{"id": 10 + k, "file_name": name} for k, name in enumerate(names)]
        (tmp_path / "A.json").write_text(json.dumps({"images": records}))
        paths = [tmp_path / name for name in ([path] if isinstance(path, str) else path)]
        numbered = writing.number_images(paths, str(tmp_path / "A.json"))
        assert [p for _, p in numbered] == paths
        return [n for n, _ in numbered]

    both = ("a/1.png", "b/1.png")
    assert number("a/1.png", *both) == [10] and number("b/1.png", *both) == [11]
    assert number("x/b/1.png", "1.png", "a/1.png") == [10]
    assert number("a/1.png", "1.png", "a/1.png") == [11]
    assert number("\u00e9.png", "e\u0301.png") == [10]
    assert not capsys.readouterr().err
    assert number("b/1.png", "a/1.png") == [10]
    assert "b/1.png as a/1.png" in capsys.readouterr().err
    for path, names, words in (
        ("c/1.png", both, r"ids 10 \(a/1.png\) and 11 \(b/1.png\)"),
        ("a/1.png", ("a/1.png", "./a/1.png"), "twice"),
        (both, ("x/1.png",), r"id 10 would be that of \S+a/1.png and of \S+b/1.png"),
    ):
        with pytest.raises(UserError, match=words) as error:
            number(path, *names)
        assert "\n" not in str(error.value)


def test_images_of_another_size_than_declared_are_skipped(tmp_path):
    """COCO's codes of masks are for the size that the file declares."""
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (40, 32)).save(tmp_path / name)
    kinds = [{"height": 32, "width": 40}, {"height": 16, "width": 20}, {"height": 0, "width": 0}]
    images = [{"id": k, "file_name": f"{'abc'[k]}.png", **size} for k, size in enumerate(kinds)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images}))
    places = writing.find_images([str(tmp_path / "*.png")])
    numbered = writing.number_images(places, str(tmp_path / "coco.json"))
    declared = writing.declared_sizes(str(tmp_path / "coco.json"))
    assert declared == {0: (32, 40), 1: (16, 20)} and writing.declared_sizes(None) == {}
    _, skipped = writing.predict_images(numbered, tmp_path / "out", red, declared=declared)
    (told,) = skipped
    assert "b.png: is 40x32 pixels, but --annotations declare 20x16 for image id 1" in told


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        writing.find_images([str(tmp_path / "nothing*.tif")])
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(UserError, match="same name"):
        writing.find_images([str(tmp_path)])
    with pytest.raises(UserError, match=r"a\.tif: cannot be read .No such file"):
        pictures.read_image(tmp_path / "a.tif")
    with pytest.raises(UserError, match="--tile=100"):
        tiles.choose_tiling({(9, 9)}, red, 100)
    (tmp_path / "coco.json").write_text('{"images": [{"id": 3, "file_name": "x/a.png"}]}')
    numbered = writing.number_images([tmp_path / "a.png"], str(tmp_path / "coco.json"))
    assert numbered == [(3, tmp_path / "a.png")]
    with pytest.raises(UserError, match="no image of this name"):
        writing.number_images([tmp_path / "b.png"], str(tmp_path / "coco.json"))
    with rasterio.open(
        tmp_path / "deep.tif", "w", driver="GTiff", height=8, width=8, count=1, dtype="uint16",
        transform=rasterio.Affine.scale(2),
    ):  # fmt: skip
        pass
    with (
        pytest.raises(UserError, match="uint16"),
        pictures.open_raster(tmp_path / "deep.tif"),
    ):
        pass


def test_a_threshold_is_a_probability(tmp_path):
    flags = "--workdir=x", "--images=x", "--threshold=50"
    result = use("predict", *flags, f"--out={tmp_path}")
    assert result.returncode == 2
    assert result.stderr == "error: --threshold=50.0 must be a probability, at most 1\n"


def test_two_predictions_at_once_do_not_mix(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    images, out = [(1, tmp_path / "a.png")], tmp_path / "out"

    def net(tiles):
        with pytest.raises(UserError, match="is in use by another prediction; wait for it"):
            writing.predict_images(images, out, red)
        return red(tiles)

    writing.predict_images(images, out, net)
    names = {"a.geojson", "a_mask.png", "predicted.jsonl", "results.json"}
    assert {path.name for path in out.iterdir()} == names


def test_what_is_changed_beside_a_prediction_is_not_taken_for_its_own(tmp_path):
    for name in "ab":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    images, out = [(1, tmp_path / "a.png"), (2, tmp_path / "b.png")], tmp_path / "out"
    writing.predict_images(images, out, red)
    calls = []

    def edits(tiles):
        calls.append(1)
        if len(calls) == 2:  # a is whole, b is under way
            (out / "a.geojson").write_text("by hand")
        return red(tiles)

    def is_ended(tiles):
        raise KeyboardInterrupt

    writing.predict_images(images, out, edits)
    with pytest.raises(UserError, match=r"a\.geojson, which was changed since it was written"):
        writing.predict_images(images, out, red)
    (out / "a.geojson").unlink()
    writing.predict_images(images, out, red)
    with pytest.raises(KeyboardInterrupt):
        writing.predict_images(images, out, is_ended)
    (out / "b.geojson").write_text("by hand")
    with pytest.raises(UserError, match=r"b\.geojson, which was changed since it was written"):
        writing.predict_images(images, out, red)
    new = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        writing.predict_images(images, new, is_ended)
    assert not new.exists()
    with open(out / "predicted.jsonl", "a") as file:
        file.write('{"file": "b.geo')  # cut off by a kill
    (out / "b.geojson").unlink()
    writing.predict_images(images, out, red)
