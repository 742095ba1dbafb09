"""A directory to build in, beside the one to make, so that what exists is always finished."""

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tvjax.errors import unwritable

LOCK = "lock"


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Makes a working directory next to `target` and removes it at the end, whatever happens.

    What a killed process left behind is removed too: a process holds a lock on its own working
    directory, and the system drops the lock with the process.

    Raises:
      UserError: the parent directory cannot be written, or, an `Outage`, has no room left.
    """
    prefix = f".{target.name}.building-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in target.parent.glob(glob.escape(prefix) + "*"):
            _remove_if_abandoned(abandoned)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise unwritable(f"{target}: cannot write there ({{}})", error) from error
    try:
        with open(work / LOCK, "w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: nobody removes it
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield work
    except OSError as error:
        message = f"{target} cannot be written ({{}}); nothing of it stays: make room, and run the "
        raise unwritable(message + "same command again", error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def move(finished: Path, target: Path) -> None:
    """Renames a finished directory to `target`, which is missing or empty.

    If another process finished the same meanwhile, its result stays and this one is dropped.
    """
    try:
        os.rename(finished, target)
    except OSError:
        if not target.is_dir() or not any(target.iterdir()):
            raise


def _remove_if_abandoned(work: Path) -> None:
    with contextlib.suppress(OSError), open(work / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(work, ignore_errors=True)
