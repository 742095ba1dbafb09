"""The one scorer of masks against scipy's erosions and labels, and counts by hand."""

import numpy as np
import pytest
from scipy import ndimage

from tvjax.scoring import mask_scores


def drawn(shape, count=3):
    rng = np.random.default_rng(0)
    pairs = [ndimage.uniform_filter(rng.random((2, *shape)), (1, 3, 3)) > 0.5 for _ in range(count)]
    none = np.zeros(shape, bool)
    return np.array([*pairs, [pairs[0][0], none], [none, none], [~none, ~none]]).swapaxes(0, 1)


def expected(prediction, truth):
    """The scores of one image, the slow way."""
    height, width = truth.shape
    pixels = max(1, round(0.02 * (height**2 + width**2) ** 0.5))
    box = np.ones((2 * pixels + 1, 2 * pixels + 1))
    one, two = (m & ~ndimage.binary_erosion(m, box) for m in (prediction, truth))

    def iou(a, b):
        return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0

    def variation(m):
        return np.abs(np.diff(m.astype(int), axis=0)).sum() + np.abs(np.diff(m * 1, axis=1)).sum()

    return {
        "iou": iou(prediction, truth),
        "boundary_iou": iou(one, two),
        "components": ndimage.label(prediction)[1],
        "true_components": ndimage.label(truth)[1],
        "tv": variation(prediction),
        "true_tv": variation(truth),
        "true_positive": (prediction & truth).sum(),
        "false_positive": (prediction & ~truth).sum(),
        "false_negative": (~prediction & truth).sum(),
    }


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (11, 13), (140, 90)])
def test_scores_are_their_definitions(shape):
    predictions, truths = drawn(shape)
    found = mask_scores.of_images(predictions, truths)
    for k, pair in enumerate(zip(predictions, truths, strict=True)):
        assert {name: value[k] for name, value in found.items()} == expected(*pair)
    none = mask_scores.of_images(predictions[:0], truths[:0])
    assert all(value.shape == (0,) for value in none.values()) and none.keys() == found.keys()


def test_components_of_neighbouring_images_and_edges_stay_apart():
    whole = np.ones((3, 4, 5), bool)
    np.testing.assert_array_equal(mask_scores.components(whole), [1, 1, 1])
    sides = np.zeros((1, 3, 5), bool)
    sides[0, 1, 0] = sides[0, 1, 4] = sides[0, 0, 2] = sides[0, 2, 2] = True
    three = np.concatenate([sides, 0 * sides, sides])
    assert mask_scores.components(three > 0).tolist() == [4, 0, 4]


def test_masks_of_numbers_or_other_shapes_are_refused():
    mask = np.zeros((1, 4, 5), bool)
    for pair, told in (
        ((mask.astype(np.uint8) * 255, mask), "prediction must be bool .* uint8"),
        ((mask, mask.astype(float)), "truth must be bool .* float64"),
        ((mask, mask[:, :1]), r"\(1, 4, 5\) must have the shape of truth \(1, 1, 5\)"),
        ((mask[..., None], mask), r"\(1, 4, 5, 1\)"),
    ):
        with pytest.raises(ValueError, match=told):
            mask_scores.of_images(*pair)


def test_a_summary_pools_pixels_and_leaves_out_empty_images():
    predictions, truths = drawn((11, 13))
    found = mask_scores.of_images(predictions, truths)
    empty = ~truths.any(axis=(1, 2))
    sums = {name: value.sum() for name, value in found.items()}
    sums |= {"images": 6, "empty_images": empty.sum(), "nonempty_iou": found["iou"][~empty].sum()}
    summary = mask_scores.summarise(sums)
    assert summary["iou"] == pytest.approx(found["iou"].mean())
    assert summary["nonempty_iou"] == pytest.approx(found["iou"][~empty].mean())
    both, either = (predictions & truths).sum(), (predictions | truths).sum()
    assert summary["pooled_iou"] == pytest.approx(both / either)
    assert summary["pooled_f1"] == pytest.approx(2 * both / (both + either))
    assert (summary["images"], summary["empty_images"]) == (6, 2)
