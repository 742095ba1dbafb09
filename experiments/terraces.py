"""What parting roofs that touch is worth: COCO's average precision of nets with and without.

    python -m experiments.terraces --out=DIR [--seeds=N] [--steps=N]

Draws rows of houses that share walls or stand a few pixels apart, 400 tiles to train on and 100 to
score, in DIR; trains U-Nets with `data.boundaries` and without, and scores the 100 tiles in their
own size. `result.json` has, of each training, the average precision of connected components, and of
nets with boundaries also that of objects parted by the watershed. The same command goes on where it
was stopped.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from configs import unet
from experiments import kept
from tvjax import files, interruption, program, provenance
from tvjax.data import builder
from tvjax.data.embedded import ground, synthetic
from tvjax.data.embedded.paint import Canvas, Frame, photograph, rectangle, stroke
from tvjax.data.embedded.roofs import FLAT, PITCHED, Building, paint_roof
from tvjax.inference import tiles
from tvjax.inference.predictor import Predictor
from tvjax.scoring import scores
from tvjax.scoring.examples import Examples
from tvjax.training import interrupt, loop, rundir
from tvjax.types import Config

SIDE, SCALE = 192, 0.5
"""Pixels of a tile as it is drawn, and the net's pixels per pixel."""
NUMBERS = {"train": 400, "test": 100}
SHARED, CLOSE = 0.65, 0.2
"""Shares of the neighbours in a row that share a wall, and that stand at most `NARROW` apart."""
NARROW = 4.0
KEPT = "ap", "ap50", "ap75", "pooled_iou", "boundary_iou"


def define_flags() -> None:
    flags.DEFINE_string("out", None, "Folder of the tiles and the result, e.g. OUT.", required=True)
    flags.DEFINE_integer("seeds", 3, "Number of trainings of each way.")
    flags.DEFINE_integer("steps", 400, "Steps of a training.")
    flags.DEFINE_integer("boundaries", 4, "Pixels of prepare's --boundaries.")


def row(rng: np.random.Generator, street: Frame, y: float, width: float) -> list[Building]:
    """The houses of a row along a street, the middle of each at `y` in the street's frame."""
    palette = FLAT if rng.random() < 0.3 else PITCHED
    style = "flat" if palette is FLAT else str(rng.choice(["gable", "hip"]))
    uniform, x, found = rng.random() < 0.5, -1.2 * SIDE, []
    colour = ground.pick(rng, palette)
    while x < 1.2 * SIDE:
        length = rng.uniform(9, 20)
        if not uniform:
            colour = ground.pick(rng, palette)
        tinted = colour * rng.normal(1, 0.04, 3) * rng.uniform(0.85, 1.1)
        frame = Frame(street((x + length, y + rng.choice([0, 0, 3]))), street.angle)
        found.append(Building(frame, length, width, (), rng.uniform(7, 12), style, tinted))
        kind = rng.random()
        gap = 0.0 if kind < SHARED else rng.uniform(1, NARROW)
        x += 2 * length + (gap if kind < SHARED + CLOSE else rng.uniform(12, 40))
    return found


def draw(seed: int, number: int) -> tuple[Any, list[np.ndarray]]:
    """One tile: the picture, and the outlines of its roofs, float `[K, 2]` each."""
    rng = np.random.default_rng([seed, number])
    canvas = Canvas(rng, SIDE)
    climate = str(rng.choice(list(ground.GROUNDS)))
    street = Frame(rng.uniform(0, SIDE, 2), rng.uniform(0, np.pi))
    whole = rectangle(0, 0, SIDE, SIDE)
    canvas.fill(whole, canvas.texture(ground.soil(rng, climate), 0.09, 0.12))
    width, period = rng.uniform(11, 18), rng.uniform(70, 95)
    found = [b for k in range(-3, 4) for b in row(rng, street, k * period + 30, width)]
    for k in range(-3, 4):
        middle = street((0, k * period - period / 2 + 30))
        ground.road(canvas, Frame(middle, street.angle), rng.uniform(7, 11), 2.5)
    canvas.cast_shadows([(b.outline(), b.height) for b in found], canvas.shadow_depth)
    for building in found:
        paint_roof(canvas, building)
        if rng.random() < 0.5:  # a party wall that stands above the roof
            a, b = building.length, building.width
            start, end = building.frame([(a, -b), (a, b)])
            canvas.fill(stroke(start, end, 1.6), np.full(3, rng.choice([0.25, 0.75])))
    trees = [(rng.uniform(0, SIDE, 2), ground.crown(rng)) for _ in range(rng.poisson(3))]
    ground.plant(canvas, trees, climate)
    picture = photograph(canvas)
    outlines = (building.outline() for building in found)
    return picture, [o for o in outlines if synthetic.is_inside(o, SIDE)]


