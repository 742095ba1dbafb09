"""Files of weights as PyTorch and safetensors write them, made without either."""

import io
import json
import struct
import zipfile

import numpy as np

NAMES = {
    np.dtype("float32"): "FloatStorage",
    np.dtype("float64"): "DoubleStorage",
    np.dtype("float16"): "HalfStorage",
    np.dtype("int64"): "LongStorage",
}


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def row(*parts):
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def storage(key, array, *rest):
    name = b"ctorch\n" + NAMES[array.dtype].encode() + b"\n"
    return row(text("storage"), name, text(key), text("cpu"), number(array.size), *rest) + b"Q"


def tensor(held, shape, strides, offset=0):
    """A view of a storage."""
    sizes = [row(*map(number, part)) for part in (shape, strides)]
    arguments = row(held, number(offset), *sizes, b"\x89", b"ccollections\nOrderedDict\n)R")
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state_dict(tensors):
    pairs = b"".join(text(name) + value for name, value in tensors.items())
    return b"ccollections\nOrderedDict\n)R(" + pairs + b"u}" + text("_metadata") + b"}sb"


def strides(array):
    return [step // array.itemsize for step in array.strides]


def tensors_of(arrays, *rest):
    return {
        name: tensor(storage(str(i), array, *rest), array.shape, strides(array))
        for i, (name, array) in enumerate(arrays.items())
    }


def legacy(arrays, *, content=None, keys=None, data=None):
    """The format before PyTorch 1.6."""
    content = state_dict(tensors_of(arrays, b"N")) if content is None else content
    keys = [str(i) for i in range(len(arrays))] if keys is None else keys
    system = b"}(" + text("little_endian") + b"\x88u"
    magic = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
    listed = b"](" + b"".join(map(text, keys)) + b"e"
    pickles = [magic, b"M\xe9\x03", system, content, listed]
    if data is None:
        data = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in arrays.values())
    return b"".join(b"\x80\x02" + pickle + b"." for pickle in pickles) + data


def zipped(arrays, *, content=None, compression=zipfile.ZIP_STORED):
    """The format since then."""
    file = io.BytesIO()
    content = state_dict(tensors_of(arrays)) if content is None else content
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("net/byteorder", "little")
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"net/data/{i}", array.tobytes())
    return file.getvalue()


def safetensors(arrays, **changes):
    words = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": words[str(array.dtype)], "shape": list(array.shape)}
        header[name] |= {"data_offsets": offsets} | changes
        data += array.tobytes()
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data
