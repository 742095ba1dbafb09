"""What README and docs show runs, and what they name is there."""

import ast
import re

import numpy as np
import pytest
from programs import ROOT

import tvjax
from configs import base
from tvjax import models
from tvjax.fields import flat

FILES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
TEXTS = {name: (ROOT / name).read_text() for name in FILES}
ALL = "\n".join(TEXTS.values())
BLOCKS = {
    name: re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for name, text in TEXTS.items()
}
WITH_PYTHON = [name for name in FILES if any(kind == "python" for kind, _ in BLOCKS[name])]


def commands(name):
    """The programs that a text runs, each with its arguments."""
    text = TEXTS[name].replace("\\\n", " ")
    text = re.sub(r"`python -m[^`]*`", lambda span: " ".join(span[0].split()), text)
    return re.findall(r"python -m ((?:tvjax|experiments)[\w.]*)([^\n#`]*)", text)


COMMANDS = sorted({command for name in FILES for command in commands(name)})


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_runs_as_written(name, make_predictor, monkeypatch, capsys):
    monkeypatch.setattr(models, "NETS", dict(models.NETS))
    net = make_predictor("unet", width=2, depth=1)
    monkeypatch.setattr(tvjax.Predictor, "load", lambda workdir: net)
    names = {}
    for kind, block in BLOCKS[name]:
        if kind == "python":
            exec(compile(block, name, "exec"), names)
    assert np.isfinite(names.get("alpha", 0)) and names.get("slope", 1) != 0
    if name == "README.md":
        assert abs(names["hyper"]["lambda"] - np.log(1e-4)) > 0.1
        assert abs(names["hyper"]["decay"] - np.log(1e-2)) > 0
    if "probabilities" in names:
        assert names["probabilities"].shape == (8, 32, 32, 1)
    if "net" in names:
        assert names["logits"].shape == (2, 8, 8, 1)


def test_readme_moves_the_weight_and_fits_on_few_screens():
    assert TEXTS["README.md"].count("\n") <= 130
    assert "README.md" in WITH_PYTHON and "docs/hypergradients.md" in WITH_PYTHON


def flags_of(module):
    """The flags that a program and the modules that it shares them with define."""
    place = ROOT / module.replace(".", "/")
    files = [place / "__main__.py" if place.is_dir() else place.with_suffix(".py")]
    if module.startswith("tvjax."):
        files += [ROOT / "tvjax/program.py"]
    if module in ("tvjax.main", "tvjax.sweep"):
        files += [ROOT / "tvjax/training/cluster.py"]
    if "kept.json_flag(" in files[0].read_text():
        files += [ROOT / "experiments/kept.py"]
    if "workload.size_flags()" in files[0].read_text():
        files += [ROOT / "experiments/benchmarks/workload.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(getattr(node, "func", None), "attr", "")
            if name.startswith("DEFINE_") or name == "add_argument":
                yield node.args[0].value.lstrip("-")


@pytest.mark.parametrize("module, arguments", COMMANDS)
def test_commands_name_programs_and_flags_that_exist(module, arguments):
    given = re.findall(r"--(?:no(?=map_tiles|multihost))?(\w+)(?=[= \n]|$)", arguments)
    assert set(given) <= set(flags_of(module)), module


def test_flags_in_the_text_exist():
    """A flag between backquotes is one of some program, of pip or of a script."""
    known = {"help", "editable", "constraint"}
    for file in [*(ROOT / "tvjax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        known |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', file.read_text()))
    named = re.findall(r"`--(?:no(?=map_tiles|multihost))?(\w+)[=` ]", ALL)
    assert named and set(named) <= known, sorted(set(named) - known)


def test_configs_fields_nets_and_files_exist():
    fields = [name for name, _ in flat(base.get_config())]
    named = re.findall(r"--config\.([a-z_.]+)=", ALL)
    sections = {field.split(".")[0] for field in fields if "." in field}
    named += re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)[`=]", ALL)
    functions = {f"hypergrad.{name}" for name in tvjax.hypergrad.__all__}
    wrong = set(named) - set(fields) - functions
    assert named and not wrong, sorted(wrong)
    table = ALL.partition("| config | model | lambda |")[2].partition("\n\n")[0]
    configs = {p.stem for p in (ROOT / "configs").glob("[a-z]*.py")} - {"base"}
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == configs
    ours = {name for name, net in models.NETS.items() if net.__module__.startswith("tvjax")}
    assert all(f"`{name}`" in ALL for name in ours)
    folders = "configs|launch|results|experiments|docs|tests|tvjax"
    for path in re.findall(rf"\b(?:{folders})/[\w/]+\.\w+", ALL):
        assert path in ("configs/NAME.py", "tvjax/models/plain.py") or (ROOT / path).exists(), path


def heading_anchors(text):
    """The anchors by which a page's headings are linked to."""
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", FILES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in heading_anchors(file.read_text()), target


def test_every_program_is_named():
    """Each program of the package stands in README or docs with a command."""
    programs = {"main", "predict", "evaluate", "export", "sweep", "data.prepare"}
    assert {f"tvjax.{name}" for name in programs} <= {module for module, _ in COMMANDS}
