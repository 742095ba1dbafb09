"""Contact of roofs: its definition, the records that hold it, and what may not be asked."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import base
from tvjax.data import (
    builder,
    contact,
    identity,
    origins,
    pipeline,
    prepare,
    records,
    regions,
    sets,
    touching,
)
from tvjax.errors import UserError
from tvjax.training import loop


def slow_contact(labels, pixels):
    """The definition, pixel by pixel."""
    found = np.zeros(labels.shape, bool)
    roofs = [np.argwhere(labels == k) for k in np.unique(labels[labels > 0])]
    for y, x in np.ndindex(labels.shape):
        if labels[y, x]:
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [p for p in beside if 0 <= p[0] < len(labels) and 0 <= p[1] < labels.shape[1]]
            found[y, x] = any(labels[p] != labels[y, x] for p in inside)
        elif len(roofs) > 1:
            near = sorted(np.hypot(*(roof - (y, x)).T).min() for roof in roofs)
            found[y, x] = near[0] + near[1] <= pixels
    return found


@pytest.mark.parametrize("seed", range(4))
def test_contact_is_what_its_definition_says(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((24, 30), int)
    for number in rng.permutation(7) + 1:  # some overlap, some are lost
        y, x, h, w = rng.integers((0, 0, 3, 3), (20, 26, 11, 11))
        labels[y : y + h, x : x + w] = number
    for pixels in (1, 4):
        np.testing.assert_array_equal(
            touching.contact(labels, pixels), slow_contact(labels, pixels)
        )


def test_pixels_between_roofs_count_if_fewer_than_asked_lie_there():
    labels = np.zeros((1, 12), int)
    labels[0, :3], labels[0, 6:] = 1, 2  # three between
    assert touching.contact(labels, 4)[0].nonzero()[0].tolist() == [2, 3, 4, 5, 6]
    assert touching.contact(labels, 3)[0].nonzero()[0].tolist() == [2, 6]


def test_numbers_of_regions_are_their_masks():
    rng = np.random.default_rng(0)
    shapes = [
        [[float(v) for v in rng.uniform(-5, 45, 8)]] for _ in range(5)
    ] + [{"size": [30, 40], "counts": [100, 50, 1050]}]  # fmt: skip
    found = regions.number(shapes, 30, 40)
    wanted = np.zeros((30, 40), int)
    for place, shape in enumerate(shapes, 1):
        wanted[regions.rasterise([shape], 30, 40)] = place
    np.testing.assert_array_equal(found, wanted)


def test_shrunk_numbers_cover_the_mask_and_keep_neighbours_apart():
    labels = np.zeros((30, 30), int)
    labels[3:27, 3:15], labels[3:27, 15:27] = 7, 9
    mask = np.zeros((10, 10), bool)
    mask[1:9, 1:9] = True
    mask[0, 0] = True  # no roof in its middle: the nearest
    small = touching.shrink(labels, mask)
    np.testing.assert_array_equal(small > 0, mask)
    assert set(small[1:9, 1:5].ravel()) == {7} == {small[0, 0]} and set(
        small[1:9, 5:9].ravel()
    ) == {9}


def test_contact_is_tinted_on_the_sheet():
    pixels = np.zeros((1, 2, 5), np.uint8)
    pixels[0, 1] = 100, 100, 100, 1, 1
    assert contact.tinted(pixels)[0].tolist() == [[0, 0, 0], [177, 50, 130]]
    np.testing.assert_array_equal(contact.tinted(pixels[..., :4]), pixels[..., :3])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """20 images of 24x24 with two roofs that share a wall, as a COCO file and as masks."""
    folder = tmp_path_factory.mktemp("coco")
    images, annotations = [], []
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for k in range(20):
        pixels = np.random.default_rng(k).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
        mask = np.zeros((24, 24), np.uint8)
        mask[4:20, 2:22] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": 24, "width": 24})
        for left, right in ((2, 12), (12, 22)):
            corners = [left, 4, right, 4, right, 20, left, 20]
            number = len(annotations)
            annotations.append({"id": number, "image_id": k, "segmentation": [corners]})
    content = {"images": images, "annotations": annotations}
    (folder / "annotation.json").write_text(json.dumps(content))
    return folder


def build(source, out, **options):
    options = {"size": 12, "progress": False} | options
    return builder.build(source / "annotation.json", source / "images", out, **options)


def test_records_hold_contact_and_are_else_the_same(source, tmp_path):
    build(source, tmp_path / "plain")
    content = build(source, tmp_path / "with", boundaries=3)
    assert content["request"]["boundaries"] == 3
    plain, other = (records.open_split(tmp_path / name, "train") for name in ("plain", "with"))
    labels = np.zeros((12, 12), int)
    labels[2:10, 1:6], labels[2:10, 6:11] = 1, 2
    for one, two in zip(plain, other, strict=True):
        found = two.pop("contact")
        np.testing.assert_array_equal(found[..., 0], touching.contact(labels, 3))
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert pipeline.gather(other, [0, 1]).mask.shape == (2, 12, 12, 1)
    learned = records.open_split(tmp_path / "with", "train", boundaries=True).part([3, 2])
    assert pipeline.gather(learned, [0, 1]).mask.shape == (2, 12, 12, 2)
    command = prepare.summary(content, str(tmp_path / "with"))
    assert "--config.data.boundaries=True" in command
    kept = identity.of(tmp_path / "with")
    (tmp_path / "with" / identity.FILE).unlink()
    assert identity.of(tmp_path / "with") == kept != identity.of(tmp_path / "plain")
    with pytest.raises(UserError, match="prepared with boundaries=3, now asked for None"):
        build(source, tmp_path / "with")


def test_what_cannot_be_is_refused(source, tmp_path):
    origin = origins.Images(source / "masks", source / "images")
    with pytest.raises(UserError, match=r"masks in .* do not tell objects that touch apart"):
        builder.build_from(origin, tmp_path / "out", size=12, boundaries=4)
    with pytest.raises(UserError, match="--boundaries=0 must be 1 to 64 pixels"):
        build(source, tmp_path / "out", boundaries=0)
    assert not (tmp_path / "out").exists()
    build(source, tmp_path / "plain")
    config = base.get_config()
    config.data.directory, config.data.boundaries = str(tmp_path / "plain"), True
    config.model.depth = config.model.width = 1
    with pytest.raises(UserError, match=r"data.boundaries=True: .*prepare --boundaries=4"):
        loop.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_is_prepared_with_boundaries_at_first_use(source, tmp_path):
    options = {"directory": str(source), "cache": str(tmp_path), "size": 12, "limit": None}
    for boundaries in (False, True):
        found = sets.open_sets(**options, seed=0, boundaries=boundaries)["train"]
        assert ("contact" in found[0]) == boundaries == found.boundaries
