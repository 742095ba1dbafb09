"""COCO files: decoding against independent rasterisers, and every kind of bad input."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.draw import polygon2mask
from skimage.morphology import dilation, erosion

from tvjax.data import coco, regions
from tvjax.data.faults import Faults
from tvjax.errors import UserError

TRIANGLE = [2, 2, 20, 3, 9, 25]


def write_set(folder: Path, *, annotations=(), images=None, size=(32, 40)) -> tuple[Path, Path]:
    """A COCO file of one random tile, id 7, unless told otherwise."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    if images is None:
        images = [{"id": 7, "file_name": "a.png", "height": size[0], "width": size[1]}]
    content = {"images": images, "annotations": list(annotations)}
    (folder / "annotation.json").write_text(json.dumps(content))
    return folder / "annotation.json", folder / "images"


def annotation(segmentation, *, number=1, image_id=7, **more):
    return {"id": number, "image_id": image_id, "segmentation": segmentation, **more}


def assert_equal_but_for_boundary(mask, expected):
    """Rasterisers differ in the pixels that the outline passes through, and in no others."""
    square = np.ones((3, 3), bool)
    certain = erosion(expected, square)
    possible = dilation(expected, square)
    assert np.all(mask[certain]) and not np.any(mask[~possible])


@pytest.mark.parametrize("seed", range(5))
def test_polygons_equal_skimage_up_to_the_boundary(seed):
    rng = np.random.default_rng(seed)
    # Some polygons cross the border of the image: what is outside is cut off exactly.
    angles = np.sort(rng.uniform(0, 2 * np.pi, 8))
    radii = rng.uniform(15, 45, 8)
    points = rng.uniform(0, 60, 2) + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    mask = regions.rasterise([[points.ravel().tolist()]], 60, 80)
    wide = polygon2mask((220, 240), points[:, ::-1] + 80)
    assert_equal_but_for_boundary(np.pad(mask, 80)[80:140, 80:160], wide[80:140, 80:160])


def test_objects_are_of_the_chosen_categories(tmp_path):
    square = [[2, 2, 10, 2, 10, 10, 2, 10]]
    kinds = {1: "roof", 2: "shed", 3: "tree"}
    entries = [annotation(square, number=k, category_id=k) for k in kinds]
    file, images = write_set(tmp_path, annotations=entries)
    content = json.loads(file.read_text())
    content["categories"] = [{"id": k, "name": name} for k, name in kinds.items()]
    file.write_text(json.dumps(content))
    (tile,) = coco.read(file, images, categories=[1, 2])
    assert len(tile.segmentations) == 2
    with pytest.raises(UserError, match=r"1 \(roof\), 2 \(shed\), 3 \(tree\).*--category=ID"):
        coco.read(file, images)
    with pytest.raises(UserError, match=r"--category=7; there are 1 \(roof\)"):
        coco.read(file, images, categories=[1, 7])
    file.write_text(json.dumps(content | {"annotations": entries[:1]}))
    (tile,) = coco.read(file, images)  # what no annotation is of is no choice
    assert len(tile.segmentations) == 1


def test_several_polygons_and_annotations_unite(tmp_path):
    squares = [[2, 2, 10, 2, 10, 10, 2, 10], [20, 5, 30, 5, 30, 15, 20, 15]]
    entries = [annotation(squares), annotation([[8, 8, 22, 8, 22, 12, 8, 12]], number=2)]
    (tile,) = coco.read(*write_set(tmp_path, annotations=entries))
    mask = tile.load().mask
    expected = np.zeros((32, 40), bool)
    expected[2:10, 2:10] = expected[5:15, 20:30] = expected[8:12, 8:22] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("crowd", [0, 1])
def test_run_length_codes_round_trip(tmp_path, crowd):
    expected = np.random.default_rng(1).random((32, 40)) < 0.3
    flat = expected.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    counts = np.diff([0, *edges, flat.size]).tolist()
    compressed = coco_mask.frPyObjects({"size": [32, 40], "counts": counts}, 32, 40)
    for code in (counts, compressed["counts"].decode()):
        entry = annotation({"size": [32, 40], "counts": code}, iscrowd=crowd, bbox=[0, 0, 1, 1])
        (tile,) = coco.read(*write_set(tmp_path, annotations=[entry]))
        np.testing.assert_array_equal(tile.load()[1], expected)


def test_order_and_gaps_of_ids_do_not_matter(tmp_path):
    images = [
        {"id": number, "file_name": f"{number}.png", "height": 32, "width": 40}
        for number in (90, 7, 3)
    ]
    (tmp_path / "images").mkdir()
    for image in images:
        Image.new("RGB", (40, 32)).save(tmp_path / "images" / image["file_name"])
    entries = [
        annotation([[0, 0, 4, 0, 4, 4, 0, 4]], image_id=90, number=5),
        annotation([[0, 0, 2, 0, 2, 2, 0, 2]], image_id=3, number=9),
        annotation([[10, 10, 14, 10, 14, 14, 10, 14]], image_id=90, number=1),
    ]
    tiles = coco.read(*write_set(tmp_path, annotations=entries, images=images))
    assert [tile.id for tile in tiles] == [3, 7, 90]
    assert [int(tile.load()[1].sum()) for tile in tiles] == [4, 0, 32]


