"""The folder of a run: the config it belongs to, and its summary."""

import json
from pathlib import Path
from typing import Any

from tvjax.errors import UserError
from tvjax.types import Config

# What may differ when a run is resumed: none of these changes what a step computes.
_MAY_CHANGE = (
    "name", "train.steps", "train.log_every", "evaluation.", "checkpoint.", "parallel.",
    "train.steps_per_dispatch", "data.directory", "data.cache", "data.resident",
)  # fmt: skip


def open_run(workdir: Path, config: Config, *, write: bool = True) -> None:
    """Makes the folder and stores the config, or checks that it is a run of the same config.

    Args:
      workdir: the folder.
      config: of the run.
      write: False: only check, as the processes do that are not the first.

    Raises:
      UserError: the folder cannot be written, or holds a run of another config.
    """
    path = workdir / "config.json"
    wanted = _flat(json.loads(json.dumps(config.to_dict())))  # as it comes back: lists, no tuples
    stored = _read(path)
    if stored is not None:
        found = _flat(stored)
        for field in sorted(found.keys() | wanted.keys()):
            if found.get(field) != wanted.get(field) and not field.startswith(_MAY_CHANGE):
                raise UserError(
                    f"{workdir} holds a run with {field}={found.get(field)!r}, this config has "
                    f"{wanted.get(field)!r}; use another --workdir"
                )
    if not write:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write(path, config.to_dict())
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error


def read_summary(workdir: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a finished run of as many steps, or None."""
    summary = _read(workdir / "summary.json")
    done = summary is not None and summary["steps"] >= config.train.steps
    return summary if done else None


def write_summary(workdir: Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json`."""
    _write(workdir / "summary.json", summary)


def format_summary(summary: dict[str, Any], workdir: Path) -> str:
    """The summary for the reader of a terminal."""
    base, weight = summary["test_baselines"], summary["lambda_per_pixel"]
    lines = [
        "",
        "          mean IoU  pooled IoU  boundary IoU  components (true)",
        *(
            f"{name:<6}{s['iou']:>12.4f}{s['pooled_iou']:>12.4f}{s['boundary_iou']:>14.4f}"
            f"{s['components']:>12.2f} ({s['true_components']:.2f})   {int(s['images'])} tiles"
            for name, s in summary["splits"].items()
        ),
        f"test, all background: {base['all_background']:.4f}   "
        f"all foreground: {base['all_foreground']:.4f}",
        f"lambda {summary['lambda']:.4g}"
        + ("" if weight is None else f", which weighs TV by {weight:.3g} a pixel")
        + f"; {summary['steps']} steps in {summary['seconds']:.0f} s",
        f"curves, lambda and predictions: {workdir}/*.png",
    ]
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away") from error


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name("." + path.name)
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train.steps": 600, ...}`."""
    flat = {}
    for key, value in tree.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
