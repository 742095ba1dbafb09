"""Groups of tiles, by what their files' names have in common."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from tvjax import interruption
from tvjax.errors import UserError

SECONDS = 10
"""Seconds of a processor in which a pattern must be found in all names."""

SEARCH = """
import json, re, resource, sys
seconds = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
pattern, names = json.load(sys.stdin)
expression = re.compile(pattern)
first = 1 if expression.groups else 0
matches = map(expression.search, names)
json.dump([match and (match[first] or "") for match in matches], sys.stdout)
"""
"""What the process does that looks for a pattern."""


def label(names: Sequence[str], pattern: str) -> np.ndarray:
    """Labels names by the text that the pattern finds in them, int `[N]`.

    Equal texts, of the pattern's first parentheses if it has any, are one group. A name in which it
    finds nothing, or an empty text, is a group by itself.

    Raises:
      UserError: the pattern is no regular expression, takes longer than `SECONDS`, or finds nothing
        in any name.
    """
    found = _search(names, pattern)
    if not any(found):
        raise UserError(f"--group={pattern}: finds nothing in any name, such as {names[0]}")
    numbers: dict[tuple[str, str | None], int] = {}
    keys = (("" if text else name, text) for name, text in zip(names, found, strict=True))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _search(names: Sequence[str], pattern: str) -> list[str | None]:
    """What is found in each name, None for nothing.

    Patterns such as `(a+)+$` try more ways than there is time for, and nothing in this process
    could stop them: another one looks for them, which the system ends.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--group={pattern}: is no regular expression ({error})") from error
    ran = subprocess.run(
        [sys.executable, "-I", "-c", SEARCH, str(SECONDS)],
        input=json.dumps([pattern, names]), capture_output=True, text=True, check=False,
    )  # fmt: skip
    interruption.check()
    if ran.returncode:
        raise UserError(
            f"--group={pattern}: cannot be sought within {SECONDS} seconds in names such as "
            f"{names[0]}; give one without repeats within repeats"
        )
    return json.loads(ran.stdout)
