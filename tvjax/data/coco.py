"""COCO files as tiles: an image file with the union of its annotated regions.

Every annotation of the chosen categories counts as foreground, also with `iscrowd` set: a crowd
region marks many objects of the category at once, and its pixels are theirs. An image without such
annotations is a tile with an empty mask.

A COCO file may come from anybody. What it names lies in the folder of images: names and links that
lead out of it are refused, while the folder itself may be a link. Work that it asks for is bounded
before it is done.
"""

import json
import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax import interruption
from tvjax.data import local, pictures, regions, vrt
from tvjax.data.faults import Faults
from tvjax.data.pictures import Loaded
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.errors import UserError, escaped, short, some

MOST_BYTES = 1 << 31
"""Size of a COCO file: in memory it takes ten times as many. 60,000 images have some 2^27."""

MOST_REGIONS = 1 << 16
"""Polygons and run-length codes of one image: each costs time, and crowded pictures of aerial sets
have up to some 10,000."""

BEYOND = 0.1
"""Share of the annotations that may lie beyond their images, as those of cropped ones do."""

LISTED = 20
"""Categories that a message lists."""


class Outlines(NamedTuple):
    """What is known of an image's annotations before their pixels are filled."""

    segmentations: list[Any]
    crowds: list[bool]
    length: int = 0
    """Length of all outlines, in pixels."""
    parts: int = 0
    """Polygons and run-length codes."""


class Tile(NamedTuple):
    """One image of a COCO file and its regions, not yet decoded."""

    id: int
    """The image's id in the COCO file."""
    file: Path
    """The image file."""
    height: int
    """Height in pixels, as the COCO file declares it."""
    width: int
    """Width in pixels, as the COCO file declares it."""
    segmentations: tuple[Any, ...]
    """The regions of its annotations; each has passed `regions.check`."""
    crowds: tuple[bool, ...]
    """Whether each annotation marks a crowd of objects (`iscrowd`)."""
    reading: Reading = AS_NAMED
    """How the image is read."""
    labels: Path | None = None
    """The file that describes this image alone; None: there is none."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What `load` reads."""
        return (self.file,) if self.labels is None else (self.file, self.labels)

    def number(self) -> np.ndarray:
        """Which annotation each pixel belongs to, see `regions.number`; no file is read."""
        return regions.number(self.segmentations, self.height, self.width)

    def load(self) -> Loaded:
        """Decodes the tile.

        Raises:
          UserError: the file cannot be read, see `tvjax.data.pictures`, or is of another size than
            declared.
        """
        with pictures.open_raster(self.file, self.reading) as raster:
            if (raster.height, raster.width) != (self.height, self.width):
                raise UserError(
                    f"{self.file}: is {raster.width}x{raster.height} pixels"
                    f"{' as it is shown (orientation counts)' * raster.is_turned}, but the "
                    f"annotations declare {self.width}x{self.height} for image id {self.id}"
                )
            image, valid = pictures.read_whole(raster)
        return Loaded(image, regions.rasterise(self.segmentations, self.height, self.width), valid)


