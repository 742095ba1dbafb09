"""What files held when they were read, so that a change is seen later and an untouched file is not
read again.

A stamp is `[size, mtime_ns, ctime_ns, sha256]`. Contents decide: the size and the two times only
tell which files must be read to compare them. Copies, fresh checkouts and files whose times were
set back are therefore read once more and found equal, or not. A file that was written within
`RECENT` of its stamp may have been written again in the same tick of a coarse clock (network disks
and memory cards count whole seconds): its time is stored as 0, which no file has, so that it is
read again, as git does.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import stat
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tvjax import interruption

Stamp = list[Any]

RECENT = 2_000_000_000
"""Nanoseconds; of the coarsest clock in use."""
_TOGETHER = 256
"""Files looked up by one task of a thread: a network disk answers many at once."""


def take(file: Path) -> Stamp | None:
    """The stamp of a file; None if there is no such file, or none that can be read."""
    try:
        before = signature(file)
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None
    if max(before[1:]) > time.time_ns() - RECENT:
        before[1] = 0
    return [*before, digest]


def signature(file: Path) -> list[int]:
    """Size and times (of contents and of the entry, in ns) of a file; an `OSError` if it is none.

    To open a pipe would wait for who writes into it.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(file))
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def take_all(files: Mapping[str, Path]) -> dict[str, Stamp | None]:
    """The stamps of many files, by their names."""
    with ThreadPoolExecutor() as threads:
        return dict(zip(files, threads.map(take, files.values()), strict=True))


def renewed(
    stamps: Mapping[str, Stamp | None], files: Mapping[str, Path]
) -> dict[str, Stamp | None]:
    """The stamps of the files today; a file whose size and times are the stamp's is not read."""

    names = list(stamps)

    def renew(start: int) -> list[Stamp | None]:
        some = names[start : start + _TOGETHER]
        return [_renew(stamps[name], files[name]) for name in some]

    with ThreadPoolExecutor(16) as threads:
        parts = threads.map(renew, range(0, len(names), _TOGETHER))
        return dict(zip(names, itertools.chain.from_iterable(parts), strict=True))


def is_stamp(value: Any) -> bool:
    """Whether a value of a file is a stamp, or None."""
    if value is None:
        return True
    return (
        isinstance(value, list)
        and [type(x) for x in value] == [int, int, int, str]
        and len(value[3]) == 64
    )


def same(one: Stamp | None, two: Stamp | None) -> bool:
    """Whether two stamps are of the same contents."""
    return (one and one[3]) == (two and two[3])


def write(path: Path, content: Any) -> None:
    """Writes JSON in one go, or not at all."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        hidden.write_text(json.dumps(content, separators=(",", ":")).replace("],", "],\n") + "\n")
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def keep(path: Path, content: Any) -> None:
    """The same, but goes on where the folder is another's, or full: it can be made again."""
    with contextlib.suppress(OSError):
        write(path, content)


def _renew(stamp: Stamp | None, file: Path) -> Stamp | None:
    interruption.check()
    with contextlib.suppress(OSError):
        if stamp and signature(file) == stamp[:3]:
            return stamp
    return take(file)
