"""What a run writes down as it goes: JSON lines, TensorBoard, and a progress bar."""

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tqdm import tqdm

from tvjax import files


class Logs:
    """Writes scalars to `metrics.jsonl` and TensorBoard; a context manager.

    On resume, lines of steps after `start` are dropped: those steps are taken again; from 0, all.
    Events are written in this thread: tensorboardX's own, once ended by a full disk, would let the
    next one wait for ever.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int):
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if start and line["step"] <= start]
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        # TensorBoard forgets what an earlier session wrote of this step and later ones.
        self._event(start + 1, session_log=SessionLog(status=SessionLog.START))
        self._bar = tqdm(
            total=steps, initial=start, unit="step", desc="training", dynamic_ncols=True,
            # In a log file a line every ten seconds is enough.
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )  # fmt: skip

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, kind, *_) -> None:
        self._bar.close()
        # The last closes what the one before leaves open where it cannot be written to its end.
        for file in (self._file, self._events, self._events._py_recordio_writer):
            # The error under way says more than a file that cannot be written for the same reason.
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                file.close()

    def scalars(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """One line `{"step": ..., "kind": kind, name: value, ...}`."""
        # JSON has no NaN or infinity.
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **clean}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._event(step, summary=summary.scalar(f"{kind}/{name}", value))

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 `[H, W, 3]`, for TensorBoard."""
        self._event(step, summary=summary.image(name, picture, dataformats="HWC"))
        self._events.flush()

    def advance(self, step: int, shown: dict[str, str], *, images: int) -> None:
        """Moves the progress bar to `step` and shows a few numbers beside it, by their names.

        The rate is that of images, of which one step takes so many.
        """
        self._bar.update(step - self._bar.n)
        rate = self._bar.format_dict["rate"]
        rate = rate and rate * images
        speed = {"images/s": f"{rate:.{0 if rate > 10 else 2}f}"} if rate else {}
        self._bar.set_postfix(shown | speed, refresh=False)

    def say(self, text: str) -> None:
        """A line of its own above the progress bar."""
        self._bar.write(f"warning: {text}", file=sys.stderr)

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))


class NoLogs:
    """What all processes but the first write down: nothing."""

    def __enter__(self) -> "NoLogs":
        return self

    def __exit__(self, *_) -> None: ...

    def scalars(self, *_) -> None:
        """Writes nothing, as the others."""

    def image(self, *_) -> None:
        """Writes nothing."""

    def advance(self, *_, **__) -> None:
        """Shows nothing."""

    def say(self, *_) -> None:
        """Says nothing."""


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, but for damaged ones.

    Of those a warning tells; the last one may be cut off in writing, and is left out unsaid.
    """
    path = workdir / "metrics.jsonl"
    texts = path.read_text(errors="replace").splitlines() if path.exists() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if _is_sound(line):
            lines.append(line)
        elif number < len(texts):
            print(
                f"warning: {path}: line {number} is damaged ({text[:40]!r}) and is left out",
                file=sys.stderr,
            )
    return lines


def _is_sound(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    values = [value for name, value in line.items() if name != "kind"]
    return isinstance(line.get("kind"), str) and all(
        value is None or type(value) is float or (type(value) is int and abs(value) < 2**63)
        for value in values
    )