def read(
    annotations: str | Path,
    images: str | Path,
    faults: Faults | None = None,
    categories: Sequence[int] = (),
    reading: Reading = AS_NAMED,
    classes: dict[int, tuple[Path, Any]] | None = None,
) -> list[Tile]:
    """Reads a COCO file and checks all that can be checked without decoding an image.

    Args:
      annotations: the JSON file, with lists `images` and `annotations` in any order.
      images: the directory that the images' `file_name` is relative to.
      faults: takes the images whose file is missing or one of whose segmentations is malformed,
        which are then left out; None: they are an error.
      categories: ids of those whose annotations are foreground; none: the only one that there is.
      reading: how images are read.
      classes: where several files make one set: the categories of those read before, by id, each
        with the file that has it and its name there; takes those of this file.

    Returns:
      The tiles, by ascending image id.

    Raises:
      UserError: the annotations or the directory are missing, the JSON is malformed, there is no
        image, two images are one file, an annotation names an unknown image, there is no annotation
        of a chosen category, or there are several and none is chosen, or another file means another
        class by the same id, more than `BEYOND` of the annotations lie wholly outside of their
        images, or, without `faults`, an image is faulty. The message names the file and the image's
        or annotation's id.
    """
    collected = Faults() if faults is None else faults
    annotations, images = Path(annotations), Path(images)
    content = read_json(annotations)
    if not images.is_dir():
        raise UserError(f"{images}: no such directory of images")
    if not content["images"]:
        raise UserError(f"{annotations}: the list 'images' is empty, there is nothing to prepare")
    records = _images_by_id(annotations, content["images"])
    _check_names(annotations, images, records)
    counted = _check_categories(annotations, content, categories)
    _check_classes(annotations, counted, {} if classes is None else classes)
    _check_units(annotations, content["annotations"], records)
    found: dict[int, Outlines] = defaultdict(lambda: Outlines([], []))
    taken, beyond = 0, list[int]()  # annotations, and the images of those outside of them
    for position, annotation in enumerate(content["annotations"]):
        interruption.check()
        image_id = _image_of(annotations, position, annotation, records)
        if categories and annotation.get("category_id") not in categories:
            continue
        record, before = records[image_id], found[image_id]
        try:
            found[image_id] = add(before, annotation, record["height"], record["width"])
            taken += 1
            if _is_beyond(annotation["segmentation"], record["height"], record["width"]):
                beyond.append(image_id)
        except ValueError as error:
            number = short(annotation.get("id", f"at position {position}"))
            reason = f"{annotations}: annotation {number} of image id {image_id} {error}"
            collected.add(images / record["file_name"], reason)
    if beyond:
        _check_beyond(annotations, beyond, taken, records[beyond[0]])
    tiles = []
    for image_id, record in sorted(records.items()):
        interruption.check()
        file = images / record["file_name"]
        size = record["height"], record["width"]
        if size[0] * size[1] > pictures.MOST:
            declared = f"image id {image_id} of {annotations} is declared as {size[1]}x{size[0]}"
            collected.add(file, f"{file}: {declared} pixels, too large for a tile; cut it up")
        if not os.path.isfile(file):  # False too where the folder may not be entered
            collected.add(file, f"{file}: image id {image_id} of {annotations} has no such file")
        if file not in collected.reasons:
            regions_of = found[image_id]
            tiles.append(
                Tile(
                    image_id, file, *size,
                    tuple(regions_of.segmentations), tuple(regions_of.crowds), reading,
                )
            )  # fmt: skip
    if faults is None:
        collected.check(len(records))
    return tiles


def add(before: Outlines, annotation: dict[str, Any], height: int, width: int) -> Outlines:
    """Adds an annotation to those of its image; a ValueError says what is wrong with it."""
    segmentation = annotation.get("segmentation")
    parts = before.parts + (len(segmentation) if isinstance(segmentation, list) else 1)
    if parts > MOST_REGIONS:
        raise ValueError(f"makes more than {MOST_REGIONS} polygons of one image; cut the image up")
    length = before.length + regions.check(segmentation, height, width)
    if length > regions.MOST_OUTLINES:
        raise ValueError(
            f"makes the outlines of this image {length} pixels long; at most "
            f"{regions.MOST_OUTLINES} are taken, cut the image up"
        )
    if annotation.get("iscrowd") not in (0, 1, None):
        raise ValueError(f"has iscrowd={short(annotation['iscrowd'])}, which is neither 0 nor 1")
    before.segmentations.append(segmentation)
    before.crowds.append(bool(annotation.get("iscrowd")))
    return before._replace(length=length, parts=parts)


