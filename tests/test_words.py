"""What a reader meets alone stands by itself: first lines of docstrings, and lines of arguments."""

import ast
import re

import pytest
from programs import ROOT

NEVER = set(
    "Of That Those As From By In With At To For On Under Over Between Before After Without "
    "Through It Its Their They Also Likewise Same See None Then Else And But Or Not".split()
)
"""Words that begin no first line: what they refer to stands elsewhere."""
NEVER_OF_ARGUMENTS = set("Of That Those As By From Its Their It".split())


def docstrings(path):
    """Yields the line number and the text of each docstring, those of attributes too."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        for before, after in zip([None, *body], body, strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            owner = before is None or isinstance(before, (ast.Assign, ast.AnnAssign))
            if is_text and owner and isinstance(after.value.value, str):
                yield after.lineno, after.value.value


def arguments(text):
    """The first word of what is said of each argument."""
    section = re.search(r"^ *Args:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^ +[\w, *]+: (\w+)", section[1] if section else "", re.MULTILINE)


@pytest.mark.parametrize("folder", ["tvjax", "configs", "experiments", "tests"])
def test_first_lines_stand_by_themselves(folder):
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, text in docstrings(path):
            first = re.match(r"\W*(\w*)", text)[1].capitalize()
            bad = [first] if first in NEVER else []
            bad += [word for word in arguments(text) if word.capitalize() in NEVER_OF_ARGUMENTS]
            wrong += [f"{path.relative_to(ROOT)}:{line}: {word} ..." for word in bad]
    assert not wrong, "\n".join(wrong)


SHOWN = "DEFINE_bool", "DEFINE_boolean", "DEFINE_enum"
"""Kinds of flags whose form shows their values."""


def flags_of(path):
    """The kind, the name, the default and the help of each absl flag that a file defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(getattr(node, "func", None), "attr", "")
        if name.startswith("DEFINE_") and name != "DEFINE_config_file":
            default, words = node.args[1], node.args[3 if name == "DEFINE_enum" else 2]
            yield name, node.args[0].value, ast.unparse(default), ast.unparse(words)


def test_help_says_what_a_flag_takes_and_shows_a_value():
    wrong = []
    for folder in ("tvjax", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for kind, name, default, words in flags_of(path):
                first = re.search(r"\w+", words.lstrip("f"))[0].capitalize()
                shown = default not in ("None", "[]") or "e.g." in words or kind in SHOWN
                if first in NEVER or not shown:
                    wrong.append(f"{path.relative_to(ROOT)}: --{name}: {words}")
    assert not wrong, "\n".join(wrong)
