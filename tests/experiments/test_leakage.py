"""Near-duplicates between training and test, planted ones and near misses: counted, trained on."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import leakage, twins
from tvjax.data import arrangement, duplicates, splits
from tvjax.data.embedded import synthetic
from tvjax.errors import UserError


@pytest.fixture(scope="module")
def scenes():
    """Twelve drawn scenes of 96 pixels, and masks that say which pixel is which."""
    images = np.stack([np.asarray(synthetic.draw(0, k, 96)[0]) for k in range(12)])
    return images, images[..., :1] % 2


def encoded(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_near_duplicates_are_found_and_near_misses_are_not(scenes):
    images, _ = scenes
    tile = images[0]
    same = [
        np.rot90(tile, 3), tile[::-1], tile[:, ::-1].swapaxes(0, 1), encoded(tile, 50),
        encoded(np.rot90(tile), 75), np.clip(tile * 0.8 + 20, 0, 255).astype(np.uint8),
    ]  # fmt: skip
    other = [np.roll(tile, 24, axis=1), tile[::-1] // 2 + images[1] // 2, *images[1:]]
    tiles = np.stack([tile, *same, *other])
    pairs = duplicates.pairs(np.stack([duplicates.hashes(t) for t in tiles]))
    members = 1 + len(same)
    assert pairs.tolist() == [[i, j] for i in range(members) for j in range(i + 1, members)]
    assert duplicates.pairs(np.zeros((0, 8), np.uint64)).shape == (0, 2)


def test_planted_twins_are_what_they_are_said_to_be(scenes):
    images, masks = scenes
    tiles = twins.plant(images, masks, share=2 / 3, seed=0)
    assert tiles.image.shape == (20, 72, 72, 3) and tiles.mask.shape == (20, 72, 72, 1)
    kinds, counts = np.unique(tiles.kind[12:], return_counts=True)
    assert sorted(kinds) == sorted(twins.KINDS) and set(counts) == {2}
    assert len(set(tiles.scene[12:])) == 8 and not tiles.kind[:12].any()
    for k in range(12, 20):
        of = tiles.scene[k]
        image, mask = tiles.image[of], tiles.mask[of]
        np.testing.assert_array_equal(image, images[of, :72, :72])
        if tiles.kind[k] == "overlapping":
            np.testing.assert_array_equal(tiles.image[k][:48, :48], image[24:, 24:])
            np.testing.assert_array_equal(tiles.mask[k][:48, :48], mask[24:, 24:])
        elif tiles.kind[k] == "turned":
            both = np.dstack([image, mask])
            views = [np.rot90(x, n) for x in (both, both[:, ::-1]) for n in range(4)]
            found = [(np.dstack([tiles.image[k], tiles.mask[k]]) == v).all() for v in views]
            assert sum(found) == 1 and not found[0]
        else:
            np.testing.assert_array_equal(tiles.mask[k], mask)
            assert 0 < np.abs(tiles.image[k].astype(int) - image).mean() < 40
    assert len(twins.plant(images, masks, share=0.0, seed=0).image) == 12


def test_shares_are_those_of_the_draws(scenes):
    known = leakage.know(*scenes, np.arange(12), None)
    assert known.tiles.kind.any()  # there were no near-duplicates, so half have twins now
    share = leakage.shares(known, 300)
    # A tile in a pair is in training's company with 14 of the 17 others: 18 tiles, 14 of training.
    assert share["random"] == pytest.approx(12 / 18 * 14 / 17, abs=0.04)
    assert share["clustered"] == 0 < share["clustered_by_hashes_alone"] < share["random"] / 2
    assert leakage.found_by_hashes(known) == {
        "turned": 1, "encoded": 1, "brightened": 1, "overlapping": 0,
    }  # fmt: skip


def test_real_near_duplicates_are_counted_and_none_is_planted(scenes):
    images, masks = (np.concatenate([x, x[:6, ::-1]]) for x in scenes)
    known = leakage.know(images, masks, np.arange(18), None)
    assert known.pairs.tolist() == [[k, k + 12] for k in range(6)] and not known.tiles.kind.any()
    share = leakage.shares(known, 100)
    assert share["random"] > 0.3 and share["clustered"] == 0 and len(share) == 2
    # What was known of the tiles when they were prepared keeps them together too.
    ground = leakage.know(images, masks, np.arange(18) // 3, None)
    assert len(np.unique(ground.together)) < len(np.unique(known.together))


def test_both_ways_have_the_same_test_and_as_much_training():
    for labels in (np.arange(60) % 40, np.arange(60) // 2, np.arange(60) // 30):
        test, twin, training = leakage.draw_both(labels, 3)
        assigned = splits.draw(np.arange(60), leakage.TRAINED, 3)
        assert test.tolist() == np.flatnonzero(assigned == 2).tolist()
        leaky, apart = training["random"], training["clustered"]
        assert len(leaky) == len(apart) == len(set(leaky.tolist()))
        assert set(assigned[leaky]) | set(assigned[apart]) <= {0}
        assert not np.isin(labels[apart], labels[test]).any()
        assert twin.tolist() == np.isin(labels[test], labels[leaky]).tolist()


def test_differences_are_paired():
    lines = [
        {"split": way, "seed": s, "test_iou": 0.5 + 0.1 * s + 0.04 * (way == "random") + 0.01 * s
         * (way == "random"), "pooled_iou": 0.5, "twins_test_iou": None}
        for s in range(3) for way in leakage.WAYS
    ]  # fmt: skip
    for line in lines:
        line |= {f"{part}{score}": line.get(f"{part}{score}") for part in ("twins_", "others_")
                 for score in ("test_iou", "pooled_iou")}  # fmt: skip
    found = leakage.differences(lines)
    assert set(found) == {"test_iou", "pooled_iou"}
    assert found["test_iou"]["mean"] == pytest.approx(0.05) and found["test_iou"]["pairs"] == 3
    half = 4.302653 * 0.01 / 3**0.5
    assert found["test_iou"]["high"] - 0.05 == pytest.approx(half, rel=1e-5)


def test_clusters_of_prepared_tiles_are_read(tiles, tmp_path):
    clusters = arrangement.read_clusters(tiles)
    assert len(clusters) == 60 and len(set(clusters.values())) <= 60
    images, masks, labels = leakage.read(str(tiles), size=16, limit=20)
    assert (
        images.shape == (20, 16, 16, 3)
        and masks.max() == 1
        and set(labels) <= set(clusters.values())
    )
    with pytest.raises(UserError, match="--limit=61: the set has 60 tiles"):
        leakage.read(str(tiles), size=16, limit=61)
    assert arrangement.read_clusters(tmp_path) == {}
    (tmp_path / "splits.csv").write_text("id,file,split,cluster\n1,a,train,x\n")
    with pytest.raises(UserError, match=r"splits.csv: cannot be read"):
        arrangement.read_clusters(tmp_path)


def run(monkeypatch, **changes):
    """Runs the program's `main` in this process."""
    args = {"size": 16, "limit": 20, "planted": None, "draws": 3, "seeds": 0, "steps": 1,
            "width": 2, "batch_size": 8} | changes  # fmt: skip
    monkeypatch.setattr(leakage, "flags", SimpleNamespace(FLAGS=SimpleNamespace(**args)))
    leakage.main([])


