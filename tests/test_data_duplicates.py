"""Perceptual hashes and clusters of near-duplicates."""

import io

import numpy as np
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


def test_clusters_join_compressed_rotations_and_nothing_else():
    pictures, owners = [], []
    for seed in range(12):
        for view in views(picture(seed))[: 1 + seed % 4]:
            file = io.BytesIO()
            Image.fromarray(view).save(file, "JPEG", quality=80)
            pictures.append(np.asarray(Image.open(file)))
            owners.append(seed)
    labels = duplicates.clusters(np.stack([duplicates.hashes(p) for p in pictures]), block=7)
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
    np.testing.assert_array_equal(duplicates.clusters(hashes, block=16), expected)
    assert 1 < len(np.unique(expected)) < 120
