"""What tiles know of how sharp their images were, and what prediction makes of it."""

import json

import numpy as np
import pytest
from PIL import Image

from tvjax.data import builder, manifest, origins, sets, sharpness
from tvjax.errors import UserError
from tvjax.inference import writing
from tvjax.inference.scales import Scales
from tvjax.scoring.examples import Examples
from tvjax.training import rundir


def write_set(folder, sides=(24,) * 12, **georeference):
    """Square images with a red square each, as a COCO file says; with a place on a map GeoTIFFs."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for k, side in enumerate(sides):
        pixels = np.random.default_rng(k).integers(0, 99, (side, side, 3), np.uint8)
        pixels[4:12, 4:12] = 250, 0, 0
        name = f"{k}.{'tif' if georeference else 'png'}"
        if georeference:
            import rasterio

            with rasterio.open(
                folder / "images" / name, "w", driver="GTiff", height=side, width=side, count=3,
                dtype="uint8", photometric="RGB", **georeference,
            ) as file:  # fmt: skip
                file.write(np.moveaxis(pixels, -1, 0))
        else:
            Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": k, "file_name": name, "height": side, "width": side})
        square = [4, 4, 12, 4, 12, 12, 4, 12]
        annotations.append({"id": k, "image_id": k, "segmentation": [square]})
    content = {"images": images, "annotations": annotations}
    (folder / "a.json").write_text(json.dumps(content))
    return origins.Images(folder / "a.json", folder / "images")


def known(origin, out, size):
    builder.build_from(origin, out, size=size, progress=False)
    return sets.identify(sets.open_prepared(out), None)


def test_tiles_that_were_shrunk_say_by_how_much(tmp_path):
    origin = write_set(tmp_path / "a")
    assert known(origin, tmp_path / "small", 8)["scale"] == [8 / 24, 8 / 24]
    assert "scale" not in known(origin, tmp_path / "same", 24)
    mixed = write_set(tmp_path / "b", (24, 36) * 6)
    assert known(mixed, tmp_path / "mixed", 12)["scale"] == [12 / 36, 12 / 24]
    assert "resolution" not in manifest.read_request(tmp_path / "mixed")


def test_tiles_of_images_on_a_map_know_their_metres(tmp_path, capsys):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(0.3, 0, 5e5, 0, -0.3, 5.4e6)
    origin = write_set(tmp_path / "a", crs="EPSG:32633", transform=place)
    assert known(origin, tmp_path / "small", 8)["resolution"] == pytest.approx(0.9)
    # Files of 24 pixels and of 36 that were shrunk to the same size differ too much for one number.
    mixed = write_set(tmp_path / "b", (24, 36) * 6, crs="EPSG:32633", transform=place)
    assert "resolution" not in known(mixed, tmp_path / "mixed", 12)
    assert "tiles have 0.6 to 0.9 metres per pixel on the ground" in capsys.readouterr().err


def test_tiles_that_are_cut_know_their_metres(tmp_path):
    pytest.importorskip("rasterio")
    pytest.importorskip("pyogrio")
    import towns

    from tvjax.data.vector import Request, Scenes

    shapes = towns.roofs(200, 200)
    towns.write_tif(tmp_path / "town.tif", 200, 200, shapes)
    towns.write_geojson(tmp_path / "roofs.geojson", list(map(towns.in_degrees, shapes)))
    request = Request([str(tmp_path / "town.tif")], tmp_path / "roofs.geojson", 32)
    found = known(Scenes(request), tmp_path / "out", 32)
    assert found["resolution"] == pytest.approx(towns.METRES, rel=1e-9) and "scale" not in found


def test_a_run_gives_its_scale_or_says_that_it_is_damaged(tmp_path):
    kept = {"sha256": "0", "directory": None}
    for scale, expected in ((None, None), ([0.25, 0.5], (0.25, 0.5))):
        (tmp_path / "tiles.json").write_text(json.dumps(kept | {"scale": scale}))
        assert rundir.read_scale_of(tmp_path) == expected
    for wrong in (0.5, [0.5], [0, 1], ["a", 1], [1, 2]):
        (tmp_path / "tiles.json").write_text(json.dumps(kept | {"scale": wrong}))
        with pytest.raises(UserError, match="damaged"):
            rundir.read_scale_of(tmp_path)


def test_a_run_that_does_not_know_its_tiles_says_so(tmp_path, capsys):
    assert rundir.read_scales(tmp_path, None) == Scales()
    assert "has no tiles.json" in capsys.readouterr().err
    assert rundir.read_scales(tmp_path, 0.5) == Scales(0.5) and not capsys.readouterr().err
    (tmp_path / "tiles.json").write_text('{"sha256": "0", "directory": null, "resolution": 0.6}')
    assert rundir.read_scales(tmp_path, None).resolution == 0.6
    assert not capsys.readouterr().err


def test_a_note_gives_the_scale_of_shrunk_tiles(tmp_path, capsys):
    def red(images):
        return np.asarray(images)[..., :1]

    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    for scales, words in (
        (Scales(shrunk=(64 / 300, 64 / 300)), ["give --scale=0.2133 "]),
        (Scales(shrunk=(0.25, 0.5)), ["give --scale=0.25 to 0.5 "]),
        (Scales(resolution=0.6, shrunk=(0.5, 0.5)), ["0.6 metres", "give --scale=0.5 "]),
        (Scales(), []),
    ):
        writing.predict_images(
            [(1, tmp_path / "a.png")], tmp_path / "out", red, options=writing.Options(scales)
        )
        told = capsys.readouterr().err
        assert all(word in told for word in words) and told.count("note: ") == len(words)
    assert "0.3333" in sharpness.advise((1 / 3, 1 / 3))


def test_scoring_scales_each_image_as_prediction_does(tmp_path):
    """The images of one file may have different metres per pixel, and runs other resolutions."""
    pytest.importorskip("rasterio")
    from rasterio import Affine

    for folder, metres in (("a", 0.3), ("b", 0.6), ("c", None)):
        place = (
            {"crs": "EPSG:32633", "transform": Affine(metres, 0, 5e5, 0, -metres, 5.4e6)}
            if (metres)
            else {}
        )
        write_set(tmp_path / folder, sides=(24,), **place)
    (tmp_path / "images").mkdir()
    names = [next((tmp_path / f / "images").iterdir()) for f in "abc"]
    records = []
    for k, name in enumerate(names):
        (tmp_path / "images" / f"{k}{name.suffix}").write_bytes(name.read_bytes())
        records.append({"id": k, "file_name": f"{k}{name.suffix}", "height": 24, "width": 24})
    (tmp_path / "a.json").write_text(json.dumps({"images": records, "annotations": []}))
    examples = Examples.of_coco(tmp_path / "a.json", tmp_path / "images")
    for metres, expected in ((0.9, [1 / 3, 2 / 3, 1]), (0.3, [1, 2, 1])):
        scales, told = examples.scales(Scales(resolution=metres))
        assert scales == pytest.approx(expected)
        assert [words.partition(" has no place")[0] for words in told] == ["1 image"]
    assert examples.scales(Scales(0.5)) == ([0.5] * 3, [])


@pytest.mark.parametrize("place", [1e9, 5e5])
def test_an_image_that_cannot_be_scaled_is_named_with_what_to_do(tmp_path, place, capsys):
    rasterio = pytest.importorskip("rasterio")

    metres = 0.3 if place > 1e6 else 300.0
    where = {"crs": "EPSG:32633", "transform": rasterio.Affine(metres, 0, place, 0, -metres, place)}
    write_set(tmp_path, sides=(24,), **where)
    options = writing.Options(Scales(resolution=0.6))
    path = tmp_path / "images" / "0.tif"
    _, skipped = writing.predict_images(
        [(1, path)], tmp_path / "out", lambda images: images[..., :1], options=options
    )
    words = "its coordinates cannot be converted" if place > 1e6 else "has 300 metres per pixel"
    assert skipped[0].startswith(f"{path}: {words}"), skipped
    assert skipped[0] in capsys.readouterr().err
    examples = Examples.of_coco(tmp_path / "a.json", tmp_path / "images")
    with pytest.raises(UserError, match=words):
        examples.scales(Scales(resolution=0.6))
