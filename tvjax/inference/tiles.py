"""Running a net over an image of any size: overlapping tiles, blended, in strips of full width.

A tile's pixels near its edge miss the context beyond it. They get weight 0 as far in as the net
reaches, then the weight rises linearly, so that the blend equals one pass over the whole image if
the overlap leaves room for that; on a net that reaches everywhere it hides the seams.

What a tile is depends on its own image alone, and not on others that are predicted beside it. Where
a tile is larger than what is left of the image, the image is mirrored at its edge: scores there are
those of images that are taken as they are, where edge pixels that are repeated cost some.
"""

import math
import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax import interruption
from tvjax.data.pictures import Raster
from tvjax.data.scaling import scaled
from tvjax.errors import UserError
from tvjax.inference.resample import Axis, resample_strips, strip_rows

SLACK = 1e-3
"""How far a net's probabilities may leave [0, 1]: what rounding does, and no logits."""
ALIGNMENT = 32
"""Tiles start at its multiples, so that pooling meets the same pixels as in one pass."""

TILE = 512
"""Side of tiles, unless they are fitted or another is asked for."""

FITTED = 768
"""Side of fitted tiles, at most: what the net holds of one takes 2.3 times the memory of `TILE`."""

LOOK = 256
"""Side of the tiles by which a net's reach is measured before tiles are fitted."""

ROW = 1 << 22
"""Bytes of a row of tiles that is kept in memory; a longer one is kept in a temporary file."""

MOST_ROW = 1 << 32
"""Bytes of a row of tiles, which lie in a temporary file: those of an image two million pixels wide
by tiles of 512. At most half of what is free is taken."""

MOST_PIXELS = 1 << 36
"""Pixels of an image whose tiles are predicted one by one: a day's work of a processor."""

MOST_AT_ONCE = 1 << 33
"""Bytes of the tiles that a net takes at once."""

Net = Callable[[np.ndarray], Any]
"""Images, float32 `[B, H, W, 3]` in [0, 1] -> probabilities `[B, H, W, C]`, where C is its
attribute `channels`, or 1 of a function without."""


class Tiling(NamedTuple):
    """How an image is cut."""

    tile: tuple[int, int]
    """Height and width of all tiles, pixels; see `fit`."""
    overlap: int
    """Pixels shared by neighbours; a multiple of `ALIGNMENT`, or 0 for images of a single tile."""
    reach: int
    """How far from a tile's inner edge its pixels have no say; less than half the overlap."""
    batch: int = 1
    """Tiles that the net takes at once; the last batch of an image is filled up."""
    channels: int = 1
    """Maps that the net gives; with 2, contact comes behind the object, see `separation`."""
    whole: tuple[int, int] | None = None
    """Height and width of images that are taken as they are, as those of training are."""

    def fit(self, height: int, width: int) -> "Tiling":
        """The same with the tile of an image of this size: of the sides `rounded_up`, or whole."""
        sides = zip((height, width), self.tile, strict=True)
        tile = min(self.tile[0], rounded_up(height)), min(self.tile[1], rounded_up(width))
        is_whole = (height, width) == self.whole and all(side <= most for side, most in sides)
        return self._replace(tile=(height, width) if is_whole else tile)


class Window(NamedTuple):
    """A tile's place along one axis."""

    start: int
    weights: np.ndarray
    """Float32 `[tile]`; over all windows that cover a pixel they add up to 1."""


