"""What near-duplicates between training and test tiles do to a score, and how many there are.

    python -m experiments.leakage [--data=DIR] --out=DIR [--planted=SHARE] [--seeds=N]

DIR holds prepared tiles, or images with annotation.json or masks; without it the embedded set is
taken. Where a set has no near-duplicates, twins are planted in it: of half of the tiles a second
window that is turned, encoded anew, brightened, or overlaps the first one.

`result.json` has the share of test tiles that have a twin in training, by splits drawn tile by tile
(random) and by splits that keep twins together (clustered), and the test scores of U-Nets trained
both ways. Both ways have the same test tiles and as many training tiles: of those of a random
split, clustered leaves out the twins of test tiles, and random as many of the others. `pairs.png`
shows twins side by side. The same command goes on where it was stopped.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from configs import unet
from experiments import kept, twins
from experiments.trainer import Trainer, summary
from tvjax import files, interruption, program, provenance
from tvjax.data import arrangement, duplicates, identity, sets, splits
from tvjax.errors import UserError
from tvjax.scoring import methods
from tvjax.training import figures
from tvjax.types import Batch, Config

FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of the splits whose leaks are counted, as `prepare` draws them."""
TRAINED = (0.7, 0.05, 0.25)
"""Shares of the splits that nets are trained on: more test tiles."""
WAYS = "random", "clustered"
SHOWN = 12
"""Pairs on the sheet."""


def define_flags() -> None:
    flags.DEFINE_string(
        "data", None, "Folder of tiles, prepared or not, e.g. TILES; default: the embedded set."
    )
    flags.DEFINE_string(
        "out", None, "Folder of the result and the picture, e.g. OUT.", required=True
    )
    flags.DEFINE_integer("size", 86, "Side, in pixels, of tiles that are prepared here.")
    flags.DEFINE_integer(
        "limit", None, "Number of tiles to draw at random, e.g. 500; default: all."
    )
    flags.DEFINE_float(
        "planted", None, "Share of tiles that get a twin, 0 to 1, e.g. 0.3; default: 0 or 0.5."
    )
    flags.DEFINE_integer("draws", 50, "Number of splits over which shares are averaged.", 1)
    flags.DEFINE_integer("seeds", 5, "Number of trainings of each way.")
    flags.DEFINE_integer("steps", 800, "Steps of a training.")
    flags.DEFINE_integer("width", 8, "Filters of the net's first block.")
    flags.DEFINE_integer("batch_size", 8, "Tiles in a step.")


class Known(NamedTuple):
    """A set of tiles and what is known of its twins."""

    tiles: twins.Tiles
    pairs: np.ndarray
    """Int `[P, 2]`: near-duplicates by the hashes of the images."""
    together: np.ndarray
    """Int `[N]`, equal for tiles that a clustered split keeps together."""


def read(directory: str | None, *, size: int, limit: int | None) -> tuple[np.ndarray, ...]:
    """Images, masks and clusters of all tiles of a set, or of a number of them drawn at random."""
    config: Config = unet.get_config()
    options: dict[str, Any] = {"directory": directory, "size": size, "limit": None, "seed": 0}
    opened = sets.open_sets(cache=config.data.cache, **options)
    records = [split[k] for split in opened.values() for k in range(len(split))]
    known = arrangement.read_clusters(opened["train"].directory)
    labels = [known.get(record["id"], -1 - k) for k, record in enumerate(records)]
    rows = np.arange(len(records))
    if limit is not None:
        if not 0 < limit <= len(rows):
            raise UserError(
                f"--limit={limit}: the set has {len(rows)} tiles; give 1 to {len(rows)}"
            )
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:limit])
    images, masks = (np.stack([records[k][name] for k in rows]) for name in ("image", "mask"))
    return images, masks, np.array(labels)[rows]


def know(images: np.ndarray, masks: np.ndarray, labels: np.ndarray, planted: float | None) -> Known:
    """Finds the twins of a set, or plants some where there are none.

    Args:
      images: uint8 `[N, S, S, 3]`.
      masks: uint8 `[N, S, S, 1]`.
      labels: int `[N]`, equal for tiles of one cluster as they were prepared.
      planted: share of the tiles that get a twin; None: 0.5 where there are no near-duplicates.
    """
    pairs = duplicates.pairs(_hashes(images))
    if planted is None:
        planted = 0.0 if len(pairs) else 0.5
    if planted:
        tiles = twins.plant(images, masks, share=planted, seed=0)
        pairs = duplicates.pairs(_hashes(tiles.image))
        return Known(tiles, pairs, splits.together(_joined(tiles, pairs), tiles.scene))
    tiles = twins.Tiles(images, masks, splits.join(len(images), pairs), np.full(len(images), ""))
    return Known(tiles, pairs, splits.together(tiles.scene, labels))


