"""Ctrl-C, SIGTERM and notices of preemption: saved between two steps, in all processes at one."""

import os
import signal

from tvjax.training import parallel


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run was saved at `step` and resumes by the same command."""

    def __init__(self, step: int):
        super().__init__(f"interrupted: saved at step {step}; the same command resumes from there")


class Stop:
    """Notes Ctrl-C and SIGTERM for the loop to act on between steps; a second one is immediate.

    Of several processes, JAX notes SIGTERM itself and agrees with the others on a step; Ctrl-C is
    passed on to it.
    """

    def __init__(self):
        self._noted, self._calls = False, 0
        self._signals = (signal.SIGINT, signal.SIGTERM) if parallel.is_alone() else (signal.SIGINT,)

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._note) for s in self._signals}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def asked(self) -> bool:
        """Whether to save and end here; to be asked once between any two dispatches."""
        self._calls += 1
        return self._noted if parallel.is_alone() else parallel.preempted(self._calls)

    def _note(self, *_) -> None:
        self._noted = True
        self._restore()
        if not parallel.is_alone():
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
