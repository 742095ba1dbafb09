"""Result files: the flag that names one, what is written into it, and how a later call goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from tvjax import files
from tvjax.errors import UserError


def json_flag() -> flags.FlagHolder[str]:
    """`--json`, of the programs that measure."""
    return flags.DEFINE_string(
        "json", None, "JSON file of the result, e.g. result.json.", required=True
    )


def write(path: str | Path, content: dict[str, Any], **style: Any) -> None:
    """Writes a result, whole or not at all; `style` is that of `json.dumps`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(Path(path), json.dumps(content, **(style or {"indent": 2})) + "\n")


def strict(x: Any, digits: int) -> Any:
    """The same with None for what JSON has no word for, and with so many digits."""
    if isinstance(x, dict):
        return {k: strict(v, digits) for k, v in x.items()}
    if isinstance(x, (list, tuple, np.ndarray)):
        return [strict(v, digits) for v in x]
    if isinstance(x, (float, np.floating)):
        return float(f"{x:.{digits}g}") if np.isfinite(x) else None
    return x.item() if isinstance(x, np.integer) else x


def lines(
    path: Path, config: dict[str, Any], name: str, read: Callable[[list[dict[str, Any]]], Any]
) -> list[dict[str, Any]]:
    """The lines that an earlier call of the same config wrote under a name, to be gone on with.

    Args:
      path: the result file; where there is none, there are no lines.
      config: what all lines of a file have in common, as the file holds it under `config`.
      name: where the lines stand in the file.
      read: what reads the lines later on; those that it cannot read are damaged.

    Raises:
      UserError: the file is damaged, or of another config.
    """
    if not path.exists():
        return []
    try:
        earlier = files.read_object(path)
        found, same = earlier[name], earlier["config"] == json.loads(json.dumps(config))
        read(found)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); move it away") from error
    if not same:
        raise UserError(f"{path} is of another config; name another place, or move it away")
    return found