def test_polygons_of_images_of_another_size_are_refused(tmp_path, capsys):
    inside, crossing = [[1, 1, 9, 1, 9, 9]], [[30, 20, 90, 20, 90, 90]]
    edge, beyond = [[40, 5, 40, 9, 40, 7]], [[45, 5, 60, 5, 60, 9], [5, -9, 9, -9, 9, -2]]
    both = [*beyond, *inside]
    entries = [annotation(one, category_id=1) for one in 5 * [inside, crossing, edge, both]]
    outside = annotation(beyond, category_id=1), annotation(beyond, category_id=2)
    size = "image id 7, which is 40x32 pixels"
    coco.read(*write_set(tmp_path, annotations=entries))
    assert capsys.readouterr().err == ""
    file, images = write_set(tmp_path, annotations=entries + 2 * [outside[0]] + 9 * [outside[1]])
    (tile,) = coco.read(file, images, categories=[1])
    assert len(tile.segmentations) == 22
    note = f"2 of 22 annotations lie wholly outside of their images, such as one of {size}"
    assert f"annotation.json: {note}: they do not count" in capsys.readouterr().err
    file, images = write_set(tmp_path, annotations=entries + 3 * [outside[0]])
    with pytest.raises(
        UserError, match=rf"annotation\.json: 3 of 23 annotations .* {size}; the images may"
    ):
        coco.read(file, images, faults=Faults())


@pytest.mark.parametrize("other", ["a.png", "./a.png", "sub/../a.png"])
def test_one_file_under_two_ids_is_refused(tmp_path, other):
    images = [
        {"id": number, "file_name": name, "height": 32, "width": 40}
        for number, name in ((7, "a.png"), (9, other))
    ]
    with pytest.raises(UserError, match=rf"ids 7 \(a\.png\) and 9 \({other}\) are one file"):
        coco.read(*write_set(tmp_path, images=images))


def test_names_that_differ_in_case_or_folder_are_of_two_files_where_there_are_two(tmp_path):
    names = ["a.png", "A.png", "b/a.png", "e\u0301.png", "\u00e9.png", "a.jpg"]
    images = [
        {"id": number, "file_name": name, "height": 32, "width": 40}
        for number, name in enumerate(names)
    ]
    (tmp_path / "images" / "b").mkdir(parents=True)
    for name in names[1:]:
        Image.new("RGB", (40, 32)).save(tmp_path / "images" / name)
    files = write_set(tmp_path, images=images)
    assert [tile.file for tile in coco.read(*files)] == [files[1] / name for name in names]
    (tmp_path / "images" / "A.png").unlink()
    os.link(tmp_path / "images" / "a.png", tmp_path / "images" / "A.png")  # as macOS has it
    with pytest.raises(UserError, match=r"ids 0 \(a\.png\) and 1 \(A\.png\) are one file"):
        coco.read(*files)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_images_are_converted_to_rgb(tmp_path, mode):
    annotations, images = write_set(tmp_path)
    name = "a.jpg" if mode == "CMYK" else "a.png"
    with Image.open(images / "a.png") as image:
        converted = image.convert(mode)
    if mode == "P":
        converted.info["transparency"] = bytes([128] * 256)
    converted.save(images / name)
    if name != "a.png":
        (images / name).rename(images / "a.png")
    (tile,) = coco.read(annotations, images)
    image = tile.load().image
    assert image.shape == (32, 40, 3) and image.dtype == np.uint8
    if mode == "L":
        np.testing.assert_array_equal(image, np.asarray(converted)[..., None].repeat(3, axis=2))


BAD_SEGMENTATIONS = {
    "odd count": [[1, 1, 5, 1, 5]],
    "fewer than 3 points": [[1, 1, 5, 5]],
    "fewer than 3 points (0)": [[]],
    "no numbers": [[1, 1, "5", 1, 5, 5]],
    "no numbers ": [[[1, 1], [5, 1], [5, 5]]],
    "no list of numbers": [3, 4],
    "far outside": [[1, 1, 1e9, 1, 5, 5]],
    "far outside ": [[1, 1, float("nan"), 1, 5, 5]],
    "no segmentation": [],
    "no segmentation ": None,
    "of size [40, 32]": {"size": [40, 32], "counts": [1280]},
    "of 7 pixels": {"size": [32, 40], "counts": [3, 4]},
    "no whole numbers": {"size": [32, 40], "counts": [1280.5, -0.5]},
    "of 6 pixels": {"size": [32, 40], "counts": "123"},
    "cut off": {"size": [32, 40], "counts": "12P"},
    "the character '~'": {"size": [32, 40], "counts": "12~"},
    "with counts None": {"size": [32, 40]},
}


