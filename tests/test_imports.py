"""Imports point one way, and a program loads what it uses."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tvjax"
HEAVY = (
    "jax", "optax", "tensorflow", "tensorflow_datasets", "grain", "orbax", "matplotlib",
    "pycocotools", "flax", "jaxopt", "tensorboardX", "ml_collections", "scipy.ndimage",
    "rasterio", "shapely",
)  # fmt: skip

# What the modules of a folder (or file) may import of the package, and what they may not at all.
ALLOWED = {
    "arguments.py": set(),
    "krylov.py": {"types"},
    "tv": {"tv", "krylov", "types", "arguments"},
    "hypergrad": {"hypergrad", "krylov", "types"},
    "losses.py": {"arguments"},
    "models": {"arguments", "models", "tv", "losses", "errors", "types"},
    "data": {"data", "errors", "files", "home", "interruption", "types", "program"},
    "fields.py": {"errors", "types"},
    "files.py": {"errors"},
    "home.py": {"errors"},
    "interruption.py": set(),
    "program.py": {"errors", "fields", "home", "interruption", "types", "usage"},
    "usage.py": {"fields"},
    "inference/onnx_file.py": {"inference", "models", "errors"},
    "inference/onnx_graph.py": {"types"},
    "inference/predictor.py": {"inference", "training", "arguments", "errors", "tv", "types"},
    "inference/symmetries.py": set(),
    "inference": {"inference", "data", "errors", "files", "interruption", "types"},
    "scoring": {
        "scoring",
        "tv",
        "data",
        "inference",
        "arguments",
        "errors",
        "files",
        "interruption",
        "types",
    },
}  # fmt: skip
FORBIDDEN = {
    "tv": {"flax", "grain", "tensorflow_datasets", "orbax"},
    "hypergrad": {"flax", "grain", "tensorflow_datasets", "orbax"},
    "data": {"jax", "flax", "optax", "tensorflow"},
    "program.py": {"flax", "orbax", "grain", "tensorflow_datasets"},
    "inference": {"jax", "flax", "optax", "tensorflow"},
}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from tvjax import losses` names a module; `from tvjax.losses import x` a function.
            whole = node.module == "tvjax"
            yield from ([f"tvjax.{n.name}" for n in node.names] if whole else [node.module])


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part):
    path = PACKAGE / part
    for file in [path] if path.is_file() else path.rglob("*.py"):
        if file != path and f"{part}/{file.name}" in ALLOWED:
            continue  # has a line of its own
        for name in imports(file):
            top, _, rest = name.partition(".")
            if top == "tvjax":
                assert rest.split(".")[0] in ALLOWED[part], f"{file} imports {name}"
            assert top not in FORBIDDEN.get(part, ()), f"{file} imports {name}"


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("tvjax", HEAVY),
        ("tvjax.data.prepare", ("jax", "optax", "flax", "orbax", "matplotlib")),
        ("tvjax.main", ("matplotlib", "scipy.stats", "rasterio", "shapely")),
        ("tvjax.evaluate", ("matplotlib", "scipy.stats", "rasterio", "shapely")),
    ],
)
def test_importing_a_module_loads_nothing_that_it_does_not_use(module, unused):
    code = f"import sys, {module}; print([m for m in {unused!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_names_that_load_later_are_listed():
    import tvjax

    assert set(tvjax.__all__) <= set(dir(tvjax)) and "Predictor" in dir(tvjax)
