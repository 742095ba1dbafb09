"""Large images and polygons on a map: pixels, coordinates, splits by place, and mistakes named."""

import itertools
import json
import os
import shutil
import sqlite3
import struct

import numpy as np
import pytest
from PIL import Image
from skimage.morphology import dilation

rasterio = pytest.importorskip("rasterio")
shapely = pytest.importorskip("shapely")
pyogrio = pytest.importorskip("pyogrio")
import towns  # noqa: E402

from tvjax.data import (  # noqa: E402
    builder,
    contact,
    pictures,
    places,
    records,
    scaling,
    splits,
    touching,
    vector_files,
)
from tvjax.data.vector import Request, Scenes  # noqa: E402
from tvjax.data.vector_files import Wanted  # noqa: E402
from tvjax.errors import UserError  # noqa: E402

HEIGHT, WIDTH, TILE = 260, 330, 48


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A GeoTIFF in UTM, its roofs in degrees, and the polygons."""
    folder = tmp_path_factory.mktemp("town")
    shapes = towns.roofs(HEIGHT, WIDTH)
    towns.write_tif(folder / "town.tif", HEIGHT, WIDTH, shapes)
    degrees = [towns.in_degrees(shape) for shape in shapes]
    towns.write_geojson(folder / "roofs.geojson", degrees, kinds=("yes", "no", "hut"))
    return folder, degrees


def build(folder, out, *, images=("town.tif",), labels="roofs.geojson", tile=TILE, **options):
    names = "split_file", "seed", "limit", "boundaries", "group"
    kept = {name: options.pop(name) for name in names if name in options}
    if "extent" in options:
        options["extent"] = folder / options["extent"]
    images = [str(folder / name) for name in images]
    origin = Scenes(Request(images, folder / labels, tile, **options))
    builder.build_from(origin, out, size=tile, progress=False, **kept)
    return {
        record["file"]: record | {"split": name}
        for name in splits.NAMES
        for split in [records.open_split(out, name)]
        for record in split.__getitems__(range(len(split)))
    }


def corner(name):
    """Row and column of a tile by its name."""
    x, y = name.rpartition("@x")[2].split("y")
    return int(y), int(x)


def truth(degrees, rows, columns, metres=towns.METRES, crs=towns.UTM):
    """What is roof by the pixels' centres, taken from the image's map to the labels'."""
    x = towns.TOP_LEFT[0] + (columns + 0.5) * metres
    y = towns.TOP_LEFT[1] - (rows + 0.5) * metres
    xs, ys = np.meshgrid(x, y)
    lon, lat = rasterio.warp.transform(crs, towns.DEGREES, xs.ravel(), ys.ravel())
    inside = shapely.contains_xy(shapely.union_all(degrees), lon, lat)
    return inside.reshape(xs.shape)


def test_tiles_hold_the_pixels_of_the_image_and_the_polygons(town, tmp_path):
    folder, degrees = town
    found = build(folder, tmp_path / "out")
    whole = pictures.read_image(folder / "town.tif")
    inside = truth(degrees, np.arange(HEIGHT), np.arange(WIDTH))
    assert len(found) >= 12
    for name, record in found.items():
        top, left = corner(name)
        window = slice(top, top + TILE), slice(left, left + TILE)
        np.testing.assert_array_equal(record["image"], whole[window])
        np.testing.assert_array_equal(record["mask"][..., 0], inside[window])


