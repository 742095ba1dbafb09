"""COCO file or masks -> records: tiles shrunk, split by cluster of near-duplicates, written.

A prepared directory holds `source.json` (see `manifest.py`) and one tfds data set of three splits
in array_record files, which needs no TensorFlow to be written or read. All is written into a
sibling directory that is renamed at the end, so that a half-built set is never read.
"""

import contextlib
import errno
import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from tvjax import files, interruption
from tvjax.data import (
    arrangement,
    contact,
    duplicates,
    given,
    identity,
    left_out,
    manifest,
    masks,
    plausible,
    sharpness,
    shrunk,
    splits,
    workspace,
)
from tvjax.data.arrangement import Arrangement
from tvjax.data.faults import Faults
from tvjax.data.origins import Images, Origin, Tile
from tvjax.data.sources import Sources
from tvjax.errors import UserError, escaped

MOST_BOUNDARIES = 64
"""Pixels between objects that still count as close."""


class Tiles(tfds.core.GeneratorBasedBuilder):
    """The tfds builder: `arrays` holds the pixels of each tile, `assigned` its split."""

    name = "tiles"  # pinned, as the version is: both are part of the records' paths
    VERSION = tfds.core.Version(manifest.VERSION)
    code_path = None  # nothing is downloaded: tfds need not look for checksums beside this file

    def __init__(
        self,
        *,
        data_dir: Path,
        ids: list[int],
        names: list[str],
        arrays: np.ndarray,
        assigned: np.ndarray,
    ):
        self._ids, self._names, self._arrays, self._assigned = ids, names, arrays, assigned
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        height, width = self._arrays.shape[1:3]
        raw = {"dtype": np.uint8, "encoding": tfds.features.Encoding.BYTES}
        features = {
            "image": tfds.features.Tensor(shape=(height, width, 3), **raw),
            "mask": tfds.features.Tensor(shape=(height, width, 1), **raw),
            "id": tfds.features.Scalar(np.int64),
            "file": tfds.features.Text(),
        }
        if self._arrays.shape[3] > 4:
            features["contact"] = features["mask"]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiles with masks, shrunk by area.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # records stay in the order of ids
        )

    def _split_generators(self, dl_manager) -> dict[str, Any]:
        del dl_manager
        return {name: self._generate_examples(k) for k, name in enumerate(splits.NAMES)}

    def _generate_examples(self, split: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for k in np.flatnonzero(self._assigned == split):
            interruption.check()
            record = {
                "image": self._arrays[k, :, :, :3],
                "mask": self._arrays[k, :, :, 3:4],
                "id": self._ids[k],
                "file": self._names[k],
            }
            if self._arrays.shape[3] > 4:
                record["contact"] = self._arrays[k, :, :, 4:]
            yield int(k), record


def build(
    annotations: str | Path | Sequence[str | Path],
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    categories: Sequence[int] = (),
    **options: Any,
) -> dict[str, Any]:
    """Builds the records of `origins.Images`; all else is as in `build_from`."""
    return build_from(Images(annotations, images, categories), out, **options)


def build_from(
    origin: Origin,
    out: str | Path,
    *,
    size: int | tuple[int, int],
    limit: int | None = None,
    seed: int = 0,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    skip_bad: bool = False,
    split_file: str | Path | None = None,
    group: str | None = None,
    map_tiles: bool = True,
    leave_out: str | Path | None = None,
    boundaries: int | None = None,
    progress: bool = True,
    workers: int | None = 1,
) -> dict[str, Any]:
    """Builds the records; does nothing if `out` already holds the same.

    Args:
      origin: where tiles come from.
      out: the directory to make.
      size: pixels of the records: height and width, or the side of a square. Tiles are shrunk
        to it by area mean, masks by majority.
      limit: number of tiles, drawn at random by `seed`; None takes all.
      seed: seed of that draw and of the splits.
      split: fractions of training, validation and test.
      skip_bad: leaves out images that cannot be used: files that are missing or cannot be decoded,
        faulty regions, images smaller than `size` or of another shape. Else one error tells of
        all of them.
      split_file: gives the splits, see `given.read`; None, unless there are three COCO files: they
        are drawn, see `splits.draw`, and near-duplicates stay together.
      group: a regular expression; tiles in whose names it finds the same stay together, see
        `groups.label`.
      map_tiles: whether tiles whose names say that they are of one ground stay together, see
        `map_tiles.ground`.
      leave_out: list of tiles that are left out, see `left_out.read`; before the draw of `limit`.
      boundaries: records hold `contact` too, where objects are closer than this number of pixels
        of the records, see `touching.contact`; None: they do not.
      progress: whether to show a progress bar on stderr.
      workers: processes that read whole images, at least 1, which is this one; None: as many as
        pay, see `shrunk.choose_workers`. Where there are several, each imports the program that
        runs, which must do its work under `if __name__ == "__main__"`. Records do not depend on it.

    Returns:
      The content of `source.json`; its `left_out` tells the number of those images, and why.

    Raises:
      UserError: bad input (see `origins`), images that cannot be used, too few tiles, no
        background or no object in all of them, or an `out` that holds anything else. `out` is then
        as it was before.
    """
    out, size = Path(out), _height_and_width(size)
    if ".." in out.parts:  # of a folder that is not there: the same one before and after
        out = Path(os.path.realpath(out))
    _check([out, *origin.folders], seed)
    if origin.gives_splits and split_file is not None:
        raise UserError("three COCO files give the splits, and so does split_file; leave one out")
    _check_boundaries(boundaries, origin)
    asked = manifest.request(
        origin.describe(), size=size, limit=limit, seed=seed, split=split,
        split_file=None if split_file is None else Path(split_file), group=group,
        map_tiles=map_tiles, leave_out=None if leave_out is None else Path(leave_out),
        boundaries=boundaries,
    )  # fmt: skip
    sources = Sources(origin.labels, origin.root, origin.listed)
    if manifest.is_built(out, asked, sources, skip_bad=skip_bad):
        return manifest.read(out)
    faults = Faults()
    named = None if split_file is None else given.read(Path(split_file))
    found = origin.read(faults, split, limit, named)
    arrange = Arrangement(
        splits=origin.splits if named is None else named,
        where="--annotations" if split_file is None else f"--split_file={split_file}",
        group=group, map_tiles=map_tiles, fractions=split, seed=seed,
    )  # fmt: skip
    total = len(found) + len(faults.reasons)
    kept = found if leave_out is None else _kept(found, origin, Path(leave_out), faults)
    if limit is not None and limit > len(kept) and not skip_bad:
        faults.check(total)  # why there are so few
    tiles = _check_sizes(_subset(kept, limit, seed, origin.labels), size, faults)
    if not tiles:
        faults.check(total, skip_bad=skip_bad)
    arrange.check([origin.name(tile) for tile in tiles], origin.places(tiles))
    with workspace.beside(out) as work:
        # Written, and mapped when it is complete: a file mapped before would, on a full disk, end
        # the process by SIGBUS.
        with open(work / "arrays", "wb") as rows, contextlib.closing(origin):
            number = (workers or shrunk.choose_workers(len(tiles))) if origin.is_apart else 1
            results = shrunk.each(tiles, size, sources, number, boundaries)
            tiles, hashes, hidden = _decode(tiles, results, rows, faults, skip_bad, progress)
        if not skip_bad or not tiles:
            faults.check(total, skip_bad=skip_bad)
        if not tiles:
            raise UserError(f"{origin.root}: no tile of its images has data")
        shape = (len(tiles), *size, 4 if boundaries is None else 5)
        arrays = np.memmap(work / "arrays", np.uint8, "r", shape=shape)
        notes = plausible.check(tiles, arrays[..., 3], origin.labels, hidden)
        white = (asked.get("reading") or {}).get("white")
        if white:
            notes += plausible.check_brightness(arrays[..., :3], white)
        for note in notes:
            print(f"note: {escaped(note)}", file=sys.stderr)
        finished = work / "finished"
        _write(finished, origin, asked, tiles, arrays, duplicates.clusters(hashes), arrange, faults)
        sources.write(finished, (f for tile in found for f in tile.files), faults.reasons.keys())
        if not workspace.move(finished, out):
            manifest.is_built(out, asked, sources, skip_bad=skip_bad)  # refuses what is other
    return manifest.read(out)


def _check(folders: list[Path], seed: int) -> None:
    for folder in folders:
        files.check_name(folder)
    if not 0 <= seed < 2**31:
        raise UserError(f"seed={seed} must be an integer of at least 0, below 2^31")


def _check_boundaries(boundaries: int | None, origin: Origin) -> None:
    if boundaries is None:
        return
    if not 0 < boundaries <= MOST_BOUNDARIES:
        raise UserError(f"--boundaries={boundaries} must be 1 to {MOST_BOUNDARIES} pixels")
    if not origin.has_outlines:
        raise UserError(
            f"--boundaries={boundaries}: the masks in {origin.labels} do not tell objects that "
            "touch apart; give polygons (--annotations or --labels), or leave it out"
        )


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(size) < 2:
        raise UserError(f"size={size}: at least 2 pixels are needed, for one to have a neighbour")
    return size


def _write(
    out: Path,
    origin: Origin,
    asked: dict[str, Any],
    tiles: list[Tile],
    arrays: np.ndarray,
    twins: np.ndarray,
    arrange: Arrangement,
    faults: Faults,
) -> None:
    """Assigns tiles to splits, writes their records, and beside these what they were made from."""
    names = [origin.name(tile) for tile in tiles]
    labels, assigned, notes = arrange.assign(names, twins, origin.places(tiles))
    shares = np.array([mask.mean() for mask in arrays[..., 3]])
    for note in notes + _warn_of_no_object(shares, assigned):
        print(escaped(note), file=sys.stderr)
    names = [_text(name) for name in names]
    _write_records(out, tiles, names, arrays, assigned)
    content = {
        "request": asked,
        "images": str(origin.root.resolve()),
        "sharpness": sharpness.describe(origin, tiles, asked["size"][0]),
        "package_version": importlib.metadata.version("tvjax"),
        "left_out": {"images": len(faults.reasons), "reasons": list(faults.reasons.values())},
        "near_duplicate_clusters": len(np.unique(twins)),
        "clusters": len(np.unique(labels)),
        "splits": _describe(shares, assigned),
        "files": {
            str(file.relative_to(out)): file.stat().st_size
            for file in sorted(out.rglob("*"))
            if file.is_file()
        },
    }
    contact.write(out, arrays, asked["seed"])
    arrangement.write(out, [tile.id for tile in tiles], names, assigned, labels)
    manifest.write(out, content)
    identity.write(out, identity.digest(_pairs(arrays, assigned)))


def _kept(tiles: list[Any], origin: Origin, leave_out: Path, faults: Faults) -> list[Any]:
    """The tiles that the list does not leave out."""
    names = [_text(origin.name(tile)) for tile in tiles]
    faulty = {_text(os.path.relpath(file, origin.root)) for file in faults.reasons}
    ids = [tile.id for tile in tiles]
    return left_out.without(tiles, ids, names, leave_out, unknown=faulty)


def _text(name: str) -> str:
    """A name as records hold it, which is text; it may hold bytes that are none."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _subset(tiles: list[Tile], limit: int | None, seed: int, annotations: Path) -> list[Tile]:
    if limit is None:
        return tiles
    if not 0 < limit <= len(tiles):
        raise UserError(
            f"limit={limit}: {annotations} has {len(tiles)} images that can be used; "
            f"give 1 to {len(tiles)}"
        )
    chosen = np.random.default_rng(seed).permutation(len(tiles))[:limit]
    return [tiles[k] for k in sorted(chosen)]


def _check_sizes(tiles: list[Tile], size: tuple[int, int], faults: Faults) -> list[Tile]:
    """The tiles that can be shrunk to the size."""
    good = []
    for tile in tiles:
        if tile.height < size[0] or tile.width < size[1]:
            problem, advice = "is larger than", f"; give at most --size={tile.height}x{tile.width}"
        elif tile.height * size[1] != tile.width * size[0]:
            problem = "has another aspect ratio than"
            advice = _cutting(tile, size)
        else:
            good.append(tile)
            continue
        faults.add(
            tile.file,
            f"size={size[0]}x{size[1]} (height x width) {problem} {tile.file}, "
            f"which is {tile.height}x{tile.width}{advice}",
        )
    return good


def _cutting(tile: Tile, size: tuple[int, int]) -> str:
    """How to make tiles of this aspect ratio out of an image."""
    times = min(tile.height // size[0], tile.width // size[1])
    labels = "mask" if isinstance(tile, masks.Tile) else "annotations"
    return (
        f"; cut it and its {labels} alike into tiles that are a multiple of the size, "
        f"at most {times * size[0]}x{times * size[1]} (for a TIFF: gdal_translate -srcwin LEFT TOP "
        "WIDTH HEIGHT IN OUT)"
    )


def _decode(
    tiles: list[Tile],
    results: Generator[shrunk.Result, None, None],
    out: BinaryIO,
    faults: Faults,
    skip_bad: bool,
    progress: bool,
) -> tuple[list[Tile], np.ndarray, float]:
    """Writes the pixels of each tile's `Shrunk`, one behind the other.

    Returns:
      The tiles that could be decoded; their hashes, `[n, 8]`; and the share of their labelled
      pixels where the images have no data.
    """
    hashes = np.empty((len(tiles), 8), np.uint64)
    good, bad, bare, labelled, hidden = [], [], 0, 0, 0
    unusable = set(faults.reasons)
    bar = tqdm(tiles, "preparing tiles", unit="tile", disable=not progress)
    with contextlib.closing(results):
        for tile, found in zip(bar, results, strict=True):
            bare += found is None
            if isinstance(found, str):
                faults.add(tile.file, found)
                bad.append(tile.file)
            if not isinstance(found, shrunk.Shrunk):
                continue
            if faults.reasons and (not skip_bad or tile.file in unusable):
                continue  # nothing will be built: only look for more
            hashes[len(good)] = found.hashes
            out.write(found.pixels)
            labelled, hidden = labelled + found.labelled, hidden + found.hidden
            good.append(tile)
    if skip_bad and (partly := set(bad) & {tile.file for tile in good}):
        told = f"{len(partly)} image{'s' * (len(partly) > 1)}"
        print(
            f"note: {told} cannot be read whole: {sum(file in partly for file in bad)} of the "
            "tiles cut from them are left out, and the others kept",
            file=sys.stderr,
        )
    if bare:
        told = "1 tile is" if bare == 1 else f"{bare} tiles are"
        print(f"note: {told} left out, since most of each has no data", file=sys.stderr)
    return good, hashes[: len(good)], hidden / max(labelled, 1)


def _write_records(
    directory: Path, tiles: list[Tile], names: list[str], arrays: np.ndarray, assigned: np.ndarray
) -> None:
    ids = [tile.id for tile in tiles]
    builder = Tiles(data_dir=directory, ids=ids, names=names, arrays=arrays, assigned=assigned)
    # tfds prints the name of a directory that is about to be renamed, and bars of its own.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            builder.download_and_prepare(file_format="array_record")
        except (
            RuntimeError
        ) as error:  # of array_record; it tells in a long line what the system said
            said = re.search(r"failed: ([^;]+);", str(error))
            raise OSError(errno.ENOSPC, said[1] if said else str(error)) from error


def _pairs(
    arrays: np.ndarray, assigned: np.ndarray
) -> dict[str, Iterable[tuple[np.ndarray, np.ndarray]]]:
    """Images and masks of each split, as its records have them."""
    return {
        name: ((arrays[i, :, :, :3], arrays[i, :, :, 3:]) for i in np.flatnonzero(assigned == k))
        for k, name in enumerate(splits.NAMES)
    }


def _warn_of_no_object(shares: np.ndarray, assigned: np.ndarray) -> list[str]:
    """One line for each split in which no tile has a share of objects."""
    empty = [name for k, name in enumerate(splits.NAMES) if not shares[assigned == k].any()]
    why = {"train": "nothing is learned from it"}
    return [
        f"warning: the split {name} has no object pixel, so that "
        f"{why.get(name, 'scores on it say nothing')}; put tiles with objects into it"
        for name in empty
    ]


def _describe(shares: np.ndarray, assigned: np.ndarray) -> dict[str, dict[str, float]]:
    """Tiles of each split, and their share of objects, of that of each tile."""
    return {
        name: {
            "tiles": int(np.sum(assigned == k)),
            "foreground": round(float(shares[assigned == k].mean()), 6),
        }
        for k, name in enumerate(splits.NAMES)
    }
