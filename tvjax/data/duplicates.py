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
import itertools
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

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

_PARTS = 6
"""Parts that the bits of a hash are dealt out to, to find near-duplicates by equal parts."""
_BLOCK = 1 << 20
"""Candidates compared at once: some 50 MB."""


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
    return _digests(image) if _is_flat(low) else _bits(low)


def _bits(low: np.ndarray) -> np.ndarray:
    """The hashes of a transform `[KEPT, KEPT]`, uint64 `[8]`."""
    flips = (low, low * _SIGNS, low * _SIGNS[:, None], low * _SIGNS * _SIGNS[:, None])
    views = np.stack([view for flip in flips for view in (flip, flip.T)]).reshape(8, -1)
    middle = KEPT * KEPT // 2
    two = np.sort(views, axis=1)[:, middle - 1 : middle + 1]  # the median is their mean
    bits = 2 * views > two.sum(axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)[:, 0]


def _transform(image: np.ndarray) -> np.ndarray:
    """The lowest frequencies of the grey image, int64 `[KEPT, KEPT]`."""
    # Pillow's grey is ITU-R 601-2's in whole numbers: the weights times 2^16, rounded half up.
    grey = np.asarray(Image.fromarray(image).convert("L"))
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


def pairs(hashes: np.ndarray) -> np.ndarray:
    """All pairs of near-duplicates, int `[P, 2]`, the smaller index first; see `clusters`."""
    found = np.concatenate([np.empty((0, 2), int), *_near_pairs(hashes)])
    return np.unique(np.sort(found[found[:, 0] != found[:, 1]], axis=1), axis=0)


def clusters(hashes: np.ndarray) -> np.ndarray:
    """Labels the clusters of near-duplicates: the connected components of their graph.

    Args:
      hashes: uint64 `[N, 8]`, one row per tile from `hashes`.

    Returns:
      int `[N]`: the smallest index of a tile in the same cluster.
    """
    # Identical tiles first: a thousand copies would otherwise make half a million pairs.
    distinct, same = np.unique(hashes, axis=0, return_inverse=True)
    labels = np.arange(len(distinct))
    for near in _near_pairs(distinct):
        labels = join(len(labels), np.concatenate([edges(labels), near]))
    return by_first(labels[same.ravel()])


def _near_pairs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yields pairs `[P, 2]` of rows of uint64 `[N, 8]` within MAX_DISTANCE, in one order or both.

    A pair may come several times, and each row is one with itself.

    All are found: of the parts of two hashes that differ in d bits, at most d differ. So for some
    `_PARTS - MAX_DISTANCE` parts the two are equal, and tiles that are equal in such parts are the
    only ones that are compared.
    """
    views = hashes.shape[1]
    ours, theirs = np.ascontiguousarray(hashes[:, 0]), hashes.ravel()
    for mask in _masks():
        keys = theirs & mask
        order = np.argsort(keys)
        keys = keys[order]
        wanted = ours & mask
        start, stop = (np.searchsorted(keys, wanted, side) for side in ("left", "right"))
        for low, high in _blocks(stop - start):
            interruption.check()
            one, place = _spread(start[low:high], stop[low:high])
            one, two = one + low, order[place]
            near = np.bitwise_count(ours[one] ^ theirs[two]) <= MAX_DISTANCE
            yield np.stack([one[near], two[near] // views], axis=1)


def _masks() -> list[np.uint64]:
    """The bits of each choice of `_PARTS - MAX_DISTANCE` parts.

    Parts are dealt bit by bit: neighbouring frequencies, which tell less, fall into several.
    """
    parts = [sum(1 << bit for bit in range(k, KEPT * KEPT, _PARTS)) for k in range(_PARTS)]
    chosen = itertools.combinations(parts, _PARTS - MAX_DISTANCE)
    return [np.uint64(sum(some)) for some in chosen]


def _blocks(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cuts `[N]` sizes into ranges of at most `_BLOCK` in all, or of one size that is larger."""
    ends = np.cumsum(sizes)
    low = 0
    while low < len(sizes):
        done = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, done + _BLOCK, "right")))
        yield low, high
        low = high


def _spread(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All whole numbers of ranges `[N]`, and before them which range each is of."""
    sizes = stop - start
    which = np.repeat(np.arange(len(sizes)), sizes)
    first = np.cumsum(sizes) - sizes
    return which, np.arange(len(which)) + (start - first)[which]
