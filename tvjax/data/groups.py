"""Groups of tiles, by what their files' names have in common."""

import re
from collections.abc import Sequence

import numpy as np

from tvjax.errors import UserError


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression that finds a group in a name.

    Raises:
      UserError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--group={pattern}: is no regular expression ({error})") from error


def label(names: Sequence[str], pattern: str) -> np.ndarray:
    """Labels names by the text that the pattern finds in them, int `[N]`.

    Equal texts, of the pattern's first parentheses if it has any, are one group. A name in which it
    finds nothing is a group by itself.

    Raises:
      UserError: the pattern is no regular expression, or finds nothing in any name.
    """
    expression = compile_pattern(pattern)
    matches = [expression.search(name) for name in names]
    if not any(matches):
        raise UserError(f"--group={pattern}: finds nothing in any name, such as {names[0]}")
    first = 1 if expression.groups else 0
    texts = [
        ("own", name) if match is None else ("group", match[first] or "")
        for name, match in zip(names, matches, strict=True)
    ]
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts])
