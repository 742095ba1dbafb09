"""What tells sets of records apart: a digest of their pixels, wherever they lie.

It is computed once, when the records are made, and kept beside them in `identity.json` with the
stamps of their files (see `stamps`), which say whether it still holds. Of records that have none,
since an earlier version made them, it is computed when it is first asked for.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tvjax import files, interruption
from tvjax.data import manifest, records, splits, stamps

FILE = "identity.json"


def digest(sets: Mapping[str, Iterable[tuple[np.ndarray, np.ndarray]]]) -> str:
    """SHA-256 over the splits' names and, in their order, all images and masks.

    Args:
      sets: for each split its pairs of an image uint8 `[H, W, 3]` and a mask uint8 `[H, W, 1]`, or
        with contact `[H, W, 2]`.
    """
    found = hashlib.sha256()
    for name, pairs in sets.items():
        for image, mask in pairs:
            interruption.check()
            found.update(f"{name} {image.shape}\n".encode())
            found.update(image.tobytes())
            found.update(mask.tobytes())
    return found.hexdigest()


def write(directory: Path, sha256: str) -> None:
    """Keeps the identity of finished records beside them."""
    stamps.write(directory / FILE, _content(directory, sha256))


def of(directory: str | Path) -> str:
    """The identity of prepared records: the digest of all their pixels.

    No record is read where `identity.json` still holds.

    Raises:
      UserError: the directory is not a set of prepared tiles, or a record cannot be read.
    """
    directory = Path(directory)
    here, kept = _files(directory), _read(directory)
    if kept.get("files", {}).keys() == here.keys():
        today = stamps.renewed(kept["files"], here)
        if all(stamps.same(kept["files"][name], today[name]) for name in here):
            if today != kept["files"]:
                stamps.keep(directory / FILE, kept | {"files": today})
            return kept["sha256"]
    sha256 = digest({name: _pairs(records.open_split(directory, name)) for name in splits.NAMES})
    stamps.keep(directory / FILE, _content(directory, sha256))
    return sha256


def _content(directory: Path, sha256: str) -> dict[str, Any]:
    return {"sha256": sha256, "files": stamps.take_all(_files(directory))}


def _files(directory: Path) -> dict[str, Path]:
    return {name: directory / name for name in manifest.read(directory)["files"]}


def _pairs(split: records.Split) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(split), 256):
        for record in split.__getitems__(range(start, min(start + 256, len(split)))):
            parts = [record[name] for name in ("mask", "contact") if name in record]
            yield record["image"], np.concatenate(parts, axis=-1)


def _read(directory: Path) -> dict[str, Any]:
    try:
        found = files.read_object(directory / FILE)
        sound = all(map(stamps.is_stamp, found["files"].values()))
        return found if sound and re.fullmatch("[0-9a-f]{64}", found["sha256"]) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
