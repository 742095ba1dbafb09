"""Scales of images on a map against what their pixels measure on the ground."""

from pathlib import Path

import pytest

rasterio = pytest.importorskip("rasterio")

from tvjax.data.pictures import Raster  # noqa: E402
from tvjax.errors import UserError  # noqa: E402
from tvjax.inference.scales import Scales  # noqa: E402

SITE = 'LOCAL_CS["site grid",UNIT["metre",1]]'


def image(metres, crs="EPSG:32633"):
    transform = rasterio.Affine(metres, 0, 500_000, 0, -metres, 5_400_000)
    return Raster(
        Path("town.tif"), 20, 20, lambda *_: None, transform, rasterio.CRS.from_user_input(crs)
    )


def test_an_image_is_scaled_to_the_metres_per_pixel_of_the_tiles():
    scales = Scales(resolution=0.3)
    for metres, scale in ((0.3, 1), (0.31, 1), (0.15, 0.5), (0.9, 3), (1.2, 4)):
        assert scales.of(image(metres)) == pytest.approx(scale, rel=1e-3), metres
    unplaced = Raster(Path("a.png"), 20, 20, lambda *_: None)
    assert scales._replace(scale=0.25).of(unplaced) == 0.25
    assert Scales(0.25).of(image(0.15)) == 0.25  # chosen for all


@pytest.mark.parametrize(
    ("raster", "told"),
    [
        (image(1.3), "town.tif: has 1.3 metres per pixel, and the run's tiles have 0.3: too coar"),
        (image(1e-4), "town.tif: has 0.0001 metres per pixel, and the run's tiles have 0.3: too f"),
        (image(0.3, SITE), "town.tif: its coordinates cannot be converted from 'LOCAL_CS"),
    ],
)
def test_an_image_that_cannot_be_scaled_is_named_with_a_way_out(raster, told):
    with pytest.raises(UserError) as error:
        Scales(resolution=0.3).of(raster)
    assert str(error.value).startswith(told) and "--scale=1 takes" in str(error.value)
