"""A directory to build in, beside the one to make, so that what exists is always finished."""

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tvjax import files
from tvjax.errors import UserError, unwritable

LOCK = "lock"
STALE = 3600
"""Seconds after which a working directory without a lock is taken for abandoned."""


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Makes a working directory next to `target` and removes it at the end, whatever happens.

    Of a link, next to what it points to, there or not.

    What a killed process left behind is removed too: a process holds a lock on its own working
    directory, and the system drops the lock with the process. One without a lock, of a process that
    was killed before it had one, is removed when nothing happened there for an hour.

    Raises:
      UserError: the target is a link to itself, or the parent directory cannot be written, or, an
        `Outage`, has no room left.
    """
    target = _real(target)
    prefix = f".{target.name}.building-"
    with contextlib.ExitStack() as made:
        try:
            made.enter_context(files.making(target.parent))
            for abandoned in target.parent.glob(glob.escape(prefix) + "*"):
                _remove_if_abandoned(abandoned)
            work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        except OSError as error:
            raise unwritable(f"{target}: cannot write there ({{}})", error) from error
        try:
            starting = work / f"{LOCK}.starting"
            with open(starting, "w") as lock:
                with contextlib.suppress(OSError):  # a file system without locks: nobody removes it
                    fcntl.flock(lock, fcntl.LOCK_EX)
                starting.rename(work / LOCK)  # never there without being held
                yield work
        except OSError as error:
            what = "nothing of it stays: make room, and run the same command again"
            raise unwritable(f"{target} cannot be written ({{}}); {what}", error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def move(finished: Path, target: Path) -> bool:
    """Renames a finished directory to `target`, which is missing or empty, or a link to such.

    Returns:
      False: another process was there first. What it made stays, and may be something else.
    """
    target = _real(target)
    try:
        os.rename(finished, target)
    except OSError:
        if not target.is_dir() or not any(target.iterdir()):
            raise
        return False
    return True


def _real(target: Path) -> Path:
    real = Path(os.path.realpath(target))
    if real.is_symlink():
        raise UserError(f"{target}: is a link that leads nowhere but to itself; remove it")
    return real


def _remove_if_abandoned(work: Path) -> None:
    with contextlib.suppress(OSError):
        if not (work / LOCK).exists():
            if time.time() - work.stat().st_mtime > STALE:
                shutil.rmtree(work, ignore_errors=True)
            return
        with open(work / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work, ignore_errors=True)
