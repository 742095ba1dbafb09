"""How well rankers find wrong labels: faults are planted, and counted among the first.

    python -m experiments.label_faults --name=embedded --out=results/label_faults [--data=TILES]

Of `--tiles` training tiles of a set (without `--data` the embedded one), one of twenty gets a wrong
mask: a quarter of these are shifted by 4 pixels, a quarter emptied, a quarter inverted, and a
quarter swapped with one another. Each ranker of `tvjax.label_faults` orders the tiles; its
precision is the share of wrong ones among the first k, for k up to twice as many as there are.
Other forms of the hypergradient rank `--variants` of the draws too. OUT/NAME.json has a line per
draw and ranker, and OUT/label_faults.png is drawn from all such files in OUT. The same command goes
on where it stopped.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from configs import unet
from experiments import kept, lambda_claims
from tvjax import fields, files, label_faults, program, provenance
from tvjax.data import pipeline, sets
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.training import figures, interrupt, rankers
from tvjax.training.rankers import Ranker, Work
from tvjax.training.setup import make_setup
from tvjax.types import Config

KINDS = "shifted", "emptied", "inverted", "swapped"
PIXELS = 4
"""How far a mask is shifted."""
LEAST = 0.02
"""Least share of a tile that is object, for its mask to be made wrong."""
SHARE = 0.05
"""Share of the tiles whose mask is made wrong."""
SECTIONS = "model", "optimizer", "schedule", "loss", "augmentation", "train"
"""What is kept of the config."""
FIGURE = "label_faults.png"
STYLES = {
    "training_loss": ("#4c78a8", "training loss"), "out_of_fold": ("#f58518", "out of fold"),
    "hypergradient": ("#e45756", "hypergradient"),
}  # fmt: skip


def define_flags() -> None:
    flags.DEFINE_string("name", "embedded", "Name of the set, and of its file in --out.")
    flags.DEFINE_string(
        "data", None, "Folder of prepared tiles, e.g. TILES; default: the embedded set."
    )
    flags.DEFINE_string("out", None, "Folder of the results, e.g. OUT.", required=True)
    flags.DEFINE_string("workdir", "runs/label_faults", "Folder of the trainings.")
    flags.DEFINE_integer("size", 32, "Side, in pixels, of tiles that are prepared here.")
    flags.DEFINE_integer("tiles", 240, "Training tiles that are drawn, of which some get faults.")
    flags.DEFINE_integer("seeds", 5, "Number of draws, each with trainings of its own.", 1)
    flags.DEFINE_integer("steps", 200, "Steps of a training.")
    flags.DEFINE_integer("width", 8, "Filters of the net's first block.")
    flags.DEFINE_float("rate", 1e-2, "Learning rate of Adam.")
    flags.DEFINE_integer(
        "variants", 0, "Number of draws that other forms of the hypergradient rank too."
    )


class Faulty:
    """A source of records like a split's, with other masks."""

    def __init__(self, split: Split, masks: np.ndarray):
        self.split, self.masks = split, masks

    def __len__(self) -> int:
        return len(self.masks)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        found = self.split.__getitems__(indices)
        return [
            record | {"mask": self.masks[k], "file": record["file"].encode()}
            for k, record in zip(indices, found, strict=True)
        ]


class Planted(NamedTuple):
    """Masks, some of which were made wrong."""

    masks: np.ndarray
    """uint8 `[N, H, W, 1]`."""
    kind: np.ndarray
    """Text `[N]`: the kind of the fault, empty where there is none."""


def plant(masks: np.ndarray, seed: int, share: float = SHARE) -> Planted:
    """Makes some masks wrong, a quarter of these in each way.

    Args:
      masks: uint8 `[N, H, W, 1]` of 0 and 1.
      seed: seed of the draw.
      share: share of the masks that are made wrong.

    Raises:
      UserError: too few masks hold objects.
    """
    rng, masks = np.random.default_rng([seed, 16]), masks.copy()
    usable = rng.permutation(np.flatnonzero(masks.mean(axis=(1, 2, 3)) >= LEAST))
    each = max(round(share * len(masks) / 4), 1)
    if len(usable) < 4 * each or each < 2:
        raise UserError(
            f"{len(masks)} tiles, {len(usable)} of which hold objects, are too few for {4 * each} "
            "faults of four kinds, 2 of each at least; take more --tiles"
        )
    shifted, emptied, inverted, swapped = rows = usable[: 4 * each].reshape(4, each)
    for k in shifted:
        masks[k] = _shifted(masks[k], *((PIXELS, 0), (-PIXELS, 0), (0, PIXELS), (0, -PIXELS))[
            rng.integers(4)])  # fmt: skip
    masks[emptied] = 0
    masks[inverted] = 1 - masks[inverted]
    masks[swapped] = np.roll(masks[swapped], 1, axis=0)
    kind = np.full(len(masks), "", object)
    for name, each_rows in zip(KINDS, rows, strict=True):
        kind[each_rows] = name
    return Planted(masks, kind.astype(str))