@pytest.mark.parametrize("message", BAD_SEGMENTATIONS)
def test_malformed_segmentation(tmp_path, message):
    entry = annotation(BAD_SEGMENTATIONS[message], number=41)
    with pytest.raises(UserError) as error:
        coco.read(*write_set(tmp_path, annotations=[entry]))
    text = str(error.value)
    assert message.strip() in text and "\n" not in text
    assert "annotation.json: annotation 41 of image id 7 " in text


def test_bad_files(tmp_path):
    annotations, images = write_set(tmp_path)

    def fails(pattern, *, content=None, file=annotations, folder=images):
        if content is not None:
            file.write_text(content)
        with pytest.raises(UserError, match=pattern) as error:
            coco.read(file, folder)
        assert "\n" not in str(error.value)

    fails("none.json: cannot be read .No such file", file=tmp_path / "none.json")
    fails("nowhere: no such directory of images", folder=tmp_path / "nowhere")
    fails(r"annotation.json: the annotations are not JSON", content="{'images': ")
    fails("a JSON object with a list 'images'", content="[]")
    fails("a JSON object with a list 'annotations'", content='{"images": []}')
    fails("'images' is empty", content='{"images": [], "annotations": []}')


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"id": None}, r"images\[0\] has id=None"),
        ({"file_name": 3}, r"images\[0\] has file_name=3"),
        ({"width": 0}, r"images\[0\] has width=0"),
        ({"file_name": "b.png"}, r"b\.png: image id 7 of .*annotation.json has no such file"),
    ],
)
def test_bad_image_record(tmp_path, change, pattern):
    record = {"id": 7, "file_name": "a.png", "height": 32, "width": 40} | change
    with pytest.raises(UserError, match=pattern):
        coco.read(*write_set(tmp_path, images=[record]))


def test_annotation_of_a_missing_image_and_doubled_ids(tmp_path):
    entry = annotation([TRIANGLE], number=5, image_id=8)
    with pytest.raises(UserError, match="annotation 5 names image id 8, which is not in 'images'"):
        coco.read(*write_set(tmp_path, annotations=[entry]))
    record = {"id": 7, "file_name": "a.png", "height": 32, "width": 40}
    with pytest.raises(UserError, match="image id 7 occurs twice"):
        coco.read(*write_set(tmp_path, images=[record, record]))


def test_bad_pixels(tmp_path):
    annotations, images = write_set(tmp_path)
    (tile,) = coco.read(annotations, images)
    file = images / "a.png"
    with pytest.raises(UserError, match=r"a\.png: is 40x32 pixels, .* declare 40x33 for image id"):
        tile._replace(height=33).load()
    Image.fromarray(np.zeros((32, 40), np.uint16)).save(file)
    with pytest.raises(UserError, match=r"a\.png: has 16 bits per channel.*--white"):
        tile.load()
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(tmp_path / "a.jpg")
    file.write_bytes((tmp_path / "a.jpg").read_bytes()[:400])
    with pytest.raises(UserError, match=r"a\.png: cannot be decoded, it may be truncated"):
        tile.load()
    file.write_text("no image")
    with pytest.raises(UserError, match=r"a\.png: cannot be decoded"):
        tile.load()


def test_polygons_in_shares_of_the_image_are_refused(tmp_path):
    shares = [[0.1, 0.2, 0.5, 0.2, 0.5, 1.0, 0.0, 1]]
    kept = [[0.5, 0.5, 1, 0, 1, 1.5]], [[0, 0, 1, 0, 1, 1, 0, 1]], [[-0.5, 0, 0.5, 0, 0.5, 0.7]]
    for other in kept:  # a region of a pixel or two is none of shares
        assert len(coco.read(*write_set(tmp_path, annotations=[annotation(other)]))) == 1
    entries = [annotation(shares, number=k) for k in range(3)]
    with pytest.raises(UserError, match=r"no coordinate of its polygons is above 1, as in shares"):
        coco.read(*write_set(tmp_path, annotations=entries))
    entries.append(annotation([TRIANGLE], number=3))
    assert len(coco.read(*write_set(tmp_path, annotations=entries))) == 1


def test_annotations_that_do_not_count_are_told_of(tmp_path, capsys):
    entries = [annotation([TRIANGLE], number=k) for k in range(3)]
    entries[0]["category_id"] = 5
    assert coco.read(*write_set(tmp_path, annotations=entries))[0].load()[1].any()
    assert not capsys.readouterr().err
    coco.read(*write_set(tmp_path, annotations=entries), categories=[5])
    assert "annotation.json: 2 of 3 annotations have no category_id: they do" in (
        capsys.readouterr().err
    )
    entries[1]["iscrowd"] = "0"  # which Python takes for true
    with pytest.raises(UserError, match=r"annotation 1 of image id 7 has iscrowd='0', which is"):
        coco.read(*write_set(tmp_path, annotations=entries))
