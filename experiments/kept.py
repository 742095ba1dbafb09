"""Result files: the flag that names one, what is written into it, and how a later call goes on.

A file keeps what its results were made of under `config`: with `DIGEST`, their tiles. A later call
goes on with results of the same alone.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.results import DIGEST
from tvjax import files
from tvjax.errors import UserError, short
from tvjax.fields import flat


def json_flag(*, new: bool = True, required: bool = True) -> flags.FlagHolder[Any]:
    """`--json`, of the programs that measure; a file that is there is refused if it must be new."""
    flag = flags.DEFINE_string(
        "json", None, "JSON file of the result, e.g. result.json.", required=required
    )
    if new:
        flags.register_validator(flag, lambda path: path is None or check_new(Path(path)))
    return flag


def check_new(path: Path) -> bool:
    """Checks, before the work, that a result can be written and replaces nothing: then True.

    Raises:
      UserError: it cannot, or there is something.
    """
    files.check_file("json", path)
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; name another --json, or move it away")
    return True


def check_report(flag: str, folder: Path, names: Iterable[str], title: str) -> None:
    """Refuses to replace texts, figures and folders, unless the first of them has this title.

    Raises:
      UserError: naming the first that is there.
    """
    first, *_ = names = list(names)
    text = (folder / first).read_text(errors="replace") if (folder / first).is_file() else ""
    if not text.startswith(f"# {title}\n"):
        files.check_replaced(flag, folder, names, f"there is no {first} titled {title!r}")


def chosen(only: list[str] | None, known: Iterable[str]) -> list[str]:
    """The names that `--only` gives; all that are known where it gives none.

    Raises:
      UserError: one is not known.
    """
    unknown = sorted(set(only or ()) - set(known))
    if unknown:
        raise UserError(f"--only={unknown[0]}: choose among {', '.join(known)}")
    return only or list(known)


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
    path: Path, config: dict[str, Any], name: str, read: Callable[[Any], Any], flag: str = "out"
) -> Any:
    """The lines that an earlier call of the same config wrote under a name, to be gone on with.

    Args:
      path: the result file; where there is none, there are no lines.
      config: what all lines of a file have in common, as the file holds it under `config`.
      name: where the lines stand in the file.
      read: what reads the lines later on; those that it cannot read are damaged.
      flag: the flag that names the file, or its folder.

    Raises:
      UserError: the file is damaged, or of another config.
    """
    if not os.path.lexists(path):
        return []
    found = load(path, lambda content: read(content[name]), flag)
    check_same(path, found, config, flag)
    return found[name]


def claim(path: Path, config: dict[str, Any], flag: str = "out") -> None:
    """Keeps in a folder's file what the folder is made of, before anything else is in there.

    Raises:
      UserError: the folder is of another config, or holds something and no such file.
    """
    if os.path.lexists(path):
        check_same(path, load(path, len, flag), config, flag)
        return
    there = sorted(os.listdir(path.parent)) if path.parent.exists() else []
    files.check_replaced(flag, path.parent, there, f"there is no {path.name}")
    with files.writing(flag, path.parent):
        write(path, {"config": config})


def load(path: Path, read: Callable[[dict[str, Any]], Any], flag: str) -> dict[str, Any]:
    """The content of a result file, as it is read later on.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    try:
        found = files.read_object(path)
        read(found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} is damaged or of something else ({why}); name another --{flag}, or move it "
            "away"
        ) from error
    return found


def check_same(path: Path, found: dict[str, Any], config: dict[str, Any], flag: str) -> None:
    """Refuses results of another config. Fields that one of both lacks, of another version, bind
    nobody; those of old stand beside the results.

    Raises:
      UserError: naming the file, the field and both values.
    """
    now = dict(flat(json.loads(json.dumps(config))))
    own = found.get("config")
    then = dict(flat(found | (own if isinstance(own, dict) else {})))
    do = f"name another --{flag}, or move it away"
    if not now.keys() & then.keys():
        raise UserError(f"{path} is of something else (it lacks {next(iter(now))}); {do}")
    for name in (name for name in now if then.get(name, now[name]) != now[name]):
        raise UserError(
            f"{path} is of another config: {name}={short(then[name])}, not {short(now[name])}; {do}"
        )
    if DIGEST in now.keys() - then.keys():
        print(f"note: {path} does not tell its tiles; these are taken for them", file=sys.stderr)
