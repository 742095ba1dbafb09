"""Files of weights: what is read of them, and that nothing else happens."""

import zipfile

import numpy as np
import pytest
import weight_files as made

from tvjax.errors import UserError
from tvjax.models.encoders import tensors

ARRAYS = {
    "w": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.arange(3, dtype=np.float64),
    "h": np.float16([0.5, -2]),
    "count": np.array(7),
    "none": np.zeros((0, 3), np.float32),
}
FORMATS = {"legacy": made.legacy, "zipped": made.zipped, "safetensors": made.safetensors}


def read(content, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    return tensors.read(path)


def same(found, expected=ARRAYS):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_arrays_come_back_as_they_were(kind, tmp_path):
    same(read(FORMATS[kind](ARRAYS), tmp_path))


def test_a_view_is_read_by_its_strides(tmp_path):
    w = ARRAYS["w"].reshape(6, 4)
    view = made.tensor(made.storage("0", w), (4, 2), (1, 8), offset=4)
    content = made.state_dict(
        {"view": view, "whole": made.tensor(made.storage("0", w), (24,), (1,))}
    )
    found = read(made.zipped({"w": w}, content=content), tmp_path)
    same(found, {"view": w[1::2, :][:2].T.copy(), "whole": w.ravel()})


def test_what_stands_under_state_dict_is_taken(tmp_path):
    inner = made.state_dict(made.tensors_of(ARRAYS))
    content = b"}(" + made.text("epoch") + made.number(3) + made.text("state_dict") + inner + b"u"
    same(read(made.zipped(ARRAYS, content=content), tmp_path))


def test_pytorch_writes_such_files(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    for new in (False, True):
        torch.save(state, tmp_path / "net.pth", _use_new_zipfile_serialization=new)
        same(tensors.read(tmp_path / "net.pth"))


CALL = made.row(made.text("touch seen"))
HOSTILE = {
    "a function": b"cos\nsystem\n" + CALL + b"R",
    "a function by two texts": made.text("os") + made.text("system") + b"\x93" + CALL + b"R",
    "a class": b"cbuiltins\nobject\n)R",
    "torch itself": b"ctorch\nload\n" + CALL + b"R",
    "a private part": b"ctorch._utils\n_rebuild_wrapper_subclass\n" + CALL + b"R",
    "an instance": b"(ios\nsystem\n",
    "a new object": b"ccollections\nOrderedDict\n)\x81",
    "a dict with arguments": b"ccollections\nOrderedDict\n" + CALL + b"R",
    "attributes of a name": b"ccollections\nOrderedDict\n}"
    + made.text("a")
    + made.number(1)
    + b"sb",
    "a storage that is called": b"ctorch\nFloatStorage\n" + CALL + b"R",
    "a reference to nothing": made.row(made.text("module")) + b"Q",
    "an extension": b"\x82\x01",
    "a memo of nothing": b"h\x07",
    "keys that are numbers": b"}(" + made.number(1) + made.number(2) + b"u",
    "a mark too few": b"t",
    "nothing": b"",
    "a list": b"]",
    "a long text": b"\x8d" + b"\xff" * 7 + b"\x0fabc",
    "a negative size": made.state_dict(
        {"w": made.tensor(made.storage("0", ARRAYS["w"]), (-1,), (1,))}
    ),
    "a huge size": made.state_dict(
        {"w": made.tensor(made.storage("0", ARRAYS["w"]), (2**31 - 1,) * 3, (0, 0, 0))}
    ),
    "numbers beyond": made.state_dict(
        {"w": made.tensor(made.storage("0", ARRAYS["w"]), (24,), (1,), offset=1)}
    ),
    "a negative stride": made.state_dict(
        {"w": made.tensor(made.storage("0", ARRAYS["w"]), (2,), (-1,), offset=3)}
    ),
    "a shape without strides": made.state_dict(
        {"w": made.tensor(made.storage("0", ARRAYS["w"]), (2,), ())}
    ),
    "a storage that is not there": made.state_dict(
        {"w": made.tensor(made.storage("9", ARRAYS["w"]), (2,), (1,))}
    ),
}


@pytest.mark.parametrize("kind", ("legacy", "zipped"))
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_refused_in_one_line(what, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = FORMATS[kind](ARRAYS, content=HOSTILE[what])
    with pytest.raises(UserError, match=r"net\.pth cannot be read as weights: ") as found:
        read(content, tmp_path)
    assert "\n" not in str(found.value) and not (tmp_path / "seen").exists()


@pytest.mark.parametrize("content, reason", [
    (b"", "neither"),
    (b"\x89PNG\r\n", "neither"),
    (made.zipped(ARRAYS, compression=zipfile.ZIP_DEFLATED), "compressed"),
    (made.legacy(ARRAYS, data=b"\xff" * 8), "numbers"),
    (made.legacy(ARRAYS, keys=["0", "1", "2", "3", "8"]), "no tensor"),
    (made.safetensors(ARRAYS, data_offsets=[0, 10**6]), "beyond its end"),
    (made.safetensors(ARRAYS, data_offsets=[-8, 88]), "beyond its end"),
    (made.safetensors(ARRAYS, shape=[10**9, 10**9]), ""),
    (made.safetensors(ARRAYS, dtype="F8"), "not known"),
    (b"\xff" * 7 + b"\x0f{}", "cut off"),
    (b"\x08" + b"\0" * 7 + b'{"w": 3}', ""),
    (b"\xc0\xd4\x01" + b"\0" * 5 + b'{"w":' + b"[" * 120_000, ""),
])  # fmt: skip
def test_what_cannot_be_weights_is_refused(content, reason, tmp_path):
    with pytest.raises(UserError, match=rf"cannot be read as weights: .*{reason}"):
        read(content, tmp_path)


def test_a_large_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MOST", 100)
    with pytest.raises(UserError, match="larger than"):
        read(made.zipped(ARRAYS), tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_damage_ends_in_anything_but_arrays_or_one_line(kind, tmp_path):
    """A cut, or a byte that is another, at many places."""
    content, rng = FORMATS[kind](ARRAYS), np.random.default_rng(0)
    ends = np.linspace(0, len(content) - 1, 60).astype(int)
    places = rng.integers(len(content), size=300)
    damaged = [content[:end] for end in ends]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    results = {True: 0, False: 0}
    for each in damaged:
        try:
            found = read(each, tmp_path)
            assert all(isinstance(array, np.ndarray) for array in found.values())
            results[True] += 1
        except UserError as error:
            assert "\n" not in str(error) and "Type-check" not in str(error)
            results[False] += 1
    assert results[False] > 60
