"""What a run writes down as it goes: JSON lines, TensorBoard, and a progress bar."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm


class Logs:
    """Writes scalars to `metrics.jsonl` and TensorBoard; a context manager.

    On resume, lines of steps after `start` are dropped: those steps are taken again; from 0, all.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int):
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if start and line["step"] <= start]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self._path)
        self._file = self._path.open("a")
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        self._bar = tqdm(
            total=steps, initial=start, unit="step", desc="training", dynamic_ncols=True,
            # In a log file a line every ten seconds is enough.
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )  # fmt: skip

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._file.close()
        self._writer.close()

    def scalars(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """One line `{"step": ..., "kind": kind, name: value, ...}`."""
        # JSON has no NaN or infinity.
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **clean}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 `[H, W, 3]`, for TensorBoard."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def advance(self, step: int, shown: dict[str, str], *, images: int) -> None:
        """Moves the progress bar to `step` and shows a few numbers beside it.

        Args:
          step: steps taken.
          shown: names and formatted values.
          images: of one step, for the rate.
        """
        self._bar.update(step - self._bar.n)
        rate = self._bar.format_dict["rate"]
        speed = {"images/s": f"{rate * images:.0f}"} if rate else {}
        self._bar.set_postfix(shown | speed, refresh=False)


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


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, but for a last one that was cut off in writing."""
    path = workdir / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
