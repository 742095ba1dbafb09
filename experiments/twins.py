"""Plants twins in a set of tiles: near-duplicates and overlaps, so that it is known what leaks."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image


class Tiles(NamedTuple):
    """Tiles, some of which show the ground of another."""

    image: np.ndarray
    """Uint8 `[N, H, W, 3]`."""
    mask: np.ndarray
    """Uint8 `[N, H, W, 1]`."""
    scene: np.ndarray
    """Int `[N]`, equal for tiles of one ground."""
    kind: np.ndarray
    """Str `[N]`: in what way a tile is another's twin, one of `KINDS`; empty of originals."""


def plant(images: np.ndarray, masks: np.ndarray, *, share: float, seed: int) -> Tiles:
    """Cuts a window out of each tile, and of a share of them a second one that is its twin.

    The kinds of twins take turns. A window has three quarters of the tile's side, down to a
    multiple of 4, and those that overlap lie in opposite corners.

    Args:
      images: uint8 `[N, S, S, 3]`.
      masks: uint8 `[N, S, S, 1]`.
      share: share of the tiles that get a twin, in [0, 1].
      seed: seed of the draw of these tiles, and of what is done to them.
    """
    rng, side = np.random.default_rng(seed), images.shape[1] * 3 // 4 // 4 * 4
    chosen = rng.permutation(len(images))[: round(share * len(images))]
    kinds = [list(KINDS)[k % len(KINDS)] for k in range(len(chosen))]
    pairs = [
        KINDS[kind](rng, images[k], masks[k], side) for kind, k in zip(kinds, chosen, strict=True)
    ]
    scenes = np.arange(len(images))
    return Tiles(
        np.stack([image[:side, :side] for image in images] + [image for image, _ in pairs]),
        np.stack([mask[:side, :side] for mask in masks] + [mask for _, mask in pairs]),
        np.concatenate([scenes, scenes[chosen]]),
        np.array([""] * len(images) + kinds),
    )


def _turned(rng, image, mask, side):
    """One of the seven rotations and flips."""
    flip, turns = divmod(int(rng.integers(1, 8)), 4)
    return tuple(
        np.rot90(x[:side, :side][:, ::-1] if flip else x[:side, :side], turns)
        for x in (image, mask)
    )


def _encoded(rng, image, mask, side):
    """A JPEG file of poor quality."""
    file = io.BytesIO()
    Image.fromarray(image[:side, :side]).save(file, "JPEG", quality=int(rng.integers(40, 80)))
    return np.asarray(Image.open(file)), mask[:side, :side]


def _brightened(rng, image, mask, side):
    """Another exposure."""
    found = image[:side, :side] * rng.uniform(0.75, 1.0) + rng.uniform(0, 25)
    return np.clip(found.round(), 0, 255).astype(np.uint8), mask[:side, :side]


def _overlapping(rng, image, mask, side):
    """The window in the opposite corner."""
    del rng
    return image[-side:, -side:], mask[-side:, -side:]


KINDS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "turned": _turned,
    "encoded": _encoded,
    "brightened": _brightened,
    "overlapping": _overlapping,
}
"""Functions of a random generator, a tile, its mask and the window's side; they make a twin."""