def _shifted(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    """The mask moved; what comes in from outside is background."""
    height, width = mask.shape[:2]
    padded = np.pad(mask, [(PIXELS, PIXELS), (PIXELS, PIXELS), (0, 0)])
    top, left = PIXELS - down, PIXELS - right
    return padded[top : top + height, left : left + width]


def precision(kind: np.ndarray, order: np.ndarray) -> list[float]:
    """The share of wrong labels among the first k, for k from 1 to twice their number."""
    wrong = (kind != "")[order][: 2 * np.sum(kind != "")]
    return (np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).tolist()


def measure(kind: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """What is kept of a ranking."""
    order, number = np.argsort(-score, kind="stable"), int(np.sum(kind != ""))
    first = kind[order[:number]]
    return {
        "faults": number,
        "precision": [round(x, 4) for x in precision(kind, order)],
        "found": {name: int(np.sum(first == name)) for name in KINDS},
    }


def variants() -> dict[str, Ranker]:
    """Other forms of the hypergradient, by what is other."""
    return {
        "one run": rankers.hypergradient(runs=1),
        "Adam": rankers.hypergradient(optimizer={}),
        "15 validation tiles": rankers.hypergradient(most=15),
        "eight passes": rankers.hypergradient(epochs=8, runs=2),
        "learned, Adam": learned({}),
        "learned, momentum": learned(rankers.DESCENT),
    }


def learned(optimizer: Mapping[str, Any]) -> Ranker:
    """The weights that the program learns while it trains, one step at a time, by Adam on each."""

    def rank(work: Work) -> rankers.Ranking:
        split, config = work.splits["train"], work.config.copy_and_resolve_references()
        config.optimizer.update(optimizer)
        config.hypergrad.update(method="exact", learn=("tile_weights",), every=1)
        setup = make_setup(config, split[0]["image"].shape[:2], tiles=len(split))
        rows = np.arange(len(split))
        state = rankers.train(work._replace(config=config, setup=setup), rows, "learned")
        score = -np.asarray(state.hyper["tile_weights"])
        return rankers.Ranking(score, np.zeros(len(rows)), [state], np.zeros(len(rows), int))

    return rank


def config_of(args: Any, seed: int) -> Config:
    """The config of the nets."""
    config: Config = unet.get_config()
    config.seed, config.data.directory, config.data.size = seed, args.data, args.size
    config.model.width, config.optimizer.learning_rate = args.width, args.rate
    config.train.steps = config.checkpoint.every = args.steps
    fields.check(config)
    return config


def open_seed(args: Any, splits: dict[str, Split], seed: int) -> tuple[dict[str, Split], Planted]:
    """The splits of a seed, with wrong masks among the training tiles."""
    whole = splits["train"]
    if not 0 < args.tiles <= len(whole):
        raise UserError(f"--tiles={args.tiles}: the set has {len(whole)} training tiles")
    rows = np.random.default_rng(seed).permutation(len(whole))[: args.tiles]
    part = whole.part(np.sort(rows))
    planted = plant(pipeline.gather(part, range(len(part))).mask, seed)
    faulty = Split(whole.directory, whole.name, Faulty(part, planted.masks))
    return splits | {"train": faulty}, planted


def rank(
    args: Any, splits: dict[str, Split], planted: Planted, seed: int, name: str, ranker: Ranker,
    stop: interrupt.Stop,
) -> dict[str, Any]:  # fmt: skip
    """The line of a ranker and a seed."""
    folder = Path(args.workdir) / args.name / str(seed)
    work = rankers.make_work(config_of(args, seed), splits, folder, stop)
    began = time.process_time()
    found = measure(planted.kind, ranker(work).score)
    seconds = round(time.process_time() - began, 1)
    for old in folder.glob("hypergradient_*.npy"):  # other forms would take them for their own
        old.unlink()
    shutil.rmtree(folder / "learned", ignore_errors=True)
    return {"seed": seed, "ranker": name, **found, "processor_seconds": seconds}


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Each ranker's precision among as many as there are faults, and half: mean, interval."""
    found = {}
    for name in dict.fromkeys(line["ranker"] for line in lines):
        own = [line for line in lines if line["ranker"] == name]
        found[name] = {"seeds": len(own), "at_faults": interval([at(x, 1.0) for x in own]),
                       "at_half": interval([at(x, 0.5) for x in own]),
                       "found": {k: sum(x["found"][k] for x in own) for k in KINDS},
                       "of_each": sum(x["faults"] for x in own) // len(KINDS)}  # fmt: skip
    return found


def at(line: dict[str, Any], part: float) -> float:
    """The precision among the first of a ranking, as many as this part of the faults."""
    return line["precision"][round(part * line["faults"]) - 1]


def interval(values: list[float]) -> list[float]:
    """Mean, and Student's 95 % interval over seeds, within [0, 1]; the mean alone of one."""
    mean = lambda_claims.mean(values)
    ends = [] if len(values) < 2 else np.clip(mean[1:], 0, 1)
    return [round(float(x), 3) for x in (mean.value, *ends)]


def read_all(out: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder by their names.

    Raises:
      UserError: a JSON file there is damaged or none of them, or the figure is not theirs.
    """

    def read(result: dict[str, Any]) -> None:
        summarise(result["lines"])
        _ = result["lines"][0]["seed"], result["config"]["tiles"]

    found = {p.stem: kept.load(p, read, "out") for p in sorted(out.glob("*.json"))}
    if not found:
        files.check_replaced("out", out, (FIGURE,), "there is no result of this program")
    return found


def draw(out: Path) -> None:
    """The precision of each ranker over k, a panel per set, from the files in a folder."""
    results = read_all(out)
    figure, axes = plt.subplots(
        1, len(results), figsize=(4.4 * len(results), 3.4), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axis, (set_name, result) in zip(axes[0], results.items(), strict=True):
        for name, (color, label) in STYLES.items():
            own = [x for x in result["lines"] if x["ranker"] == name]
            if own:
                curve = np.mean([x["precision"] for x in own], axis=0)
                axis.plot(np.arange(1, len(curve) + 1), curve, color=color, label=label)
        number = result["lines"][0]["faults"]
        axis.axhline(number / result["config"]["tiles"], color="0.5", linestyle=":", label="chance")
        axis.axvline(number, color="0.7", linewidth=0.8)
        seeds = len({x["seed"] for x in result["lines"]})
        axis.set(xlabel=f"first k ({number} labels are wrong)", title=f"{set_name}, {seeds} seeds")
        axis.set(ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of wrong labels among them")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figures.save(figure, out / FIGURE)


def describe(args: Any, splits: dict[str, Split]) -> dict[str, Any]:
    """What lines of one file have in common."""
    config = json.loads(config_of(args, 0).to_json())
    config = {name: config[name] for name in SECTIONS}
    return {"set": args.name, "tiles": args.tiles, "pixels_shifted": PIXELS, "share": SHARE,
            "net": config, kept.DIGEST: sets.identify(splits, args.data)["sha256"]}  # fmt: skip


def main(argv) -> None:
    del argv
    args: Any = flags.FLAGS
    out, config = Path(args.out), config_of(args, 0)
    files.check_folder("out", out)
    path, workdir = out / f"{args.name}.json", Path(args.workdir) / args.name
    read_all(out)
    with interrupt.Stop() as stop:
        program.cache_compilations(Path(config.data.cache) / "compiled")
        splits = sets.open_section(config.data)
        made_of = describe(args, splits)
        lines = kept.lines(path, made_of, "lines", summarise)
        kept.claim(workdir / "made_of.json", made_of, "workdir")
        done = {(line["seed"], line["ranker"]) for line in lines}
        for seed, name, ranker in todo(args):
            if (seed, name) not in done:
                faulty, planted = open_seed(args, splits, seed)
                lines.append(rank(args, faulty, planted, seed, name, ranker, stop))
                write(path, made_of, lines)
                print(f"{name}, seed {seed}: {at(lines[-1], 1.0):.2f}", flush=True)
    write(path, made_of, lines)
    draw(out)
    print(json.dumps(summarise(lines), indent=1))


def todo(args: Any) -> Iterator[tuple[int, str, Ranker]]:
    """Seeds and rankers in their order: the program's own, then other forms."""
    for chosen, seeds in ((label_faults.RANKERS, args.seeds), (variants(), args.variants)):
        yield from (
            (seed, name, ranker) for seed in range(seeds) for name, ranker in chosen.items()
        )


def write(path: Path, made_of: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Writes what is known by now."""
    content = {"config": made_of, **provenance.describe(0), "lines": lines,
               "summary": summarise(lines)}  # fmt: skip
    kept.write(path, content, indent=1)


if __name__ == "__main__":
    define_flags()
    interrupt.run(main)
