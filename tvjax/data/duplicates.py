"""Near-duplicate tiles: perceptual hashes, compared up to rotations and flips.

Aerial challenge sets hold overlapping and repeated tiles. A random split leaks them from training
to test: with 5,000 tiles of the crowdAI challenge, 13 % of the test tiles are in training once
rotations and flips count. Splits are therefore drawn by cluster of near-duplicates.

Two tiles are near-duplicates if the hash of one and one of the eight hashes of the other, of its
rotations and flips, differ in at most two bits. (Comparing only the smallest of the eight of each
would be eight times cheaper, but one noisy bit decides which one is the smallest.)
"""

import numpy as np
from PIL import Image

SIDE = 32
"""The image is shrunk to this side before the cosine transform."""
KEPT = 8
"""The lowest frequencies kept, along each axis: 8 x 8 bits."""
MAX_DISTANCE = 2
"""Bits in which near-duplicates may differ."""

# The type-II discrete cosine transform, first KEPT rows of SIDE: C[k, n] = cos(pi k (2n+1) / 2N).
_COSINES = np.cos(
    np.pi / (2 * SIDE) * np.outer(np.arange(KEPT), 2 * np.arange(SIDE) + 1), dtype=np.float64
)


def hashes(image: np.ndarray) -> np.ndarray:
    """The 64-bit perceptual hashes of an image and of its rotations and flips.

    A bit says whether one of the 8x8 lowest frequencies of the cosine transform exceeds their
    median. A flip multiplies the odd frequencies of its axis by -1 and a transposition transposes
    the transform, so that one transform serves all eight.

    Args:
      image: uint8 `[H, W, 3]`.

    Returns:
      uint64 `[8]`; the first is that of the image as it stands. The set of the eight does not
      change when the image is rotated by a quarter turn or flipped.
    """
    grey = Image.fromarray(image).convert("L").convert("F")  # floats: no rounding between passes
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    low = _COSINES @ small @ _COSINES.T
    sign = (-1.0) ** np.arange(KEPT)
    flips = (low, low * sign, low * sign[:, None], low * sign * sign[:, None])
    views = np.stack([view for flip in flips for view in (flip, flip.T)]).reshape(8, -1)
    bits = views > np.median(views, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)[:, 0]


def clusters(hashes: np.ndarray, *, block: int = 256) -> np.ndarray:
    """Labels the clusters of near-duplicates: the connected components of their graph.

    Args:
      hashes: uint64 `[N, 8]`, one row per tile from `hashes`.
      block: tiles compared with all others at once; bounds the memory at `9 N block` bytes.

    Returns:
      int `[N]`: the smallest index of a tile in the same cluster.
    """
    # Identical tiles first: a thousand copies would otherwise make half a million pairs.
    _, first, same = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    parent = np.arange(len(hashes))
    distinct = hashes[first]
    for i, j in _near_pairs(distinct, block):
        parent[_root(parent, int(first[i]))] = _root(parent, int(first[j]))
    roots = np.array([_root(parent, int(k)) for k in first], int)[same.ravel()]
    # Label by the smallest member, whichever one happened to become the root.
    smallest = np.full(len(hashes), len(hashes))
    np.minimum.at(smallest, roots, np.arange(len(hashes)))
    return smallest[roots]


def _near_pairs(hashes: np.ndarray, block: int):
    """Yields the pairs of rows of uint64 `[N, 8]` within MAX_DISTANCE, in one order or both."""
    for start in range(0, len(hashes), block):
        ours = hashes[start : start + block, :1]
        near = np.zeros((len(ours), len(hashes)), bool)
        for view in hashes.T:
            near |= np.bitwise_count(ours ^ view[None]) <= MAX_DISTANCE
        for i, j in np.argwhere(near):
            if start + i != j:
                yield start + i, j


def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return int(node)
