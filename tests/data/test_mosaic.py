"""Map tiles as images on the map: pixels, places, holes, and mistakes named."""

import math

import numpy as np
import pytest
from PIL import Image

rasterio = pytest.importorskip("rasterio")
import towns  # noqa: E402

from tvjax.data import builder, mosaic, records, splits  # noqa: E402
from tvjax.data.vector import Request, Scenes  # noqa: E402
from tvjax.errors import UserError  # noqa: E402
from tvjax.inference import writing  # noqa: E402

ZOOM, LEFT, TOP, SIDE = 17, 70_000, 45_000, 32
PIXELS = np.random.default_rng(0).integers(0, 256, (3 * SIDE, 4 * SIDE, 3)).astype(np.uint8)


def write(folder, name="{z}/{x}/{y}.png", *, tms=False, holes=(), zoom=ZOOM, left=LEFT, top=TOP):
    """The pixels, cut into tiles of the names; holes are columns and rows that are missing."""
    for row in range(3):
        for column in range(4):
            if (column, row) in holes:
                continue
            x, y = left + column, top + row
            y = 2**zoom - 1 - y if tms else y
            file = folder / name.format(z=zoom, x=x, y=y)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = PIXELS[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
            Image.fromarray(part).save(file)
    return folder


def degrees(x, y, zoom):
    """Longitude and latitude of a tile's corner, by the formula of slippy maps."""
    lat = math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / 2**zoom))))
    return x / 2**zoom * 360 - 180, lat


NAMES = ("{z}/{x}/{y}.png", "town-{x}-{y}-{z}.png", "town_{z}_{x}_{y}.png", "{x}-{y}-{z}@2x.webp")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tms", [False, True])
def test_tiles_are_one_image_where_they_lie(tmp_path, name, tms):
    folder = write(tmp_path / "survey", name.replace("webp", "png"), tms=tms)
    [one], words = mosaic.find(folder, is_tms=tms)
    assert "12 map tiles of zoom 17" in words and one.path.name == f"survey-{LEFT}-{TOP}-{ZOOM}"
    with one.open() as raster:
        whole = 0, raster.height, 0, raster.width
        np.testing.assert_array_equal(raster.read(*whole), PIXELS)
        assert raster.valid(*whole).all()
        window = 5, 70, 20, 101
        np.testing.assert_array_equal(raster.read(*window), PIXELS[5:70, 20:101])
        for column, row in ((0, 0), (4 * SIDE, 0), (SIDE, 2 * SIDE)):
            x, y = mosaic_place(raster, column, row)
            lon, lat = rasterio.warp.transform("EPSG:3857", "EPSG:4326", [x], [y])
            wanted = degrees(LEFT + column / SIDE, TOP + row / SIDE, ZOOM)
            np.testing.assert_allclose((lon[0], lat[0]), wanted, atol=1e-9)


def mosaic_place(raster, column, row):
    a, b, c, d, e, f = raster.transform[:6]
    return a * column + b * row + c, d * column + e * row + f


def test_a_folder_of_one_zoom_and_a_pyramid(tmp_path):
    write(tmp_path / "survey")
    write(tmp_path / "survey", zoom=ZOOM - 1, left=LEFT // 2, top=TOP // 2)
    [one], words = mosaic.find(tmp_path / "survey")
    assert one.zoom == ZOOM and "coarser zooms (16) left out" in words
    [other], _ = mosaic.find(tmp_path / "survey" / "16")
    assert other.zoom == ZOOM - 1 and other.rows == 3


def test_there_is_no_data_where_a_tile_is_missing(tmp_path):
    [one], _ = mosaic.find(write(tmp_path, holes=[(1, 1)]))
    with one.open() as raster:
        valid = raster.valid(0, raster.height, 0, raster.width)
        image = raster.read(0, raster.height, 0, raster.width)
    wanted = np.ones(valid.shape, bool)
    wanted[SIDE : 2 * SIDE, SIDE : 2 * SIDE] = False
    np.testing.assert_array_equal(valid, wanted)
    np.testing.assert_array_equal(image, PIXELS * wanted[..., None])


def test_parts_that_do_not_touch_are_images_of_their_own(tmp_path):
    write(tmp_path / "survey")
    write(tmp_path / "survey", left=LEFT + 9000)
    found, words = mosaic.find(tmp_path / "survey")
    assert sorted(one.left for one in found) == [LEFT, LEFT + 9000] and "are 2 images" in words
    assert len({one.path for one in found}) == 2


def test_other_folders_are_none(tmp_path):
    sets = ["a.png", "b.png"], ["a-1-2-3.png", "b.png"], ["a-1-2-3.png", "a-1-2-3.tif"], []
    for number, names in enumerate(sets):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"no")
        assert mosaic.find(folder) is None
    folder = tmp_path / "5" / "7"  # of numbered pictures, and no tiles 5/7/1
    folder.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    assert mosaic.find(folder) is None
    folder = write(tmp_path / "placed", "a-{x}-{y}-{z}.png")
    for file in list(folder.iterdir()):
        file.with_suffix(".pgw").write_text("0.5\n0\n0\n-0.5\n100\n200\n")
    assert mosaic.find(folder) is None


