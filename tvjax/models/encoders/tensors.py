"""Files of named tensors: PyTorch's, of both formats, and safetensors; read without PyTorch.

Nothing in a file is believed that its size does not bear out, and nothing is run.
"""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tvjax.errors import UserError
from tvjax.models.encoders import pickles

MOST = 2**28
"""Bytes of the largest file that is read; the weights of EfficientNet-Lite2 have 2.5e7."""

_MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch's format before 1.6
_PROTOCOL = 1001
_SAFE: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names, in their order.

    Args:
      path: a state dict that `torch.save` wrote, or a safetensors file. A dict with a dict under
        "state_dict" stands for the latter.

    Raises:
      UserError: it cannot be read, is larger than `MOST`, damaged, or holds anything else.
    """
    try:
        if path.stat().st_size > MOST:
            raise ValueError(f"it is larger than {MOST >> 20} MiB")
        return parse(path.read_bytes())
    except (
        OSError, ValueError, TypeError, LookupError, OverflowError, struct.error, RecursionError,
        zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError,
    ) as error:  # fmt: skip
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
        raise UserError(f"{path} cannot be read as weights: {reason}") from error


def parse(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file's content.

    Raises:
      ValueError: it is damaged, or holds anything else; other errors of Python's readers likewise.
    """
    if content.startswith(b"PK\x03\x04"):
        return _zipped(content)
    if content.startswith(b"\x80\x02\x8a\x0a"):
        return _legacy(content)
    if content[8:9] == b"{":
        return _safetensors(content)
    raise ValueError("it is neither a state dict of PyTorch nor a safetensors file")


def _legacy(content: bytes) -> dict[str, np.ndarray]:
    """Five pickles in a row (magic, protocol, system, state dict, keys), then the storages."""
    file = io.BytesIO(content)
    if pickles.load(file) != _MAGIC or pickles.load(file) != _PROTOCOL:
        raise ValueError("it is of an unknown format of PyTorch's")
    if pickles.load(file).get("little_endian") is not True:
        raise ValueError("it was written by a big-endian machine")
    tensors, keys = _state_dict(pickles.load(file)), pickles.load(file)
    wanted = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    numbers = {}
    for key in keys:
        if key not in wanted:
            raise ValueError(f"it holds the storage {str(key)[:40]!r}, which belongs to no tensor")
        (count,) = struct.unpack("<q", file.read(8))
        if count != wanted[key].size:
            raise ValueError(f"its storage {key[:40]!r} has {count} numbers")
        size = count * np.dtype(wanted[key].dtype).itemsize
        numbers[key] = _numbers(file.read(size), wanted[key])
    return {name: tensor.read(numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _zipped(content: bytes) -> dict[str, np.ndarray]:
    """A zip archive with a pickle `NAME/data.pkl` and the storages as files `NAME/data/KEY`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {member.filename: member for member in archive.infolist()}

        def member(name: str) -> bytes:
            # PyTorch stores without compression: what takes more than the file is no weight.
            if members[name].compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed, which PyTorch's files are not")
            return archive.read(name)

        (pickle,) = (name for name in members if name.count("/") == 1 and name.endswith("data.pkl"))
        folder = pickle.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in members and member(order) != b"little":
            raise ValueError("it was written by a big-endian machine")
        tensors = _state_dict(pickles.load(io.BytesIO(member(pickle))))
        wanted = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        numbers = {
            key: _numbers(member(f"{folder}data/{key}"), storage) for key, storage in wanted.items()
        }
    return {name: tensor.read(numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _state_dict(found: Any) -> dict[str, pickles.Tensor]:
    """The tensors of a state dict; what else stands in it, such as a count of epochs, is left."""
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise ValueError("it holds no state dict")
    return {name: value for name, value in found.items() if isinstance(value, pickles.Tensor)}


def _numbers(data: bytes, storage: pickles.Storage) -> np.ndarray:
    numbers = np.frombuffer(data, storage.dtype)
    if len(numbers) != storage.size:
        raise ValueError(f"its storage {storage.key[:40]!r} is cut off")
    return numbers


def _safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The length of a header, the header (JSON), and the numbers one after another."""
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content) - 8:
        raise ValueError("it is cut off")
    header, data = json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]
    return {
        name: _safe(name, data, **entry) for name, entry in header.items() if name != "__metadata__"
    }


def _safe(
    name: str, data: memoryview, *, dtype: str, shape: list[int], data_offsets: list[int]
) -> np.ndarray:
    begin, end = data_offsets
    if any(type(x) is not int or x < 0 for x in (begin, end, *shape)) or end > len(data):
        raise ValueError(f"{name[:80]} lies beyond its end")
    if dtype not in _SAFE:
        raise ValueError(f"{name[:80]} is of the type {dtype[:20]!r}, which is not known here")
    # A copy, so that the array is aligned and the file's memory can go.
    return np.frombuffer(data[begin:end], _SAFE[dtype]).reshape(shape).copy()