def test_other_tiles_of_the_same_name_and_a_foreign_picture_are_refused(
    tiles, other_tiles, tmp_path, monkeypatch
):
    for k, source in enumerate((tiles, other_tiles)):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "T").symlink_to(source)
    out, first, second = (tmp_path / name for name in ("out", "0/T", "1/T"))
    out.mkdir()
    (out / "pairs.png").write_text("mine")
    with pytest.raises(UserError, match=r"holds pairs.png, which is of something else"):
        run(monkeypatch, data=str(first), out=str(out))
    assert (out / "pairs.png").read_text() == "mine"
    (out / "pairs.png").unlink()
    run(monkeypatch, data=str(first), out=str(out))
    run(monkeypatch, data=str(first), out=str(out))
    with pytest.raises(UserError, match=r"result.json is of another config: tiles_sha256="):
        run(monkeypatch, data=str(second), out=str(out))


@pytest.mark.slow
def test_the_whole_is_run_and_goes_on_where_it_stopped(tiles, tmp_path):
    import subprocess
    import sys

    from programs import ROOT

    command = [sys.executable, "-m", "experiments.leakage", f"--data={tiles}", "--planted=0.5",
               f"--out={tmp_path}/out", "--steps=2", "--width=2", "--draws=3"]  # fmt: skip
    for seeds in (1, 2):
        done = subprocess.run(
            [*command, f"--seeds={seeds}"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert [(x["split"], x["seed"]) for x in result["scores"]] == [
            (way, seed) for seed in range(seeds) for way in leakage.WAYS
        ]
    assert set(result["share"]) == {"random", "clustered", "clustered_by_hashes_alone"}
    assert result["difference"]["test_iou"]["pairs"] == 2 and result["config"]["tiles"] == 90
    assert (tmp_path / "out" / "pairs.png").stat().st_size > 10_000