def test_mistakes_name_the_file(tmp_path):
    folder = write(tmp_path / "survey")
    odd = folder / str(ZOOM) / str(LEFT + 1) / f"{TOP + 1}.png"
    Image.new("RGB", (16, 16)).save(odd)
    [one], _ = mosaic.find(folder)
    with one.open() as raster, pytest.raises(UserError, match=rf"{odd.name}: is 16x16 pixels, oth"):
        raster.read(0, 40, 0, 60)
    odd.write_bytes(b"\x89PNG\r\n\x1a\nno")
    with (
        one.open() as raster,
        pytest.raises(UserError, match=rf"{odd.name}: .*missing there is no"),
    ):
        raster.read(0, 40, 0, 60)
    Image.new("RGB", (16, 17)).save(folder / str(ZOOM) / str(LEFT) / f"{TOP}.png")
    with pytest.raises(UserError, match="is 16x17 pixels; map tiles are squares"):
        mosaic.find(folder)


def red(images):
    """A net that is right: the probability of a roof is its redness."""
    return np.asarray(images)[..., :1] > 0.9


def write_town(folder, shapes, degrees_of):
    """Map tiles of a town, red where the pixels' centres lie in roofs; and the pixels' count."""
    import shapely

    lon, lat = np.mean([s.centroid.coords[0] for s in degrees_of], axis=0)
    zoom, side = 19, 64
    x = int((lon + 180) / 360 * 2**zoom)
    y = int((1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**zoom)
    union = shapely.union_all(degrees_of)
    for column in range(x - 1, x + 3):
        for row in range(y - 1, y + 2):
            at = (np.arange(side) + 0.5) / side
            lons = (column + at) / 2**zoom * 360 - 180
            lats = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * (row + at) / 2**zoom))))
            inside = shapely.contains_xy(union, *np.meshgrid(lons, lats))
            noise = np.random.default_rng(row).integers(0, 90, (side, side, 3))
            image = np.where(inside[..., None], (255, 60, 60), noise)
            file = folder / str(zoom) / str(column) / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(file)


def test_a_perfect_net_finds_the_roofs_of_map_tiles(tmp_path):
    """Footprints across tiles' edges, in Web Mercator, within a pixel of the roofs."""
    shapely = pytest.importorskip("shapely")
    geopandas = pytest.importorskip("geopandas")
    shapes = towns.roofs(400, 500, every=60)
    in_degrees = [towns.in_degrees(shape) for shape in shapes]
    write_town(tmp_path / "survey", shapes, in_degrees)
    places = writing.find_images([str(tmp_path / "survey")])
    assert (
        writing.predict_images(
            writing.number_images(places, None), tmp_path / "out", red, tile=128
        )[1]
        == []
    )
    [file] = (tmp_path / "out").glob("*.geojson")
    found = geopandas.read_file(file)
    assert found.crs.to_epsg() == 3857
    with rasterio.open(file.with_name(file.stem + "_mask.tif")) as mask:
        assert mask.crs.to_epsg() == 3857 and mask.shape == (192, 256)
        box, pixel = shapely.box(*mask.bounds), mask.transform.a
    roofs = geopandas.GeoSeries(in_degrees, crs=4326).to_crs(3857)
    roofs = roofs[roofs.within(box)]
    assert len(roofs) >= 9
    for roof in roofs:
        near = found.geometry[found.intersects(roof)]
        assert len(near) == 1
        assert shapely.hausdorff_distance(near.iloc[0].exterior, roof.exterior) < 1.5 * pixel
        shift = np.subtract(near.iloc[0].centroid.coords[0], roof.centroid.coords[0])
        assert np.abs(shift).max() < 0.25 * pixel


