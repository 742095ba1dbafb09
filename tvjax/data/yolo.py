"""A directory of YOLO polygons as tiles: a text file of the image's name for each image.

A line is an object: its class, then x and y of its corners by turns, as shares of the image's width
and height. `images/train/a.jpg` belongs to `labels/train/a.txt`, and where both lie in one folder,
`train/images/a.jpg` to `train/labels/a.txt`. An image without a file, or with an empty one, is
background. Folders train, val (or valid) and test, if all images lie in them, are splits.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tvjax import interruption
from tvjax.data import class_lists, coco, listing, local, pictures
from tvjax.data.faults import Faults
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.errors import UserError, escaped, short, some

SUFFIX = ".txt"

FOLDERS = {"train": 0, "val": 1, "valid": 1, "test": 2}
"""Folders that are splits: their index in `splits.NAMES`."""

MOST_BYTES = 1 << 24
"""Size of a file of labels; a crowded image of 10,000 roofs has some 2^20."""

LEAST, MOST = -0.5, 1.5
"""The range of coordinates; an object may reach beyond the image, but not far."""

Polygon = tuple[int, list[float]]
"""Class, and shares x, y, x, y, ..."""


def read(
    images: str | Path,
    labels: str | Path,
    faults: Faults | None = None,
    categories: Sequence[int] = (),
    reading: Reading = AS_NAMED,
) -> list[coco.Tile]:
    """Pairs the files and reads the polygons; no image is decoded.

    Args:
      images: the directory of images, with all folders in it.
      labels: the directory of text files.
      faults: takes the images that cannot be used, which are then left out; None: they are an
        error.
      categories: the classes that are object; none: the only one that there is.
      reading: how images are read.

    Returns:
      The tiles, by name in order.

    Raises:
      UserError: a directory is missing or empty, no label belongs to an image, there are several
        classes and none is chosen, lists of names differ in one that counts, or, without `faults`,
        an image is faulty.
    """
    collected = Faults() if faults is None else faults
    images, labels = Path(images), Path(labels)
    files = listing.by_name(images, "images", pictures.SUFFIXES, below=True)
    texts = listing.by_name(labels, "labels", (SUFFIX,), below=True)
    texts = {name: file for name, file in texts.items() if file.name != class_lists.TEXT}
    if not texts.keys() & files.keys():
        total, files, texts = len(files), _within(files, "images"), _within(texts, "labels")
        if len(files) < total:
            left = f"{total - len(files)} of {total} images"
            print(f"note: {left} lie in no folder named images and are left out", file=sys.stderr)
    if not texts.keys() & files.keys():
        raise UserError(
            f"{labels}: none of its files has the name of an image in {images}; the labels of "
            "images/train/a.jpg are labels/train/a.txt, or of train/images/a.jpg, where --images "
            "and --labels are one folder, train/labels/a.txt"
        )
    for name, file in texts.items():
        if name not in files:
            collected.add(file, f"{file}: is the label of no image in {images}", is_label=True)
    bare = len(files.keys() - texts.keys())
    if bare:
        words = f"{bare} of {len(files)} images have no file of labels in {labels}"
        print(f"note: {escaped(words)}: they are background", file=sys.stderr)
    tiles, seen = [], set[int]()
    for number, (name, file) in enumerate(files.items()):
        interruption.check()
        try:
            polygons = _read(texts[name]) if name in texts else []
            seen.update(kind for kind, _ in polygons)
            chosen = [shares for kind, shares in polygons if not categories or kind in categories]
            tiles.append(_tile(number, file, texts.get(name), chosen, reading))
        except UserError as error:
            collected.add(file, error)
    there = some([short(kind) for kind in sorted(seen)], coco.LISTED)
    coco.check_chosen(labels, "classes", seen, there, categories)
    class_lists.check(labels, texts.values(), categories or seen)
    if faults is None:
        collected.check(len(files))
    return tiles


def _within(files: dict[str, Path], folder: str) -> dict[str, Path]:
    """Chooses the files that lie in a folder of this name, which their own names then lack.

    Raises:
      UserError: two of them have one name then.
    """
    found: dict[str, Path] = {}
    for name, file in files.items():
        parts = name.split("/")
        if folder in parts[:-1]:
            last = len(parts) - 2 - parts[-2::-1].index(folder)
            inner = "/".join(parts[:last] + parts[last + 1 :])
            if inner in found:
                raise UserError(
                    f"{file}: is {escaped(inner)} without the folder {folder}, and so is "
                    f"{found[inner]}; rename one of them"
                )
            found[inner] = file
    return found


def splits_of(names: Sequence[str]) -> dict[str, int] | None:
    """The splits of images by the folders that they lie in, and a note that says so.

    Args:
      names: paths of the images in their folder.

    Returns:
      Indices in `splits.NAMES` by name; None: not all lie in such folders, or one has none.
    """
    parts = [name.split("/")[:-1] for name in names]
    first = [next((f for f in above if f.lower() in FOLDERS), "") for above in parts]
    splits = [FOLDERS.get(folder.lower(), -1) for folder in first]
    found, folders = set(splits), ", ".join(sorted(set(first) - {""}))
    if found == {0, 1, 2}:
        print(f"note: the folders {folders} are the splits (--split_file: others)", file=sys.stderr)
        return dict(zip(names, splits, strict=True))
    if len(found & {0, 1, 2}) > 1:
        print(
            f"note: splits are drawn from all images, also across the folders {folders}, which "
            "would be splits if all images lay in train, val and test (--split_file gives them)",
            file=sys.stderr,
        )
    return None


def listed(images: Path, labels: Path) -> list[Path]:
    """All files of the two directories that count, sound or not."""
    found = listing.files(images, "images", pictures.SUFFIXES, below=True)
    return found + listing.files(labels, "labels", (SUFFIX,), below=True)


def _tile(
    number: int, file: Path, labels: Path | None, polygons: list[list[float]], reading: Reading
) -> coco.Tile:
    height, width = pictures.read_size(file, reading)
    found = coco.Outlines([], [])
    for polygon in polygons:
        scaled = [x * (height if k % 2 else width) for k, x in enumerate(polygon)]
        try:
            found = coco.add(found, {"segmentation": [scaled]}, height, width)
        except ValueError as error:
            raise UserError(f"{labels}: {error}") from error
    parts = tuple(found.segmentations), tuple(found.crowds)
    return coco.Tile(number, file, height, width, *parts, reading, labels)


def _read(file: Path) -> list[Polygon]:
    local.check_regular(file, MOST_BYTES, "cut the image up")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    return [_parse(file, k, line.split()) for k, line in enumerate(lines, 1) if line.strip()]


def _parse(file: Path, number: int, words: list[str]) -> Polygon:
    where = f"{file}: line {number}"
    numbers = []
    for k, word in enumerate(words):
        # The file may be a link to a private one, whose words do not belong into a message.
        try:
            if not word.isascii() or "_" in word:  # both of which Python reads
                raise ValueError
            numbers.append(float(word) if k else int(word))
        except ValueError:
            what = "number" if k else "class, a whole number"
            raise UserError(f"{where}: its word {k + 1} is no {what}; mend the line") from None
    kind, *shares = numbers
    if len(shares) == 4:
        raise UserError(f"{where} is a box (4 numbers), which is no outline; give polygons")
    if len(shares) < 6 or len(shares) % 2:
        raise UserError(
            f"{where} has {len(shares)} numbers after the class; give x and y of 3 corners or more"
        )
    if not all(LEAST <= share <= MOST for share in shares):
        wrong = next(share for share in shares if not LEAST <= share <= MOST)
        raise UserError(f"{where} has {wrong:g}; coordinates are shares of the image, from 0 to 1")
    return kind, shares
