"""Damage to a checkpoint never gives other weights without a word."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tvjax.errors import UserError
from tvjax.hypergrad import InnerState
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.state import TrainState

RUN = {"seconds": 1.5, "sums": {"loss": [0.25, 2]}, "best_val_iou": 0.5}


def state(step):
    """A state of numbers that no compression makes smaller, one array of bfloat16."""
    w = jax.random.normal(jax.random.key(step), (2000,))
    params = {"w": w, "b": w[:9].reshape(3, 3).astype(jnp.bfloat16)}
    return TrainState(jnp.int32(step), InnerState(params, (), ()), w[0], optax.EmptyState(), ())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, of which the older is the better."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, val_iou in ((1, 0.5), (2, 0.25)):
            checkpoints.save(state(step), RUN, val_iou=val_iou, wait=True)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def restore(folder, which="newest"):
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore(state(0), which)


def is_same(found, step):
    leaves = (jax.tree.leaves(tree) for tree in (found[0], state(step)))
    return all(map(np.array_equal, *leaves)) and found[1] == RUN


def flip(file, position, bit):
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def flips(saved, number):
    """Half of them in a file drawn by its size, half in any."""
    rng = np.random.default_rng(0)
    files = [f for f in sorted((saved / "2").rglob("*")) if f.is_file() and f.stat().st_size]
    sizes = np.array([f.stat().st_size for f in files])
    for k in range(number):
        chosen = rng.choice(len(files), p=sizes / sizes.sum() if k % 2 else None)
        yield files[chosen], int(rng.integers(sizes[chosen])), int(rng.integers(8))


# Threads of tensorstore that are late.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [10, pytest.param(100, marks=pytest.mark.cluster)])
def test_a_flipped_bit_never_gives_other_weights_without_a_word(saved, capfd, number):
    fell_back = 0
    for file, position, bit in flips(saved, number):
        before = file.read_bytes()
        flip(file, position, bit)
        found = restore(saved)
        told = capfd.readouterr().err
        assert "Traceback" not in told
        if not is_same(found, 2):
            assert is_same(found, 1), (file, position, bit)
            assert "checkpoints/2 cannot be read" in told, (file, position, bit)
            fell_back += 1
        file.write_bytes(before)
    assert fell_back >= number // 5


def test_the_array_that_was_damaged_is_named_and_the_checkpoint_set_aside(copy, capsys):
    sums = copy / "2" / "checksums" / "metadata"
    other = json.loads((copy / "1" / "checksums" / "metadata").read_text())
    sums.write_text(json.dumps(other))  # sound, and of other weights
    with Checkpoints(copy, keep=2) as checkpoints:
        assert is_same(checkpoints.restore(state(0)), 1)
        assert checkpoints.steps == [1]
    assert "(Damaged: step is not as it was saved)" in capsys.readouterr().err
    assert (copy.parent / "damaged_checkpoints" / "2").is_dir()


def test_what_is_saved_beside_the_weights_is_checked_too(copy, capsys):
    run = copy / "2" / "run" / "metadata"
    run.write_text(run.read_text().replace("1.5", "1.7"))
    assert is_same(restore(copy), 1)
    assert "run/metadata is not as it was saved" in capsys.readouterr().err
    (copy / "1" / "checksums" / "metadata").write_text("[]")
    with pytest.raises(UserError, match=r"none of the checkpoints 2, 1 can be read"):
        restore(copy)


@pytest.mark.parametrize("content", ['{"val_iou": 0.95}', "null", "[]", "{", '{"val_iou": "x"}'])
def test_damage_to_a_score_chooses_no_other_checkpoint(copy, content):
    (copy / "2" / "metrics" / "metrics").write_text(content)
    assert is_same(restore(copy), 2)
    assert is_same(restore(copy, "best"), 1)


def test_checkpoints_of_earlier_versions_are_read_with_a_note(copy, capsys):
    for step in "12":
        shutil.rmtree(copy / step / "checksums")
    assert is_same(restore(copy), 2)
    assert "kept no checksums" in capsys.readouterr().err
    (copy / "2" / "metrics" / "metrics").write_text("null")
    assert is_same(restore(copy, "best"), 1)
    assert "IoU of checkpoint" in capsys.readouterr().err
    wider = state(0)._replace(hyper=jnp.zeros(2))
    with pytest.raises(UserError, match=r"another architecture: hyper has shape \(\) there"):
        Checkpoints(copy, read_only=True).restore(wider)


def test_what_changes_after_a_save_began_is_not_saved(tmp_path, monkeypatch):
    began = []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        save = checkpoints._manager.save
        monkeypatch.setattr(checkpoints._manager, "save", lambda *a, **k: began.append((a, k)))
        run = {"seconds": 1.5, "sums": {"loss": [0.25, 2]}, "best_val_iou": 0.5}
        checkpoints.save(state(1), run)
        run["sums"]["loss"][0] = 7.0  # by the next step, while the save still reads
        run["sums"]["more"] = 1.0
        [(arguments, options)] = began
        save(*arguments, **options)
    assert is_same(restore(tmp_path / "checkpoints"), 1)


@pytest.mark.parametrize("content", ["[]", '{"item_handlers": 3}', '{"metrics": [1]}'])
def test_the_description_of_a_checkpoint_is_named_where_it_is_damaged(copy, content):
    described = copy / "2" / "_CHECKPOINT_METADATA"
    described.write_text(content)
    with pytest.raises(UserError, match=r"_CHECKPOINT_METADATA of a checkpoint is damaged .*move"):
        restore(copy)
    described.unlink()
    assert is_same(restore(copy), 2)


def test_a_save_asks_nothing_of_what_processes_agree_on(tmp_path, monkeypatch):
    """A question of orbax overwrites the number by which they stop at one step."""
    asked = []
    monkeypatch.setattr(ocp.utils, "reached_preemption", lambda step: asked.append(step) or False)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), RUN, wait=True)
        assert checkpoints.steps == [3] and not asked
