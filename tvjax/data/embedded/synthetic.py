"""The embedded set: procedural aerial tiles, written as JPEG files and a COCO file.

The tiles then pass through the same builder as real ones. A tile depends on the seed and on its
own number only. Outlines carry the faults that real labels have: some are shifted, some are
rough, some are missing.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tvjax import interruption
from tvjax.data import workspace
from tvjax.data.embedded import paint, scenes
from tvjax.errors import UserError

DESCRIPTION = "procedural aerial tiles of tvjax"
VERSION = 1
"""Version of the scenes; raise it when the same seed draws something else."""
SHIFTED, ROUGH, MISSING = 0.1, 0.1, 0.03
"""Shares of the buildings whose outline is faulty."""
CATEGORY = {"id": 100, "name": "building", "supercategory": "building"}
ANNOTATIONS, IMAGES = "annotation.json", "images"
"""The names of the COCO file and of the directory of images."""


def write(
    directory: str | Path,
    *,
    tiles: int = 600,
    seed: int = 0,
    size: int = 192,
    progress: bool = True,
) -> None:
    """Writes `annotation.json` and `images/` into a new directory; does nothing if it is there.

    The directory appears when it is complete.

    Args:
      directory: where to write.
      tiles: number of tiles.
      seed: seed of all draws; tile k is the same whatever the number of tiles.
      size: side of the tiles in pixels, of about 0.3 m.
      progress: whether to show a progress bar on stderr.

    Raises:
      UserError: the directory holds anything but the same tiles, or cannot be written.
    """
    directory = Path(directory)
    info = {"description": DESCRIPTION, "version": VERSION}
    info |= {"tiles": tiles, "seed": seed, "size": size}
    if _is_written(directory, info):
        return
    with workspace.beside(directory) as work:
        _write(work / "finished", info, progress)
        if not workspace.move(work / "finished", directory):
            _is_written(directory, info)  # refuses what is other


def _is_written(directory: Path, info: dict[str, Any]) -> bool:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        found = json.loads((directory / ANNOTATIONS).read_bytes())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != info:
        raise UserError(
            f"{directory}: holds something else than the synthetic tiles {info}; "
            "name another directory, or delete this one"
        )
    return True


def _write(directory: Path, info: dict[str, Any], progress: bool) -> None:
    (directory / IMAGES).mkdir(parents=True)
    images, annotations = [], []
    numbers = tqdm(range(info["tiles"]), "drawing tiles", unit="tile", disable=not progress)
    for k in numbers:
        interruption.check()
        picture, outlines = draw(info["seed"], k, info["size"])
        name = f"{k:06d}.jpg"
        picture.save(directory / IMAGES / name, quality=90)
        images.append({"id": k, "file_name": name, "height": info["size"], "width": info["size"]})
        annotations += [annotation(len(annotations) + i, k, o) for i, o in enumerate(outlines)]
    content = {
        "info": info,
        "categories": [CATEGORY],
        "images": images,
        "annotations": annotations,
    }
    (directory / ANNOTATIONS).write_text(json.dumps(content))


def draw(seed: int, number: int, size: int) -> tuple[Any, list[np.ndarray]]:
    """Draws one tile.

    Returns:
      The picture, a PIL image, and the outlines of its labelled buildings, float `[K, 2]` each.
    """
    rng = np.random.default_rng([seed, number])
    canvas = paint.Canvas(rng, size)
    buildings = scenes.paint(canvas)
    picture = paint.photograph(canvas)
    outlines = [_label(rng, building.outline()) for building in buildings]
    return picture, [o for o in outlines if o is not None and is_inside(o, size)]


def _label(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray | None:
    """An annotator's version of an outline; None if the building was overlooked."""
    fault = rng.random()
    if fault < MISSING:
        return None
    if fault < MISSING + SHIFTED:
        return outline + rng.normal(0, 2.5, 2)
    if fault < MISSING + SHIFTED + ROUGH:
        return outline + rng.normal(0, 2, outline.shape)
    return outline + rng.normal(0, 0.4, outline.shape)


def is_inside(outline: np.ndarray, size: int) -> bool:
    """Whether enough of an outline lies in a picture of a size to be labelled."""
    found = paint.stencil([outline], size)
    return found is not None and found[1].sum() > 8


def annotation(number: int, image: int, outline: np.ndarray) -> dict[str, Any]:
    """A COCO annotation, of ids of its own and of the image."""
    x, y = outline.T
    area = 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
    low, extent = outline.min(0), np.ptp(outline, axis=0)
    return {
        "id": number,
        "image_id": image,
        "category_id": CATEGORY["id"],
        "segmentation": [[round(float(value), 2) for value in outline.ravel()]],
        "area": round(area, 1),
        "bbox": [round(float(value), 2) for value in (*low, *extent)],
        "iscrowd": 0,
    }