def write(directory: Path, number: int, seed: int) -> None:
    """Writes `images/` and `annotation.json`, unless they are there."""
    if (directory / "annotation.json").exists():
        return
    (directory / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for k in range(number):
        interruption.check()
        picture, outlines = draw(seed, k)
        picture.save(directory / "images" / f"{k:04d}.png")
        images.append({"id": k, "file_name": f"{k:04d}.png", "height": SIDE, "width": SIDE})
        annotations += [
            synthetic.annotation(len(annotations) + i, k, o) for i, o in enumerate(outlines)
        ]
    content = {"categories": [synthetic.CATEGORY], "images": images, "annotations": annotations}
    files.write_text(directory / "annotation.json", json.dumps(content))


def make_config(out: Path, seed: int, steps: int, *, boundaries: bool) -> Config:
    """The training of one net."""
    config = unet.get_config()
    config.seed, config.data.directory = seed, str(out / "tiles")
    config.data.boundaries = boundaries
    config.schedule.name, config.schedule.warmup = "cosine", 20
    config.augmentation.flips = config.augmentation.turns = True
    config.train.steps = config.evaluation.every = steps
    config.train.batch_size, config.model.depth = 8, 3
    return config


def score(out: Path, workdir: Path, *, contact: bool) -> dict[str, Any]:
    """What is kept of the scores of a run on the test tiles."""
    net = Predictor.load(workdir, contact=contact)
    examples = Examples.of_coco(out / "test" / "annotation.json", out / "test" / "images")
    scales = [SCALE] * len(examples.sizes)
    sizes = scores.scaled_sizes(examples, scales)
    tiling = tiles.choose_tiling(sizes, net, whole=rundir.read_size(workdir))
    summary = scores.score(examples, net, tiling, scales=scales).summary
    return {name: round(summary[name], 4) for name in KEPT}


def main(argv: list[str]) -> None:
    """Draws, prepares, trains and scores."""
    del argv
    out, given = Path(flags.FLAGS.out), flags.FLAGS
    files.check_folder("out", out)
    config = {"steps": given.steps, "boundaries": given.boundaries}
    kept.claim(out / "result.json", config)
    for seed, (name, number) in enumerate(NUMBERS.items()):
        write(out / name, number, seed)
    train = out / "train"
    builder.build(
        train / "annotation.json", train / "images", out / "tiles", size=int(SIDE * SCALE),
        boundaries=given.boundaries,
    )  # fmt: skip
    found: dict[str, list[Any]] = {"without": [], "components": [], "parted": []}
    for seed in range(given.seeds):
        for boundaries in (False, True):
            workdir = out / "runs" / f"{'with' if boundaries else 'without'}-{seed}"
            loop.run(make_config(out, seed, given.steps, boundaries=boundaries), workdir)
            if boundaries:
                found["parted"].append(score(out, workdir, contact=True))
            kind = "components" if boundaries else "without"
            found[kind].append(score(out, workdir, contact=False))
        kept.write(out / "result.json", {"config": config, **found, **provenance.describe(0)})
    print(json.dumps({kind: [row["ap"] for row in rows] for kind, rows in found.items()}))


if __name__ == "__main__":
    define_flags()
    try:
        program.run(main, interrupted=interrupt.INTERRUPTED)
    except interrupt.Interrupted as interrupted:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(interrupt.INTERRUPTED)
