"""The result files of `experiments.run`, read without trust: what the report takes from them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runs import LEARNING, METHODS, Run
from tvjax import errors, files
from tvjax.errors import UserError

Member = dict[str, Any]
"""The content of a result file."""

DIGEST = "tiles_sha256"
"""Field of the digest of the tiles, see `tvjax.data.sets.identify`; files of old have none."""
SPLITS = "train", "val", "test"


class Need(NamedTuple):
    """What a field must be."""

    holds: Callable[[Any], bool]
    words: str


def _is_number(x: Any) -> bool:
    # JSON knows integers that no float holds, and Python's reads NaN.
    return isinstance(x, int | float) and not isinstance(x, bool) and -1e300 < x < 1e300


def _is_share(x: Any) -> bool:
    return _is_number(x) and 0 <= x <= 1


def _are(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, list) and len(x) > 0 and all(map(check, x))


def _is_table(x: Any) -> bool:
    return _are(_are(_is_number))(x) and len({len(row) for row in x}) == 1


def _are_times(x: Any) -> bool:
    """Positive times of known methods, as many of each."""
    return (
        isinstance(x, dict)
        and {"unet", "runet", "lunet"} <= x.keys() <= METHODS.keys()
        and all(_are(_is_number)(v) and min(v) > 0 for v in x.values())
        and len({len(v) for v in x.values()}) == 1
    )


def _is_figure(x: Any) -> bool:
    return isinstance(x, dict) and x.keys() == {"prediction", "exact", "lbfgs"}


def same(wanted: Any, whose: str) -> Need:
    """What equals a value, in words that of another."""
    return Need(lambda x: x == wanted, f"that of {whose}")


NUMBER = Need(_is_number, "a number")
SHARE = Need(_is_share, "in [0, 1]")
MAYBE_SHARE = Need(lambda x: x is None or _is_share(x), "in [0, 1], or null")
MAYBE = Need(lambda x: x is None or _is_number(x), "a number, or null")
TEXT = Need(lambda x: isinstance(x, str), "a text")
PICTURE = Need(
    lambda x: isinstance(x, str) and Path(x).name == x and x.endswith(".png"),
    "the name of a PNG file beside it",
)
MAYBE_PICTURE = Need(lambda x: x is None or PICTURE.holds(x), PICTURE.words + ", or null")
MAYBE_TEXT = Need(lambda x: x is None or isinstance(x, str), "a text, or null")
OBJECT = Need(lambda x: isinstance(x, dict), "an object")
OBJECTS = Need(_are(OBJECT.holds), "a list of objects")
NUMBERS = Need(_are(_is_number), "a list of numbers")
SHARES = Need(_are(_is_share), "a list of numbers in [0, 1]")

SCORED = {
    f"scores.{split}.{name}": need
    for split in SPLITS
    for name, need in {
        "iou": SHARE, "pooled_iou": SHARE, "nonempty_iou": MAYBE_SHARE, "boundary_iou": SHARE,
        "bce": NUMBER, "components": NUMBER, "true_components": NUMBER, "tv": NUMBER,
        "true_tv": NUMBER,
    }.items()
} | {"test_iou_permille": NUMBERS}  # fmt: skip
TRAINED = SCORED | {
    "config": OBJECT, "config.model": OBJECT, "config.train": OBJECT, "config.data": OBJECT,
    "config.hypergrad": OBJECT, "config.optimizer.learning_rate": NUMBER,
    "config.train.steps": NUMBER, "final_lambda": NUMBER,
    **{f"tiles.{split}": NUMBER for split in SPLITS},
    "course.step": NUMBERS, "course.train_iou": SHARES, "course.val_iou": SHARES,
}  # fmt: skip
COMMON = {
    "run.data": TEXT, "run.seed": NUMBER, "run.method": TEXT, "seconds": NUMBER,
    "versions": OBJECT, "hardware": TEXT, "commit": MAYBE_TEXT,
}  # fmt: skip
FIELDS = {
    "train": TRAINED,
    "long": TRAINED | {"picture": MAYBE_PICTURE},
    "denoise": SCORED
    | {"weights": NUMBERS, "best": NUMBER}
    | {f"iou.{split}": SHARES for split in SPLITS},
    "noise": {
        "sigmas": NUMBERS, "tiles": NUMBER,
        "iou": Need(_are(_are(_is_share)), "lists of numbers in [0, 1]"),
    },
    "layer": {"lambdas": NUMBERS, "moves": NUMBERS},
    "cost": {"seconds_per_step": Need(_are_times, "positive times of unet, runet, lunet")},
    "figure1": {
        "truth": Need(_is_table, "rows of numbers"), "images": Need(_is_figure, "three images"),
        "iou": Need(_is_figure, "of three images"),
        "components": Need(_is_figure, "of three images"),
        **{f"images.{k}": Need(_is_table, "rows of numbers")
           for k in ("prediction", "exact", "lbfgs")},
    },
    **{name: {"picture": PICTURE} for name in ("figure2", "figure4", "figure7")},
}  # fmt: skip
"""What the report reads of a run of each kind."""

SAME_LENGTH = {
    "train": ("course.step", "course.train_iou", "course.val_iou"),
    "long": ("course.step", "course.train_iou", "course.val_iou"),
    "denoise": ("weights", "iou.train", "iou.val", "iou.test"),
    "noise": ("sigmas", "iou"),
    "layer": ("lambdas", "moves"),
}
FREE = [
    f"config.{name}"
    for name in (
        "name", "seed", "regularizer.weight", "regularizer.place", "model.head", "data.cache",
        "hypergrad.method",
    )
]  # fmt: skip
"""Fields of the configs in which methods, seeds, weights and machines differ; ways to learn lambda
also in those that they set, see `runs.LEARNING`."""
SHARED = "config", "tiles", "weights", "sigmas"
"""What runs of a kind on a set have in common."""


def read(path: Path) -> Member:
    """The content of a result file.

    Raises:
      UserError: it cannot be read, or lacks what a run of its kind and name leaves.
    """
    member = read_object(path)
    run = member.get("run")
    try:
        kind, named = run["kind"], Run(**run).name == path.stem  # pyright: ignore
        fields = COMMON | FIELDS[kind] if named else {}
    except (LookupError, TypeError, ValueError):
        fields = {}
    if not fields:
        raise UserError(f"{path}: its field run is of no run of this name; move the file away")
    if member["run"]["method"] == "lunet" and kind == "train":
        fields |= {"lambda_per_pixel": NUMBER}
    check(path, member, fields)
    if member.get("picture") and not (path.parent / member["picture"]).is_file():
        raise UserError(f"{path}: its picture {member['picture']} is not there; move the file away")
    lengths = {len(value(member, name)) for name in SAME_LENGTH.get(kind, ())}
    if len(lengths) > 1:
        names = ", ".join(SAME_LENGTH[kind])
        raise UserError(f"{path}: {names} must be of one length; move the file away")
    return member


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return files.read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away") from error


def check(path: Path, content: dict[str, Any], fields: dict[str, Need]) -> None:
    """Refuses a file whose fields, named with dots, are not what they must be."""
    for name, need in fields.items():
        found = value(content, name)
        if not need.holds(found):
            raise UserError(
                f"{path}: {name} must be {need.words}; got {errors.short(found)}; move the file "
                "away"
            )


def value(content: Any, name: str) -> Any:
    """A field, named with dots; None where it is not there."""
    for key in name.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def check_alike(members: dict[Path, Member]) -> None:
    """Refuses files that no table can hold together: of other tiles or masks, or another config.

    Fields that only some of the files have, since other versions wrote them, bind nobody.

    Raises:
      UserError: naming two files and the field.
    """
    seen: dict[tuple[str, ...], tuple[Any, Path]] = {}
    for path, member in members.items():
        kind, data = member["run"]["kind"], member["run"]["data"]
        for place, found in _settings(member, kind, data):
            other, first = seen.setdefault(place, (found, path))
            if found != other:
                raise UserError(
                    f"{path} has {place[-1]}={errors.short(found)} and {first} "
                    f"{errors.short(other)}; keep them in different folders (--results)"
                )


def _settings(member: Member, kind: str, data: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    if member.get(DIGEST):
        yield (data, DIGEST), member[DIGEST]
    free = {*FREE, *(f"config.{name}" for name in LEARNING.get(member["run"]["method"], ()))}
    for section in (name for name in SHARED if name in member):
        for name, found in _flat(member[section], (section,)):
            if name not in free:
                yield (kind, data, name), found
    for split in SPLITS if "scores" in member else ():  # of old files, too, which have no digest
        for name in ("true_components", "true_tv"):
            yield (data, f"scores.{split}.{name}"), member["scores"][split][name]
    if "test_iou_permille" in member:  # by which tiles are paired
        yield (data, "number of test_iou_permille"), len(member["test_iou_permille"])


def _flat(x: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(x, dict):
        for key, part in x.items():
            yield from _flat(part, (*names, key))
    else:
        yield ".".join(names), x