def test_a_resolution_is_metres_per_pixel(town, tmp_path):
    folder, degrees = town
    found = build(folder, tmp_path / "out", resolution=0.6, tile=24, gap=8)
    with pictures.open_raster(folder / "town.tif") as raster:
        small = scaling.scaled(raster, 0.5)
        whole = small.read(0, small.height, 0, small.width)
    inside = truth(degrees, np.arange(HEIGHT // 2), np.arange(WIDTH // 2), 0.6)
    for name, record in found.items():
        top, left = corner(name)
        window = slice(top, top + 24), slice(left, left + 24)
        np.testing.assert_array_equal(record["image"], whole[window])
        np.testing.assert_array_equal(record["mask"][..., 0], inside[window])


def test_heights_of_some_points_alone_do_not_matter(tmp_path):
    ring = [[1, 2, 9.0], [5, 2], [5, 7, None], [1, 2]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    content = {"type": "FeatureCollection", "features": [feature | {"properties": {}}]}
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    (found,) = vector_files.read(tmp_path / "a.geojson", vector_files.Wanted()).polygons
    assert list(found.exterior.coords) == [(1, 2), (5, 2), (5, 7), (1, 2)]


def test_metres_are_those_on_the_ground(tmp_path):
    """Web Mercator's are twice as long at 60 degrees north; those of UTM are taken as they are."""
    from tvjax.data import scenes

    for crs, transform, metres in (
        ("EPSG:3857", rasterio.Affine(1, 0, 0, 0, -1, 8_399_737.9), 0.5),
        ("EPSG:3857", rasterio.Affine(1, 0, 20_037_497.84, 0, -1, 8_399_737.9), 0.5),  # beyond 180
        ("EPSG:4326", rasterio.Affine(2e-5, 0, 10, 0, -1e-5, 60), 1.112),
        ("EPSG:32633", rasterio.Affine(0.25, 0, 500_000, 0, -0.25, 5_400_000), 0.25),
        ("EPSG:2263", rasterio.Affine(1, 0, 1_000_000, 0, -1, 200_000), 0.3048006),
    ):
        raster = pictures.Raster(
            tmp_path, 20, 20, lambda *_: None, transform, rasterio.CRS.from_string(crs)
        )
        assert scenes.metres_per_pixel(raster) == pytest.approx(metres, rel=2e-3), crs


def distance(one, two, tile):
    """Pixels between two tiles, 0 where they touch, less where they overlap."""
    return max(abs(a - b) for a, b in zip(one, two, strict=True)) - tile


def check_apart(found, gap, tile, offset):
    """Every two tiles of different splits are `gap` apart; `offset` places each image."""
    spots = [
        (np.add(corner(name), offset[name.partition("@")[0]]), record["split"])
        for name, record in found.items()
    ]
    nearest = min(
        distance(a, b, tile) for a, one in spots for b, two in spots if one != two
    )  # fmt: skip
    assert nearest >= gap


@pytest.mark.parametrize("seed", range(4))
def test_splits_are_apart(town, tmp_path, seed):
    found = build(town[0], tmp_path / "out", tile=24, gap=10, seed=seed)
    check_apart(found, 10, 24, {"town.tif": (0, 0)})
    assert {record["split"] for record in found.values()} == set(splits.NAMES)


def test_images_that_overlap_are_one_place(town, tmp_path):
    """A second image of the same ground, in other pixels, and one that lies beside both."""
    folder, _ = town
    shapes = towns.roofs(HEIGHT, WIDTH)
    offsets = {"town.tif": (0, 0), "late.tif": (101, 37), "east.tif": (0, WIDTH)}
    towns.write_tif(folder / "late.tif", 120, 130, shapes, corner=(101, 37), seed=1)
    towns.write_tif(folder / "east.tif", 120, 130, shapes, corner=(0, WIDTH), seed=2)
    found = build(folder, tmp_path / "out", images=tuple(offsets), tile=24, gap=10, keep_empty=True)
    check_apart(found, 10, 24, offsets)
    assert {name.partition("@")[0] for name in found} == set(offsets)


@pytest.mark.parametrize(
    "length, gap, block", [(500, 10, 3), (499, 0, 2), (64, 5, 1), (700, 9, None)]
)
def test_cuts_of_an_axis(length, gap, block):
    found = places.cut(length, 64, gap, block)
    starts = [start for start, _ in found]
    assert starts[0] == 0 and starts[-1] + 64 <= length and starts == sorted(set(starts))
    assert length - starts[-1] - 64 < max(32, gap + 32)
    for (one, a), (two, b) in itertools.pairwise(found):
        assert two - one >= 64 + gap if a != b else two - one <= 64
    assert places.cut(63, 64, gap, block) == []


def test_labels_of_three_formats_are_the_same(town, tmp_path):
    folder, _ = town
    frame = pytest.importorskip("geopandas").read_file(folder / "roofs.geojson")
    frame = frame[frame.geom_type == "Polygon"]
    frame.to_file(tmp_path / "roofs.shp")
    frame.to_crs(3857).to_file(tmp_path / "roofs.gpkg", layer="houses")
    frame.iloc[:3].to_file(tmp_path / "roofs.gpkg", layer="three")
    wanted = Wanted(vector_files.parse_where(["building=yes", "building=hut", "levels=1"]))
    one = vector_files.read(folder / "roofs.geojson", wanted)
    chosen = frame.building.isin(["yes", "hut"]) & (frame.levels == 1)
    assert 0 < len(one.polygons) == chosen.sum() < len(frame)
    for name, layer in (("roofs.shp", None), ("roofs.gpkg", "houses")):
        two = vector_files.read(tmp_path / name, wanted._replace(layer=layer))
        for a, b in zip(one.polygons, two.polygons, strict=True):
            assert shapely.hausdorff_distance(in_crs(a, one.crs, two.crs), b) < 1e-6
    with pytest.raises(UserError, match=r"has the layers 'houses', 'three'; choose one by --layer"):
        vector_files.read(tmp_path / "roofs.gpkg", wanted)


def in_crs(shape, one, two):
    return shapely.transform(
        shape, lambda points: np.stack(rasterio.warp.transform(one, two, *points.T), axis=1)
    )


def test_tiles_are_kept_where_labels_are_complete(town, tmp_path):
    folder, degrees = town
    x, y = towns.TOP_LEFT
    part = shapely.box(x, y - 150 * towns.METRES, x + 200 * towns.METRES, y)
    towns.write_geojson(folder / "part.geojson", [towns.in_degrees(part)])
    few = [s for s in degrees if towns_row(s) > 100]
    towns.write_geojson(folder / "few.geojson", few)
    options = {"labels": "few.geojson", "tile": 16, "gap": 2}
    inside = build(folder, tmp_path / "inside", extent="part.geojson", **options)
    corners = [corner(name) for name in inside]
    assert max(r for r, _ in corners) <= 134 and max(c for _, c in corners) <= 184
    assert any(record["mask"].max() == 0 for record in inside.values())
    touched = build(folder, tmp_path / "touched", **options)
    rows = np.array([corner(name)[0] for name in touched])
    assert rows.min() > 60
    every = build(folder, tmp_path / "every", keep_empty=True, **options)
    assert len(every) > len(touched) and min(corner(name) for name in every) == (0, 0)


def towns_row(shape):
    lon, lat = shape.centroid.coords[0]
    _, y = rasterio.warp.transform(towns.DEGREES, towns.UTM, [lon], [lat])
    return (towns.TOP_LEFT[1] - y[0]) / towns.METRES


def test_no_objects_and_no_tiles_where_there_is_no_data(town, tmp_path, capsys):
    folder, _ = town
    shapes = towns.roofs(HEIGHT, WIDTH)
    towns.write_tif(tmp_path / "town.tif", HEIGHT, WIDTH, shapes, nodata=0)
    with rasterio.open(tmp_path / "town.tif", "r+") as file:
        image = file.read()
        image[:, :, :110] = 0
        file.write(image)
    (tmp_path / "roofs.geojson").write_bytes((folder / "roofs.geojson").read_bytes())
    found = build(tmp_path, tmp_path / "out", tile=24, gap=8)
    assert "tiles are left out, since most of each has no data" in capsys.readouterr().err
    columns = {corner(name)[1] for name in found}
    assert columns and min(columns) >= 110 - 12
    for name, record in found.items():
        hole = max(0, 110 - corner(name)[1])
        assert not record["mask"][:, :hole].any()


def test_the_same_command_again_sees_what_changed(town, tmp_path):
    folder, degrees = town
    build(folder, tmp_path / "out")
    build(folder, tmp_path / "out")
    with pytest.raises(UserError, match="gap=32, now asked for 20"):
        build(folder, tmp_path / "out", gap=20)
    towns.write_geojson(tmp_path / "roofs.geojson", degrees[1:])
    with pytest.raises(UserError, match="other contents of annotations"):
        build(folder, tmp_path / "out", labels=tmp_path / "roofs.geojson")


def test_files_beside_an_image_count_as_a_part_of_it(town, tmp_path):
    """Such files may move an image on the map, or hide parts of it."""
    shutil.copytree(town[0], tmp_path / "town")
    build(tmp_path / "town", tmp_path / "out")
    beside = tmp_path / "town" / "town.tif.aux.xml"
    beside.write_text("<PAMDataset></PAMDataset>")
    build(tmp_path / "town", tmp_path / "out")  # statistics, as viewers write them
    build(tmp_path / "town", tmp_path / "new")
    beside.write_text("<PAMDataset> </PAMDataset>")
    with pytest.raises(UserError, match=r"others now: 1 changed \(images/.*\.tif\.aux\.xml\)"):
        build(tmp_path / "town", tmp_path / "new")


def test_splits_can_be_given_by_image(town, tmp_path, capsys):
    folder, _ = town
    shapes = towns.roofs(HEIGHT, WIDTH)
    lines = ["file,split"]
    for number, split in enumerate(splits.NAMES):
        towns.write_tif(tmp_path / f"{split}.tif", 100, 100, shapes, corner=(0, 110 * number))
        lines.append(f"{split}.tif,{split}")
    (tmp_path / "splits.csv").write_text("\n".join(lines))
    (tmp_path / "roofs.geojson").write_bytes((folder / "roofs.geojson").read_bytes())
    found = build(
        tmp_path, tmp_path / "out", images=(".",), tile=25, split_file=tmp_path / "splits.csv",
        keep_empty=True,
    )  # fmt: skip
    assert len(found) == 48
    assert all(name.startswith(record["split"]) for name, record in found.items())
    # Of the 16 tiles of val four lie 10 pixels beside train, and no tile of test is that near.
    told = capsys.readouterr().err
    assert "4 of the 32 tiles of val and test lie nearer than --gap to tiles of train" in told
    assert "train.tif@x75y0 (train) and val.tif@x0y0" in told and "neighbours" not in told
    with pytest.raises(UserError, match=r"--group=tif: joins the \d+ tiles, .* a pattern"):
        build(tmp_path, tmp_path / "no", images=(".",), tile=25, group="tif", keep_empty=True)


def collection(*features, **more):
    return json.dumps({"type": "FeatureCollection", "features": list(features), **more})


def square(lon=15.0, lat=48.75, **properties):
    ring = [[lon, lat], [lon + 1e-4, lat], [lon + 1e-4, lat + 1e-4], [lon, lat]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "properties": properties, "geometry": shape}


MISTAKES = {
    "no json": ("{", "is no GeoJSON, GeoPackage or Shapefile"),
    "a list": ("[1]", "no object with a 'type'"),
    "virtual": ("<OGRVRTDataSource/>", "is no GeoJSON, GeoPackage or Shapefile"),
    "address": ('"http://localhost/a.json"', "is no GeoJSON"),
    "deep": ("[" * 100_000, "is no GeoJSON, GeoPackage or Shapefile"),
    "coco": ('{"images": [], "annotations": []}', "is a COCO file; give it by --annotations"),
    "empty": (collection(), "holds no geometries"),
    "no features": ('{"type": "FeatureCollection", "features": 3}', "its 'features' are no list"),
    "no object": (collection(3), "feature 1 is no JSON object"),
    "no geometry": (collection(square() | {"geometry": None}), "none of its 1 features has a geo"),
    "points": (
        collection(square() | {"geometry": {"type": "Point", "coordinates": [1, 2]}}),
        r"has no polygons \(1 Point\); objects are areas",
    ),
    "half a ring": (
        collection(square() | {"geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]}}),
        "feature 1 has a malformed geometry",
    ),
    "no number": (collection(square(lon=float("inf"))), "feature 1 has coordinates that are no nu"),
    "other crs": (
        collection(square(), crs={"type": "link", "properties": {"href": "http://a/b"}}),
        "its crs is None, which is none by EPSG's number",
    ),
    "unknown crs": (
        collection(square(), crs={"properties": {"name": "EPSG:999999"}}),
        "EPSG:999999 is not known",
    ),
    "elsewhere": (
        collection(square(building="yes", lon=48.0, lat=15.0)),
        r"no polygon lies in any image; in EPSG:4326 the polygons span x 48 to 48\.0001, y 15 ",
    ),
    "metres without a crs": (
        collection(square(building="yes", lon=500_000.0, lat=5_400_000.0)),
        "these are no degrees, and a GeoJSON that names no crs is taken to be in degrees",
    ),
    "many points": (
        collection(square() | {"geometry": {"type": "Polygon", "coordinates": [
            [[15 + 1e-9 * k, 48.75] for k in range(1 << 18)] + [[15.1, 48.8], [15, 48.75]]
        ]}}), "feature 1 has more than 262144 points",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_in_labels_are_named(town, tmp_path, kind):
    text, words = MISTAKES[kind]
    (tmp_path / "roofs.geojson").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        build(town[0], tmp_path / "out", labels=tmp_path / "roofs.geojson")
    assert "\n" not in str(error.value) and str(tmp_path / "roofs.geojson") in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "where, words",
    [
        (["kind=yes"], r"has no attribute 'kind' \(--where\); there are 'building', 'levels'"),
        (["building=roof"], r"no feature has 'building=roof' .* are 'yes' \(\d+\), 'no' \(\d+\), "),
        (["building=yes", "levels=7"], "no feature has 'levels=7'"),
        (["=yes"], "--where==yes: give ATTRIBUTE=VALUE"),
        (["building", "building=yes"], "--where=building=yes: give ATTRIBUTE=VALUE"),
    ],
)
def test_conditions_that_nothing_meets_are_named(town, tmp_path, where, words):
    with pytest.raises(UserError, match=words):
        build(town[0], tmp_path / "out", where=where)


def test_mistakes_in_images_are_named(town, tmp_path):
    folder, _ = town
    shapes = towns.roofs(HEIGHT, WIDTH)
    towns.write_tif(tmp_path / "small.tif", 30, 30, shapes)
    towns.write_tif(tmp_path / "nowhere.tif", 60, 60, shapes, crs=None)
    towns.write_tif(tmp_path / "beyond.tif", 60, 60, shapes, crs="EPSG:4326")
    with rasterio.open(tmp_path / "beyond.tif", "r+") as file:
        file.transform = rasterio.Affine(1e-5, 0, 13, 0, -1e-5, 95)
    Image.new("RGB", (60, 60)).save(tmp_path / "plain.png")
    labels = folder / "roofs.geojson"
    for name, words in (
        ("small.tif", "is 30x30 pixels, smaller than --tile=48"),
        ("nowhere.tif", "its georeference names no coordinate system; give it one"),
        (
            "beyond.tif",
            r"beyond\.tif: its georeference is of latitude 94\.9997, and there are none",
        ),
        ("plain.png", "has no georeference, so that labels on a map cannot be placed"),
        ("none.tif", "none.tif: cannot be read"),
        (str(tmp_path / ".."), "holds no images"),
    ):
        with pytest.raises(UserError, match=words):
            build(tmp_path, tmp_path / "out", images=(name,), labels=labels)


def package(path, sql):
    """A GeoPackage of one layer that SQL makes."""
    with sqlite3.connect(path) as database:
        database.executescript(
            "CREATE TABLE gpkg_contents (table_name, data_type);"
            "CREATE TABLE gpkg_geometry_columns (table_name, column_name, srs_id);"
            "CREATE TABLE gpkg_spatial_ref_sys (srs_id, organization, organization_coordsys_id, "
            "definition);"
            "INSERT INTO gpkg_spatial_ref_sys VALUES (1, 'EPSG', 4326, '');"
            "INSERT INTO gpkg_contents VALUES ('a', 'features');"
            f"INSERT INTO gpkg_geometry_columns VALUES ('a', 'geom', 1); {sql}"
        )
    return path


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS geom FROM n"
PACKAGES = {
    "view": (f"CREATE VIEW a AS {ENDLESS};", "its layer 'a' is no table"),
    "nothing": ("", "its layer 'a' is no table"),
    "text": ("CREATE TABLE a (geom); INSERT INTO a VALUES ('POINT');", "row 1 has no geometry of"),
    "cut off": (
        "CREATE TABLE a (geom); INSERT INTO a VALUES (x'4750000100000000');", "row 1 has a malform"
    ),
    "no column": ("CREATE TABLE a (b);", "has no column of geometries"),
    **{
        f"{name} in a view": (
            f"CREATE TABLE a (geom); ALTER TABLE {name} RENAME TO b;"
            f"CREATE VIEW {name} AS SELECT * FROM b;",
            f"its '{name}' is no table",
        )
        for name in ("gpkg_contents", "gpkg_geometry_columns", "gpkg_spatial_ref_sys")
    },
    "two layers": ("INSERT INTO gpkg_contents VALUES ('b', 'features');", "the layers 'a', 'b'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_geopackage_of_anybody(tmp_path, kind):
    sql, words = PACKAGES[kind]
    with pytest.raises(UserError, match=words):
        vector_files.read(package(tmp_path / "a.gpkg", sql), Wanted())


def test_broken_files_are_refused_in_one_line(town, tmp_path):
    folder, _ = town
    frame = pytest.importorskip("geopandas").read_file(folder / "roofs.geojson")
    frame = frame[frame.geom_type == "Polygon"]
    frame.to_file(tmp_path / "a.shp")
    frame.to_file(tmp_path / "a.gpkg")
    for name in ("a.shp", "a.shx", "a.dbf", "a.gpkg"):
        whole = (tmp_path / name).read_bytes()
        for size in (100, len(whole) // 2):
            (tmp_path / name).write_bytes(whole[:size] + b"\xff" * 40)
            target = tmp_path / (name if name == "a.gpkg" else "a.shp")
            try:
                assert len(vector_files.read(target, Wanted()).polygons) <= len(frame)
            except UserError as error:
                assert "\n" not in str(error)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "a.shx").unlink()
    with pytest.raises(UserError, match=r"its \.shx is missing"):
        vector_files.read(tmp_path / "a.shp", Wanted())


def test_the_extra_is_named_where_it_is_absent(town, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(UserError, match=r"needs rasterio, shapely and pyogrio: pip install 'tvjax"):
        build(town[0], tmp_path / "out")


def test_a_shift_of_labels_is_seen_in_the_contact_sheet(town, tmp_path):
    """Outlines run along the edges of what is red in the image, unless labels are shifted."""
    folder, degrees = town
    lines = {}
    for name, shift in (("right", 0), ("shifted", 5)):
        moved = [shapely.affinity.translate(s, shift * towns.METRES / 73_000, 0) for s in degrees]
        towns.write_geojson(folder / f"{name}.geojson", moved)
        build(folder, tmp_path / name, labels=f"{name}.geojson", gap=8)
        sheet = np.asarray(Image.open(tmp_path / name / contact.FILE)).astype(int)
        times = -(-contact.SIDE // TILE)
        assert sheet.shape == (4 * (TILE * times + 6) + 6,) * 2 + (3,)
        line = np.all(sheet == contact.LINE, axis=-1)
        red = (sheet[..., 0] == 250) & (sheet[..., 1] == 60)
        near = dilation(red & ~line, np.ones((3, 3)))
        lines[name] = np.mean(near[line]), line.sum()
    assert lines["right"][1] > 1000 and lines["right"][0] > 0.99
    assert lines["shifted"][0] < 0.8


def test_tiles_that_look_alike_join_blocks_unless_that_joins_all(town, tmp_path, capsys):
    """A few copies of a patch stay in one split; a town of copies is split by place alone."""
    folder, _ = town
    size, roof = 16, np.zeros((3, 16, 16), np.uint8)
    roof[:, 4:9, 4:14] = 200
    roof[:, 10:, 2:7] = 120
    for name, spots in (("few", [(0, 0), (7, 15)]), ("all", list(np.ndindex(16, 16)))):
        image = np.random.default_rng(0).integers(0, 255, (3, 16 * size, 16 * size), dtype=np.uint8)
        for row, column in spots:
            image[:, row * size : (row + 1) * size, column * size : (column + 1) * size] = roof
        x, y = towns.TOP_LEFT
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", height=16 * size, width=16 * size,
            count=3, dtype="uint8", crs=towns.UTM, photometric="RGB",
            transform=rasterio.Affine(towns.METRES, 0, x, 0, -towns.METRES, y),
        ) as file:  # fmt: skip
            file.write(image)
        found = build(
            folder, tmp_path / name, images=(tmp_path / f"{name}.tif",), tile=size, gap=0,
            keep_empty=True,
        )  # fmt: skip
        splits_of = {found[f"{name}.tif@x{16 * c}y{16 * r}"]["split"] for r, c in spots}
        assert (len(splits_of) == 1) == (name == "few")
        assert ("near-duplicates within an image" in capsys.readouterr().err) == (name == "all")
        share = np.mean([record["split"] == "test" for record in found.values()])
        assert 0.05 < share < 0.15


def test_too_few_places_are_told(town, tmp_path):
    with pytest.raises(UserError, match=r"tiles lie so near .* 1 part, .*--tile.*--split_file"):
        build(town[0], tmp_path / "out", tile=100, gap=200, keep_empty=True)


def test_outlines_that_cross_themselves_are_filled_by_the_even_odd_rule(town, tmp_path):
    """A bow tie, and a tangle whose mending would take longer than anybody waits."""
    folder, _ = town
    x, y = towns.TOP_LEFT
    tie = shapely.Polygon([(x + 5, y - 5), (x + 25, y - 27), (x + 25, y - 5), (x + 5, y - 26)])
    spots = np.random.default_rng(0).uniform(0, 9, (20_000, 2))
    tangle = shapely.Polygon(np.add(spots, (x + 50, y - 60)))
    towns.write_geojson(folder / "ties.geojson", [towns.in_degrees(s) for s in (tie, tangle)])
    found = build(folder, tmp_path / "out", labels="ties.geojson", tile=24, gap=0, keep_empty=True)
    whole = np.zeros((HEIGHT + 24, WIDTH + 24), bool)
    for name, record in found.items():
        top, left = corner(name)
        whole[top : top + 24, left : left + 24] = record["mask"][..., 0]
    rows, columns = np.mgrid[:100, :100] + 0.5
    inside = shapely.contains_xy(
        shapely.make_valid(tie), x + columns * towns.METRES, y - rows * towns.METRES
    )
    assert np.mean(whole[:100, :100] != inside) < 1e-3 and inside.sum() > 1500
    assert 0.3 < whole[172:198, 169:195].mean() < 0.7


@pytest.mark.parametrize("side", [60, 75])
def test_images_side_by_side_are_cut_by_one_lattice(town, tmp_path, side):
    """A town in files of which each touches the next: no block of its own would be apart."""
    folder, _ = town
    shapes, offsets = towns.roofs(HEIGHT, WIDTH), {}
    for row in range(0, 240, side):
        for column in range(0, 300, side):
            name = f"r{row}c{column}.tif"
            towns.write_tif(tmp_path / name, side, side, shapes, corner=(row, column))
            offsets[name] = row, column
    labels = folder / "roofs.geojson"
    found = build(
        tmp_path, tmp_path / "out", images=tuple(offsets), labels=labels, tile=20, gap=5,
        keep_empty=True,
    )  # fmt: skip
    check_apart(found, 5, 20, offsets)
    shares = [np.mean([r["split"] == name for r in found.values()]) for name in splits.NAMES]
    assert len(found) > 60 and shares[0] < 0.9 and min(shares) > 0.04


def test_polygons_that_touch_are_told_apart_by_contact(tmp_path):
    squares = [(20, 20, 45, 50), (45, 20, 70, 50), (73, 20, 100, 50)]  # left, top, right, bottom
    x, y = towns.TOP_LEFT
    scale = [towns.METRES, 0, 0, -towns.METRES, x, y]
    shapes = [shapely.affinity.affine_transform(shapely.box(*s), scale) for s in squares]
    towns.write_tif(tmp_path / "town.tif", 240, 240, shapes)
    towns.write_geojson(tmp_path / "roofs.geojson", [towns.in_degrees(s) for s in shapes])
    labels = np.zeros((240, 240), int)
    for number, (left, top, right, bottom) in enumerate(squares, 1):
        labels[top:bottom, left:right] = number
    wanted = touching.contact(labels, 4)
    tiles = build(tmp_path, tmp_path / "out", keep_empty=True, gap=0, boundaries=4)
    for name, record in tiles.items():
        top, left = corner(name)
        window = np.s_[top : top + TILE, left : left + TILE]
        np.testing.assert_array_equal(record["mask"][..., 0] > 0, labels[window] > 0)
        inside = np.s_[4:-4, 4:-4]  # a tile knows nothing of what lies beyond it
        np.testing.assert_array_equal(record["contact"][..., 0][inside], wanted[window][inside])
    assert sum(record["contact"].any() for record in tiles.values()) > 2


def edited(town, tmp_path, change):
    content = json.loads((town[0] / "roofs.geojson").read_text())
    change(content)
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    return tmp_path / "a.geojson"


def strange(number):
    def change(content):
        content["features"][2]["geometry"]["coordinates"][0][1][0] = number

    return change


def of_crs(crs):
    return lambda content: content.update(crs=crs)


@pytest.mark.parametrize(
    "change, wanted, words",
    [
        (strange(float("nan")), {}, "polygon of feature 3 has coordinates that are no numbers"),
        (strange(float("inf")), {}, "polygon of feature 3 has coordinates that are no numbers"),
        (of_crs({"properties": []}), {}, "its crs is None, which is none by EPSG's number"),
        (of_crs({"properties": "EPSG:4326"}), {}, "its crs is None"),
        (of_crs([]), {}, "its crs is None"),
        (dict, {"layer": "roofs"}, "--layer=roofs: .*a.geojson is no GeoPackage"),
        (dict, {"where": ["building=yes", "building=hutt"]}, "has 'building=hutt' .*'hut' "),
        (dict, {"where": ["levels=0", "building=a", "building=b"]}, "'building=a or building=b'"),
    ],
)
def test_mistakes_in_polygons_are_told_and_not_passed_over(town, tmp_path, change, wanted, words):
    file = edited(town, tmp_path, change)
    conditions = vector_files.parse_where(wanted.get("where", ()))
    with pytest.raises(UserError, match=words) as error:
        vector_files.read(file, Wanted(conditions, wanted.get("layer")))
    assert "\n" not in str(error.value)


def test_a_wanted_value_counts_however_many_others_there_are(town, tmp_path):
    def change(content):
        for k, feature in enumerate(content["features"]):
            feature["properties"] = {"id": 2000 - k}
        content["features"] *= 2000 // len(content["features"]) + 1
        for k, feature in enumerate(content["features"][:-1]):
            content["features"][k] = feature | {"properties": {"id": k}}

    file = edited(town, tmp_path, change)
    found = vector_files.read(file, Wanted(vector_files.parse_where(["id=1", "id=1500"])))
    assert len(found.polygons) == 2


def test_features_that_are_left_out_are_told_of(town, tmp_path, capsys):
    def change(content):
        content["features"][1]["geometry"] = None

    number = len(json.loads((town[0] / "roofs.geojson").read_text())["features"])
    vector_files.read(edited(town, tmp_path, change), Wanted())
    told = f"note: {tmp_path}/a.geojson: 2 of {number} features are no areas, or have no geometry"
    assert capsys.readouterr().err.startswith(told)
    vector_files.read(town[0] / "roofs.geojson", Wanted({"levels": frozenset(["0"])}))
    assert not capsys.readouterr().err  # of those that are not wanted nothing is said


def test_a_damaged_package_is_refused_in_one_line(town, tmp_path):
    file = tmp_path / "a.gpkg"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE gpkg_contents (table_name TEXT, data_type TEXT)")
    content = file.read_bytes()
    schema = b"(table_name TEXT, data_type TEXT)"
    file.write_bytes(content.replace(schema, b"(table_name) \xba\xba".ljust(len(schema))))
    with pytest.raises(UserError, match=r"a\.gpkg: cannot be read as a GeoPackage"):
        vector_files.read(file, Wanted())


def write_shape(folder, degrees):
    shapes = np.array([shapely.to_wkb(shape) for shape in degrees], object)
    pyogrio.raw.write(
        folder / "a.shp", shapes, [], [], geometry_type="Polygon", crs=towns.DEGREES,
        driver="ESRI Shapefile",
    )  # fmt: skip
    return folder / "a.shp"


@pytest.mark.parametrize("lies", [False, True])
def test_records_of_a_shapefile_that_overlap_are_not_read(town, tmp_path, lies):
    file = write_shape(tmp_path, town[1])
    table = file.with_suffix(".shx")
    content = table.read_bytes()
    again = content[100:104] + bytes(4) if lies else content[100:108]  # its length is in .shp too
    table.write_bytes(content + 1000 * again)
    with pytest.raises(UserError, match=r"a\.shx: its records overlap in a\.shp; save the layer"):
        vector_files.read(file, Wanted())


@pytest.mark.parametrize("end", [".shx", ".dbf", ".shp"])
def test_files_of_a_shapefile_that_are_of_different_saves_are_refused(town, tmp_path, end):
    file, count = write_shape(tmp_path, town[1]), len(town[1])
    (tmp_path / "b").mkdir()
    other = write_shape(tmp_path / "b", town[1][:-4])
    other.with_suffix(end).replace(file.with_suffix(end))
    words = rf"a{end} has {count - 4}.*a.* has {count}|has {count}.*a{end} has {count - 4}"
    with pytest.raises(UserError, match=f"different numbers of records .*({words}).*GeoPackage"):
        vector_files.read(file, Wanted())


@pytest.mark.parametrize(
    "end, place, kind", [(".shx", 24, ">I"), (".dbf", 4, "<I"), (".dbf", 0, "")]
)
def test_records_that_a_file_of_a_shapefile_hides_are_missed(town, tmp_path, end, place, kind):
    file = write_shape(tmp_path, town[1])
    part = file.with_suffix(end)
    content = bytearray(part.read_bytes())
    if kind:  # the header tells of fewer than there are, and GDAL believes it
        count = struct.unpack_from(kind, content, place)[0] - 4
        struct.pack_into(kind, content, place, count)
    part.write_bytes(content if kind else content[: len(content) // 2])  # or the file is cut off
    with pytest.raises(UserError, match=r"a\.shp: its files hold different numbers of records"):
        vector_files.read(file, Wanted())


def test_a_record_that_was_edited_may_stay_in_a_shapefile(town, tmp_path):
    file, count = write_shape(tmp_path, town[1]), len(town[1])
    table = file.with_suffix(".shx")
    shp, shx = bytearray(file.read_bytes()), bytearray(table.read_bytes())
    start, words = struct.unpack_from(">II", shx, 100)
    struct.pack_into(">I", shx, 100, len(shp) // 2)  # a new one of its number is at the end
    shp += shp[2 * start : 2 * start + 8 + 2 * words]
    struct.pack_into(">I", shp, 24, len(shp) // 2)
    file.write_bytes(shp)
    table.write_bytes(shx)
    assert len(vector_files.read(file, Wanted()).polygons) == count


@pytest.mark.parametrize("end", [".dbf", ".prj", ".cpg", ".DBF"])
def test_pipes_among_the_parts_of_a_shapefile_are_not_waited_for(town, tmp_path, end):
    file = write_shape(tmp_path, town[1])
    file.with_suffix(end.lower()).unlink(missing_ok=True)
    os.mkfifo(file.with_suffix(end))
    with pytest.raises(UserError, match=f"a{end}: cannot be read, it is a pipe and no file"):
        vector_files.read(file, Wanted())


def test_the_parts_of_a_shapefile_may_have_names_of_capitals(town, tmp_path):
    file = write_shape(tmp_path, town[1])
    for end in (".shx", ".dbf", ".prj"):
        file.with_suffix(end).rename(file.with_suffix(end.upper()))
    assert len(vector_files.read(file, Wanted()).polygons) == len(town[1])
    assert len(vector_files.files(file)) >= 4


def test_what_says_where_labels_are_complete_does_not_contradict_itself(town, tmp_path):
    with pytest.raises(UserError, match="--keep_empty takes labels for complete everywhere"):
        build(town[0], tmp_path / "out", extent="roofs.geojson", keep_empty=True)
    for place in (".", "/", "no"):
        with pytest.raises(UserError, match="cannot be read"):
            build(town[0], tmp_path / "out", extent=place)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "crs, left, pixel",
    [("EPSG:4326", 179.999, 1e-5), ("EPSG:3857", 20037480, 0.3), ("EPSG:3395", 20037480, 0.3)],
)
def test_an_image_across_the_antimeridian_is_refused(tmp_path, crs, left, pixel):
    image = np.random.default_rng(0).integers(0, 255, (3, 96, 288), dtype=np.uint8)
    place = rasterio.Affine(pixel, 0, left, 0, -pixel, 1.0)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=96, width=288, count=3, dtype="uint8",
        transform=place, crs=crs,
    ) as file:  # fmt: skip
        file.write(image)
    roof = [[-179.9995, 0.9995], [-179.999, 0.9995], [-179.999, 0.9999], [-179.9995, 0.9995]]
    towns.write_geojson(tmp_path / "roofs.geojson", [shapely.Polygon(roof)])
    with pytest.raises(UserError, match=r"a.tif: reaches beyond the antimeridian, .* such as UTM"):
        build(tmp_path, tmp_path / "out", images=["a.tif"], keep_empty=True, gap=0)
