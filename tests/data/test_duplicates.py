"""Perceptual hashes and clusters of near-duplicates."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from tvjax.data import duplicates


def picture(seed: int, size: int = 96) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def views(image):
    return [np.rot90(flip, k) for flip in (image, image[:, ::-1]) for k in range(4)]


def distance(a, b):
    return int(np.bitwise_count(a ^ b))


def test_hash_equals_its_definition():
    image = picture(0)
    grey = np.asarray(Image.fromarray(image).convert("L"), float)
    small = grey.reshape(32, 3, 32, 3).mean((1, 3))
    low = dctn(small, type=2)[:8, :8]
    bits = (low > np.median(low)).ravel()
    expected = int("".join("01"[int(bit)] for bit in bits), 2)
    assert int(duplicates.hashes(image)[0]) == expected


def test_the_eight_hashes_are_those_of_rotations_and_flips():
    image = picture(1)
    found = sorted(duplicates.hashes(image).tolist())
    assert found == sorted(int(duplicates.hashes(view)[0]) for view in views(image))
    for view in views(image):
        assert sorted(duplicates.hashes(view).tolist()) == found


def grey(values):
    return np.repeat(np.asarray(values).astype(np.uint8)[..., None], 3, axis=-1)


def symmetric_images():
    """Images with frequencies that vanish, or equal each other, in exact arithmetic."""
    for size in (30, 96, 100):
        y, x = np.mgrid[:size, :size] / (size - 1)
        yield from map(grey, (255 * x, 40 + 9 * y, 127 * (x + y), 255 * x * y, 200 * (x > 0.5)))
        yield grey(255 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))
        yield grey(255 * ((8 * x).astype(int) + (8 * y).astype(int) & 1))
        yield grey(np.full((size, size), 77))
        yield grey(np.arange(size * size).reshape(size, size) % 2)
    y, x = np.mgrid[:97, :131]
    yield grey(x + y)


@pytest.mark.parametrize("image", list(symmetric_images()))
def test_symmetric_images_have_the_hashes_of_their_rotations_and_flips(image):
    found = sorted(duplicates.hashes(image).tolist())
    assert found == sorted(int(duplicates.hashes(view)[0]) for view in views(image))
    for view in views(image):
        assert sorted(duplicates.hashes(view).tolist()) == found


def test_the_transform_is_that_of_rational_numbers():
    """Whole numbers of any size are the oracle: no processor can have other bits."""
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    r, g, b = np.moveaxis(image.astype(object), -1, 0)
    levels = (19595 * r + 38470 * g + 7471 * b + 32768) // 65536
    fine = levels.repeat(32, axis=0).repeat(32, axis=1).reshape(32, 50, 32, 70).sum((1, 3))
    small = (fine * 4096 + 1750) // 3500
    table = duplicates._cosines().astype(object)
    exact = 65536 * np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1))
    np.testing.assert_allclose(table.astype(float), exact, atol=0.5)
    assert (duplicates._transform(image) == table @ small @ table.T).all()
    white = duplicates._transform(np.full((40, 40, 3), 255, np.uint8))
    assert white[0, 0] == 255 * 4096 * (32 * 65536) ** 2 and np.count_nonzero(white) == 1


def test_flat_tiles_are_near_duplicates_of_their_copies_only():
    rng = np.random.default_rng(0)
    water = [np.full((60, 60, 3), (20, 40 + k, 60), np.uint8) for k in range(40)]
    noisy = [tile + rng.integers(0, 2, tile.shape, dtype=np.uint8) for tile in water[:20]]
    copies = [water[7].copy(), np.rot90(noisy[3]), noisy[4][::-1]]
    tiles = [*water, *noisy, *copies, picture(0)]
    labels = duplicates.clusters(np.stack([duplicates.hashes(tile) for tile in tiles]))
    assert labels.tolist() == [*range(60), 7, 43, 44, 63]


def test_clusters_join_compressed_rotations_and_nothing_else():
    pictures, owners = [], []
    for seed in range(12):
        for view in views(picture(seed))[: 1 + seed % 4]:
            file = io.BytesIO()
            Image.fromarray(view).save(file, "JPEG", quality=80)
            pictures.append(np.asarray(Image.open(file)))
            owners.append(seed)
    labels = duplicates.clusters(np.stack([duplicates.hashes(p) for p in pictures]))
    first = [owners.index(owner) for owner in owners]
    assert labels.tolist() == first


def test_clusters_equal_brute_force():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 40, dtype=np.uint64)
    hashes = rng.integers(0, 2**63, (120, 8), dtype=np.uint64)
    for i in range(120):  # a hash within 0 to 4 bits of one of the base, in some view
        flips = rng.choice(64, rng.integers(0, 5), replace=False)
        noise = np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0))
        hashes[i, rng.integers(0, 2) * 3] = base[rng.integers(40)] ^ noise
    near = np.eye(120, dtype=bool)
    for i in range(120):
        for j in range(120):
            if min(distance(hashes[i, 0], view) for view in hashes[j]) <= 2:
                near[i, j] = near[j, i] = True
    for _ in range(7):
        near = near @ near
    expected = near.argmax(axis=1)
    np.testing.assert_array_equal(duplicates.clusters(hashes), expected)
    assert 1 < len(np.unique(expected)) < 120


def test_brighter_and_darker_copies_are_near_duplicates():
    for seed in range(12):
        image = picture(seed)
        for gain, offset in ((0.7, 0), (0.8, 40), (0.9, -10)):
            twin = np.clip(gain * image + offset, 0, 255).round().astype(np.uint8)
            assert distance(duplicates.hashes(image)[0], duplicates.hashes(twin)[0]) <= 2


def brute_force(hashes):
    """Pairs `[P, 2]` by their definition."""
    near = np.zeros((len(hashes), len(hashes)), bool)
    for view in hashes.T:
        near |= np.bitwise_count(hashes[:, :1] ^ view) <= 2
    return np.argwhere(np.triu(near | near.T, 1))


def test_whichever_two_bits_differ_a_pair_is_found():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (1 + 64 + 2016, 8), dtype=np.uint64)
    bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
    one, two = np.triu_indices(64, 1)
    hashes[1:65, 5] = hashes[0, 0] ^ bits
    hashes[65:, 3] = hashes[0, 0] ^ bits[one] ^ bits[two]
    found = duplicates.pairs(hashes)
    assert found[:2080].tolist() == [[0, k] for k in range(1, 2081)]
    np.testing.assert_array_equal(found, brute_force(hashes))
    assert not duplicates.clusters(hashes).any()


@pytest.mark.parametrize("free, block", [(64, 1 << 20), (12, 1 << 20), (9, 100), (3, 1)])
def test_pairs_are_those_of_brute_force_wherever_bits_vary(free, block, monkeypatch):
    """Where only some bits vary, most parts of most hashes are equal."""
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    rng = np.random.default_rng(free)
    bits = np.uint64(1) << rng.choice(64, free, replace=False).astype(np.uint64)
    drawn = rng.integers(0, 2, (300 if block > 1 else 20, 8, free), dtype=np.uint64)
    hashes = (drawn * bits).sum(axis=2)
    hashes[150:] = hashes[:150, ::-1][: len(hashes[150:])]
    hashes[::7, 0] ^= bits[0] ^ bits[-1]
    found = duplicates.pairs(hashes)
    np.testing.assert_array_equal(found, brute_force(hashes))
    assert len(found) > 10
