"""Ctrl-C and SIGTERM are noted when they come, and looked at between two pieces of work.

An exception raised by a signal's handler comes up wherever Python happens to be: in a callback of
numpy, JAX or GDAL, which swallow it or make a TypeError of it, or after a file was opened and
before the block that closes it. So a handler only notes it here, and `check` raises it where it is
called: between a tile and the next. The second signal ends the process at once.

Outside `noted` nothing is changed: in a notebook Ctrl-C is Python's own. A program whose modules
are still being imported is ended by it without a word, see `end_quietly`.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

SIGNALS = signal.SIGINT, signal.SIGTERM


class _Noted:
    came = within = False


def end_quietly() -> None:
    """Lets Ctrl-C end the process by itself, if it is Python's own so far.

    For the seconds in which a program imports its modules: nothing is half written yet, and an
    exception from there is a traceback, or is lost in an extension, and the program goes on.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def noted(status: int) -> Iterator[None]:
    """Within it both signals are noted; inside of itself it changes nothing.

    Args:
      status: exit status of the process, if a second one ends it.
    """
    if _Noted.within:
        yield
        return

    def note(*_) -> None:
        if _Noted.came:
            with contextlib.suppress(OSError):
                os.write(2, b"\ninterrupted at once\n")
            os._exit(status)
        _Noted.came = True
        if sys.stderr.isatty():
            os.write(2, b"\nending after this piece of work; once more to end at once\n")

    before = {number: signal.signal(number, note) for number in SIGNALS}
    _Noted.came, _Noted.within = False, True
    try:
        yield
    finally:
        _Noted.within = False
        for number, handler in before.items():
            signal.signal(number, handler)


def came() -> bool:
    """Whether a signal was noted."""
    return _Noted.within and _Noted.came


def check() -> None:
    """Ends the work here if that was asked for.

    Raises:
      KeyboardInterrupt: it was.
    """
    if came():
        raise KeyboardInterrupt
