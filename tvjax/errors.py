"""The error that a user can mend, and how programs print it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in a file, a flag or a config field that one line explains.

    The message names the file, field and value, and says what to do. Programs print it without
    a traceback and exit with status 2; called as a library it is an ordinary `ValueError`.
    """


def exit_with_one_line(main: Callable[..., object]) -> Callable[..., object]:
    """Wraps a program's `main` so that a `UserError` becomes one line on stderr and status 2."""

    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped
