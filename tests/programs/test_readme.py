"""What the README shows runs, and what it names is there."""

import ast
import re

import numpy as np
import pytest
from programs import ROOT

import tvjax
from configs import base
from tvjax.models import NETS
from tvjax.program import field_paths

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SHELL = "\n".join(block for kind, block in BLOCKS if not kind).replace("\\\n", " ")
COMMANDS = re.findall(r"python -m ((?:tvjax|experiments)[\w.]*)([^\n#`]*)", SHELL + "\n" + README)


def test_its_python_runs_as_written(make_predictor, monkeypatch, capsys):
    net = make_predictor("unet", width=2, depth=1)
    monkeypatch.setattr(tvjax.Predictor, "load", lambda workdir: net)
    names = {}
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["slope"] != 0 and names["alpha"] != np.log(1e-4)
    assert names["probabilities"].shape == (8, 32, 32, 1)


def flags_of(module):
    """The flags that a program and the modules that it shares them with define."""
    files = [ROOT / (module.replace(".", "/") + ".py")]
    if module in ("tvjax.main", "tvjax.sweep"):
        files += [ROOT / "tvjax/program.py", ROOT / "tvjax/training/cluster.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(getattr(node, "func", None), "attr", "")
            if name.startswith("DEFINE_") or name == "add_argument":
                yield node.args[0].value.lstrip("-")


@pytest.mark.parametrize("module, arguments", COMMANDS)
def test_its_commands_name_programs_and_flags_that_exist(module, arguments):
    given = re.findall(r"--(\w+)(?=[= \n]|$)", arguments)
    assert set(given) <= set(flags_of(module)), module


def test_its_configs_fields_nets_and_files_exist():
    fields = field_paths(base.get_config())
    named = re.findall(r"--config\.([a-z_.]+)=", README)
    sections = {field.split(".")[0] for field in fields if "." in field}
    named += re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)`", README)
    assert named and set(named) <= set(fields)
    table = README.partition("| config | model | lambda |")[2].partition("\n\n")[0]
    configs = {p.stem for p in (ROOT / "configs").glob("[a-z]*.py")} - {"base"}
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == configs
    ours = {name for name, net in NETS.items() if net.__module__.startswith("tvjax")}
    assert all(f"`{name}`" in README for name in ours)
    for path in re.findall(r"\b(?:configs|launch|results|experiments)/[\w/]+\.\w+", README):
        assert path == "configs/NAME.py" or (ROOT / path).exists(), path
