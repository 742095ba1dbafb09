"""COCO files as tiles: an image file with the union of its annotated regions.

Every annotation of the chosen categories counts as foreground, also with `iscrowd` set: a crowd
region marks many objects of the category at once, and its pixels are theirs. An image without such
annotations is a tile with an empty mask.
"""

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax import interruption
from tvjax.data import pictures, regions
from tvjax.data.faults import Faults
from tvjax.errors import UserError


class Tile(NamedTuple):
    """One image of a COCO file and its regions, not yet decoded."""

    id: int
    """The image's id in the COCO file."""
    file: Path
    """The image file."""
    height: int
    """In pixels, as the COCO file declares it."""
    width: int
    """In pixels, as the COCO file declares it."""
    segmentations: tuple[Any, ...]
    """Of its annotations; each has passed `regions.check`."""
    crowds: tuple[bool, ...]
    """Of each annotation, whether it marks a crowd of objects (`iscrowd`)."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What `load` reads."""
        return (self.file,)

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Decodes the tile.

        Returns:
          The image, uint8 `[H, W, 3]`, as `tvjax.data.pictures` reads it, and the mask, bool
          `[H, W]`; there are no objects where the image has no data.

        Raises:
          UserError: the file cannot be read, see `tvjax.data.pictures`, or is of another size than
            declared.
        """
        return self.read()[:2]

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Decodes the tile, as `load` does, with bool `[H, W]`, where the image has data."""
        with pictures.open_raster(self.file) as raster:
            if (raster.height, raster.width) != (self.height, self.width):
                raise UserError(
                    f"{self.file}: is {raster.width}x{raster.height} pixels"
                    f"{' as it is shown (orientation counts)' * raster.is_turned}, but the "
                    f"annotations declare {self.width}x{self.height} for image id {self.id}"
                )
            image, valid = pictures.read_whole(raster)
        mask = regions.rasterise(self.segmentations, self.height, self.width)
        return image, mask if valid is None else mask & valid, valid


def read(
    annotations: str | Path,
    images: str | Path,
    faults: Faults | None = None,
    categories: Sequence[int] = (),
) -> list[Tile]:
    """Reads a COCO file and checks all that can be checked without decoding an image.

    Args:
      annotations: the JSON file, with lists `images` and `annotations` in any order.
      images: the directory that the images' `file_name` is relative to.
      faults: takes the images whose file is missing or one of whose segmentations is malformed,
        which are then left out; None: they are an error.
      categories: ids of those whose annotations are foreground; none: the only one that there is.

    Returns:
      The tiles, by ascending image id.

    Raises:
      UserError: the annotations or the directory are missing, the JSON is malformed, there is no
        image, two images are one file, an annotation names an unknown image, there is no
        annotation of a chosen category, or there are several and none is chosen, or, without
        `faults`, an image is faulty. The message names the file and the image's or annotation's id.
    """
    collected = Faults() if faults is None else faults
    annotations, images = Path(annotations), Path(images)
    content = _read_json(annotations)
    if not images.is_dir():
        raise UserError(f"{images}: no such directory of images")
    if not content["images"]:
        raise UserError(f"{annotations}: the list 'images' is empty, there is nothing to prepare")
    records = _images_by_id(annotations, content["images"])
    _check_names(annotations, images, records)
    _check_categories(annotations, content, categories)
    found, crowds = defaultdict(list), defaultdict(list)
    for position, annotation in enumerate(content["annotations"]):
        interruption.check()
        image_id = _image_of(annotations, position, annotation, records)
        if categories and annotation.get("category_id") not in categories:
            continue
        record, segmentation = records[image_id], annotation.get("segmentation")
        try:
            regions.check(segmentation, record["height"], record["width"])
        except ValueError as error:
            number = annotation.get("id", f"at position {position}")
            reason = f"{annotations}: annotation {number} of image id {image_id} {error}"
            collected.add(images / record["file_name"], reason)
        found[image_id].append(segmentation)
        crowds[image_id].append(bool(annotation.get("iscrowd")))
    tiles = []
    for image_id, record in sorted(records.items()):
        interruption.check()
        file = images / record["file_name"]
        if not file.is_file():
            collected.add(file, f"{file}: image id {image_id} of {annotations} has no such file")
        if file not in collected.reasons:
            size = record["height"], record["width"]
            regions_of = tuple(found[image_id]), tuple(crowds[image_id])
            tiles.append(Tile(image_id, file, *size, *regions_of))
    if faults is None:
        collected.check(len(records))
    return tiles


