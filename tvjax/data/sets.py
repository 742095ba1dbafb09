"""From the config's data section to prepared records, made at first use where they must be."""

import hashlib
from pathlib import Path
from typing import Any

from tvjax.data import builder, manifest, synthetic
from tvjax.data.records import Split, open_split
from tvjax.errors import UserError

EMBEDDED_TILES = 600
EMBEDDED_VERSION = 1
"""Of the embedded scenes; raise it when `synthetic` draws them otherwise."""


def open_sets(
    *, directory: str | None, cache: str, size: int, limit: int | None, seed: int
) -> dict[str, Split]:
    """Opens the splits `train`, `val` and `test`.

    Args:
      directory: prepared records, or a folder with `images/` and `annotation.json` or `masks/`,
        or None for the embedded set.
      cache: the folder that keeps what is prepared here.
      size: pixels, height and width of tiles that are prepared here.
      limit: how many tiles of a folder to draw; None takes all.
      seed: of the draw, the splits and the embedded scenes.

    Raises:
      UserError: there is nothing usable in `directory`, or the cache cannot be written.
    """
    if directory == "":
        raise UserError(
            "data.directory is not set: give prepared tiles, or a folder with images/ and "
            "annotation.json or masks/, by --config.data.directory=DIR"
        )
    prepared = Path(directory).expanduser() if directory else None
    if prepared is None or not (prepared / manifest.FILE).exists():
        prepared = _prepare(prepared, Path(cache).expanduser(), size, limit, seed)
    return {name: open_split(prepared, name) for name in ("train", "val", "test")}


def identity(
    *, directory: str | None, cache: str, size: int, limit: int | None, seed: int
) -> dict[str, Any]:
    """What tells the sets of two runs apart, as far as it can be told without opening them.

    Args:
      directory: as for `open_sets`, as are all others.
      cache: where it lies makes no difference.
      size: of tiles that are prepared at first use.
      limit: of the draw.
      seed: of the draw, the splits and the embedded scenes.

    Returns:
      Of prepared records what they were built from, wherever they lie; else the folder (None: the
      embedded set) and how it was prepared.
    """
    del cache
    if directory:
        path = Path(directory).expanduser()
        try:
            asked = manifest.read(path)["request"]
            digest = asked["annotations_sha256"][:12]
            return asked | {"images": None, "annotations_sha256": digest}
        except UserError:  # a folder that is prepared at first use, or is not here any more
            directory = str(path.resolve())
    return {"directory": directory, "size": size, "limit": limit, "seed": seed}


def _prepare(source: Path | None, cache: Path, size: int, limit: int | None, seed: int) -> Path:
    if source is None:
        name = f"embedded-{EMBEDDED_VERSION}-{EMBEDDED_TILES}-seed{seed}"
        source, limit = cache / name, None
        synthetic.write(source, tiles=EMBEDDED_TILES, seed=seed)
    elif not (source / "annotation.json").exists() and not (source / "masks").is_dir():
        raise UserError(
            f"data.directory={source} holds neither prepared tiles ({manifest.FILE}) nor "
            f"images/ with annotation.json or masks/; see python -m tvjax.data.prepare --help"
        )
    else:
        path = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
        name = f"{source.resolve().name}-{path}-limit{limit}-seed{seed}"
    out = cache / f"{name}-{size}px"
    coco = source / "annotation.json"
    annotations = coco if coco.exists() else source / "masks"
    builder.build(annotations, source / "images", out, size=size, limit=limit, seed=seed)
    return out
