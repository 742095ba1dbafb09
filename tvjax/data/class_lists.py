"""Names of classes beside YOLO labels: files `classes.txt`, and `names` in files `data.yaml`.

Labels hold numbers alone, and what one folder calls 0 may be 1 in another. The files may come from
anybody: of YAML only plain names are taken, and no Python object is made.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import yaml

from tvjax import interruption
from tvjax.data import local
from tvjax.errors import UserError, short

TEXT, YAML = "classes.txt", "data.yaml"
"""A name a line, the first of class 0; and `names`, a list or by number, among other fields."""

MOST, MOST_BYTES = 256, 1 << 16
"""Files that are read, and bytes of each: a thousand names have some 2^14."""


def check(labels: Path, files: Iterable[Path], counted: Iterable[int]) -> None:
    """Refuses to call trees of one folder and roofs of another objects.

    Args:
      labels: the folder of all labels.
      files: the files of labels; lists of classes may lie beside them and in all folders above, up
        to that of all.
      counted: the classes that are object.

    Raises:
      UserError: two lists name such a class differently, one cannot be read, or there are too many.
        One list alone is not read.
    """
    folders = {above for file in files for above in file.relative_to(labels).parents}
    lists = [labels / folder / name for folder in sorted(folders) for name in (TEXT, YAML)]
    lists = [file for file in lists if os.path.lexists(file)]
    if len(lists) > MOST:
        raise UserError(
            f"{labels}: has {len(lists)} files {TEXT} or {YAML}, and at most {MOST} are read; "
            "leave those that hold for several folders, and take the others away"
        )
    found: dict[Path, dict[int, str]] = {}
    for file in lists if len(lists) > 1 else ():
        interruption.check()
        found[file] = _read(file)
    for number in sorted(counted):
        for file in found:
            _compare(labels, found, file, number)


def _compare(labels: Path, found: dict[Path, dict[int, str]], file: Path, number: int) -> None:
    """Compares a class of one list with the first list that names it."""
    first = next((other for other in found if number in found[other]), file)
    names, name = found[file], found[first].get(number)
    if name is None or name == names.get(number):
        return
    shown = _shown(name, first, labels)
    if number in names:
        mine = _shown(names[number], file, labels)
        what = f"class {number} is {mine}, and in {first} {shown}"
    elif name in names.values():
        other = next(other for other in names if names[other] == name)
        what = f"{shown} is class {other}, and in {first} class {number}"
    else:
        return
    raise UserError(
        f"{file}: {what}; give each class the same number in all folders of labels, or mend the "
        "list that is wrong"
    )


def _shown(name: str, file: Path, labels: Path) -> str:
    """The name for a message; a link may lead to a private file, whose words belong into none."""
    inside = file.resolve().is_relative_to(labels.resolve())
    return short(name)[1:-1] if inside else "a name in another place, to which it is a link"


def _read(file: Path) -> dict[int, str]:
    """The names by number; empty ones are none."""
    local.check_regular(file)
    try:
        with open(file, "rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(
                f"{file}: has more than {MOST_BYTES} bytes, too many for a list of classes; take "
                "it away, or leave the names alone in it"
            )
        text = content.decode("utf-8-sig")
        names = _of_yaml(text) if file.name == YAML else dict(enumerate(text.splitlines()))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, TypeError) as error:
        kind = "YAML with names: [NAME, ...]" if file.name == YAML else "text"
        raise UserError(f"{file}: is no {kind} in UTF-8; mend it, or take it away") from error
    return {number: name.strip() for number, name in names.items() if name.strip()}


def _of_yaml(text: str) -> dict[int, str]:
    """Raises one of the errors that `_read` explains."""
    root = yaml.compose(text, yaml.SafeLoader)
    fields = root.value if isinstance(root, yaml.MappingNode) else []
    for key, node in fields:
        if key.value != "names" or isinstance(node, yaml.ScalarNode):
            continue  # of which the latter is the place of another file
        pairs = node.value
        if isinstance(node, yaml.SequenceNode):
            return {number: _text(name) for number, name in enumerate(pairs)}
        return {_number(number): _text(name) for number, name in pairs}
    return {}


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise TypeError("no plain name")
    return node.value


def _number(node: yaml.Node) -> int:
    text = _text(node)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise TypeError("no number of a class")
    return int(text)
