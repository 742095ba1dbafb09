"""Packed tiles: whole or not at all, under the name that was given, and what they must hold."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import pack
from tvjax.errors import UserError


def arrays(**changes):
    found = {f"{s}_image": np.full((2, 4, 4, 3), 9, np.uint8) for s in pack.SPLITS}
    found |= {f"{s}_mask": np.ones((2, 4, 4, 1), np.uint8) for s in pack.SPLITS}
    return found | changes


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Packs arrays of the right form by the program, into a file of this name."""
    np.savez(tmp_path / "given.npz", **arrays())

    def run(name):
        given = dict(out=str(tmp_path / name), data=str(tmp_path / "given.npz"))
        monkeypatch.setattr(pack.flags, "FLAGS", SimpleNamespace(**given))
        pack.main([])

    return run


def test_nothing_is_written_but_the_file_that_was_named(tmp_path, write, monkeypatch):
    (tmp_path / "mine.npz").write_text("mine")
    (tmp_path / "folder.npz").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, message in {
        "mine": "mine must end in .npz",
        "mine.json": "must end in .npz",
        "folder.npz": "it is a folder",
        "mine.npz/tiles.npz": "cannot be written",
    }.items():
        with pytest.raises(UserError, match=message):
            write(name)
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "mine.npz").read_text() == "mine"

    def fail(file, **arrays):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(pack.np, "savez_compressed", fail)
        write("mine.npz")
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "mine.npz").read_text() == "mine"
    write("new/tiles.npz")
    assert pack.read(tmp_path / "new/tiles.npz")["val"].mask.sum() == 32


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"test_image": np.zeros((2, 4, 4, 3), np.float32)}, "test_image must be uint8; got float"),
        ({"val_mask": np.zeros((2, 4, 4, 1), np.uint16)}, "val_mask must be uint8; got uint16"),
        ({"val_mask": np.full((2, 4, 4, 1), 255, np.uint8)}, "must hold 0 and 1; got 255"),
        ({"val_mask": np.ones((1, 4, 4, 1), np.uint8)}, r"val_mask must be \(2, 4, 4, 1\)"),
        ({"train_image": np.zeros((2, 4, 4), np.uint8)}, "train_image must be .N, H, W, 3."),
        ({"test_image": np.zeros((2, 8, 4, 3), np.uint8)}, "must have the size of train_image"),
        ({"test_image": np.zeros((0, 4, 4, 3), np.uint8)}, "at least one tile"),
        ({"test_image": np.array([None])}, "no sound file of experiments.pack"),
    ],
)
def test_arrays_that_are_no_tiles_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(UserError, match=message) as error:
        pack.read(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(error.value)


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", **arrays())
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "few.npz", train_image=np.zeros(3))
    contents = [whole[: len(whole) // 2], b"", b"text", (tmp_path / "one.npy").read_bytes()]
    contents += [whole[:60] + bytes(40) + whole[100:], (tmp_path / "few.npz").read_bytes()]
    for content in contents:
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"a.npz is no sound file .* pack the tiles anew"):
            pack.read(tmp_path / "a.npz")
    with pytest.raises(UserError, match="there is no such file"):
        pack.read(tmp_path / "none.npz")
