"""The way of a mapper: GeoTIFF of 16 bits and GeoJSON, tiles, training, polygons on the map."""

import json

import numpy as np
import pytest
from programs import use

geopandas = pytest.importorskip("geopandas")
shapely = pytest.importorskip("shapely")
rasterio = pytest.importorskip("rasterio")
import towns  # noqa: E402

from tvjax.inference import writing  # noqa: E402
from tvjax.inference.scales import Scales  # noqa: E402

HEIGHT, WIDTH, WHITE = 480, 640, 10_000


def ran(*command):
    result = use(*command)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Blue, green, red and infrared of 16 bits at 0.3 m; roofs in degrees, among other polygons."""
    folder = tmp_path_factory.mktemp("town")
    shapes = towns.roofs(HEIGHT, WIDTH, every=40)
    towns.write_tif(folder / "rgb.tif", HEIGHT, WIDTH, shapes)
    with rasterio.open(folder / "rgb.tif") as file:
        red, green, blue = (file.read() * (WHITE / 255)).astype(np.uint16)
        place = file.transform
    with rasterio.open(
        folder / "town.tif", "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=4,
        dtype="uint16", crs=towns.UTM, transform=place, photometric="MINISBLACK",
    ) as file:  # fmt: skip
        file.write(np.stack([blue, green, red, green]))
    (folder / "rgb.tif").unlink()
    degrees = [towns.in_degrees(shape) for shape in shapes]
    trees = [towns.in_degrees(shapely.affinity.translate(s, 5, 5)) for s in shapes[:9]]
    features = [
        {"type": "Feature", "properties": {"kind": kind}, "geometry": shapely.geometry.mapping(s)}
        for kind, group in (("roof", degrees), ("tree", trees))
        for s in group
    ]
    content = {"type": "FeatureCollection", "features": features}
    (folder / "roofs.geojson").write_text(json.dumps(content))
    return folder, shapes


@pytest.fixture(scope="module")
def run(town):
    """A run of two steps on tiles of 0.6 m per pixel."""
    folder, _ = town
    result = ran(
        "data.prepare", f"--labels={folder}/roofs.geojson", "--where=kind=roof",
        f"--images={folder}/town.tif", f"--out={folder}/tiles", "--tile=32", "--resolution=0.6",
        "--gap=16", "--bands=3,2,1", f"--white={WHITE}",
    )  # fmt: skip
    assert "contact.png" in result.stdout
    ran(
        "main", "--config=configs/unet.py", f"--workdir={folder}/run",
        f"--config.data.directory={folder}/tiles", f"--config.data.cache={folder}/cache",
        "--config.train.steps=2", "--config.train.batch_size=4", "--config.model.width=2",
        "--config.model.depth=1", "--config.evaluation.every=2", "--config.evaluation.panels=0",
    )  # fmt: skip
    return folder / "run"


def test_a_run_predicts_images_as_its_tiles_were_read(town, run, tmp_path):
    """Neither bands, nor white, nor the scale is asked for again."""
    folder, _ = town
    flags = f"--workdir={run}", f"--out={tmp_path}/out", "--probabilities", "--denoise=0"
    report = json.loads(ran("predict", *flags, f"--images={folder}/town.tif").stdout)
    assert report["images"] == 1
    same = [*flags[:1], f"--out={tmp_path}/same", *flags[2:], "--scale=0.5", f"--white={WHITE}"]
    ran("predict", *same, f"--images={folder}/town.tif")
    maps = []
    for out in ("out", "same"):
        with (
            rasterio.open(tmp_path / out / "town_probability.tif") as file,
            rasterio.open(folder / "town.tif") as raw,
        ):
            assert (file.transform, file.crs, file.shape) == (raw.transform, raw.crs, raw.shape)
            maps.append(file.read(1))
    np.testing.assert_array_equal(*maps)
    # What the net saw: the tiles of training, which a net's own answer tells.
    kept = json.loads((run / "tiles.json").read_text())
    assert kept["resolution"] == 0.6
    assert kept["reading"] == {"bands": [3, 2, 1], "black": [0.0], "white": [WHITE]}


def red(images):
    """A net that is right: the probability of a roof is its redness."""
    return (np.asarray(images)[..., :1] - 0.35) / 0.65 > 0.5


@pytest.mark.parametrize("resolution", [None, 0.6])
def test_a_perfect_net_s_footprints_line_up_within_a_pixel(town, run, tmp_path, resolution):
    from tvjax.training import rundir

    folder, shapes = town
    reading, metres = rundir.read_images_of(run)
    assert metres == 0.6
    options = writing.Options(Scales(resolution=resolution), reading=reading)
    images = [(1, folder / "town.tif")]
    assert writing.predict_images(images, tmp_path, red, options=options, tile=128)[1] == []
    found = geopandas.read_file(tmp_path / "town.geojson")
    assert found.crs.to_epsg() == 32633 and len(found) == len(shapes)
    labels = geopandas.read_file(folder / "roofs.geojson").to_crs(32633)
    pixel = resolution or towns.METRES
    for roof in labels.geometry[labels.kind == "roof"]:
        near = found.geometry[found.intersects(roof)]
        assert len(near) == 1
        assert shapely.hausdorff_distance(near.iloc[0].exterior, roof.exterior) < 1.5 * pixel
        shift = np.subtract(near.iloc[0].centroid.coords[0], roof.centroid.coords[0])
        assert np.abs(shift).max() < 0.25 * pixel
