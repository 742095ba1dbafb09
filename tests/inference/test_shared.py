"""Walls that roofs share stay shared on the map, and right angles are right on the ground."""

import itertools
import json

import numpy as np
import pytest
from scipy import ndimage

shapely = pytest.importorskip("shapely")
rasterio = pytest.importorskip("rasterio")
pytest.importorskip("skimage")

from tvjax.data import pictures, scenes, touching  # noqa: E402
from tvjax.inference import regularize, separation, shared, writing  # noqa: E402


def block(seed, side=260, depth=36, far=100):
    """Numbers of houses that touch on all sides, turned, with wavy walls, `[side, side]`."""
    rng = np.random.default_rng(seed)
    waves = ndimage.gaussian_filter(rng.normal(size=(2, side, side)), (0, 2, 2)) * 5
    y, x = np.mgrid[:side, :side] + waves - side / 2
    cosine, sine = np.cos(angle := rng.uniform(0, np.pi / 2)), np.sin(angle)
    along, across = cosine * x + sine * y, cosine * y - sine * x
    labels, number = np.zeros((side, side), int), 0
    for top in range(-far, far - depth, depth):
        left = -far + rng.uniform(0, 20)
        while left < far - 20:
            width, number = rng.uniform(18, 40), number + 1
            is_in = (along >= left) & (along < left + width)
            labels[is_in & (across >= top) & (across < top + depth)] = number
            left += width
    return labels


def parted(labels):
    maps = np.stack([labels > 0, touching.contact(labels, 4)], axis=-1).astype(np.float32)
    (group,) = separation.groups([maps])
    return group


def shapes(group):
    return [shapely.Polygon(polygon.shell, polygon.holes) for polygon in group]


def assert_apart(found):
    assert all(shape.is_valid for shape in found)
    pairs = itertools.combinations(found, 2)
    assert max(one.intersection(two).area for one, two in pairs) < 1e-9


def gaps(found, whole):
    """Area that was covered, and is covered by none any more, away from the outline."""
    inner = whole.buffer(-4)
    return inner.difference(shapely.union_all(found)).area


@pytest.mark.parametrize("seed", range(2))
def test_a_block_of_houses_becomes_square_and_its_walls_stay_shared(seed):
    group = parted(block(seed))
    found = regularize.regularize(group)
    # One that must stay as it is drags no others along: a fifth at most stays, and not all.
    assert len(group) > 20
    assert sum(old is new for old, new in zip(group, found, strict=True)) <= len(group) / 5
    whole = shapely.union_all(shapes(group))
    for drawn in (found, shared.simplify(group, 1.5), shared.simplify(found, 1.0)):
        assert_apart(shapes(drawn))
        assert gaps(shapes(drawn), whole) < 1e-6
    simple = shared.simplify(group, 1.5)
    assert sum(len(p.shell) for p in simple) < 0.25 * sum(len(p.shell) for p in group)
    for old, new in zip(shapes(group), shapes(simple), strict=True):
        assert shapely.hausdorff_distance(old.exterior, new.exterior) <= 1.5 + 1e-9


def test_a_roof_in_a_court_and_a_tolerance_that_is_too_large():
    labels = np.zeros((40, 40), int)
    labels[4:36, 4:36], labels[14:26, 14:26] = 1, 2
    group = [p for number in (1, 2) for p in separation.trace([(labels == number)[..., None]])]
    assert [len(p.holes) for p in group] == [1, 0]
    for tolerance in (1.0, 200.0):  # by so much nothing would be left of them
        outer, inner = shared.simplify(group, tolerance)
        assert shapely.Polygon(outer.holes[0]).equals(shapely.Polygon(inner.shell))
        assert_apart(shapes([outer, inner]))
        assert [len(ring) for polygon in (outer, inner) for ring in polygon.rings] == [4, 4, 4]


def write_tif(path, pixels, transform, crs):
    with rasterio.open(
        path, "w", driver="GTiff", height=len(pixels), width=pixels.shape[1], count=3,
        dtype="uint8", photometric="RGB", transform=transform, crs=crs,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, -1, 0).astype(np.uint8))


def net(images):
    """Red is roof, green is contact."""
    return np.asarray(images)[..., :2]


net.channels = 2


def test_walls_on_the_map_stay_shared(tmp_path):
    labels = block(0)
    pixels = 255 * np.stack([labels > 0, touching.contact(labels, 4) > 0, labels < 0], axis=-1)
    place = rasterio.Affine(0.3, 0, 5e5, 0, -0.3, 5.4e6)
    write_tif(tmp_path / "a.tif", pixels, place, "EPSG:32633")
    for asked in (
        writing.Options(regularize=True),
        writing.Options(simplify=1.5),
        writing.Options(regularize=True, simplify=1.0),
    ):
        images = [(1, tmp_path / "a.tif")]
        objects, skipped = writing.predict_images(images, tmp_path / "out", net, options=asked)
        found = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
        assert objects == len(found) > 20 and not skipped
        assert_apart([shapely.geometry.shape(feature["geometry"]) for feature in found])


def angles(ring):
    before, after = np.roll(ring, 1, axis=0) - ring, np.roll(ring, -1, axis=0) - ring
    cosines = (before * after).sum(1) / np.hypot(*before.T) / np.hypot(*after.T)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


@pytest.mark.parametrize("degrees", [10, 25, 40, 70])
def test_right_angles_are_right_on_the_ground(tmp_path, degrees):
    """A pixel in degrees is 0.62 times as wide as it is high, 52 degrees north."""
    ground = np.array([np.cos(np.radians(52)), 1.0])
    house = shapely.affinity.rotate(shapely.box(-28, -18, 28, 18), degrees, origin=(0, 0))
    x, y = np.meshgrid(*2 * [np.arange(160) - 79.5])
    mask = shapely.contains_xy(house, x * ground[0], y * ground[1])
    step = 1e-5
    place = rasterio.Affine(step, 0, 13 - 80 * step, 0, -step, 52 + 80 * step)
    write_tif(tmp_path / "a.tif", 255 * np.stack([mask, ~mask, ~mask], -1), place, "EPSG:4326")
    with pictures.open_raster(tmp_path / "a.tif") as raster:
        assert scenes.aspect(raster) == pytest.approx(ground[0], rel=1e-9)
        assert scenes.aspect(raster._replace(crs=None)) == 1
    options = writing.Options(regularize=True)
    images = [(1, tmp_path / "a.tif")]
    writing.predict_images(images, tmp_path / "out", lambda x: x[..., :1], options=options)
    (found,) = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    ring = np.array(found["geometry"]["coordinates"][0][:-1])
    assert len(ring) == 4
    np.testing.assert_allclose(angles(ring * ground), 90, atol=0.01)


def test_aspects_that_cannot_be_are_refused():
    (group,) = separation.groups([np.ones((8, 8, 1))])
    for aspect in (0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="aspect must be positive and finite"):
            regularize.regularize(group, aspect=aspect)
