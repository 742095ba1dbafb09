"""Packs a set of tiles into one file that numpy alone can read, for machines without the records.

    python -m experiments.pack --out=FILE.npz [--data=TILES]

`SPLIT_image` uint8 `[N, H, W, 3]` and `SPLIT_mask` uint8 `[N, H, W, 1]` for each split.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from configs import base
from tvjax import files, program
from tvjax.errors import UserError
from tvjax.types import Batch, Config

SPLITS = ("train", "val", "test")


def define_flags() -> None:
    flags.DEFINE_string("out", None, "File to write, e.g. embedded.npz.", required=True)
    flags.DEFINE_string(
        "data", None, "Folder of prepared tiles, e.g. TILES; default: the embedded set."
    )


def read(path: Path | str | None) -> dict[str, Batch]:
    """The splits of a packed file, or of records (None or "embedded": of the embedded set).

    Raises:
      UserError: it is no such file, or its arrays are no images and masks.
    """
    if path is not None and str(path).endswith(".npz"):
        return _unpack(Path(path))
    from tvjax.data import pipeline, sets  # which need what a packed file does without

    config: Config = base.get_config()
    directory = None if path in (None, "embedded") else str(path)
    splits = sets.open_section(config.data, directory=directory)
    return {name: pipeline.resident(split) for name, split in splits.items()}


def _unpack(path: Path) -> dict[str, Batch]:
    if not path.is_file():
        raise UserError(f"--data={path}: there is no such file; see python -m experiments.pack")
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            sets = {s: Batch(file[f"{s}_image"], file[f"{s}_mask"]) for s in SPLITS}
    except Exception as error:  # numpy, zipfile and zlib raise all kinds of a damaged file
        missing = f": {error.args[0]}" if isinstance(error, KeyError) else ""
        raise UserError(
            f"--data={path} is no sound file of experiments.pack{missing}; pack the tiles anew"
        ) from error
    size = sets["train"].image.shape[1:3]
    for name, tiles in sets.items():
        fault = _fault(name, tiles, size)
        if fault:
            raise UserError(f"--data={path}: {fault}; pack the tiles by experiments.pack")
    return sets


def _fault(name: str, tiles: Batch, size: tuple[int, ...]) -> str:
    """What is wrong with the arrays of a split, in words; nothing: ''."""
    image, mask = tiles
    for key, array in tiles._asdict().items():
        if array.dtype != np.uint8:
            return f"{name}_{key} must be uint8; got {array.dtype}"
    if image.ndim != 4 or image.shape[-1] != 3 or 0 in image.shape:
        return f"{name}_image must be [N, H, W, 3] of at least one tile; got {image.shape}"
    if image.shape[1:3] != size:
        return f"{name}_image must have the size of train_image, {size}; got {image.shape}"
    if mask.shape != (*image.shape[:3], 1):
        return f"{name}_mask must be {(*image.shape[:3], 1)}, as {name}_image is; got {mask.shape}"
    return "" if mask.max() <= 1 else f"{name}_mask must hold 0 and 1; got {mask.max()}"


def main(argv) -> None:
    del argv
    args: Any = flags.FLAGS
    out = Path(args.out)
    if out.suffix != ".npz":
        raise UserError(f"--out={out} must end in .npz, e.g. {out}.npz")
    files.check_file("out", out)
    sets = read(args.data)
    arrays = {f"{s}_{k}": v for s, tiles in sets.items() for k, v in tiles._asdict().items()}
    with files.writing("out", out), files.making(out.parent), files.replacing(out) as temporary:
        np.savez_compressed(temporary, **arrays)
    counts = ", ".join(f"{s} {len(tiles.image)}" for s, tiles in sets.items())
    print(f"{out}: {counts} tiles, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    define_flags()
    program.run(main)
