"""Packs a set of tiles into one file that numpy alone can read, for machines without the records.

    python -m experiments.pack --out=FILE.npz [--data=TILES]

`SPLIT_image` uint8 `[N, H, W, 3]` and `SPLIT_mask` uint8 `[N, H, W, 1]` for each split.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from configs import base
from tvjax import program
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
      UserError: it is no such file.
    """
    if path is not None and str(path).endswith(".npz"):
        try:
            with np.load(path) as file:
                return {s: Batch(file[f"{s}_image"], file[f"{s}_mask"]) for s in SPLITS}
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"--data={path} is no file of experiments.pack ({error})") from error
    from tvjax.data import pipeline, sets  # which need what a packed file does without

    config: Config = base.get_config()
    directory = None if path in (None, "embedded") else str(path)
    splits = sets.open_section(config.data, directory=directory)
    return {name: pipeline.resident(split) for name, split in splits.items()}


def main(argv) -> None:
    del argv
    args: Any = flags.FLAGS
    out, sets = Path(args.out), read(args.data)
    arrays = {f"{s}_{k}": v for s, tiles in sets.items() for k, v in tiles._asdict().items()}
    np.savez_compressed(out, **arrays)
    counts = ", ".join(f"{s} {len(tiles.image)}" for s, tiles in sets.items())
    print(f"{out}: {counts} tiles, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    define_flags()
    program.run(main)
