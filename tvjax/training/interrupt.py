"""Ctrl-C, SIGTERM and notices of preemption: saved between two steps, in all processes at one."""

import contextlib
import os
import signal
from collections.abc import Iterator

from tvjax.training import parallel


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: the run ends here, and the same command resumes it.

    As KeyboardInterrupt it is no `Exception`: raised while a file is read, it must not be taken for
    a damaged one.
    """

    def __init__(self, step: int | None = None):
        saved = "" if step is None else f": saved at step {step}"
        super().__init__(f"interrupted{saved}; the same command resumes from there")


class Stop:
    """Ends a run on Ctrl-C or SIGTERM; a context manager. A second one is immediate.

    One process ends at once, by `Interrupted`; `between_steps` lets it be asked for instead. Of
    several processes, JAX notes SIGTERM itself and agrees with the others on when: they are always
    asked for. Ctrl-C is passed on to it.
    """

    def __init__(self):
        self._noted, self._deferred, self._calls = False, False, 0
        self._signals = (signal.SIGINT, signal.SIGTERM) if parallel.is_alone() else (signal.SIGINT,)

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._note) for s in self._signals}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within it nothing is raised: `asked` tells."""
        self._deferred = True
        yield
        self._deferred = False
        if self._noted:  # after it was last asked for
            raise Interrupted

    def asked(self) -> bool:
        """Whether to save and end here; to be asked equally often in all processes."""
        self._calls += 1
        return self._noted if parallel.is_alone() else parallel.preempted(self._calls)

    def check(self) -> None:
        """Ends here if that is asked for.

        Raises:
          Interrupted: it is.
        """
        if self.asked():
            raise Interrupted

    def _note(self, *_) -> None:
        self._noted = True
        self._restore()
        if not parallel.is_alone():
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._deferred:
            raise Interrupted

    def _restore(self) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
