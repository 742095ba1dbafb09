"""Scores of images and of objects, and comparisons, on known answers."""

import csv
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import stats

from tvjax.errors import UserError
from tvjax.inference import tiles
from tvjax.scoring import scores
from tvjax.scoring.average_precision import average_precision
from tvjax.scoring.comparison import compare, describe
from tvjax.scoring.examples import Example, Examples


def square(left, top, side=8):
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def red(images):
    return np.asarray(images)[..., :1]


def write_coco(folder):
    """Three images: one whose redness is the truth, one half of which is missed, one empty."""
    truth = {1: [square(2, 2), square(20, 4)], 2: [square(4, 4), square(24, 4)], 3: []}
    drawn = {1: truth[1], 2: truth[2][:1], 3: []}
    (folder / "images").mkdir()
    images, annotations = [], []
    for number, segmentations in drawn.items():
        pixels = np.zeros((40, 40, 3), np.uint8)
        for ((left, top, right, _, _, bottom, *_),) in segmentations:
            pixels[top:bottom, left:right, 0] = 230
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 40})
        annotations += [
            {"id": 10 * number + k, "image_id": number, "segmentation": segmentation}
            for k, segmentation in enumerate(truth[number])
        ]
    content = {"images": images, "annotations": annotations}
    (folder / "a.json").write_text(json.dumps(content))
    return Examples.of_coco(folder / "a.json", folder / "images")


def test_a_coco_file_is_scored_by_image_and_by_object(tmp_path):
    examples = write_coco(tmp_path)
    tiling = tiles.choose_tiling(scores.scaled_sizes(examples, [1.0] * 3), red)
    assert tiling.fit(40, 40).tile == (64, 64)
    result = scores.score(examples, red, tiling)
    assert [row["iou"] for row in result.images] == pytest.approx([1, 0.5, 1])
    assert [row["boundary_iou"] for row in result.images] == pytest.approx([1, 0.5, 1])
    assert [row["components"] for row in result.images] == [2, 1, 0]
    summary = result.summary
    assert summary["iou"] == pytest.approx(2.5 / 3) and summary["pooled_iou"] == pytest.approx(0.75)
    assert summary["nonempty_iou"] == pytest.approx(0.75) and summary["empty_images"] == 1
    # 8 pixels wide, a band of 1.
    assert summary["boundary_pixels"] == 1 and summary["narrow_components"] == 0
    # Three of four objects, and nothing else: precision 1 up to recall 0.75 (76 of 101 levels).
    assert summary["ap"] == pytest.approx(76 / 101) and summary["ar"] == pytest.approx(0.75)
    scores.write_csv(result.images, tmp_path / "per_image.csv")
    with open(tmp_path / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["1.png", "2.png", "3.png"]
    assert [float(row["iou"]) for row in rows] == pytest.approx([1, 0.5, 1])


def test_tiles_of_a_split_take_components_for_objects():
    mask = np.zeros((16, 16, 1), np.uint8)
    mask[2:6, 2:6] = mask[9:12, 3:13] = 1
    record = {"id": 4, "file": "t.png", "image": mask.repeat(3, -1) * 200, "mask": mask}

    class Split(list):
        pass

    examples = Examples.of_split(Split([record]))
    result = scores.score(examples, red, tiles.choose_tiling({(16, 16)}, red))
    assert result.summary["ap"] == pytest.approx(1) and result.summary["iou"] == 1


@pytest.mark.parametrize("wrong, told", [(np.nan, "got nan"), (7.0, "got 7"), (-3.0, "got -3")])
def test_a_net_that_gives_no_probabilities_is_refused(tmp_path, wrong, told):
    examples = write_coco(tmp_path)
    tiling = tiles.Tiling((40, 40), 0, 0)
    with pytest.raises(UserError, match=rf"probabilities in \[0, 1\]; {told}"):
        scores.score(examples, lambda images: np.full_like(images[..., :1], wrong), tiling)
    with pytest.raises(UserError, match=r"\(1, 40, 40, 1\) .* got \(1, 40, 40, 3\)"):
        scores.score(examples, lambda images: images, tiling)
    with pytest.raises(UserError, match="no image"):
        scores.score(Examples([], examples.get), red, tiling)


def test_average_precision_without_objects_or_results():
    assert average_precision([(1, (9, 9), [], [])], [])["ap"] is None
    assert average_precision([(1, (9, 9), [square(1, 1, 4)], [True])], [])["ap"] is None
    assert average_precision([(1, (9, 9), [square(1, 1, 4)], [False])], [])["ap"] == 0


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong(tmp_path):
    """Image 2 lacks one of its two objects: as a crowd it is not looked for, nor if found wrong."""
    examples = write_coco(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][-1]["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(content))
    examples = Examples.of_coco(tmp_path / "a.json", tmp_path / "images")
    assert examples.get(1).crowds == (False, True)
    result = scores.score(examples, red, tiles.Tiling((40, 40), 0, 0), category=100)
    assert {found["category_id"] for found in result.results} == {100}
    assert result.summary["ap"] == pytest.approx(1)
    assert result.images[1]["iou"] == pytest.approx(0.5)  # its pixels are objects' all the same
    (code,) = (r for r in result.results if r["image_id"] == 2)
    truth = [(2, (40, 40), [square(4, 4), square(2, 2, 30)], [False, True])]
    specks = [code, code | {"score": 0.99, "segmentation": codes(square(20, 20, 3))}]
    assert average_precision(truth, specks)["ap"] == pytest.approx(1)
    truth = [(*truth[0][:3], [False, False])]
    assert average_precision(truth, specks)["ap"] < 0.5


def test_where_an_image_has_no_data_there_is_neither_truth_nor_prediction(tmp_path):
    write_coco(tmp_path)
    with Image.open(tmp_path / "images" / "1.png") as image:
        pixels = np.asarray(image)
    alpha = np.full((40, 40, 1), 255, np.uint8)
    alpha[:, 20:] = 0  # on the second object, which the net sees all the same
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "images" / "1.png")
    examples = Examples.of_coco(tmp_path / "a.json", tmp_path / "images")
    example = examples.get(0)
    assert example.mask[:, :20].any() and not example.mask[:, 20:].any()
    np.testing.assert_array_equal(example.image, pixels)
    result = scores.score(examples, red, tiles.Tiling((40, 40), 0, 0))
    assert result.images[0]["iou"] == 1 and result.images[0]["false_positive"] == 0


def codes(segmentation):
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, 40, 40))


