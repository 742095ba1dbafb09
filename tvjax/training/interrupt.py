"""Ctrl-C, SIGTERM and notices of preemption: saved between two steps, in all processes at one."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tvjax import interruption, program
from tvjax.training import parallel

INTERRUPTED = 75
"""Exit status after Ctrl-C or SIGTERM: saved, run the same command again (EX_TEMPFAIL)."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: the run ends here, and the same command resumes it.

    As KeyboardInterrupt it is no `Exception`: raised while a file is read, it must not be taken for
    a damaged one.
    """

    def __init__(self, step: int | None = None):
        saved = "" if step is None else f": saved at step {step}"
        super().__init__(f"interrupted{saved}; the same command resumes from there")


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a program's `main` whose same command resumes it; see `program.run`."""
    try:
        program.run(main, interrupted=INTERRUPTED)
    except Interrupted as interrupted:
        parallel.say(f"\n{interrupted}")
        sys.exit(INTERRUPTED)


class Stop:
    """Ends a run on Ctrl-C or SIGTERM, where it is asked for; a context manager.

    The signals are noted as in `tvjax.interruption`. Of several processes, JAX notes SIGTERM itself
    and agrees with the others on when; Ctrl-C is passed on to it.
    """

    def __init__(self):
        self._calls, self._held = 0, contextlib.ExitStack()

    def __enter__(self) -> "Stop":
        if parallel.is_alone():
            self._held.enter_context(interruption.noted(INTERRUPTED))
        else:
            before = signal.signal(signal.SIGINT, _pass_on)
            self._held.callback(signal.signal, signal.SIGINT, before)
        return self

    def __exit__(self, kind, *_) -> None:
        self._held.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):  # while data were prepared
            raise Interrupted from None

    def asked(self) -> bool:
        """Whether to save and end here; to be asked equally often in all processes."""
        self._calls += 1
        return interruption.came() if parallel.is_alone() else parallel.preempted(self._calls)

    def check(self) -> None:
        """Ends here if that is asked for.

        Raises:
          Interrupted: it is.
        """
        if self.asked():
            raise Interrupted


def _pass_on(*_) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)