def choose_category(annotations: str | Path | None, chosen: int | None = None) -> int:
    """The category that objects found in a COCO file's images get: the chosen one, or its only one.

    1 where there is no file, or it names no category.

    Raises:
      UserError: the file has several and none was chosen, or not the chosen one, or it cannot be
        read; or the number is below 0.
    """
    if chosen is not None and not 0 <= chosen < 2**63:
        raise UserError(f"--category={chosen} must be a COCO category, 0 to 2^63 - 1")
    if annotations is None:
        return 1 if chosen is None else chosen
    file = Path(annotations)
    names = _names(file, read_json(file, ("images",)))
    if not names:
        return 1 if chosen is None else chosen
    if (chosen is None and len(names) > 1) or (chosen is not None and chosen not in names):
        listed = _listed(names, names)
        raise UserError(f"{file}: has the categories {listed}; choose one by --category=ID")
    return next(iter(names)) if chosen is None else chosen


def _check_categories(
    file: Path, content: dict[str, list[Any]], categories: Sequence[int]
) -> dict[int, Any]:
    """The names of the categories that count, by id."""
    used = set()
    for position, annotation in enumerate(content["annotations"]):
        category = annotation.get("category_id") if isinstance(annotation, dict) else None
        if category is not None and type(category) is not int:
            raise UserError(
                f"{file}: annotations[{position}] has category_id={short(category)}, which is no "
                "whole number"
            )
        used.add(category)
    bare = sum(a.get("category_id") is None for a in content["annotations"] if isinstance(a, dict))
    if categories and bare:
        words = f"{bare} of {len(content['annotations'])} annotations have no category_id"
        print(f"note: {escaped(str(file))}: {words}: they do not count", file=sys.stderr)
    used -= {None}
    names = _names(file, content)
    check_chosen(file, "categories", used, _listed(names, used), categories)
    return {k: names.get(k) for k in used if not categories or k in categories}


def _check_classes(
    file: Path, counted: dict[int, Any], classes: dict[int, tuple[Path, Any]]
) -> None:
    """Refuses to call trees of one file and roofs of another objects; numbers differ by file."""
    for number, name in counted.items():
        other, before = classes.setdefault(number, (file, name))
        told = [str(part).strip().casefold() for part in (name, before) if part not in (None, "")]
        if len(set(told)) > 1:
            raise UserError(
                f"{file}: category {number} is {_label(name)}, and in {other} {_label(before)}; "
                "give each class the same id and name in all files"
            )
    for number, (other, before) in classes.items():
        if counted and number not in counted:
            mine = _listed(counted, counted)
            raise UserError(
                f"{file}: has the objects {mine}, and {other} {number} ({_label(before)}); give "
                "each class the same id in all files, and say which are objects by --category=ID"
            )


def check_chosen(
    labels: Path, kinds: str, used: set[int], there: str, categories: Sequence[int]
) -> None:
    """Refuses to take trees for roofs without a word.

    Raises:
      UserError: a chosen category is of no object, or there are several and none is chosen.
    """
    for category in categories:
        if category not in used:
            raise UserError(f"{labels}: no object is of --category={category}; there are {there}")
    if len(used) > 1 and not categories:
        raise UserError(
            f"{labels}: has the {kinds} {there}; say which are objects by --category=ID, once "
            "for each"
        )


def _check_units(file: Path, annotations: list[Any], records: dict[int, dict[str, Any]]) -> None:
    """Refuses polygons in shares of the image: each would be a pixel in its corner."""
    segmentations = (a.get("segmentation") for a in annotations if isinstance(a, dict))
    polygons = (p for s in segmentations if isinstance(s, list) for p in s if isinstance(p, list))
    numbers = (x for polygon in polygons for x in polygon if type(x) in (int, float))
    are_shares = False
    for x in numbers:  # of pixels one of the first is larger
        if not 0 <= x <= 1:
            return
        are_shares |= 0 < x < 1
    is_large = max(min(r["height"], r["width"]) for r in records.values()) > 2
    if are_shares and is_large:
        raise UserError(
            f"{file}: no coordinate of its polygons is above 1, as in shares of the image; COCO "
            "files have pixels: multiply x by the width and y by the height"
        )


