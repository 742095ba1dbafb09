"""The embedded set: deterministic, a valid COCO file, and of the intended statistics."""

import json

import numpy as np
import pytest

from tvjax.data import builder, coco
from tvjax.data.embedded import synthetic
from tvjax.errors import UserError


def test_a_tile_depends_on_seed_and_number_only(tmp_path):
    synthetic.write(tmp_path / "a", tiles=4, seed=3, size=96, progress=False)
    picture, outlines = synthetic.draw(3, 2, 96)
    again, outlines_again = synthetic.draw(3, 2, 96)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(again))
    assert all(np.array_equal(a, b) for a, b in zip(outlines, outlines_again, strict=True))
    synthetic.write(tmp_path / "b", tiles=3, seed=3, size=96, progress=False)
    for k in range(3):
        name = f"images/{k:06d}.jpg"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other, _ = synthetic.draw(4, 2, 96)
    assert np.any(np.asarray(picture) != np.asarray(other))


def test_set_is_valid_and_written_once(tmp_path):
    out = tmp_path / "set"
    synthetic.write(out, tiles=12, seed=1, progress=False)
    content = json.loads((out / "annotation.json").read_text())
    numbers = [entry["id"] for entry in content["annotations"]]
    assert numbers == list(range(len(numbers)))
    tiles = coco.read(out / "annotation.json", out / "images")
    shares = [tile.load()[1].mean() for tile in tiles]
    assert 0.1 < np.mean(shares) < 0.35
    stamp = (out / "annotation.json").stat().st_mtime_ns
    synthetic.write(out, tiles=12, seed=1, progress=False)
    assert (out / "annotation.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="set: holds something else"):
        synthetic.write(out, tiles=13, seed=1, progress=False)
    built = builder.build(
        out / "annotation.json", out / "images", tmp_path / "records", size=64, progress=False
    )
    assert built["near_duplicate_clusters"] == 12
