"""Tiles as records have them, made by this process or by several: the same ones in the same order.

A tile is made of its own files alone, and all of it is whole numbers.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tvjax import interruption
from tvjax.data import area, duplicates, mask_files, touching
from tvjax.data.origins import Tile
from tvjax.data.sources import Sources
from tvjax.data.stamps import Stamp
from tvjax.errors import Outage, UserError

LEAST = 4000
"""Tiles for which another process pays: some ten seconds' work, and it takes seconds to start."""

TOGETHER = 32
"""Tiles that a process gets at once."""


class Shrunk(NamedTuple):
    """What records and splits need of a tile."""

    pixels: bytes
    """Image, mask, and contact if it is asked for, uint8 `[h, w, 4]` or `[h, w, 5]`."""
    hashes: np.ndarray
    """What `duplicates.hashes` gives."""
    labelled: int
    """Pixels of the file that the labels say are object."""
    hidden: int
    """How many of them lie where the image has no data: they are background."""


Result = Shrunk | str | None
"""A tile, what is wrong with it, or None: there is nothing to be seen in it."""

Part = tuple[list[Result], dict[str, Stamp | None], mask_files.Met]
"""What a process gives back: tiles, stamps of their files, and the values of masks that it met."""


def choose_workers(tiles: int) -> int:
    """How many processes pay: one per core that this one may use, if each has `LEAST` tiles."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min(cores, tiles // LEAST))


def shrink(
    tile: Tile, size: tuple[int, int], sources: Sources, boundaries: int | None = None
) -> Result:
    """Decodes a tile, shrinks it to a height and width, and hashes it; notes its files."""
    for file in tile.files:
        sources.read(file)
    try:
        loaded = tile.load()
        numbers = None if boundaries is None or loaded is None else tile.number()
        for file in tile.files:
            sources.check_unchanged(file)
    except UserError as error:
        return str(error)
    if loaded is None:
        return None
    image, seen = loaded.image, loaded.objects
    parts = [area.shrink_image(image, size), area.shrink_mask(seen, size)]
    if boundaries is not None and numbers is not None:
        numbers = touching.shrink(numbers, parts[1][..., 0] > 0)
        parts.append(touching.contact(numbers, boundaries)[..., None].astype(np.uint8))
    labelled = int(loaded.mask.sum())
    return Shrunk(
        np.concatenate(parts, axis=2).tobytes(), duplicates.hashes(image),
        labelled, labelled - int(seen.sum()),
    )  # fmt: skip


def each(
    tiles: Sequence[Tile],
    size: tuple[int, int],
    sources: Sources,
    workers: int,
    boundaries: int | None = None,
) -> Generator[Result, None, None]:
    """Yields what becomes of each tile, in their order, whatever the number of processes.

    Args:
      tiles: the tiles, such as can be pickled where there are several processes.
      size: height and width of the records.
      sources: notes the files.
      workers: processes that do the work; 1: this one alone.
      boundaries: pixels of `touching.contact`; None: tiles come without contact.

    Raises:
      Outage: one of the processes was ended, for instance for want of memory.
    """
    if workers == 1:
        for tile in tiles:
            interruption.check()
            yield shrink(tile, size, sources, boundaries)
        return
    context = multiprocessing.get_context("spawn")  # a fork would share the locks of threads
    given = sources.labels, sources.images, size, boundaries
    pool = ProcessPoolExecutor(workers, context, _start)
    rest, waiting = iter(tiles), deque[Future[Part]]()
    try:
        while True:
            interruption.check()
            part = list(itertools.islice(rest, TOGETHER))
            if part:
                with _deaf():
                    waiting.append(pool.submit(_shrink_all, part, *given))
            if not waiting:
                return
            if len(waiting) > 2 * workers or not part:
                found, stamps, met = waiting.popleft().result()
                sources.add(stamps)
                _met(tiles).update(met)
                yield from found
    except BrokenProcessPool as error:
        interruption.check()  # the signal that ended them may have come here too
        raise Outage(
            "a process that reads images was ended, perhaps for want of memory; run the same "
            "command again, with fewer of them (--workers=1)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started within it never hear Ctrl-C, which comes to the whole group: this one does,
    afterwards, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Where the parent was killed nobody else would end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _shrink_all(
    tiles: Sequence[Tile],
    labels: Path,
    images: Path,
    size: tuple[int, int],
    boundaries: int | None,
) -> Part:
    sources, met = Sources(labels, images), _met(tiles)
    met.clear()  # of what came with the tiles
    found = [shrink(tile, size, sources, boundaries) for tile in tiles]
    return found, sources.stamps, met


def _met(tiles: Sequence[Tile]) -> mask_files.Met:
    """What counts the values of masks, which all tiles share; of other tiles nothing."""
    found: mask_files.Met | None = getattr(tiles[0], "met", None)
    return Counter() if found is None else found