def test_the_comparison_is_scipy_s_and_knows_equality():
    rng = np.random.default_rng(0)
    one = rng.random(60)
    two = one + rng.normal(0.02, 0.05, 60)
    result = compare(one, two)
    assert result["p_value"] == stats.wilcoxon(two, one).pvalue
    assert result["difference"] == pytest.approx((two - one).mean())
    spread = 1.96 * (two - one).std(ddof=1) / 60**0.5
    assert result["high"] - result["low"] == pytest.approx(2 * spread, rel=0.1)
    assert result["low"] < result["difference"] < result["high"]
    same = compare(one, one)
    assert (same["p_value"], same["low"], same["high"], same["second_better"]) == (1, 0, 0, 0)
    with pytest.raises(ValueError, match="as many scores"):
        compare([1.0], [])


REPORT = {
    "workdir": "run", "iou": 0.5, "pooled_iou": 0.4, "nonempty_iou": 0.3, "images": 9,
    "empty_images": 2, "boundary_iou": 0.5, "ap": None,
}  # fmt: skip


def test_a_comparison_is_of_two_runs_and_of_few_images_no_claim():
    for number in (19, 20):
        found = compare(np.zeros(number), np.linspace(0.1, 0.2, number))
        first, *lines = describe(found, [REPORT, REPORT | {"pooled_iou": 0.3}]).splitlines()
        assert first.startswith("Two runs are compared, not two methods")
        assert found["compares"].startswith("two runs") and found["enough_images"] == (number > 19)
        assert ("No claim can be made" in lines[-1]) == (number < 20)
        told = "pooled IoU 0.4000; mean IoU 0.5000 over 9 images (2 of them without objects, 0.3"
        assert told in lines[0]
        assert any("pooled IoU -0.1000, which says the contrary" in line for line in lines)


