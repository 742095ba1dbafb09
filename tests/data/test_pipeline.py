"""Batches: determinism, sharding, resuming, padding; and the noise of equation 14."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tvjax.data import noise, pipeline
from tvjax.errors import UserError


class Source:
    """Tile i is filled with the value i."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = np.full((4, 6, 3), index, np.uint8)
        return {"image": image, "mask": np.full((4, 6, 1), index % 2, np.uint8), "id": index}


def tiles_of(batch):
    assert batch.image.shape[1:] == (4, 6, 3) and batch.mask.shape[1:] == (4, 6, 1)
    assert np.all(batch.mask[:, 0, 0, 0] == batch.image[:, 0, 0, 0] % 2)
    return batch.image[:, 0, 0, 0].tolist()


def take(iterator, count):
    return [tiles_of(next(iterator)) for _ in range(count)]


def test_every_epoch_is_another_permutation():
    indices = pipeline.TrainIndices(23, batch_size=5, seed=0)
    epochs = [np.concatenate([indices[4 * e + k] for k in range(4)]) for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20 and epoch.min() >= 0 and epoch.max() < 23
    assert epochs[0].tolist() != epochs[1].tolist() != epochs[2].tolist()
    other = pipeline.TrainIndices(23, batch_size=5, seed=1)
    assert other[0].tolist() != indices[0].tolist()
    assert indices[10**9].shape == (5,)


def test_streaming_equals_resident():
    source = Source(23)
    whole, indices = pipeline.resident(source), pipeline.TrainIndices(23, batch_size=5, seed=3)
    iterator = pipeline.train_batches(source, batch_size=5, seed=3)
    for step in range(11):
        batch = next(iterator)
        np.testing.assert_array_equal(batch.image, whole.image[indices[step]])
        np.testing.assert_array_equal(batch.mask, whole.mask[indices[step]])


def test_processes_share_each_batch():
    source, options = Source(40), {"batch_size": 12, "seed": 5}
    alone = take(pipeline.train_batches(source, **options), 7)
    shared = [
        take(pipeline.train_batches(source, **options, process_index=p, process_count=3), 7)
        for p in range(3)
    ]
    assert alone == [[*a, *b, *c] for a, b, c in zip(*shared, strict=True)]


def test_resuming():
    source, options = Source(30), {"batch_size": 4, "seed": 1}
    whole = take(pipeline.train_batches(source, **options), 20)
    assert take(pipeline.train_batches(source, **options, start=9), 11) == whole[9:]
    iterator = pipeline.train_batches(source, **options)
    take(iterator, 13)
    state = iterator.get_state()
    fresh = pipeline.train_batches(source, **options)
    fresh.set_state(state)
    assert take(fresh, 7) == whole[13:] == take(iterator, 7)


@pytest.mark.parametrize("length", [1, 7, 8, 17])
def test_evaluation_sees_every_tile_once(length):
    batches = [
        list(pipeline.eval_batches(Source(length), batch_size=8, process_index=p, process_count=2))
        for p in range(2)
    ]
    assert len(batches[0]) == len(batches[1]) == -(-length // 8)
    seen = []
    for shares in zip(*batches, strict=True):
        for batch, valid in shares:
            assert valid.dtype == bool and valid.shape == (4,)
            seen += [tile for tile, w in zip(tiles_of(batch), valid, strict=True) if w]
    assert seen == list(range(length))


def test_evaluation_can_be_repeated():
    batches = pipeline.eval_batches(Source(5), batch_size=2)
    assert [tiles_of(batch) for batch, _ in batches] == [tiles_of(batch) for batch, _ in batches]


def test_unsuitable_batch_sizes():
    with pytest.raises(UserError, match="batch size 9 does not suit a split of 8 tiles"):
        pipeline.train_batches(Source(8), batch_size=9, seed=0)
    with pytest.raises(UserError, match="batch size 0"):
        pipeline.TrainIndices(8, batch_size=0, seed=0)
    with pytest.raises(UserError, match="batch size 5 cannot be shared equally by 2 processes"):
        pipeline.eval_batches(Source(8), batch_size=5, process_count=2)
    with pytest.raises(ValueError, match="process_index=2"):
        pipeline.eval_batches(Source(8), batch_size=4, process_index=2, process_count=2)


def test_noise():
    images = np.full((8, 50, 50, 3), 0.5, np.float32)
    noisy = noise.add_noise(images, 0.3, seed=1)
    assert noisy.dtype == np.float32 and noisy.shape == images.shape
    error = (noisy - images).ravel()
    assert abs(error.mean()) < 0.005 and abs(error.std() - 0.3) < 0.005
    assert noisy.min() < 0 and noisy.max() > 1
    np.testing.assert_array_equal(noisy, noise.add_noise(images, 0.3, seed=1))
    assert np.any(noisy != noise.add_noise(images, 0.3, seed=(1, 2)))
    clipped = noise.add_noise(images, 0.3, seed=1, clip=True)
    np.testing.assert_array_equal(clipped, noisy.clip(0, 1))
    np.testing.assert_array_equal(noise.add_noise(images, 0, seed=1), images)
    with pytest.raises(ValueError, match=r"sigma=-0\.1"):
        noise.add_noise(images, -0.1, seed=0)
    with pytest.raises(ValueError, match="uint8"):
        noise.add_noise(images.astype(np.uint8), 0.1, seed=0)


def test_data_imports_neither_jax_nor_tensorflow():
    # `import tvjax` loads jax, and so does grain: what the files themselves import is checked.
    files = sorted(Path(pipeline.__file__).parent.glob("*.py"))
    assert len(files) > 10
    for file in files:
        imported = re.findall(r"^\s*(?:import|from) ([\w.]+)", file.read_text(), re.MULTILINE)
        tops = {name.split(".")[0] for name in imported}
        assert not tops & {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow"}, file
    script = (
        "import sys\n"
        "from tvjax.data import builder, noise, prepare, records, sets\n"
        "from tvjax.data.embedded import synthetic\n"
        "print({'flax', 'grain', 'orbax', 'tensorflow'} & set(sys.modules))\n"
        "import tvjax.data.pipeline\n"
        "print({'flax', 'tensorflow', 'tvjax.models'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert output.stdout == "set()\nset()\n", output.stderr
