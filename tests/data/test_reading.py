"""Bands and bit depth: chosen once, for training, evaluation and prediction alike."""

import json

import numpy as np
import pytest
from PIL import Image

rasterio = pytest.importorskip("rasterio")
from rasterio.enums import ColorInterp  # noqa: E402

from tvjax.data import coco, gdal, manifest, pictures, reading  # noqa: E402
from tvjax.data.reading import Reading  # noqa: E402
from tvjax.errors import UserError  # noqa: E402
from tvjax.training import rundir  # noqa: E402

SIDE = 20
DEEP = np.random.default_rng(0).integers(0, 12_000, (5, SIDE, SIDE)).astype(np.uint16)


def write(path, bands, names=None, **options):
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=len(bands), dtype=bands.dtype,
        transform=rasterio.Affine(1, 0, 500_000, 0, -1, 0), crs="EPSG:32633", **options,
    ) as file:  # fmt: skip
        file.write(bands)
        if names:
            file.colorinterp = [ColorInterp[name] for name in names.split()]


def expected(bands, black, white):
    """The formula in the words of the documentation, one pixel at a time."""
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    for (row, column, k), _ in np.ndenumerate(out):
        value = float(DEEP[bands[k] - 1, row, column])
        share = (value - black[k]) / (white[k] - black[k])
        out[row, column, k] = round(255 * min(max(share, 0), 1))
    return out


def test_bands_of_16_bits_become_red_green_and_blue(tmp_path):
    write(tmp_path / "a.tif", DEEP)
    chosen = reading.parse("4,3,2", [300, 200, 100], [9000, 10_000, 11_000])
    found = pictures.read_image(tmp_path / "a.tif", chosen)
    wanted = expected((4, 3, 2), (300, 200, 100), (9000, 10_000, 11_000))
    assert np.abs(found.astype(int) - wanted).max() == 0
    one = pictures.read_image(tmp_path / "a.tif", reading.parse("5", white=[10_000]))
    np.testing.assert_array_equal(one, expected((5, 5, 5), (0, 0, 0), (10_000,) * 3))
    with pytest.raises(UserError, match=r"has 5 bands .* and not --bands=6,1,2"):
        pictures.read_image(tmp_path / "a.tif", reading.parse("6,1,2", white=[9]))
    with pytest.raises(UserError, match=r"choose three by --bands=1,2,3"):
        pictures.read_image(tmp_path / "a.tif", reading.parse(white=[9]))
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.descriptions = ("Blue", "Green", "Red ", "NIR", None)
    with pytest.raises(UserError, match=r"choose three by --bands=3,2,1"):
        pictures.read_image(tmp_path / "a.tif", reading.parse(white=[9]))
    with pytest.raises(UserError, match=r"16 bits per channel .* give it by --white=VALUE"):
        pictures.read_image(tmp_path / "a.tif", reading.parse("1,2,3"))


def test_colours_in_another_order_than_files_name_them_are_told_of_once(tmp_path, capsys):
    bands = DEEP[:3].astype(np.uint8)
    gdal._note_order.cache_clear()
    for name in "ab":
        write(tmp_path / f"{name}.tif", bands, "red green blue")
        found = pictures.read_image(tmp_path / f"{name}.tif", reading.parse("3,2,1"))
        np.testing.assert_array_equal(found, np.moveaxis(bands[::-1], 0, -1))
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "3,2,1 are taken for red, green and blue" in told
    assert "files name them blue, green, red" in told


def test_infrared_that_a_file_calls_alpha_can_be_chosen(tmp_path):
    """Zeros of the fourth band are then no places without data."""
    bands = np.random.default_rng(1).integers(0, 9, (4, SIDE, SIDE)).astype(np.uint8)
    write(tmp_path / "a.tif", bands, "red green blue alpha", nodata=7)
    with pictures.open_raster(tmp_path / "a.tif", reading.parse("4,1,2")) as raster:
        image, valid = pictures.read_whole(raster)
    np.testing.assert_array_equal(image, np.moveaxis(bands[[3, 0, 1]], 0, -1))
    np.testing.assert_array_equal(valid, np.any(bands[[3, 0, 1]] != 7, axis=0))
    with pictures.open_raster(tmp_path / "a.tif") as raster:
        valid = pictures.read_whole(raster)[1]
    known = np.any(bands[:3] != 7, axis=0) & (bands[3] > 0)
    np.testing.assert_array_equal(valid, known)  # nodata and alpha alike
    write(tmp_path / "b.tif", bands, "red green blue alpha")
    with pictures.open_raster(tmp_path / "b.tif") as raster:
        assert pictures.read_whole(raster)[1].mean() < 0.95


