"""Near-duplicate tiles: perceptual hashes, compared up to rotations and flips.

Aerial challenge sets hold overlapping and repeated tiles. A random split leaks them from training
to test: with 5,000 tiles of the crowdAI challenge, 13 % of the test tiles are in training once
rotations and flips count. Splits are therefore drawn by cluster of near-duplicates.

Two tiles are near-duplicates if the hash of one and one of the eight hashes of the other, of its
rotations and flips, differ in at most two bits. (Comparing only the smallest of the eight of each
would be eight times cheaper, but one noisy bit decides which one is the smallest.)

All is whole numbers, so that a tile has the same hashes on every processor: its sums over areas,
the table of cosines, and the comparison with the median.
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np

from tvjax import interruption
from tvjax.data import area
from tvjax.data.splits import by_first, edges, join

SIDE = 32
"""The image is shrunk to this side before the cosine transform."""
KEPT = 8
"""The lowest frequencies kept, along each axis: 8 x 8 bits."""
MAX_DISTANCE = 2
"""Bits in which near-duplicates may differ."""
FLAT = 0.5
"""Grey levels: a tile none of whose low frequencies has this amplitude shows nothing to hash."""

_FINE = 12
"""Bits after the point of the shrunk image's grey levels."""
_SCALE = 1 << 16
"""Scale of the cosines; the transform is then below `2^8 2^_FINE (32 _SCALE)^2 = 2^62`."""

_GREY = np.array([19595, 38470, 7471], np.float32)
"""Weights of red, green and blue, of ITU-R 601-2, times 2^16."""


def _cosines() -> np.ndarray:
    """The type-II cosine transform, its first KEPT rows: round(_SCALE cos(pi k (2n+1) / 2 SIDE)).

    Made of a quarter of a wave: symmetric to the bit, as the transforms of flipped images must be.
    """
    quarter = [round(_SCALE * math.cos(math.pi * m / (2 * SIDE))) for m in range(SIDE)] + [0]
    half = quarter + [-value for value in quarter[-2::-1]]
    wave = np.array(half + half[-2:0:-1], np.int64)  # a whole one, of 4 SIDE
    return wave[np.outer(np.arange(KEPT), 2 * np.arange(SIDE) + 1) % len(wave)]


_COSINES = _cosines()
_SIGNS = (-1) ** np.arange(KEPT)


def hashes(image: np.ndarray) -> np.ndarray:
    """The 64-bit perceptual hashes of an image and of its rotations and flips.

    A bit says whether one of the 8x8 lowest frequencies of the cosine transform exceeds their
    median. A flip multiplies the odd frequencies of its axis by -1 and a transposition transposes
    the transform, so that one transform serves all eight. At the median the bit is 0.

    An image that is flat at this resolution (all of one colour, open water; see `FLAT`) has nothing
    but noise in these bits. Its hashes are digests of its pixels and of theirs rotated and flipped,
    so that only exact copies count as near-duplicates: tiles of two greys are none.

    Args:
      image: uint8 `[H, W, 3]`.

    Returns:
      uint64 `[8]`; the first is that of the image as it stands. The set of the eight does not
      change, to the bit, when the image is rotated by a quarter turn or flipped.
    """
    low = _transform(image)
    if _is_flat(low):
        return _digests(image)
    flips = (low, low * _SIGNS, low * _SIGNS[:, None], low * _SIGNS * _SIGNS[:, None])
    views = np.stack([view for flip in flips for view in (flip, flip.T)]).reshape(8, -1)
    middle = KEPT * KEPT // 2
    two = np.sort(views, axis=1)[:, middle - 1 : middle + 1]  # the median is their mean
    bits = 2 * views > two.sum(axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)[:, 0]


def _transform(image: np.ndarray) -> np.ndarray:
    """The lowest frequencies of the grey image, int64 `[KEPT, KEPT]`."""
    weighted = image.reshape(-1, 3).astype(np.float32) @ _GREY  # whole numbers below 2^24: exact
    grey = ((weighted + 2**15) / 2**16).astype(np.uint8).reshape(image.shape[:2])
    pixels = grey.size
    total = area.sums(grey[..., None], (SIDE, SIDE))[..., 0].astype(np.int64)
    small = ((total << _FINE) + pixels // 2) // pixels
    return _COSINES @ small @ _COSINES.T


def _is_flat(low: np.ndarray) -> bool:
    """Whether no frequency but the mean has an amplitude of FLAT."""
    norm = np.full(KEPT, SIDE / 2 * _SCALE)  # the sum of a squared cosine, which is 1 for the mean
    norm[0] *= 2
    amplitudes = np.abs(low) / np.outer(norm, norm) / (1 << _FINE)
    amplitudes[0, 0] = 0
    return bool(amplitudes.max() < FLAT)


def _digests(image: np.ndarray) -> np.ndarray:
    """A digest of the pixels of each of the eight views, uint64 `[8]`."""
    flips = (image, image[:, ::-1], image[::-1], image[::-1, ::-1])
    views = [view for flip in flips for view in (flip, flip.swapaxes(0, 1))]
    found = (hashlib.blake2b(repr(v.shape).encode() + v.tobytes(), digest_size=8) for v in views)
    return np.frombuffer(b"".join(f.digest() for f in found), ">u8").astype(np.uint64)


def pairs(hashes: np.ndarray, *, block: int = 256) -> np.ndarray:
    """All pairs of near-duplicates, int `[P, 2]`, the smaller index first, in order.

    Args:
      hashes: what `clusters` takes.
      block: what `clusters` takes.
    """
    found = np.concatenate([np.empty((0, 2), int), *_near_pairs(hashes, block)])
    return np.unique(np.sort(found[found[:, 0] != found[:, 1]], axis=1), axis=0)


def clusters(hashes: np.ndarray, *, block: int = 256) -> np.ndarray:
    """Labels the clusters of near-duplicates: the connected components of their graph.

    Args:
      hashes: uint64 `[N, 8]`, one row per tile from `hashes`.
      block: tiles compared with all others at once; bounds the memory at `9 N block` bytes.

    Returns:
      int `[N]`: the smallest index of a tile in the same cluster.
    """
    # Identical tiles first: a thousand copies would otherwise make half a million pairs.
    distinct, same = np.unique(hashes, axis=0, return_inverse=True)
    labels = np.arange(len(distinct))
    for near in _near_pairs(distinct, block):
        labels = join(len(labels), np.concatenate([edges(labels), near]))
    return by_first(labels[same.ravel()])


def _near_pairs(hashes: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Yields pairs `[P, 2]` of rows of uint64 `[N, 8]` within MAX_DISTANCE, in one order or both.

    Each row is a pair with itself too.
    """
    for start in range(0, len(hashes), block):
        interruption.check()
        ours = hashes[start : start + block, :1]
        near = np.zeros((len(ours), len(hashes)), bool)
        for view in hashes.T:
            near |= np.bitwise_count(ours ^ view[None]) <= MAX_DISTANCE
        yield np.argwhere(near) + np.array([start, 0])
