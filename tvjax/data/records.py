"""Reading prepared tiles: random access to the records of one split."""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvjax import files
from tvjax.data import manifest, splits, touching
from tvjax.errors import Outage, UserError, short, shortage

CLASSES = frozenset(
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "text_feature.Text", "scalar.Scalar", "tensor_feature.Tensor", "features_dict.FeaturesDict"
    )
)  # fmt: skip
"""Classes of the features that records have."""
NAMED = frozenset(
    "featuresDict features image mask contact id file pythonClassName tensor text dtype encoding "
    "shape dimensions".split()
)
"""Names within `features.json`: tfds imports classes by others too (`type`, `jsonFeature`)."""
DESCRIBED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("description", "disableShuffling", "numBytes", "shardLengths", "version"), lambda _: True
    ),
    "fileFormat": lambda value: value == "array_record",
    "filepathTemplate": lambda value: value == "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    "moduleName": lambda value: str(value).startswith("tvjax."),
    "name": lambda value: value in ("tiles", *splits.NAMES),
}
"""What `dataset_info.json` may say."""


class Split:
    """The records of one split, in the order of image ids; a source for grain.

    `split[i]` is a dict with `image` uint8 `[H, W, 3]`, `mask` uint8 `[H, W, 1]` of 0 and 1, `id`
    (int, of the image in the COCO file) and `file` (str, its path in the folder of images); of
    tiles prepared with `--boundaries` also with `contact`, like `mask`, see `touching`, which with
    `boundaries` is a second channel of the masks in batches.
    """

    def __init__(self, directory: Path, name: str, source: Any, *, boundaries: bool = False):
        self.directory, self.name, self._source = directory, name, source
        self.boundaries, self._rows = boundaries, np.arange(len(source))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several records at once, which is faster."""
        indices = [int(index) for index in indices]
        if not all(0 <= index < len(self) for index in indices):
            raise IndexError(f"indices {indices} of a split of {len(self)} tiles")
        rows = self._rows[indices].tolist()
        try:
            return [_plain(record) for record in self._source.__getitems__(rows)]
        except Exception as error:  # array_record and its decoder raise almost anything
            _check_shortage(self.directory, error)
            raise UserError(
                f"{self.directory}: a record of the split '{self.name}' cannot be read; "
                f"prepare the tiles anew ({error})"
            ) from error

    def part(self, rows: Sequence[int] | np.ndarray) -> "Split":
        """A split of the records at these places alone, in this order."""
        found = copy.copy(self)
        found._rows = self._rows[np.asarray(rows, int)]
        return found


def open_split(directory: str | Path, split: str, *, boundaries: bool = False) -> Split:
    """Opens a split of a prepared directory, wherever it has been moved.

    Args:
      directory: the folder given to `build` or to `python -m tvjax.data.prepare --out`.
      split: "train", "val" or "test".
      boundaries: see `Split`.

    Raises:
      UserError: the directory is not a set of prepared tiles, or one of its files is missing or
        has another size than when it was written, or `boundaries` are asked of tiles without.
      ValueError: there is no such split.
    """
    import tensorflow_datasets as tfds  # tiles that come from elsewhere do without it

    directory = Path(directory)
    files.check_name(directory.absolute())
    if split not in splits.NAMES:
        raise ValueError(f"split={split!r}: one of {', '.join(splits.NAMES)} is needed")
    content = manifest.read(directory)
    if boundaries and content["request"].get("boundaries") is None:
        raise UserError(
            f"data.boundaries=True: the tiles in {directory} were prepared without; prepare them "
            f"anew by python -m tvjax.data.prepare --boundaries={touching.PIXELS} --out=OTHER ..."
        )
    for name, size in content["files"].items():
        file = directory / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise UserError(f"{file}: {state}; copy it again or prepare the tiles anew")
    folder = directory / "tiles" / manifest.VERSION
    try:
        _check_described(folder, content["request"]["size"])
        builder = tfds.builder_from_directory(folder)
        # tfds decorates this method in a way that hides its parameters from type checkers.
        source = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
        len(source)
    except Exception as error:  # tfds raises almost anything of its JSON files
        _check_shortage(folder, error)
        first = str(error).strip().partition("\n")[0][:160]
        raise UserError(
            f"{folder}: dataset_info.json or features.json is damaged ({type(error).__name__}: "
            f"{first}); copy them again or prepare the tiles anew"
        ) from error
    return Split(directory, split, source, boundaries=boundaries)


def _check_shortage(folder: Path, error: Exception) -> None:
    if lacking := shortage(error):
        raise Outage(f"{folder} cannot be read: {lacking}") from error


def _check_described(folder: Path, size: list[int]) -> None:
    """Refuses descriptions of records that tfds would follow elsewhere: it imports the classes that
    they name."""
    content = files.read_object(folder / "features.json")
    features = content["featuresDict"]["features"]
    for path, value in _leaves(content):
        if foreign := set(path) - NAMED:
            raise ValueError(f"it names {short(min(foreign))}, which no tiles have")
        if path[-1] == "pythonClassName" and value not in CLASSES:
            raise ValueError(f"it names {short(value)}, which no tiles have")
    for name, channels in (("image", 3), ("mask", 1)):
        shape = [int(n) for n in features[name]["tensor"]["shape"]["dimensions"]]
        if shape != [*size, channels]:
            raise ValueError(f"{name} has the shape {shape}, and tiles {[*size, channels]}")
    for (*_, name), value in _leaves(files.read_object(folder / "dataset_info.json")):
        if not DESCRIBED.get(name, lambda _: False)(value):
            raise ValueError(f"{short(name)} is {short(value)}, which no tiles have")


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values within JSON, empty objects too, with the names above each."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, path)
    else:
        yield path, tree


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    arrays = (name for name in ("image", "mask", "contact") if name in record)
    return {name: np.asarray(record[name]) for name in arrays} | {
        "id": int(record["id"]),
        "file": record["file"].decode(),
    }
