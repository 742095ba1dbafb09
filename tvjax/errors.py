"""The error that a user can mend, and how programs print it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in a file, a flag or a config field that one line explains.

    The message names the file, field and value, and says what to do. Programs print it without
    a traceback and exit with its status; called as a library it is an ordinary `ValueError`.
    """

    status = 2


class Outage(UserError):
    """What may pass without a change of flags: a full disk, a network, a process that is gone."""

    status = 74  # EX_IOERR: a cluster starts such a job again, and one with a mistake not


def exit_with_one_line(main: Callable[..., object]) -> Callable[..., object]:
    """Wraps a program's `main` so that a `UserError` becomes one line on stderr and its status."""

    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.status)

    return wrapped
