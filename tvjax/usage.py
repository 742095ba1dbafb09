"""What `--help` prints: what a program does, its flags, and how a config is set."""

import ast
import contextlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from tvjax import fields

ASKS = {"--help", "-help", "--helpshort", "-helpshort", "-h", "-?"}
"""Arguments that ask for it; `--helpfull`, which is absl's, lists the libraries' flags too."""

ADDED = re.compile(r"^<[^>]*>: |;\s*repeat this option to specify a list of values$")
"""What absl adds to a flag's help, and its form says here."""

WIDTH = 99
INDENT = 25

CONFIG = """
Configs are the files of configs/:
{files}.
Presets stand after a colon: --config=configs/lunet.py:paper takes the paper's sizes
(width 64, tiles of 100 pixels, batches of 16, 7,500 steps); without one a CPU trains in minutes.
Fields are set by flags of their own, --config.SECTION.FIELD=VALUE, for instance
  --config.data.directory=TILES --config.train.steps=1000 --config.model.width=32 --config.seed=1
configs/base.py tells their units and what their values mean:
{fields}"""


def text() -> str:
    """The help of the program that runs."""
    parts = [_about(), "\nFlags:", *(line for flag in _own() for line in _lines(flag))]
    if "config" in flags.FLAGS:
        files = sorted(path.stem for path in Path("configs").glob("[!_]*.py"))
        files = ", ".join(file for file in files if file != "base") or "none here"
        parts.append(CONFIG.format(files=textwrap.fill(files, WIDTH), fields=_fields()))
    return "\n".join(parts)


def _about() -> str:
    """The docstring of the program; of its source where Python was told to leave docstrings out."""
    program = sys.modules["__main__"]
    about = program.__doc__
    if about is None:
        with contextlib.suppress(OSError, TypeError):  # there is no source
            about = ast.get_docstring(ast.parse(inspect.getsource(program)))
    return (about or "").strip()


def _fields() -> str:
    """One paragraph per section of a config."""
    names = [name.rpartition(".") for name in fields.FIELDS]
    sections = {section: None for section, _, _ in names}
    found = {s: ", ".join(name for other, _, name in names if other == s) for s in sections}
    lines = [f"{section}: {words}" if section else words for section, words in found.items()]
    fill = textwrap.TextWrapper(WIDTH, initial_indent="  ", subsequent_indent="    ").fill
    return "\n".join(map(fill, lines))


def _own() -> Iterator[Any]:
    """The program's flags, then those that it shares with others; none of libraries."""
    modules = flags.FLAGS.flags_by_module_dict()
    own = [name for name in modules if name == sys.argv[0]]
    shared = [name for name in modules if name.startswith(("tvjax.", "experiments."))]
    for module in own + shared:
        yield from (flag for flag in modules[module] if "." not in flag.name)


def _lines(flag: Any) -> list[str]:
    head = f"  --{_form(flag)}"
    words = ADDED.sub("", " ".join(flag.help.split()))
    if _is_required(flag):
        words += " Required."
    elif flag.boolean:
        words += " Default: yes." * bool(flag.default)
    elif flag.default not in (None, [], "") and "default" not in words.lower():
        words += f" Default: {flag.serialize().partition('=')[2] or flag.default}."
    lines = textwrap.wrap(words, WIDTH - INDENT)
    if len(head) < INDENT - 1:
        head, lines = head.ljust(INDENT) + lines[0], lines[1:]
    return [head, *(" " * INDENT + line for line in lines)]


def _is_required(flag: Any) -> bool:
    return any("must have a value" in validator.message for validator in flag.validators)


def _form(flag: Any) -> str:
    """The flag with what it takes, such as `scale=NUMBER`."""
    kind = flag.flag_type()
    if flag.boolean:
        return f"[no]{flag.name}"
    if flag.name == "config":
        return "config=FILE.py[:PRESET]"
    values = getattr(flag.parser, "enum_values", None)
    words = {"float": "NUMBER", "int": "INTEGER", "multi int": "INTEGER"} | {
        "multi float": "NUMBER"
    }
    words["comma separated list of strings"] = "A,B,..."
    return f"{flag.name}={'|'.join(values) if values else words.get(kind, 'TEXT')}"
