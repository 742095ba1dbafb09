"""Right angles: drawn shapes come back, round ones stay, shared walls stay shared, all is valid."""

import json
import time
from typing import Any

import numpy as np
import pytest
from roofs import write_raster
from scipy import ndimage

from tvjax.inference import polygons, regularize, writing

shapely = pytest.importorskip("shapely")

RECTANGLE = shapely.box(0, 0, 30, 18)
L_SHAPE = shapely.Polygon([(0, 0), (40, 0), (40, 18), (16, 18), (16, 36), (0, 36)])
COURT = shapely.box(0, 0, 44, 36).difference(shapely.box(12, 10, 32, 26))
SIZE = 72


def place(shape, degrees, shift=(0.0, 0.0)):
    """The shape turned, about the middle of the image."""
    turned = shapely.affinity.rotate(shape, degrees, origin="centroid")
    x, y = SIZE / 2 - np.array(turned.centroid.coords[0]) + shift
    return shapely.affinity.translate(turned, x, y)


def draw(shape, size=SIZE):
    """Bool `[size, size]`: the pixels whose centres are inside."""
    return shapely.contains_xy(shape, *np.meshgrid(*2 * [np.arange(size) + 0.5]))


def trace(mask):
    return list(polygons.trace([mask.astype(float)]))


def shape_of(polygon):
    return shapely.Polygon(polygon.shell, polygon.holes)


def iou(one, two):
    return one.intersection(two).area / one.union(two).area


def change(old, new):
    old, new = shape_of(old), shape_of(new)
    return old.symmetric_difference(new).area / old.area


def corners(ring):
    """Angles in degrees."""
    before, after = np.roll(ring, 1, axis=0) - ring, np.roll(ring, -1, axis=0) - ring
    cosines = (before * after).sum(1) / np.hypot(*before.T) / np.hypot(*after.T)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


@pytest.mark.parametrize("shape", [RECTANGLE, L_SHAPE, COURT], ids=["rectangle", "L", "court"])
def test_turned_shapes_come_back_with_their_corners(shape):
    for degrees in np.arange(3.0, 90, 7):
        true = place(shape, degrees, np.random.default_rng(int(degrees)).random(2))
        (traced,) = trace(draw(true))
        (found,) = regularize.regularize([traced])
        assert len(found.shell) == len(true.exterior.coords) - 1, degrees
        assert [len(hole) for hole in found.holes] == [4] * len(true.interiors)
        for ring in found.rings:
            np.testing.assert_allclose(corners(ring), 90, atol=1e-6)
        x, y = found.shell[1] - found.shell[0]
        off = (np.degrees(np.arctan2(y, x)) - degrees + 45) % 90 - 45
        assert abs(off) < 1.5
        assert shape_of(found).is_valid and shape_of(found).exterior.is_ccw
        assert iou(shape_of(found), true) > max(0.96, iou(shape_of(traced), true))
        assert change(traced, found) <= regularize.MOST_CHANGE
        assert (found.score, found.area) == (traced.score, traced.area)


def test_walls_are_exact_however_long():
    true = shapely.affinity.translate(
        shapely.affinity.rotate(shapely.affinity.scale(L_SHAPE, 5, 5), 23), 120.3, 110.4
    )
    (found,) = regularize.regularize(trace(draw(true, 320)))
    assert len(found.shell) == 6 and iou(shape_of(found), true) > 0.998


@pytest.mark.parametrize("radius", [3, 4, 6, 9, 15, 30])
def test_round_objects_stay_as_they_are(radius):
    rng = np.random.default_rng(radius)
    circle = shapely.Point(0, 0).buffer(radius)
    for shape in (circle, shapely.affinity.scale(circle, 1.15, 0.9)):
        for _ in range(6):
            (traced,) = trace(draw(place(shape, rng.uniform(0, 90), rng.random(2))))
            assert regularize.regularize([traced])[0] is traced


def test_octagons_stay_and_round_ends_of_squares_stay_round():
    (octagon,) = trace(draw(place(shapely.Point(0, 0).buffer(20, 2), 13)))
    assert regularize.regularize([octagon]) == [octagon]
    apse = place(shapely.box(0, 0, 40, 24).union(shapely.Point(40, 12).buffer(12)), 33)
    (traced,) = trace(draw(apse))
    (found,) = regularize.regularize([traced])
    assert (np.abs(corners(found.shell) - 90) < 1e-6).sum() == 2
    assert iou(shape_of(found), apse) > iou(shape_of(traced), apse) > 0.95


@pytest.mark.parametrize("degrees", [0, 12, 33, 45, 71])
def test_touching_roofs_share_their_walls(degrees):
    houses = [shapely.box(0, 0, 20, 16), shapely.box(20, 0, 36, 16), shapely.box(36, 5, 50, 21)]
    origin = (25, 8)
    masks = [
        draw(shapely.affinity.translate(shapely.affinity.rotate(h, degrees, origin), 11.3, 27.8))
        for h in houses
    ]
    traced = [polygon for mask in masks for polygon in trace(mask)]
    found = regularize.regularize(traced)
    assert [len(polygon.shell) for polygon in found] == [4, 5, 5]  # a neighbour's corner in a wall
    one, two, three = map(shape_of, found)
    assert one.intersection(two).area == two.intersection(three).area == 0
    assert len(set(map(tuple, found[0].shell)) & set(map(tuple, found[1].shell))) == 2
    whole = shapely.union_all([one, two, three])
    assert whole.geom_type == "Polygon" and not whole.interiors
    for polygon in found:
        right = np.isclose(corners(polygon.shell), 90, atol=1e-6)
        assert right.sum() == 4 and np.allclose(corners(polygon.shell)[~right], 180)


