r"""Ranks training tiles by how likely their label is wrong, for a look at the worst.

    python -m tvjax.label_faults --config=configs/unet.py --config.data.directory=TILES --out=DIR

In DIR: `labels.csv`, a line per training tile, the likeliest to be wrong first, with its id, its
file, its score, and the IoU of its label and a net; `worst.png`, a sheet of the first tiles with
the outlines of label (dashed) and net; `worst.csv`, their ids and files. Look at the sheet, delete
the lines of those whose label is right, and leave the others out (the rest stay in their splits):

    python -m tvjax.data.prepare ... --leave_out=DIR/worst.csv --split_file=TILES/splits.csv

A ranker scores tiles by nets that it trains as `tvjax.main` does; docs/label-faults.md says how
well each of them finds wrong labels. The same command goes on where it was stopped.
"""

import csv
import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from tvjax import fields, files, program
from tvjax.data import sets
from tvjax.data.records import Split
from tvjax.errors import Outage, UserError, escaped, short
from tvjax.training import feeds, interrupt, loop, pretrained, rankers, rundir
from tvjax.training.rankers import Ranking, Work
from tvjax.types import Config

RANKERS = {
    "training_loss": rankers.training_loss,
    "out_of_fold": rankers.out_of_fold(),
    "hypergradient": rankers.hypergradient(),
}
SHOWN = 60
"""Most tiles on the sheet."""
KEPT = "ranking.json"
"""What tells the ranking of a folder from others."""
DIGEST = "worst_sha256"
"""Name of the digest of the list as it was written, by which one that was edited is known."""


def define_flags() -> None:
    """The flags of the program."""
    program.define_config_flag()
    flags.DEFINE_string(
        "out", None, "Folder of the ranking and of its trainings, e.g. FAULTS.", required=True
    )
    flags.DEFINE_enum(
        "ranker", "training_loss", list(RANKERS),
        "What tells wrong labels: the loss of a net that was trained on all tiles, that of nets "
        "that never saw the tile, or the weights that a validation loss would give tiles.",
    )  # fmt: skip
    flags.DEFINE_integer(
        "worst", None, "Tiles on the list and on the sheet, e.g. 24; default: one of twenty."
    )


def main(argv: list[str]) -> None:
    """Trains what is missing, ranks, and writes."""
    del argv
    args: Any = flags.FLAGS
    config, out = args.config.copy_and_resolve_references(), Path(args.out)
    fields.check(config)
    files.check_folder("out", out)
    with loop.outages(out, "out"), interrupt.Stop() as stop:
        work = open_work(config, out, stop)
        count = number_of_worst(args.worst, len(work.splits["train"]))
        own = identify(work, args.ranker)
        kept = check_same(out, own)
        with rundir.lock(out, "out") as free:
            if not free:
                raise Outage(f"--out={out} is in use by another ranking; choose another")
            with files.writing("out", out):
                keep(out, own | kept)
            ranking = RANKERS[args.ranker](work)
            order = np.argsort(-ranking.score, kind="stable")
            with files.writing("out", out):
                written = write(out, work.splits["train"], ranking, order, count, kept)
                keep(out, own | written)
                draw(out / "worst.png", work, ranking, order[: min(count, SHOWN)])
    print(describe(out, work.splits["train"], config, ranking, order, count))


def open_work(config: Config, out: Path, stop: interrupt.Stop) -> Work:
    """Opens the tiles, and makes what rankers need.

    Raises:
      UserError: the config or the tiles cannot be.
    """
    config = pretrained.pinned(loop.placed(config), None)
    program.cache_compilations(Path(config.data.cache) / "compiled")
    splits = sets.open_section(config.data)
    stop.check()
    return rankers.make_work(feeds.streamed_if_large(config, splits), splits, out / "runs", stop)


def identify(work: Work, ranker: str) -> dict[str, Any]:
    """What tells a ranking from others."""
    data = sets.identify(work.splits, work.config.data.directory)
    own = {"ranker": ranker, "seed": work.config.seed, "tiles": data["sha256"]}
    return own | rundir.method_of(work.config)


def keep(out: Path, content: dict[str, Any]) -> None:
    """Writes what tells the ranking of a folder from others."""
    files.write_object(out / KEPT, content)


