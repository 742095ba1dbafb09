"""Checksums of a checkpoint's content, which tell a flipped bit from other weights.

They lie in `checksums/metadata` of the checkpoint, beside what they are of:

    {"arrays": {name: {"shape": [...], "sha256": ...}}, "run": ..., "val_iou": ..., "self": ...}

`run` is the digest of the JSON dict that is saved with the state, `self` that of the other entries.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ITEM = "checksums"
"""Folder in a checkpoint; of earlier versions' checkpoints none has it."""


class Damaged(ValueError):
    """What was read is not what was saved."""


def take(
    arrays: Mapping[str, Any], run: Mapping[str, Any], val_iou: float | None
) -> dict[str, Any]:
    """The checksums of what is about to be saved: arrays, each whole in this process, and `run`.

    The validation IoU is kept here too, so that damage to it is seen.
    """
    content = {
        "arrays": {
            name: {"shape": list(x.shape), "sha256": _of_array(x)} for name, x in arrays.items()
        },
        "run": _of_json(run),
        "val_iou": val_iou,
    }
    return content | {"self": _of_json(content)}


def read(step: Path) -> dict[str, Any] | None:
    """The checksums of a checkpoint; None where it was saved without.

    Raises:
      Damaged: they cannot be read, or are not as they were written.
    """
    if not (step / ITEM).exists():
        return None
    try:
        content = json.loads((step / ITEM / "metadata").read_bytes())
        own = content.pop("self")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its checksums cannot be read: {type(error).__name__}") from error
    if own != _of_json(content):
        raise Damaged("its checksums are not as they were written")
    return content


def shapes(content: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays, by their names."""
    return {name: tuple(entry["shape"]) for name, entry in content["arrays"].items()}


def check(content: dict[str, Any], arrays: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Checks what was read of a checkpoint.

    Raises:
      Damaged: naming what is not as it was saved.
    """
    if content["run"] != _of_json(run):
        raise Damaged("run/metadata is not as it was saved")
    for name, x in arrays.items():
        if content["arrays"][name]["sha256"] != _of_array(x):
            raise Damaged(f"{name} is not as it was saved")


def _of_array(x: Any) -> str:
    array = np.ascontiguousarray(x)
    found = hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode())
    found.update(array.reshape(-1).view(np.uint8).data)  # no copy: bfloat16 has no buffer itself
    return found.hexdigest()


def _of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