def test_of_few_images_no_p_value_is_told():
    comparison = compare([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert comparison["p_value"] is None
    report = REPORT
    told = describe(comparison, [report, report]).partition("\n")[2]
    assert "5 images say nothing of others" in told and "p =" not in told and "interval" not in told
    told = describe(compare([0] * 6, [1, 2, 3, 4, 5, 6]), [report, report])
    assert "p = 0.031" in told and "too narrow" not in told
    told = describe(compare([0] * 9, [0, 0, 0, 0, 0, 0, 1, 1, 0]), [report, report])
    assert "only 2 of the images differ" in told


def ious(rng, n):
    """The IoU of images by two nets, the second better by 0.02 where there is room."""
    first = rng.beta(5, 2, n)
    return first, np.clip(first + rng.normal(0.02, 0.05, n), 0, 1)


DRAWS = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1,
    "heavy-tailed": lambda rng, n: rng.standard_t(3, n),
    "IoU": lambda rng, n: np.subtract(*ious(rng, n)[::-1]),
    "60 % ties": lambda rng, n: (rng.random(n) < 0.4) * rng.normal(0.05, 0.15, n),
}
COVERS = {6: 0.93, 10: 0.94, 20: 0.94}
TIES = {6: 0.87, 10: 0.92, 20: 0.94}
"""Least shares; what was measured over more data sets is in docs/results.md."""


@pytest.mark.parametrize("name", DRAWS)
def test_the_interval_covers_as_often_as_it_says(name):
    mean = DRAWS[name](np.random.default_rng(1), 2_000_000).mean()
    for n, least in (TIES if name == "60 % ties" else COVERS).items():
        rng, covered, times = np.random.default_rng(n), 0, 250
        for seed in range(times):
            found = compare(np.zeros(n), DRAWS[name](rng, n), resamples=400, seed=seed)
            covered += found["low"] <= mean <= found["high"]
        assert covered / times > least - 2 * (0.05 / times) ** 0.5, (n, covered / times)


def test_an_interval_is_bounded_repeatable_and_not_given_of_few_images():
    for n in (1, 2, 3, 5):
        few = compare(np.zeros(n), np.linspace(0.1, 0.2, n))
        assert (few["low"], few["high"], few["p_value"]) == (None, None, None)
        assert few["difference"] > 0 and few["second_better"] == n
    wide = compare([0.0] * 6, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    assert -1 <= wide["low"] < 0.5 < wide["high"] == 1
    assert compare([0.0] * 6, [0.0, 0.0, 0.0, 9.0, 9.0, 9.0])["high"] > 9  # no IoU: no bound
    one, two = ious(np.random.default_rng(0), 30)
    assert compare(one, two) == compare(one, two)
    other = compare(one, two, seed=1)
    assert compare(one, two)["low"] == pytest.approx(other["low"], abs=2e-3)
    narrow = compare(one, two, confidence=0.5)
    assert compare(one, two)["low"] < narrow["low"] < narrow["high"] < compare(one, two)["high"]
    back = compare(two, one)
    assert -back["high"] == pytest.approx(compare(one, two)["low"], abs=2e-3)
    for tied in (compare([0.3] * 9, [0.1 + 0.2] * 9), compare([0.25] * 9, [0.5] * 9)):
        assert tied["low"] == pytest.approx(tied["difference"]) == pytest.approx(tied["high"])
    with pytest.raises(ValueError, match="finite"):
        compare([0.5, np.nan], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"confidence .* 95"):
        compare([0.5], [0.5], confidence=95)
    with pytest.raises(ValueError, match="resamples=9 "):
        compare([0.5], [0.5], resamples=9)


def signed_rank_by_enumeration(levels):
    """The share of all signs whose sum of ranks is as extreme as this."""
    levels = levels[levels != 0]
    ranks = stats.rankdata(np.abs(levels))
    signs = np.array(list(itertools.product((0, 1), repeat=len(ranks))))
    sums, found = signs @ ranks, ranks[levels > 0].sum()
    return min(1, 2 * min(np.mean(sums <= found), np.mean(sums >= found)))


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_differences_that_rounding_tells_apart_are_ties(kind):
    levels = np.array([1, -1, 2, 2, 1, 3, 0, -2, 4, 1])
    one = np.array([0.3, 0.6, 0.1, 0.5, 0.2, 0.4, 0.7, 0.9, 0.3, 0.15], kind)
    two = (one + (levels / 10).astype(kind)).astype(kind)
    assert len(set(np.abs(two.astype(float) - one))) > 5  # as rounded they are no ties
    found = compare(one, two)
    assert found["p_value"] == pytest.approx(signed_rank_by_enumeration(levels), rel=1e-12)
    assert (found["second_better"], found["first_better"]) == (7, 2)
    nothing = compare([0.3] * 6, [0.1 + 0.2] * 6)
    assert (nothing["p_value"], nothing["second_better"]) == (1, 0)
    apart = 2 * np.finfo(kind).eps ** 0.5 * np.arange(1, 9)  # small, and no rounding
    assert compare(np.full(8, 0.5, kind), (0.5 + apart).astype(kind))["p_value"] == 2 / 2**8


def test_the_p_value_is_exact_without_ties_too():
    rng = np.random.default_rng(0)
    for n in (6, 12, 30, 50):
        change = rng.normal(0.3, 1, n)
        expected = stats.wilcoxon(change, method="exact").pvalue
        assert compare(np.zeros(n), change)["p_value"] == pytest.approx(expected, rel=1e-9)


def test_extremes_are_chosen_once():
    rows = [{"iou": value} for value in (0.1, 0.9, 0.5, 0.6, 0.4, 0.8, 0.2)]
    assert scores.extremes(rows) == {"best": [1, 5], "median": [3, 2], "worst": [6, 0]}
    assert scores.extremes(rows[:2]) == {"best": [1, 0]}
    assert scores.extremes(rows[:3]) == {"best": [1], "median": [2], "worst": [0]}


def test_an_image_is_predicted_at_another_scale():
    image = np.zeros((60, 60, 3), np.uint8)
    image[12:36, 15:45] = 255
    example = Example(1, "a", image, image[..., :1] // 255, (), ())
    found = scores.probabilities(example, red, tiles.Tiling((20, 20), 0, 0), scale=1 / 3)
    assert found.shape == (60, 60, 1)
    assert np.sum((found[..., 0] > 0.5) != (image[..., 0] > 0)) <= 4
