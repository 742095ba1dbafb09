"""The error that a user can mend, and how programs print it."""

import errno
import importlib
import os
import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

SHOWN = 60
"""Characters of a value from a file that a message shows."""


class UserError(ValueError):
    """A mistake in a file, a flag or a config field that one line explains.

    The message names the file, field and value, and says what to do. Programs print it without
    a traceback and exit with its status; called as a library it is an ordinary `ValueError`.
    """

    status = 2

    def __init__(self, message: object = ""):
        super().__init__(escaped(str(message)))


class Outage(UserError):
    """What may pass without a change of flags: a full disk, a network, a process that is gone."""

    status = 74  # EX_IOERR: a cluster starts such a job again, and one with a mistake not


def escaped(text: str) -> str:
    r"""The text in one line: what is no visible character becomes `\xNN`, `\uNNNN` or `\UNNNNNNNN`.

    Names of files may hold newlines, commands to the terminal, marks that turn the line around, and
    bytes that are no characters.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(ord(letter)) for letter in text)


def short(value: Any) -> str:
    """A value from a file as a message shows it, without writing out the whole of a long one."""
    text = _SHORT.repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def some(words: Sequence[str], most: int) -> str:
    """The first of many words, at most so many, and the number of the others; "none" of none."""
    more = f" and {len(words) - most} more" * (len(words) > most)
    return (", ".join(words[:most]) or "none") + more


def require(package: str, words: str) -> Any:
    """An optional package, imported.

    Raises:
      UserError: it is not here; the words say what needs it, and how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(words) from error


_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def unwritable(message: str, error: OSError) -> UserError:
    """The error, to be raised, for what the system would not write.

    Args:
      message: a text that says what, with `{}` where the system's reason belongs.
      error: the system's.

    Returns:
      An `Outage` for a full disk and the like, else a `UserError`.
    """
    kind = Outage if error.errno in _MAY_PASS else UserError
    before, _, after = message.rpartition("{}")  # names before it may hold braces
    return kind(f"{before}{error.strerror or error.__cause__ or error}{after}")


_SHORT_OF = (
    "can't start new thread",
    *map(os.strerror, (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)),
)
"""What errors say where the process, or its machine, has no more of something."""


def shortage(error: BaseException) -> str | None:
    """What this process lacks, if an error tells of it: no file is damaged then.

    Args:
      error: what a library raised, which may hide the reason in its cause.

    Returns:
      Words that end a line and say what to do; None where nothing is lacking.
    """
    found: BaseException | None = error
    while found is not None:
        said = [words for words in _SHORT_OF if words in str(found)]
        if said or isinstance(found, MemoryError):
            lacking = said[0] if said else os.strerror(errno.ENOMEM)
            return f"{lacking}; give this process more memory, threads or open files (ulimit -a)"
        found = found.__cause__ or found.__context__
    return None


def exit_with_one_line(main: Callable[..., object]) -> Callable[..., object]:
    """Wraps a program's `main` so that a `UserError` becomes one line on stderr and its status."""

    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.status)

    return wrapped


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is no UTF-8
        code -= 0xDC00
    digits = 2 if code < 0x100 else 4 if code < 0x10000 else 8
    return f"\\{'xuU'[(2, 4, 8).index(digits)]}{code:0{digits}x}"


_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 16
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = SHOWN
