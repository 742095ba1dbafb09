"""Objects that touch, parted: known shapes, however the image is cut into strips and tiles."""

import itertools
import json
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tvjax.data import regions, touching
from tvjax.errors import UserError
from tvjax.inference import polygons, separation, writing


def maps_of(labels, pixels=4):
    """What a net that is right says of roofs by their numbers, `[H, W, 2]`."""
    return np.stack([labels > 0, touching.contact(labels, pixels)], axis=-1).astype(np.float32)


def found(maps, cuts=(), **options):
    """Objects as sorted triples of shell, holes and area."""
    strips = [strip for strip in np.split(maps, cuts) if len(strip)]
    return sorted(
        (p.shell.tolist(), [hole.tolist() for hole in p.holes], p.area, round(p.score, 6))
        for p in separation.trace(strips, **options)
    )


def test_two_squares_that_share_a_wall_are_two_objects_that_share_it():
    labels = np.zeros((14, 24), int)
    labels[2:12, 2:12], labels[2:12, 12:22] = 1, 2
    left, right = found(maps_of(labels))
    assert left[0] == [[2, 2], [12, 2], [12, 12], [2, 12]] and right[2] == 100
    assert right[0] == [[12, 2], [22, 2], [22, 12], [12, 12]]


def test_squares_a_few_pixels_apart_that_the_mask_bridges_meet_in_the_middle():
    labels = np.zeros((14, 26), int)
    labels[2:12, 2:12], labels[2:12, 14:24] = 1, 2
    maps = maps_of(labels)
    assert maps[2:12, 12:14, 1].all()
    maps[2:12, 2:24, 0] = 1
    assert [p[2] for p in found(maps)] == [110, 110]


def test_one_object_stays_one_and_holes_stay():
    labels = np.zeros((30, 30), int)
    labels[3:27, 3:27] = 1
    labels[10:16, 10:18] = 0
    (one,) = found(maps_of(labels))
    assert one[2] == 24 * 24 - 48 and len(one[1]) == 1
    thin = np.zeros((5, 9), int)
    thin[1:3, 1:8] = 1  # no core at all
    assert found(maps_of(thin))[0][2] == 14


def test_basins_are_cores_if_they_are_deep_whatever_their_bottoms():
    maps = np.ones((1, 15, 2), np.float32)
    maps[0, :, 1] = [0.1, 0.2, 0.1, 0.2, 0.1, 0.3, 0.5, 0.3, 0.1, 0.15, 0.2, 0.1, 0.24, 0.1, 0.2]
    assert [p[2] for p in found(maps)] in ([6, 9], [7, 8])  # 0.14 deep is one basin
    maps[0, 12, 1] = 0.26
    assert len(found(maps)) == 3


def test_without_contact_objects_are_the_components():
    rng = np.random.default_rng(0)
    values = rng.random((40, 50, 1)).astype(np.float32)
    plain = [(p.shell.tolist(), p.area) for p in polygons.trace([values[..., 0]])]
    assert [(p.shell.tolist(), p.area) for p in separation.trace([values])] == plain


@pytest.mark.parametrize("seed", range(6))
def test_strips_of_any_size_give_the_same_and_every_pixel_falls_to_one_object(seed):
    rng = np.random.default_rng(seed)
    size = (60, 70)
    maps = np.stack(
        [ndimage.gaussian_filter(rng.normal(size=size), sigma) for sigma in (3, 1.5)], axis=-1
    )
    maps = (1 / (1 + np.exp(-30 * maps - [1, 0]))).astype(np.float32)
    whole = found(maps)
    components = ndimage.label(maps[..., 0] > 0.5)[1]
    assert len(whole) > components
    for cuts in (range(1, 60), range(7, 60, 7), np.sort(rng.integers(0, 61, 3))):
        assert found(maps, cuts) == whole
    count = np.zeros(size, int)
    for polygon in separation.trace([maps]):
        pixels = regions.decode(polygons.run_lengths(polygon, *size))
        assert ndimage.label(pixels)[1] == 1 and pixels.sum() == polygon.area
        assert polygon.score == pytest.approx(maps[pixels, 0].mean(), rel=1e-5)
        count += pixels
    np.testing.assert_array_equal(count, maps[..., 0] > 0.5)
    large = [p for p in whole if p[2] >= 30]
    assert found(maps, range(5, 60, 5), min_area=30) == large


def test_a_piece_that_is_too_large_stays_one_however_it_is_cut(monkeypatch):
    monkeypatch.setattr(separation, "MOST", 400)
    labels = np.zeros((50, 30), int)
    labels[2:12, 2:12], labels[2:12, 12:22] = 1, 2  # 200 pixels
    labels[20:45, 2:12], labels[20:45, 12:22] = 3, 4  # 500
    maps = maps_of(labels)
    assert sorted(p[2] for p in found(maps)) == [100, 100, 500]
    for rows in (1, 4, 13):
        assert found(maps, range(rows, 50, rows)) == found(maps)


@pytest.mark.parametrize("top", [8, 0])  # 0: all rows are one piece, too large to be parted
def test_memory_grows_not_with_the_height(top, monkeypatch):
    monkeypatch.setattr(separation, "MOST", 15_000)
    labels = np.zeros((64, 300), int)
    for number, left in enumerate(range(2, 290, 12), 1):
        labels[top : top + 42 if top else 64, left : left + 12] = number
    maps, peaks = maps_of(labels), []
    for times in (2, 2, 16):  # twice, to load what is loaded once
        tracemalloc.start()
        try:
            strips = (maps[k : k + 16] for _ in range(times) for k in range(0, 64, 16))
            found = sum(1 for _ in separation.trace(strips))
            assert found == (24 * times if top else 1)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1], peaks


class TwoMaps:
    """A net that is right: red is roof, green is contact."""

    channels = 2

    def __call__(self, images):
        return np.asarray(images)[..., :2]


def test_footprints_are_the_same_for_any_tile(tmp_path):
    rng = np.random.default_rng(1)
    labels = np.zeros((200, 330), int)
    for top in range(4, 180, 40):  # rows of houses that share walls, across all borders of tiles
        walls = np.cumsum(rng.integers(9, 30, 40))
        walls = walls[walls < 320]
        for number, (left, right) in enumerate(itertools.pairwise(walls)):
            labels[top : top + rng.integers(12, 34), left:right] = 100 * top + number + 1
    maps = maps_of(labels)
    image = np.concatenate([maps, np.zeros((*labels.shape, 1))], axis=-1)
    Image.fromarray((255 * image).astype(np.uint8)).save(tmp_path / "a.png")

    def predict(name, tile):
        images = [(1, tmp_path / "a.png")]
        objects, skipped = writing.predict_images(images, tmp_path / name, TwoMaps(), tile=tile)
        assert not skipped
        features = json.loads((tmp_path / name / "a.geojson").read_text())["features"]
        assert len(features) == objects
        mask = np.asarray(Image.open(tmp_path / name / "a_mask.png"))
        np.testing.assert_array_equal(mask > 0, labels > 0)
        return sorted(json.dumps(f["geometry"]) for f in features)

    whole = predict("whole", 352)
    assert len(whole) == len(np.unique(labels)) - 1
    assert predict("small", 128) == predict("larger", 256) == whole


def test_without_scikit_image_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"scikit-image; pip install 'tvjax\[boundaries\]'"):
        writing.predict_images([(1, tmp_path / "a.png")], tmp_path / "out", TwoMaps())
