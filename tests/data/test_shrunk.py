"""Tiles made by several processes: the same records, faults and files, whoever made them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvjax.data import builder, records, shrunk, splits
from tvjax.data.origins import Images
from tvjax.data.sources import Sources
from tvjax.errors import Outage


class Killer:
    """A tile at which its process is ended, as for want of memory."""

    id, file, height, width = 0, Path("a.png"), 8, 8
    files: tuple[Path, ...] = ()

    def load(self) -> None:
        os._exit(9)


def write_set(folder: Path, number: int = 40) -> None:
    """Tiles of 31 pixels with a square each, of which one is cut off and one is missing."""
    (folder / "images").mkdir(parents=True)
    rng, images, annotations = np.random.default_rng(0), [], []
    for k in range(number):
        pixels = rng.integers(0, 256, (31, 31, 3), dtype=np.uint8)
        name = f"{k}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": k, "file_name": name, "height": 31, "width": 31})
        x, y = rng.integers(0, 20, 2).tolist()
        square = [x, y, x + 9, y, x + 9, y + 9, x, y + 9]
        annotations.append({"id": k, "image_id": k, "segmentation": [square]})
    cut = folder / "images" / "7.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (folder / "images" / "11.png").unlink()
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def contents(folder: Path) -> dict[str, bytes]:
    """All that was written, but for the times of the records' files."""
    found = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    return {name: f.read_bytes() for name, f in found.items() if name != "identity.json"}


def test_records_are_bit_for_bit_those_of_one_process(tmp_path, monkeypatch):
    write_set(tmp_path)
    monkeypatch.setattr(shrunk, "TOGETHER", 3)
    for workers in (1, 2):
        content = builder.build_from(
            Images(tmp_path / "a.json", tmp_path / "images"), tmp_path / str(workers),
            size=10, skip_bad=True, progress=False, workers=workers,
        )  # fmt: skip
        assert content["left_out"]["images"] == 2
    one, two = (contents(tmp_path / name) for name in "12")
    sources = [json.loads(found.pop("sources.json")) for found in (one, two)]
    assert one == two and len(one) > 6
    assert list(sources[0]["read"]) == list(sources[1]["read"])
    digests = [[s and s[3] for s in found["read"].values()] for found in sources]
    assert digests[0] == digests[1] and len(digests[0]) == 40
    read = [records.open_split(tmp_path / "2", name) for name in splits.NAMES]
    assert sum(map(len, read)) == 38


def test_a_process_that_is_killed_is_told_in_one_line(tmp_path):
    results = shrunk.each([Killer()], (4, 4), Sources(tmp_path, tmp_path), 2)
    with pytest.raises(Outage, match=r"was ended, .*--workers=1\)$"):
        next(results)


def test_few_tiles_are_made_by_one_process():
    assert shrunk.choose_workers(shrunk.LEAST) == shrunk.choose_workers(0) == 1
    cores = shrunk.choose_workers(10**9)
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert shrunk.choose_workers(2 * shrunk.LEAST) == min(2, cores)
