"""COCO's average precision and recall of objects, by pycocotools."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tvjax.data.regions import codes

NAMES = {"ap": 0, "ap50": 1, "ap75": 2, "ar": 8}
"""What is kept of pycocotools' twelve numbers, and where: means over IoU 0.50 to 0.95, at most 100
objects an image; all categories are one."""


def average_precision(
    truth: Sequence[tuple[int, tuple[int, int], Sequence[Any], Sequence[bool]]],
    results: Sequence[dict[str, Any]],
) -> dict[str, float | None]:
    """Scores objects.

    Args:
      truth: for each image its id, its size (height, width), its objects' segmentations (polygons
        or run-length codes) and whether each is a crowd: what lies in one is neither right nor
        wrong.
      results: COCO results, with run-length codes.

    Returns:
      `ap`, `ap50`, `ap75` and `ar` in [0, 1]; None where no image has an object.

    Example:
      >>> square = [[2, 2, 8, 2, 8, 8, 2, 8]]
      >>> code = coco_mask.merge(coco_mask.frPyObjects(square, 10, 10))
      >>> found = {"image_id": 3, "category_id": 1, "segmentation": code, "score": 0.9}
      >>> round(average_precision([(3, (10, 10), [square], [False])], [found])["ap"], 3)
      1.0
    """
    images, annotations = [], []
    for number, (height, width), segmentations, crowds in truth:
        images.append({"id": number, "height": height, "width": width})
        for segmentation, crowd in zip(segmentations, crowds, strict=True):
            code = coco_mask.merge(list(codes(segmentation, height, width)))
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": 1,
                "iscrowd": int(crowd), "segmentation": code, "area": float(coco_mask.area(code)),
            })  # fmt: skip
    if all(annotation["iscrowd"] for annotation in annotations):
        return dict.fromkeys(NAMES)
    if not results:
        return dict.fromkeys(NAMES, 0.0)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # pycocotools 2.0.11 does not yet know the copy argument of numpy 2's __array__.
        warnings.simplefilter("ignore", DeprecationWarning)
        known: Any = COCO()
        categories = [{"id": 1, "name": "object"}]
        known.dataset = {"images": images, "annotations": annotations, "categories": categories}
        known.createIndex()
        found = known.loadRes([result | {"category_id": 1} for result in results])
        evaluation = COCOeval(known, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(evaluation.stats[k]) for name, k in NAMES.items()}