def choose_category(annotations: str | Path | None, chosen: int | None = None) -> int:
    """The category that objects found in a COCO file's images get: the chosen one, or its only one.

    1 where there is no file, or it names no category.

    Raises:
      UserError: the file has several and none was chosen, or it cannot be read.
    """
    if chosen is not None or annotations is None:
        return 1 if chosen is None else chosen
    file = Path(annotations)
    names = _names(file, _read_json(file, ("images",))) or {1: None}
    if len(names) > 1:
        listed = _listed(names, names)
        raise UserError(f"{file}: has the categories {listed}; choose one by --category=ID")
    return next(iter(names))


def _check_categories(file: Path, content: dict[str, list[Any]], categories: Sequence[int]) -> None:
    """Refuses to take trees for roofs without a word."""
    used = {a.get("category_id") for a in content["annotations"] if isinstance(a, dict)} - {None}
    listed = _listed(_names(file, content), used)
    for category in categories:
        if category not in used:
            raise UserError(
                f"{file}: no annotation is of --category={category}; there are {listed or 'none'}"
            )
    if len(used) > 1 and not categories:
        raise UserError(
            f"{file}: has annotations of the categories {listed}; say which are objects by "
            "--category=ID, once for each"
        )


def _names(file: Path, content: dict[str, list[Any]]) -> dict[int, Any]:
    try:
        return {int(kind["id"]): kind.get("name") for kind in content.get("categories") or []}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: its list 'categories' is malformed") from error


def _listed(names: dict[int, Any], used: Iterable[Any]) -> str:
    ordered = sorted(used, key=lambda number: (type(number).__name__, number))
    return ", ".join(f"{number} ({names.get(number)})" for number in ordered)


def _read_json(
    file: Path, lists: tuple[str, ...] = ("images", "annotations")
) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot read the annotations ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: the annotations are not JSON ({error})") from error
    for name in lists:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(f"{file}: a COCO file is a JSON object with a list '{name}'")
    return content


def _images_by_id(annotations: Path, images: list[Any]) -> dict[int, dict[str, Any]]:
    valid = {
        "id": lambda value: type(value) is int,
        "file_name": lambda value: isinstance(value, str) and value,
        "height": lambda value: type(value) is int and value > 0,
        "width": lambda value: type(value) is int and value > 0,
    }
    records = {}
    for position, record in enumerate(images):
        for name, is_valid in valid.items():
            value = record.get(name) if isinstance(record, dict) else None
            if not is_valid(value):
                raise UserError(
                    f"{annotations}: images[{position}] has {name}={value!r}; an image needs an "
                    "integer id, a file_name, and height and width in pixels"
                )
        if record["id"] in records:
            raise UserError(f"{annotations}: image id {record['id']} occurs twice in 'images'")
        records[record["id"]] = record
    return records


def _check_names(file: Path, images: Path, records: dict[int, dict[str, Any]]) -> None:
    """Refuses one file under two ids: it would be two tiles, each lacking the other's objects.

    Names that differ in case, or in how accents are written, are of one file or of two, as the
    file system has it.
    """
    ids: dict[str, int] = {}
    for number, record in records.items():
        name = os.path.normpath(record["file_name"])
        key = unicodedata.normalize("NFC", name).casefold()
        other = records[ids.setdefault(key, number)]["file_name"]
        if ids[key] != number and (name == os.path.normpath(other) or _one(images, name, other)):
            raise UserError(
                f"{file}: image ids {ids[key]} ({other}) and {number} ({record['file_name']}) "
                f"are one file; give it one id, and its annotations that id"
            )


def _one(images: Path, name: str, other: str) -> bool:
    try:
        return os.path.samefile(images / name, images / other)
    except OSError:  # a missing file is told of later
        return False


def _image_of(
    file: Path, position: int, annotation: Any, records: dict[int, dict[str, Any]]
) -> int:
    if not isinstance(annotation, dict):
        raise UserError(f"{file}: annotations[{position}] is no JSON object")
    number, image_id = annotation.get("id", f"at position {position}"), annotation.get("image_id")
    if type(image_id) is not int or image_id not in records:
        raise UserError(
            f"{file}: annotation {number} names image id {image_id!r}, which is not in 'images'"
        )
    return image_id