def test_map_tiles_can_be_pictures(tmp_path):
    folder = write(tmp_path / "survey", "town-{x}-{y}-{z}.png")
    assert len(writing.find_images([str(folder)], as_map=False)) == 12
    assert len(writing.find_images([str(folder)])) == 1


@pytest.mark.parametrize("number", [0, 4])
def test_a_bad_map_tile_costs_the_tiles_that_need_it_alone(tmp_path, capsys, number):
    shapes = towns.roofs(400, 500, every=60)
    in_degrees = [towns.in_degrees(shape) for shape in shapes]
    write_town(tmp_path / "survey", shapes, in_degrees)
    towns.write_geojson(tmp_path / "roofs.geojson", in_degrees)
    asked = Request([str(tmp_path / "survey")], tmp_path / "roofs.geojson", 20, gap=4)
    counts = {}
    for name, is_bad in (("whole", False), ("bad", True)):
        if is_bad:
            sorted((tmp_path / "survey").rglob("*.png"))[number].write_bytes(b"")
        out = tmp_path / name
        builder.build_from(Scenes(asked), out, size=20, skip_bad=True, progress=False)
        found = [records.open_split(out, split) for split in splits.NAMES]
        counts[name] = {
            record["file"]
            for split in found
            for record in map(split.__getitem__, range(len(split)))
        }
    lost = counts["whole"] - counts["bad"]
    assert counts["bad"] < counts["whole"] and 4 < len(lost) <= 25  # of 64 pixels, in steps of 20
    told = capsys.readouterr().err
    assert f"1 image cannot be read whole: {len(lost)} of the tiles cut from them are left" in told


def test_tiles_for_training_are_cut_from_map_tiles(tmp_path):
    """Masks are red where the image is, across map tiles' edges; blocks of them are apart."""
    shapes = towns.roofs(400, 500, every=60)
    in_degrees = [towns.in_degrees(shape) for shape in shapes]
    write_town(tmp_path / "survey", shapes, in_degrees)
    towns.write_geojson(tmp_path / "roofs.geojson", in_degrees)
    asked = Request([str(tmp_path / "survey")], tmp_path / "roofs.geojson", 40, gap=8)
    builder.build_from(Scenes(asked), tmp_path / "out", size=40, progress=False)
    found = [
        record | {"split": name}
        for name in splits.NAMES
        for split in [records.open_split(tmp_path / "out", name)]
        for record in split.__getitems__(range(len(split)))
    ]
    assert len(found) > 10
    spots = []
    for record in found:
        is_red = np.all(record["image"] == (255, 60, 60), axis=-1)
        np.testing.assert_array_equal(record["mask"][..., 0], is_red)
        x, y = record["file"].rpartition("@x")[2].split("y")
        spots.append((int(x), int(y), record["split"]))
    for x, y, split in spots:
        for a, b, other in spots:
            assert split == other or max(abs(x - a), abs(y - b)) >= 48
    with pytest.raises(UserError, match=r"others now: 1 added \(images/19/1/1\.png"):
        extra = tmp_path / "survey" / "19" / "1"
        extra.mkdir()
        (extra / "1.png").write_bytes((next((tmp_path / "survey").rglob("*.png"))).read_bytes())
        builder.build_from(Scenes(asked), tmp_path / "out", size=40, progress=False)
    south = asked._replace(is_tms=True)
    with pytest.raises(UserError, match=r"no polygon lies in any image; .* --tms"):
        builder.build_from(Scenes(south), tmp_path / "new", size=40, progress=False)
