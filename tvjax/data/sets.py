"""The prepared records that a config's data section means, made at first use if need be."""

import contextlib
import hashlib
import itertools
import os
import sys
from pathlib import Path
from typing import Any

from tvjax.data import builder, identity, manifest, touching
from tvjax.data.embedded import synthetic
from tvjax.data.records import Split, open_split
from tvjax.errors import UserError
from tvjax.home import expanded
from tvjax.types import Config

EMBEDDED_TILES = 600
EMBEDDED_VERSION = 1
"""Version of the embedded scenes; raise it when `synthetic` draws them otherwise."""


def open_sets(
    *,
    directory: str | None,
    cache: str,
    size: int,
    limit: int | None,
    seed: int,
    boundaries: bool = False,
) -> dict[str, Split]:
    """Opens the splits `train`, `val` and `test`.

    Args:
      directory: prepared records, or a folder with `images/` and `annotation.json` or `masks/`,
        or None for the embedded set.
      cache: the folder that keeps what is prepared here.
      size: pixels, height and width of tiles that are prepared here.
      limit: how many tiles of a folder to draw, where it is prepared here; None takes all.
      seed: seed of the draw, the splits and the embedded scenes.
      boundaries: whether batches tell where objects nearly touch, see `touching`.

    Raises:
      UserError: there is nothing usable in `directory`, it does not tell where objects nearly
        touch, or the cache cannot be written.
    """
    if directory == "":
        raise UserError(
            "data.directory is not set: give prepared tiles, or a folder with images/ and "
            "annotation.json or masks/, by --config.data.directory=DIR"
        )
    prepared = expanded(directory) if directory else None
    if prepared is None or not is_prepared(directory):
        prepared = _prepare(prepared, expanded(cache), size, limit, seed, boundaries)
    found = open_prepared(prepared, boundaries=boundaries)
    total = sum(map(len, found.values()))
    if limit is not None and limit < total:
        print(
            f"note: data.limit={limit} is of folders that are prepared at first use; all {total} "
            f"tiles of {prepared} are taken",
            file=sys.stderr,
        )
    return found


def open_section(data: Config, **changes: Any) -> dict[str, Split]:
    """Opens what the section `data` of a config names, but for what is changed; see `open_sets`."""
    options = {**data, **changes}
    del options["resident"]  # where the tiles lie then, the training decides
    return open_sets(**options)


def open_prepared(directory: Path, *, boundaries: bool = False) -> dict[str, Split]:
    """Opens the three splits of prepared records."""
    names = "train", "val", "test"
    return {name: open_split(directory, name, boundaries=boundaries) for name in names}


def find_embedded(cache: str, *, size: int, seed: int, boundaries: bool = False) -> Path | None:
    """The embedded set that was prepared in a cache before, if it was."""
    found = expanded(cache) / f"{_embedded(seed)}{_ending(size, boundaries)}"
    return found if is_prepared(str(found)) else None


def _embedded(seed: int) -> str:
    return f"embedded-{EMBEDDED_VERSION}-{EMBEDDED_TILES}-seed{seed}"


def _ending(size: int, boundaries: bool) -> str:
    return f"-{size}px" + f"-boundaries{touching.PIXELS}" * boundaries


def is_prepared(directory: str | None) -> bool:
    """Whether a folder, as given to `open_sets`, holds prepared records."""
    return directory is not None and (expanded(directory) / manifest.FILE).exists()


def tile_shape(directory: str | None, size: int) -> tuple[int, int]:
    """Height and width of the tiles that `open_sets` will open; no record is read.

    Raises:
      UserError: the folder is no set of prepared tiles that this version reads.
    """
    if not is_prepared(directory):
        return size, size
    height, width = manifest.read(expanded(str(directory)))["request"]["size"]
    return height, width


def absolute(place: str | None) -> str | None:
    """A folder as every working directory names it; None and nothing stay as they are."""
    return os.path.abspath(expanded(place)) if place else place


def identify(sets: dict[str, Split], directory: str | None) -> dict[str, Any]:
    """What a run keeps of its data: `sha256` of the records' pixels, and their `directory`.

    Also their size, and how their images were read, where that was chosen, see
    `manifest.read_request`. The sets are what `open_sets` opened by that directory.

    Raises:
      UserError: a record cannot be read.
    """
    records = sets["val"].directory
    known = {"sha256": identity.of(records), "directory": absolute(directory)}
    return known | manifest.read_request(records)


def _prepare(
    source: Path | None, cache: Path, size: int, limit: int | None, seed: int, boundaries: bool
) -> Path:
    if source is None:
        name = _embedded(seed)
        source, limit = cache / name, None
        synthetic.write(source, tiles=EMBEDDED_TILES, seed=seed)
    elif not (source / "annotation.json").exists() and not (source / "masks").is_dir():
        if not source.exists():
            raise UserError(
                f"data.directory={source}: there is no such folder; give the place of the tiles by "
                f"--config.data.directory=DIR, in tvjax.evaluate by --data=DIR"
            )
        raise UserError(
            f"data.directory={source} holds neither prepared tiles ({manifest.FILE}) nor "
            f"images/ with annotation.json or masks/; see python -m tvjax.data.prepare --help"
        )
    else:
        path = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:8]
        name = f"{source.resolve().name}-{path}-limit{limit}-seed{seed}"
    coco = source / "annotation.json"
    annotations = coco if coco.exists() else source / "masks"
    # What was made from other images stays: a run may be reading it, and they may come back.
    for number in itertools.count(1):
        out = cache / (name + _ending(size, boundaries) + (f"-{number}" if number > 1 else ""))
        with contextlib.suppress(manifest.Differs):
            builder.build(
                annotations, source / "images", out, size=size, limit=limit, seed=seed,
                boundaries=touching.PIXELS if boundaries else None,
            )  # fmt: skip
            break
    return out
