"""Outlines of objects against a labelling, shapely and GDAL, however the image is cut."""

import numpy as np
import pytest
from scipy import ndimage

from tvjax.data import regions
from tvjax.inference import polygons

shapely = pytest.importorskip("shapely")


def random_mask(rng):
    shape = rng.integers(1, 14, 2)
    return rng.random(shape) < rng.choice([0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("seed", range(20))
def test_objects_are_the_components_of_the_mask_however_it_is_cut(seed):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng)
    height, width = mask.shape
    probabilities = np.where(mask, rng.uniform(0.6, 1, mask.shape), 0.2)
    cuts = np.sort(rng.integers(0, height + 1, 3))
    found = list(polygons.trace([s for s in np.split(probabilities, cuts) if len(s)]))
    labels, number = ndimage.label(mask)
    assert len(found) == number
    seen = set()
    for polygon in found:
        shape = shapely.Polygon(polygon.shell, polygon.holes)
        assert shape.is_valid and shape.exterior.is_ccw and shape.area == polygon.area
        pixels = regions.decode(polygons.run_lengths(polygon, height, width))
        (label,) = np.unique(labels[pixels])
        np.testing.assert_array_equal(pixels, labels == label)
        assert polygon.score == pytest.approx(probabilities[pixels].mean())
        seen.add(label)
    assert seen == set(range(1, number + 1))


def test_outlines_are_those_of_gdal():
    features = pytest.importorskip("rasterio.features")
    rng = np.random.default_rng(1)
    for _ in range(20):
        mask = random_mask(rng)
        ours = [shapely.Polygon(p.shell, p.holes) for p in polygons.trace([mask.astype(float)])]
        theirs = features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
        theirs = [shapely.geometry.shape(geometry) for geometry, _ in theirs]
        assert sorted(p.normalize().wkt for p in ours) == sorted(p.normalize().wkt for p in theirs)


def test_simplified_polygons_stay_near_and_keep_holes():
    y, x = np.mgrid[:80, :80]
    distance = np.hypot(y - 40, x - 40)
    (ring,) = polygons.trace([((distance < 35) & (distance > 15)).astype(float)])
    simple = polygons.simplify(ring, 1.0)
    assert len(simple.shell) < len(ring.shell) / 3 and len(simple.holes) == 1
    shape = shapely.Polygon(simple.shell, simple.holes)
    whole = shapely.Polygon(ring.shell, ring.holes)
    assert shape.is_valid and shape.hausdorff_distance(whole) <= 1.5
    assert shape.exterior.is_ccw


@pytest.mark.parametrize("tolerance", [1.0, 2.0, 5.0])
def test_simpler_outlines_are_as_near_as_was_asked(tolerance):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        waves = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 1.5)
        for polygon in polygons.trace([(waves > 0).astype(float)], min_area=10):
            simple = polygons.simplify(polygon, tolerance)
            assert shapely.Polygon(simple.shell, simple.holes).is_valid
            for old, new in zip(polygon.rings, simple.rings, strict=True):
                one, two = shapely.LinearRing(old), shapely.LinearRing(new)
                far = shapely.hausdorff_distance(one, two, densify=0.1)
                assert far <= tolerance + 1e-6, (seed, old.tolist())


def test_small_objects_are_left_out_on_request():
    mask = np.zeros((9, 9))
    mask[1, 1] = mask[4:7, 4:7] = 1
    assert [p.area for p in polygons.trace([mask], min_area=2)] == [9]
    assert list(polygons.trace([np.zeros((4, 4))])) == []