def _is_beyond(segmentation: Any, height: int, width: int) -> bool:
    """Whether all of its polygons lie outside of the image; what was cut off at its edge does not.

    Plain Python, which is quicker than numpy for a polygon of some ten points.
    """
    return isinstance(segmentation, list) and all(
        min(x) > width or min(y) > height or max(x) < 0 or max(y) < 0
        for x, y in ((polygon[::2], polygon[1::2]) for polygon in segmentation)
    )


def _check_beyond(file: Path, beyond: list[int], taken: int, record: dict[str, Any]) -> None:
    """Refuses polygons that were drawn on images of another size, which would be nonsense here."""
    words = (
        f"{file}: {len(beyond)} of {taken} annotations lie wholly outside of their images, such as "
        f"one of image id {record['id']}, which is {record['width']}x{record['height']} pixels"
    )
    if len(beyond) > BEYOND * taken:
        raise UserError(
            f"{words}; the images may have been resized after they were labelled: give those that "
            "were labelled, or scale the polygons as the images were"
        )
    print(f"note: {escaped(words)}: they do not count", file=sys.stderr)


def _names(file: Path, content: dict[str, list[Any]]) -> dict[int, Any]:
    try:
        found = [(kind["id"], kind.get("name")) for kind in content.get("categories") or []]
        if any(type(identity) is not int for identity, _ in found):  # a text "1_0" is no 10
            raise ValueError
        return dict(found)
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"{file}: its list 'categories' is malformed") from error


def _listed(names: dict[int, Any], used: Iterable[Any]) -> str:
    return some([f"{short(k)} ({_label(names.get(k))})" for k in sorted(used)], LISTED)


def _label(name: Any) -> str:
    return short(name)[1:-1] if isinstance(name, str) else short(name)


def read_json(
    file: Path, lists: tuple[str, ...] = ("images", "annotations")
) -> dict[str, list[Any]]:
    """The content of a COCO file, of which no more is known than that it has the lists.

    Raises:
      UserError: it is no such file, or too large.
    """
    local.check_regular(file, MOST_BYTES, "cut it up by images")
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
        "id": lambda value: type(value) is int and -(2**63) <= value < 2**63,
        "file_name": lambda value: isinstance(value, str) and value,
        "height": lambda value: type(value) is int and 0 < value < 2**31,
        "width": lambda value: type(value) is int and 0 < value < 2**31,
    }
    records = {}
    for position, record in enumerate(images):
        for name, is_valid in valid.items():
            value = record.get(name) if isinstance(record, dict) else None
            if not is_valid(value):
                raise UserError(
                    f"{annotations}: images[{position}] has {name}={short(value)}; an image needs "
                    "an integer id of 64 bits, a file_name, and height and width in pixels"
                )
        if record["id"] in records:
            raise UserError(f"{annotations}: image id {record['id']} occurs twice in 'images'")
        records[record["id"]] = record
    return records


def _check_names(file: Path, images: Path, records: dict[int, dict[str, Any]]) -> None:
    """Refuses one file under two ids: it would be two tiles, each lacking the other's objects.

    Names that differ in case, or in how accents are written, are of one file or of two, as the
    file system has it. Refused are names, too, that no file can have, or that lead out of the
    folder.
    """
    ids: dict[str, int] = {}
    folder = local.Folder(images)
    for number, record in records.items():
        wrong = local.wrong_name(record["file_name"])
        if vrt.is_named(record["file_name"]):
            wrong = "is of a list of other files (VRT); convert it to a TIFF"
        if wrong:
            name = short(record["file_name"])
            raise UserError(f"{file}: image id {number} has file_name={name}, which {wrong}")
        try:
            folder.check_inside(record["file_name"])
        except UserError as error:
            raise UserError(f"{file}: image id {number}: {error}") from error
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
    number = annotation.get("id", f"at position {position}")
    image_id = annotation.get("image_id")
    if type(image_id) is not int or image_id not in records:
        raise UserError(
            f"{file}: annotation {short(number)} names image id {short(image_id)}, "
            "which is not in 'images'"
        )
    return image_id