def make_tiling(tile: int, reach: int | None, *, batch: int = 1) -> Tiling:
    """Square tiles that overlap as far as the net needs, or by half where it needs more.

    Args:
      tile: side in pixels, a multiple of `ALIGNMENT` of at least 4 of it.
      reach: see `measure_reach`.
      batch: tiles that the net takes at once.
    """
    ramp, most = ALIGNMENT // 4, tile // 2 // ALIGNMENT * ALIGNMENT
    if reach is None or 2 * reach + ramp > most:
        return Tiling((tile, tile), most, most // 8, batch)
    overlap = -(-(2 * reach + ramp) // ALIGNMENT) * ALIGNMENT
    return Tiling((tile, tile), overlap, (overlap - ramp) // 2, batch)


def rounded_up(length: int) -> int:
    """The multiple of `ALIGNMENT` that a side is filled up to: 1, 2, 3, 4, 6, 8, 12, 16, ... of it.

    Not each one: a net is compiled for each size of tiles, for at most 64 of up to 512 pixels.
    """
    number = -(-length // ALIGNMENT)
    step = 1 << max(0, (number - 1).bit_length() - 2)
    return -(-number // step) * step * ALIGNMENT


def measure_reach(net: Net, shape: tuple[int, ...]) -> int | None:
    """How many pixels away from an aligned edge the net still sees what lies beyond it.

    Found by changing a block of a noise image: an answer that does not move at all is out of reach.

    Args:
      net: function that takes batches of this shape.
      shape: `(B, H, W, 3)` of a batch of tiles.

    Returns:
      Pixels, or None if it is more than a tile allows to see.
    """
    images = np.random.default_rng(0).random(shape, np.float32)
    changed = images.copy()
    starts = [(size - ALIGNMENT) // 2 // ALIGNMENT * ALIGNMENT for size in shape[1:3]]
    block = (0, *(slice(start, start + ALIGNMENT) for start in starts))
    changed[block] = 1 - changed[block]
    moved = np.any(np.asarray(net(images)) != np.asarray(net(changed)), axis=(0, 3))
    reach = 0
    for start, lines in zip(starts, (moved.any(1), moved.any(0)), strict=True):
        hit = np.flatnonzero(lines)
        if len(hit) and (hit[0] == 0 or hit[-1] == len(lines) - 1):
            return None
        if len(hit):
            reach = max(reach, start - hit[0], hit[-1] + 1 - start - ALIGNMENT)
    return int(reach)


def windows(length: int, tile: int, overlap: int, reach: int) -> list[Window]:
    """The tiles along an axis of `length` pixels.

    The last one ends with the image, whose length is rounded up to the alignment; an image smaller
    than a tile is one window.
    """
    starts = _starts(length, tile, overlap)
    padded, last = -(-length // ALIGNMENT) * ALIGNMENT, starts[-1]
    total = np.zeros(max(padded, last + tile), np.float32)
    ramps = []
    for start in starts:
        rising = (np.arange(tile) + 0.5 - reach) / max(1, overlap - 2 * reach)
        weights = np.ones(tile)
        if start > 0:
            weights = np.minimum(weights, rising)
        if start < last:
            weights = np.minimum(weights, rising[::-1])
        ramps.append(np.clip(weights, 0, 1).astype(np.float32))
        total[start : start + tile] += ramps[-1]
    return [
        Window(start, ramp / np.maximum(total[start : start + tile], 1e-6))
        for start, ramp in zip(starts, ramps, strict=True)
    ]


def strips(
    read: Callable[[int, int, int, int], np.ndarray],
    height: int,
    width: int,
    net: Net,
    tiling: Tiling,
    progress: Callable[[int], object] = lambda tiles: None,
    is_blank: Callable[[int, int, int, int], bool] | None = None,
) -> Iterator[np.ndarray]:
    """Probabilities of an image, a strip at a time.

    Memory: a strip and a batch of tiles, whatever the height and the width; the probabilities of
    a long row of tiles lie in a temporary file.

    Args:
      read: `(top, bottom, left, right) ->` uint8 `[h, w, 3]` of the image.
      height, width: size of the image.
      net: see `Net`.
      tiling: see `Tiling`; fitted to the image here.
      progress: called with the number of tiles after each batch.
      is_blank: `(top, bottom, left, right) ->` whether the image has no data there, asked of tiles
        of one colour; where a whole batch has none, the net is not asked, and 0 is taken. None:
        there is data everywhere.

    Yields:
      Float32 `[h, width, C]`, from the top; together `height` rows.
    """
    tiling = tiling.fit(height, width)
    rows = windows(height, tiling.tile[0], tiling.overlap, tiling.reach)
    columns = windows(width, tiling.tile[1], tiling.overlap, tiling.reach)
    across = columns[-1].start + tiling.tile[1]
    tall, release = _row_of_tiles(tiling.tile[0], across, tiling.channels)
    most = strip_rows(width)
    for k, row in enumerate(rows):
        bottom = min(row.start + tiling.tile[0], height)
        for start in range(0, len(columns), tiling.batch):
            group = columns[start : start + tiling.batch]
            images, has_data = np.zeros((tiling.batch, *tiling.tile, 3), np.float32), False
            for place, column in enumerate(group):
                window = row.start, bottom, column.start, min(column.start + tiling.tile[1], width)
                pixels = read(*window)
                has_data = (
                    has_data or is_blank is None
                    or bool((pixels != pixels[0, 0]).any()) or not is_blank(*window)
                )  # fmt: skip
                images[place] = _padded(pixels, tiling.tile)
            if not has_data:
                interruption.check()
                progress(len(group))
                continue
            probabilities = _checked(np.asarray(net(images)), (*images.shape[:-1], tiling.channels))
            interruption.check()
            for column, tile in zip(group, probabilities, strict=False):
                weights = row.weights[:, None, None] * column.weights[None, :, None]
                tall[:, column.start : column.start + tiling.tile[1]] += weights * tile
                release()
            progress(len(group))
        finished = rows[k + 1].start - row.start if k + 1 < len(rows) else height - row.start
        for top in range(0, finished, most):
            yield tall[top : min(top + most, finished), :width].copy()
            release()
        for line in range(tiling.tile[0]):
            below = line + finished
            tall[line] = tall[below] if below < tiling.tile[0] else 0
            release()


def count(height: int, width: int, tiling: Tiling) -> int:
    """The number of tiles of an image."""
    sides = zip((height, width), tiling.fit(height, width).tile, strict=True)
    numbers = [len(_starts(side, tile, tiling.overlap)) for side, tile in sides]
    return numbers[0] * numbers[1]


def check_size(path: Path, size: tuple[int, int], tiling: Tiling) -> None:
    """Checks, before any work, that an image of the size that a file declares can be predicted.

    Raises:
      UserError: it has more than `MOST_PIXELS`, or a row of its tiles has more than `MOST_ROW`, or
        than half of the room for temporary files.
    """
    height, width = size
    what = f"{path}: is {width}x{height} pixels"
    if height * width > MOST_PIXELS:
        raise UserError(f"{what}, more than {MOST_PIXELS}; cut it up (gdal_translate -srcwin)")
    row = 4 * tiling.tile[0] * (width + tiling.tile[1]) * tiling.channels
    most, why = MOST_ROW, "that are allowed"
    if row > ROW:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free // 2
        most, why = min((most, why), (free, f"that are half of the room in {folder}"))
    if row > most:
        raise UserError(
            f"{what}, whose row of tiles needs {row >> 20} MiB for a while, more than the "
            f"{most >> 20} MiB {why}; cut it up (gdal_translate -srcwin), or give a smaller --tile"
        )


def probabilities(
    raster: Raster,
    net: Net,
    tiling: Tiling,
    scale: float = 1.0,
    progress: Callable[[int], Any] = lambda tiles: None,
    missing: Callable[[int], Any] = lambda pixels: None,
) -> Iterator[np.ndarray]:
    """Probabilities of an image in strips from the top, float32 `[h, width, C]`.

    They are 0 where the image has no data: what a net says of that means nothing. `missing` is
    called with the number of such pixels in each strip, `progress` as by `strips`.
    """
    small = scaled(raster, scale)

    def is_blank(top: int, bottom: int, left: int, right: int) -> bool:
        # With the pixels around it, between which the probabilities are interpolated.
        there = (
            *Axis(raster.height, small.height).source(
                max(0, top - 2), min(small.height, bottom + 2)
            ),
            *Axis(raster.width, small.width).source(max(0, left - 2), min(small.width, right + 2)),
        )
        assert raster.valid is not None
        return not raster.valid(*there).any()

    found = strips(
        small.read, small.height, small.width, net, tiling, progress,
        None if raster.valid is None else is_blank,
    )  # fmt: skip
    rows, columns = Axis(small.height, raster.height), Axis(small.width, raster.width)
    top = 0
    for strip in resample_strips(found, rows, columns):
        bottom = top + len(strip)
        if raster.valid is not None:
            has_data = raster.valid(top, bottom, 0, raster.width)
            missing(has_data.size - int(np.count_nonzero(has_data)))
            strip = np.where(has_data[..., None], strip, np.float32(0))
        top = bottom
        yield strip


def choose_tiling(
    sizes: set[tuple[int, int]],
    net: Net,
    tile: int | None = None,
    batch: int = 1,
    whole: tuple[int, int] | None = None,
) -> Tiling:
    """A tiling for images of these sizes, by which each has the tiles that it has alone.

    Sides that are no larger than a tile are filled up, see `rounded_up`. Larger images of one size
    are cut into as few tiles as do, none larger than need be, if the net's reach is small: what
    tiles share is predicted twice. The net then gives the same, to rounding.

    Args:
      sizes: heights and widths.
      net: see `Net`.
      tile: side of the tiles; None: `TILE`, or as it fits, at most `FITTED`.
      batch: tiles that the net takes at once; tiles of several are fitted up to `TILE` only.
      whole: see `Tiling`: the size of the tiles that the net was trained on.
    """
    chosen = _choose(sizes, net, tile, batch)
    return chosen._replace(channels=getattr(net, "channels", 1), whole=whole)


def _choose(sizes: set[tuple[int, int]], net: Net, tile: int | None, batch: int) -> Tiling:
    side, least = TILE if tile is None else tile, 4 * ALIGNMENT
    if side < least or side % ALIGNMENT:
        raise UserError(f"--tile={side} must be a multiple of {ALIGNMENT}, at least {least}")
    if batch < 1:
        raise UserError(f"--batch={batch} must be at least 1")
    height, width = (max((size[axis] for size in sizes), default=1) for axis in (0, 1))
    size = math.prod(min(side, rounded_up(length)) for length in (height, width))
    if 12 * batch * size > MOST_AT_ONCE:
        raise UserError(
            f"--batch={batch} --tile={side}: these tiles need {12 * batch * size >> 20} MiB at "
            f"once, and at most {MOST_AT_ONCE >> 20} MiB are allowed; give smaller numbers"
        )
    if max(height, width) > side:
        if tile is None and len(sizes) == 1:
            reach = measure_reach(net, (batch, LOOK, LOOK, 3))
            if reach is not None:
                return _fitted((height, width), make_tiling(side, reach, batch=batch))
        reach = measure_reach(net, (batch, side, side, 3))
        return make_tiling(side, reach, batch=batch)
    return Tiling((side, side), 0, 0, batch)


def _fitted(size: tuple[int, int], tiling: Tiling) -> Tiling:
    """The tiling with tiles as small as can be where as few as possible cover an image's size."""
    most = FITTED if tiling.batch == 1 else TILE

    def side(length: int) -> int:
        if length <= TILE:
            return TILE  # as with tiles that are not fitted, see `Tiling.fit`
        number = len(_starts(length, most, tiling.overlap))
        shared = -(-length // ALIGNMENT) * ALIGNMENT + (number - 1) * tiling.overlap
        return -(-shared // (number * ALIGNMENT)) * ALIGNMENT

    height, width = size
    return tiling._replace(tile=(side(height), side(width)))


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    padded = -(-length // ALIGNMENT) * ALIGNMENT
    last = max(0, padded - tile) if length > tile else 0
    return [*range(0, last, max(1, tile - overlap)), last]


def _row_of_tiles(
    height: int, width: int, channels: int
) -> tuple[np.ndarray, Callable[[], object]]:
    """Zeros, float32 `[height, width, channels]`, and what takes them out of memory for now."""
    line = 4 * width * channels
    if height * line <= ROW:
        return np.zeros((height, width, channels), np.float32), lambda: None
    try:
        with tempfile.TemporaryFile() as file:
            for _ in range(height):  # not as a hole: on a full disk that would end the process
                file.write(bytes(line))
            file.flush()
            pages = mmap.mmap(file.fileno(), height * line)
    except OSError as error:
        raise UserError(
            f"{tempfile.gettempdir()} has no room for a row of tiles, {height * line >> 20} MiB "
            f"({error.strerror}); set TMPDIR to a folder that has"
        ) from error
    row = np.frombuffer(pages, np.float32).reshape(height, width, channels)
    advice = getattr(mmap, "MADV_DONTNEED", None)  # not everywhere; the system decides there
    return row, lambda: None if advice is None else pages.madvise(advice)


def _checked(found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What a net gave, if it is probabilities of this shape; NaN would be no object."""
    if found.shape != shape:
        tiles = (*shape[:-1], 3)
        raise UserError(f"net must give {shape} for tiles {tiles}; got {found.shape}")
    if found.size and not (found.min() >= -SLACK and found.max() <= 1 + SLACK):
        raise UserError(
            f"net must give probabilities in [0, 1]; got {found.min()} to {found.max()}"
        )
    return found


def _padded(image: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """Float32 in [0, 1], mirrored at the last row and column up to the tile's size."""
    missing = [(0, side - have) for side, have in zip(tile, image.shape[:2], strict=True)]
    return np.pad(image, [*missing, (0, 0)], "symmetric").astype(np.float32) / np.float32(255)