def test_bands_of_pictures_count_from_red(tmp_path):
    rgb = np.moveaxis(DEEP[:3] // 50, 0, -1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    found = pictures.read_image(tmp_path / "a.png", reading.parse("3,2,1", white=[77]))
    np.testing.assert_array_equal(found, rgb[..., ::-1])  # of 8 bits: white does not count
    one = pictures.read_image(tmp_path / "a.png", reading.parse("2"))
    np.testing.assert_array_equal(one, rgb[..., [1, 1, 1]])
    with pytest.raises(UserError, match=r"three bands at most, and has not --bands=4,3,2"):
        pictures.read_image(tmp_path / "a.png", reading.parse("4,3,2"))
    Image.fromarray(rgb[..., 0]).convert("P").save(tmp_path / "p.tif")
    with pytest.raises(UserError, match="has a palette and no bands"):
        pictures.read_image(tmp_path / "p.tif", reading.parse("1,1,1"))


@pytest.mark.parametrize(
    "flags, words",
    [
        (("red",), "--bands=red: give three numbers"),
        (("1,2",), "--bands=1,2: give three numbers from 1 on, or one"),
        (("0,1,2",), "from 1 on"),
        ((None, [5]), "--black=5.0: give --white too"),
        ((None, [5], [5]), r"--white=5.0 must be above --black=5"),
        ((None, [], [0]), "--white=0.0 must be positive and finite"),
        ((None, [], [float("nan")]), "--white=nan: must be finite"),
        ((None, [], [1, 2]), "--white is given 2 times; give it once, or 3"),
        (("1", [], [1, 2, 3]), "--white is given 3 times; give it once, or 1"),
    ],
)
def test_readings_that_cannot_be_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        reading.parse(*flags)


def test_a_run_keeps_how_its_images_were_read(tmp_path):
    chosen = reading.parse("4,3,2", [1], [2000, 3000, 4000])
    kept = {"sha256": "0", "directory": None, "reading": chosen.as_json(), "resolution": 0.3}
    (tmp_path / "tiles.json").write_text(json.dumps(kept))
    assert rundir.read_images_of(tmp_path) == (chosen, 0.3)
    assert reading.of_json(Reading().as_json(), "") == Reading()
    damages = {"black": [9e9]}, {"bands": [True, 3, 2]}, {"white": ["2"]}, {"bands": 4}
    for damage in damages:
        wrong = kept | {"reading": kept["reading"] | damage}
        (tmp_path / "tiles.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="damaged"):
            rundir.read_images_of(tmp_path)
    for size in (3, [9], [0, 9], [9, 9.0], {}):
        (tmp_path / "tiles.json").write_text(json.dumps(kept | {"size": size}))
        with pytest.raises(UserError, match=r"tiles\.json is damaged \(size="):
            rundir.read_size(tmp_path)
    (tmp_path / "tiles.json").write_text(json.dumps(kept | {"resolution": -1}))
    with pytest.raises(UserError, match="resolution=-1"):
        rundir.read_images_of(tmp_path)


def test_training_and_evaluation_read_a_coco_file_s_images_alike(tmp_path):
    """Tiles that were made with a reading hold what the images of that reading are."""
    from tvjax.data import builder, origins, records, sets, splits
    from tvjax.scoring.examples import Examples

    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for k in range(6):
        write(tmp_path / "images" / f"{k}.tif", np.roll(DEEP, k, axis=1))
        images.append({"id": k, "file_name": f"{k}.tif", "height": SIDE, "width": SIDE})
        square = [2, 2, 12, 2, 12, 12, 2, 12]
        annotations.append({"id": k, "image_id": k, "segmentation": [square]})
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(UserError, match=r"6 of 6 images cannot be used: .* --bands=1,2,3"):
        builder.build(file, tmp_path / "images", tmp_path / "out", size=SIDE, progress=False)
    chosen = reading.parse("4,3,2", white=[11_000])
    origin = origins.Images(file, tmp_path / "images", reading=chosen)
    builder.build_from(origin, tmp_path / "out", size=SIDE, progress=False)
    with pytest.raises(UserError, match="prepared with bands="):
        builder.build(file, tmp_path / "images", tmp_path / "out", size=SIDE, progress=False)
    opened = {name: records.open_split(tmp_path / "out", name) for name in splits.NAMES}
    made = {r["id"]: r["image"] for s in opened.values() for r in s.__getitems__(range(len(s)))}
    examples = Examples.of_coco(file, tmp_path / "images", reading=chosen)
    for k in range(6):
        np.testing.assert_array_equal(examples.get(k).image, made[k])
    np.testing.assert_array_equal(made[0], expected((4, 3, 2), (0, 0, 0), (11_000,) * 3))
    assert sets.identify(opened, None)["reading"] == chosen.as_json()
    asked = {"size": [SIDE, SIDE], "reading": chosen.as_json(), "resolution": pytest.approx(1.0)}
    assert manifest.read_request(tmp_path / "out") == asked
    assert coco.read(file, tmp_path / "images", reading=chosen)[0].reading == chosen