def check_same(out: Path, own: dict[str, Any]) -> dict[str, Any]:
    """Checks that a folder holds this ranking or none.

    Returns:
      The digest of the list that was written there, as `write` gives it; nothing of no list.

    Raises:
      UserError: it holds another one; the message names what differs.
    """
    try:
        kept = files.read_object(out / KEPT)
    except FileNotFoundError:
        written = "labels.csv", "worst.csv", "worst.png", "runs"
        files.check_replaced("out", out, written, f"there is no {KEPT}")
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{out / KEPT} cannot be read ({error}); name another --out") from error
    for name in sorted(own):
        if kept.get(name) != own[name]:
            raise UserError(
                f"--out={out} holds a ranking with {name}={short(kept.get(name))}, and now it is "
                f"{short(own[name])}; name another folder"
            )
    return {name: kept[name] for name in (DIGEST,) if name in kept}


def number_of_worst(asked: int | None, tiles: int) -> int:
    """How many tiles are put on the list: one of twenty, or as many as were asked for.

    Raises:
      UserError: there are not so many.
    """
    if asked is None:
        return max(round(tiles / 20), 1)
    if not 0 < asked <= tiles:
        raise UserError(f"--worst={asked}: there are {tiles} training tiles; give 1 to {tiles}")
    return asked


def write(
    out: Path,
    split: Split,
    ranking: Ranking,
    order: np.ndarray,
    count: int,
    kept: dict[str, Any],
) -> dict[str, Any]:
    """Writes the table of all tiles, and the list of the first, unless that was edited.

    The worst tiles come first in `order`; `kept` is what this gave when the list was last written:
    the digest of the list as it was written.
    """
    rows = [_row(split, ranking, k) for k in order]
    files.write_text(out / "labels.csv", _table(["id", "file", "score", "iou"], rows))
    text, path = _table(["id", "file"], rows[:count]), out / "worst.csv"
    before = path.read_bytes() if path.is_file() else b""
    found, own = (hashlib.sha256(content).hexdigest() for content in (before, text.encode()))
    if before and found not in (own, kept.get(DIGEST)):
        print(
            f"note: {escaped(str(path))} was edited, and stays as it is; move it away, and the "
            "same command writes it anew",
            file=sys.stderr,
        )
        return kept
    files.write_text(path, text)
    return {DIGEST: own}


def _table(columns: list[str], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _row(split: Split, ranking: Ranking, k: int) -> dict[str, Any]:
    place = {name: split[k][name] for name in ("id", "file")}
    return place | {"score": f"{ranking.score[k]:.6g}", "iou": f"{ranking.iou[k]:.4f}"}


def draw(path: Path, work: Work, ranking: Ranking, rows: np.ndarray) -> None:
    """Draws a sheet of tiles, the first in their order."""
    from tvjax.training import figures  # matplotlib is slow to load

    records = [work.splits["train"][k] for k in rows]
    shown = [rankers.predict(work, ranking, k) for k in rows]
    titles = [
        f"{place}: id {record['id']}, IoU {ranking.iou[k]:.2f}"
        for place, (k, record) in enumerate(zip(rows, records, strict=True), 1)
    ]
    images, masks = ([record[name] for record in records] for name in ("image", "mask"))
    figures.save(figures.sheet_of_labels(images, masks, shown, titles), path)


def describe(
    out: Path, split: Split, config: Config, ranking: Ranking, order: np.ndarray, count: int
) -> str:
    """What was found, for the reader of a terminal."""
    lines = ["rank      id   score     IoU  file"]
    for place, k in enumerate(order[: min(count, 10)], 1):
        row = _row(split, ranking, k)
        score = f"{ranking.score[k]:.4g}"
        lines.append(f"{place:>4} {row['id']:>7} {score:>7}  {row['iou']:>6}  {row['file']}")
    tiles = config.data.directory or "TILES"
    return "\n".join([
        *lines,
        f"all {len(order)} training tiles: {out}/labels.csv; the first {count}: "
        f"{out}/worst.png and {out}/worst.csv",
        "delete from worst.csv what is labelled right, and leave the others out: python -m "
        f"tvjax.data.prepare ... --leave_out={out}/worst.csv --split_file={tiles}/splits.csv",
    ])  # fmt: skip


if __name__ == "__main__":
    define_flags()
    interrupt.run(main)