def _joined(tiles: twins.Tiles, pairs: np.ndarray) -> np.ndarray:
    return splits.join(len(tiles.scene), pairs)


def _hashes(images: np.ndarray) -> np.ndarray:
    rows = []
    for image in tqdm(images, "hashing tiles", leave=False, delay=3):
        interruption.check()
        rows.append(duplicates.hashes(image))
    return np.stack(rows)


def leaked(labels: np.ndarray, assigned: np.ndarray) -> float:
    """The share of test tiles whose label some training tile has too."""
    return float(np.isin(labels[assigned == 2], labels[assigned == 0]).mean())


def shares(known: Known, draws: int) -> dict[str, float]:
    """Mean shares of test tiles with a twin in training, by how the splits are drawn."""
    number = len(known.together)
    ways = {"random": np.arange(number), "clustered": known.together}
    if known.tiles.kind.any():  # what hashes alone do not see is an overlap that names could tell
        ways["clustered_by_hashes_alone"] = _joined(known.tiles, known.pairs)
    return {
        way: float(np.mean([
            leaked(known.tiles.scene, splits.draw(labels, FRACTIONS, seed)) for seed in range(draws)
        ]))
        for way, labels in ways.items()
    }  # fmt: skip


def found_by_hashes(known: Known) -> dict[str, float]:
    """The share of each kind of planted twins that their hashes tell."""
    near = {tuple(pair) for pair in known.pairs.tolist()}
    told = np.array([(int(k), i) in near for i, k in enumerate(known.tiles.scene)])
    return {
        kind: float(told[known.tiles.kind == kind].mean())
        for kind in twins.KINDS
        if (known.tiles.kind == kind).any()
    }