def test_a_round_neighbour_stays_and_so_does_the_wall_with_it():
    tower = place(shapely.Point(0, 0).buffer(12), 0)
    house = shapely.box(36, 27, 66, 45).difference(tower)
    traced = [polygon for mask in (draw(tower), draw(house)) for polygon in trace(mask)]
    found = regularize.regularize(traced)
    assert found[0] is traced[0]
    assert shape_of(found[1]).is_valid
    assert shape_of(found[0]).intersection(shape_of(found[1])).area == 0
    gap = shapely.union_all(list(map(shape_of, found)))
    assert gap.geom_type == "Polygon" and not gap.interiors


def test_a_roof_in_a_court_keeps_its_wall():
    inner = place(shapely.box(0, 0, 24, 20), 17)
    ring = place(shapely.box(0, 0, 46, 42), 17)
    masks = draw(ring) & ~draw(inner), draw(inner)
    found = regularize.regularize([polygon for mask in masks for polygon in trace(mask)])
    assert [len(r) for polygon in found for r in polygon.rings] == [4, 4, 4]
    hole, roof = (set(map(tuple, ring)) for ring in (found[0].holes[0], found[1].shell))
    assert hole == roof


@pytest.mark.parametrize("seed", range(3))
def test_noise_stays_valid_and_within_the_bound(seed):
    rng = np.random.default_rng(seed)
    changed = 0
    for k in range(20):
        true = place([RECTANGLE, L_SHAPE, COURT][k % 3], rng.uniform(0, 90), rng.random(2))
        inside = draw(true)
        distance = ndimage.distance_transform_edt(inside)
        distance -= np.asarray(ndimage.distance_transform_edt(~inside))
        noise = ndimage.gaussian_filter(rng.normal(size=inside.shape), 2)
        traced = trace(distance + noise / noise.std() * rng.uniform(0.3, 2.5) > 0)
        for polygon in traced:
            (found,) = regularize.regularize([polygon])
            assert shape_of(found).is_valid and len(found.holes) == len(polygon.holes)
            assert change(polygon, found) <= regularize.MOST_CHANGE
            changed += found is not polygon
            for most in (0.0, 0.02):
                (found,) = regularize.regularize([polygon], most_change=most)
                assert change(polygon, found) <= most
    assert changed > 5


def test_any_mask_is_taken_in_bounded_time():
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(400, 400)), 1) > 0
    traced = [*trace(rng.random((60, 60)) > 0.5), *trace(noise)]
    start = time.process_time()
    for polygon in traced:
        (found,) = regularize.regularize([polygon])
        assert shape_of(found).is_valid
    assert max(len(polygon.shell) for polygon in traced) > 2000
    assert time.process_time() - start < 0.02 * len(traced) + 2
    together = regularize.regularize(traced[:100])
    assert all(shape_of(found).is_valid for found in together)


def test_objects_of_too_many_steps_stay(monkeypatch):
    traced = trace(draw(place(RECTANGLE, 20)))
    monkeypatch.setattr(regularize, "MOST_STEPS", 50)
    assert regularize.regularize(traced) == traced
    assert regularize.regularize([]) == []


def test_what_cannot_be_is_refused_by_name():
    (traced,) = trace(draw(place(RECTANGLE, 20)))
    values: list[Any] = [-0.1, 1.5, float("nan"), True, "1"]
    for most in values:
        with pytest.raises(ValueError, match="most_change") as error:
            regularize.regularize([traced], most_change=most)
        assert "\n" not in str(error.value)
    for slanted in (traced.shell[::3], traced.shell + 0.5):
        with pytest.raises(ValueError, match="integer corners and sides parallel"):
            regularize.regularize([traced._replace(shell=slanted)])


def red(images):
    return images[..., :1]


def test_the_map_has_right_angles_and_the_mask_stays(tmp_path):
    mask = draw(place(COURT, 28))
    write_raster(tmp_path / "a.tif", mask)
    images = [(1, tmp_path / "a.tif")]
    for out, is_on in (("plain", False), ("square", True)):
        options = writing.Options(regularize=is_on)
        assert writing.predict_images(images, tmp_path / out, red, options=options) == (1, [])
    plain, square = (
        json.loads((tmp_path / out / "a.geojson").read_text())["features"][0]
        for out in ("plain", "square")
    )
    assert plain["properties"] == square["properties"]
    for ring in square["geometry"]["coordinates"]:
        assert len(ring) == 5
        np.testing.assert_allclose(corners(np.array(ring[:-1])), 90, atol=1e-4)
    names = ("a_mask.tif", "results.json")
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "square" / name).read_bytes()
