"""What a comparison lets one claim, in words; and which images are neighbours."""

import numpy as np
import pytest

from tvjax.scoring import claims, neighbours
from tvjax.scoring.sides import Run

DATA = {"sha256": 64 * "a", "directory": "tiles"}


def runs(name, *seeds):
    return [Run(f"{name}{seed}", seed, {}, f"{name}{seed}", DATA) for seed in seeds]


def rows(iou, images, rng):
    """Rows of a run whose images have 100 pixels of objects each, and this IoU about."""
    hits = np.clip(rng.normal(100 * iou, 10, images), 0, 100)
    return [
        {"iou": h / 100, "true_positive": h, "false_positive": 0.0, "false_negative": 100.0 - h}
        for h in hits
    ]


def compare(first, second, images=40, score="pooled_iou", blocks=None):
    rng = np.random.default_rng(0)
    sides = runs("a", *range(len(first))), runs("b", *range(5, 5 + len(second)))
    found = [rows(iou, images, rng) for iou in [*first, *second]]
    labels = np.arange(images) if blocks is None else blocks
    cut = neighbours.Blocks(labels, f"{len(np.unique(labels))} blocks")
    return claims.compare(*sides, found, blocks=cut, score=score)


@pytest.mark.parametrize("score", ["iou", "pooled_iou"])
def test_a_clear_difference_is_claimed_for_either_side(score):
    low, high = (0.5, 0.51, 0.49, 0.5, 0.5), (0.7, 0.71, 0.69, 0.7)
    for sides, higher in (((low, high), "second"), ((high, low), "first")):
        claim = compare(*sides, score=score)["claim"]
        assert claim["higher"] == higher
        start = f"The {higher} method's {claims.NAMES[score]} is higher, by 0.1"
        assert claim["words"].startswith(start) and "on images like these" in claim["words"]


def test_what_is_not_told_apart_says_what_would_have_been():
    result = compare((0.5, 0.6), (0.62, 0.55))
    claim, found = result["claim"], result["pooled_iou"]
    assert claim["higher"] is None and "not told apart" in claim["words"]
    assert f"{found['high'] - found['difference']:.4f} would have been" in claim["words"]


def test_few_images_or_blocks_and_single_runs_give_no_claim():
    clear = (0.3, 0.31, 0.3), (0.8, 0.81, 0.8)
    assert compare(*clear, images=20)["claim"]["higher"] == "second"
    for few in (compare(*clear, images=19), compare(*clear, blocks=np.arange(40) // 3)):
        assert few["claim"]["higher"] is None and "are too few" in few["claim"]["words"]
    for few in (compare(clear[0][:1], clear[1]), compare(clear[0], clear[1][:1])):
        assert few["claim"]["higher"] is None and few["pooled_iou"]["low"] is None
        assert "two runs of each or more are needed; give several seeds" in few["claim"]["words"]
    one = compare(clear[0][:1], clear[1][:1])
    assert one["compares"].startswith("two runs are compared") and one["p_value"] < 1e-6
    assert one["claim"]["higher"] is None and one["pooled_iou"]["low"] > 0.4


def test_map_tiles_are_cut_into_blocks_of_neighbours():
    names = [f"town/19/{x}/{y}.png" for x in range(1000, 1016) for y in range(2000, 2016)]
    found = neighbours.find(names, range(len(names)), {})
    _, counts = np.unique(found.labels, return_counts=True)
    assert len(counts) == 64 and set(counts) == {4} and found.words == "64 blocks of map tiles"
    assert (
        found.labels[names.index("town/19/1000/2000.png")]
        == (found.labels[names.index("town/19/1001/2001.png")])
    )
    few = neighbours.find(names[:9], range(9), {})
    assert len(np.unique(few.labels)) == 9


def test_prepared_tiles_are_drawn_with_their_cluster():
    names = [f"{k}.jpg" for k in range(5)]
    found = neighbours.find(names, [10, 11, 12, 13, 14], {10: 3, 12: 3, 11: 4})
    assert found.labels.tolist() == [0, 1, 0, 2, 3] and found.words.startswith("4 blocks of")