def draw_both(
    labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Training both ways on one draw.

    Args:
      labels: int `[N]`, equal for twins.
      seed: seed of the draw.

    Returns:
      The test tiles; which of them have a twin in a random split's training; and of each way the
      training tiles, as many of one as of the other.
    """
    assigned = splits.draw(np.arange(len(labels)), TRAINED, seed)
    train, test = np.flatnonzero(assigned == 0), np.flatnonzero(assigned == 2)
    twin, rng = np.isin(labels[train], labels[test]), np.random.default_rng(seed)
    apart = train[~twin]
    leaky = np.concatenate([rng.permutation(train[twin]), rng.permutation(apart)])[: len(apart)]
    return test, np.isin(labels[test], labels[leaky]), {"random": leaky, "clustered": apart}


def summarise(scores: dict[str, np.ndarray], twin: np.ndarray) -> dict[str, float | None]:
    """Mean and pooled IoU, and the same over test tiles with a twin and over those without."""
    parts = {"": np.ones(len(twin), bool), "twins_": twin, "others_": ~twin}
    found: dict[str, float | None] = {"twins": int(twin.sum()), "test_tiles": len(twin)}
    for name, part in parts.items():
        own = summary({k: v[part] for k, v in scores.items()}) if part.any() else {}
        found[f"{name}test_iou"] = own.get("iou")
        found[f"{name}pooled_iou"] = own.get("pooled_iou")
    return found


def differences(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Random less clustered, paired by seed: mean, Student's 95 % interval, number of pairs."""
    by = {way: {x["seed"]: x for x in lines if x["split"] == way} for way in WAYS}
    seeds, found = sorted(by["random"].keys() & by["clustered"].keys()), {}
    for name in (f"{part}{score}" for part in ("", "twins_", "others_")
                 for score in ("test_iou", "pooled_iou")):  # fmt: skip
        values = [[by[way][s][name] for s in seeds] for way in reversed(WAYS)]
        if len(seeds) < 2 or None in (*values[0], *values[1]):
            continue
        one, two = map(np.array, values)
        parts, mean = methods.seed_parts(one, two, paired=True), float((two - one).mean())
        low, high = methods.interval(mean, parts or [], 0.95)
        found[name] = {"mean": mean, "low": low, "high": high, "pairs": len(seeds)}
    return found


def draw(known: Known, path: Path) -> None:
    """A sheet of twins side by side."""
    import matplotlib.pyplot as plt

    scenes, kind = known.tiles.scene, known.tiles.kind
    pairs = [(int(k), i) for i, k in enumerate(scenes) if kind[i]] or known.pairs.tolist()
    chosen = pairs[:SHOWN]
    rows = -(-len(chosen) // 3)
    figure, axes = plt.subplots(rows, 6, figsize=(5.4, 1.05 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    near = {tuple(pair) for pair in known.pairs.tolist()}
    for place, (i, j) in enumerate(chosen):
        row, column = divmod(place, 3)
        for side, k in enumerate((i, j)):
            axes[row, 2 * column + side].imshow(known.tiles.image[k])
        told = "found by hash" if (i, j) in near else "missed by hash"
        axes[row, 2 * column].set_title(f"{kind[j]} {told}".strip(), fontsize=5, loc="left", pad=2)
    figure.tight_layout(pad=0.4)
    figures.save(figure, path)


def config_of(args: Any) -> Config:
    """The net's config."""
    config: Config = unet.get_config()
    config.model.width = args.width
    config.train.steps, config.train.batch_size = args.steps, args.batch_size
    return config


def main(argv) -> None:
    del argv
    args: Any = flags.FLAGS
    out, config = Path(args.out), config_of(args)
    files.check_folder("out", out)
    if not (out / "result.json").exists():
        files.check_replaced("out", out, ("pairs.png",), "there is no result.json")
    if args.planted is not None and not 0 <= args.planted <= 1:
        raise UserError(f"--planted={args.planted} must be a share in [0, 1]")
    program.cache_compilations(Path(config.data.cache) / "compiled")
    images, masks, labels = read(args.data, size=args.size, limit=args.limit)
    known = know(images, masks, labels, args.planted)
    result = describe(known, args, config)
    lines = kept.lines(out / "result.json", result["config"], "scores", differences)
    print(json.dumps(result["share"]))
    out.mkdir(parents=True, exist_ok=True)
    if known.tiles.kind.any() or len(known.pairs):
        draw(known, out / "pairs.png")
        train_both(known, config, args.seeds, lines, save=lambda: write(out, result, lines))
    if not lines:
        write(out, result, lines)
    print(json.dumps(differences(lines), indent=1))


def describe(known: Known, args: Any, config: Config) -> dict[str, Any]:
    """What `result.json` has before anything is trained."""
    number, side = known.tiles.image.shape[:2]
    pairs = zip(known.tiles.image, known.tiles.mask, strict=True)
    fields = {
        "data": "embedded" if args.data is None else Path(args.data).name, "tiles": number,
        "planted": int(np.sum(known.tiles.kind != "")), "side": side, "draws": args.draws,
        "splits_counted": FRACTIONS, "splits_trained": TRAINED,
        "net": json.loads(config.to_json()), kept.DIGEST: identity.digest({"all": pairs}),
        "clusters": len(np.unique(known.together)),
    }  # fmt: skip
    return {
        "config": json.loads(json.dumps(fields)), **provenance.describe(0),
        "share": shares(known, args.draws), "near_duplicate_pairs": len(known.pairs),
        "found_by_hashes": found_by_hashes(known),
    }  # fmt: skip


def train_both(
    known: Known, config: Config, seeds: int, lines: list[dict[str, Any]], *, save: Callable
) -> None:
    """Trains both ways with each seed, but for what is in `lines` already, which it adds to."""
    trainer = None
    done = {(line["split"], line["seed"]) for line in lines}
    for seed in range(seeds):
        test, twin, training = draw_both(known.together, seed)
        for way in WAYS:
            if (way, seed) in done:
                continue
            # The scores of "val" during the training are not kept, so one tile will do.
            rows = {"train": training[way], "val": test[:1], "test": test}
            tiles = {
                name: Batch(known.tiles.image[r], known.tiles.mask[r]) for name, r in rows.items()
            }
            trainer = Trainer(tiles, trainer)
            config.seed = seed
            state = trainer.train(config).state
            scored = summarise(trainer.score(trainer.programs(config), state, "test"), twin)
            lines.append({"split": way, "seed": seed, "train_tiles": len(training[way]), **scored})
            save()
            print(f"{way}, seed {seed}: test IoU {scored['test_iou']:.4f}", flush=True)


def write(out: Path, result: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Writes what is known by now."""
    content = result | {"scores": lines, "difference": differences(lines)}
    kept.write(out / "result.json", content, indent=1)


if __name__ == "__main__":
    define_flags()
    program.run(main)
