r"""Scores a trained run, or compares two: `python -m tvjax.evaluate --workdir=DIR [--split=val]`.

The last line is a JSON object: pooled IoU and F1, IoU as a mean over images (an empty one without a
prediction counts as 1) and over those that hold objects, boundary IoU, how compact the masks are,
and COCO's average precision and recall of the objects, whose score is their mean probability;
`score` names the headline, which is the config's `evaluation.score`. Scored are the tiles of a
split, or the images of any COCO file in their own size:

    python -m tvjax.evaluate --workdir=DIR --annotations=A.json --images=DIR --scale=0.3333

(`--scale` as in `tvjax.predict`). `--out=DIR` keeps `scores.json`, `per_image.csv`, `results.json`
(COCO results) and `grid.png`, the images of best, median and worst IoU. With a second `--workdir`
both are scored on the same images, in the folders `1` and `2` of `--out`, and compared by image:
Wilcoxon's signed-rank test and a bootstrap interval of the mean difference of IoU. These are of two
runs, not of two methods, of which another seed may say the contrary.

`--checkpoint` chooses what is scored of a run: `newest`, `best` by validation score, or a step.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from absl import flags

from tvjax import files, interruption, program
from tvjax.data import coco, workspace
from tvjax.errors import UserError
from tvjax.inference import tiles
from tvjax.inference.predictor import Predictor, own_denoising
from tvjax.scoring import boundaries, scores
from tvjax.scoring.comparison import compare, describe, describe_run, warn_of_data
from tvjax.scoring.examples import Examples
from tvjax.training import restore, rundir
from tvjax.types import Config

KEPT = ("scores.json", "results.json", "per_image.csv", "grid.png")
"""What is written of each run."""

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", [], "Folder of the run, e.g. runs/roofs; given twice, two runs are compared."
)
_CHECKPOINT = program.define_checkpoint_flag()
_SPLIT = flags.DEFINE_enum(
    "split", "val", ["train", "val", "test"], "Which of the run's tiles to score."
)
_DATA = flags.DEFINE_string(
    "data",
    None,
    "Where the run's tiles are now, or other tiles, e.g. TILES: prepared, or a COCO folder.",
)
_ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "A COCO file to score instead of a split, e.g. A.json."
)
_IMAGES = flags.DEFINE_string("images", None, "The folder of the COCO file's images, e.g. DIR.")
_CATEGORY = flags.DEFINE_multi_integer(
    "category", [], "COCO category whose annotations are objects, e.g. 100; repeatable; "
    "default: the only one. results.json has the first; of a split 1.",
)  # fmt: skip
_SCALE = flags.DEFINE_float(
    "scale", 1.0, "The net's pixels per pixel of the COCO file's images, by side, e.g. 0.3333."
)
_DENOISE = flags.DEFINE_float(
    "denoise",
    None,
    "Weight of a TV denoising of the probabilities, e.g. 0.1; default: the run's own; 0: none.",
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder to write into, e.g. SCORES; without it, scores are printed alone."
)


def main(argv: list[str]) -> None:
    """Evaluates and prints."""
    del argv
    if not 1 <= len(_WORKDIR.value) <= 2:
        raise UserError("--workdir: give the folder of a run, or of two runs to compare them")
    if bool(_ANNOTATIONS.value) != bool(_IMAGES.value):
        raise UserError("--annotations and --images belong together: a COCO file and its folder")
    if not 0 < _SCALE.value < math.inf:
        raise UserError(f"--scale={_SCALE.value} must be positive and finite")
    if _ANNOTATIONS.value and flags.FLAGS["split"].present:
        raise UserError(
            f"--split={_SPLIT.value} is of the prepared tiles, and --annotations scores all images "
            "of a COCO file; leave one out"
        )
    if _ANNOTATIONS.value and _DATA.value:
        raise UserError(
            f"--data={_DATA.value} is of prepared tiles, and --annotations scores the images of a "
            "COCO file; leave one out"
        )
    if not _ANNOTATIONS.value and _SCALE.value != 1:
        raise UserError(
            f"--scale={_SCALE.value} is of a COCO file's images, and tiles have the net's size "
            "already; leave it out, or give --annotations and --images"
        )
    chosen = _CATEGORY.value[0] if _CATEGORY.value else None
    category = coco.choose_category(_ANNOTATIONS.value, chosen) if _OUT.value else 1
    folders = [_folder(number) for number in range(1, len(_WORKDIR.value) + 1)]
    for folder in filter(None, folders):
        files.check_folder("out", folder)
    examples: Examples | None = None
    if _ANNOTATIONS.value and _IMAGES.value:
        examples = Examples.of_coco(_ANNOTATIONS.value, _IMAGES.value, _CATEGORY.value)
    source: dict[str, Any] = (
        {"split": _SPLIT.value} if examples is None else {"annotations": _ANNOTATIONS.value}
    )
    found, reports, trained_on = [], [], []
    for workdir, folder in zip(_WORKDIR.value, folders, strict=True):
        interruption.check()
        net, step, config = open_net(Path(workdir))
        trained_on.append(rundir.read_data(Path(workdir)))
        if examples is None:
            splits, data = restore.open_data(config, _DATA.value)
            check_data(Path(workdir), data)
            source["data"] = data
            examples = Examples.of_split(splits[_SPLIT.value])
        tiling = tiles.choose_tiling(scores.scaled_sizes(examples, _SCALE.value), net)
        result = scores.score(examples, net, tiling, scale=_SCALE.value, category=category)
        headline = {"step": step, "score": config.evaluation.score}
        reports.append({"workdir": workdir, **source, **headline, **result.summary})
        found.append(result)
        if folder:
            with workspace.beside(folder / "scores.json") as work, files.writing("out", folder):
                keep(work, examples, net, tiling, result, reports[-1])
                for name in KEPT:
                    (work / name).replace(folder / name)
    names = "boundary_pixels", "true_components", "narrow_components"
    if len(found) == 1:
        print(describe_run(reports[0]), file=sys.stderr)  # stdout is the JSON object alone
    print(boundaries.describe(*(reports[0][name] for name in names)), file=sys.stderr)
    if len(found) == 1:
        print(json.dumps(reports[0]))
        return
    ious = [[row["iou"] for row in result.images] for result in found]
    comparison = compare(*ious)
    warning = warn_of_data(*trained_on)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    print(describe(comparison, reports))
    print(json.dumps({"runs": reports, "comparison": comparison, "warning": warning}))
    if _OUT.value:
        with files.writing("out", Path(_OUT.value)):
            text = json.dumps(comparison, indent=2) + "\n"
            files.write_text(Path(_OUT.value) / "comparison.json", text)


def _folder(number: int) -> Path | None:
    """Where the results of a run go."""
    if not _OUT.value:
        return None
    return Path(_OUT.value) / (str(number) if len(_WORKDIR.value) > 1 else "")


def open_net(workdir: Path) -> tuple[Predictor, int, Config]:
    """The net of a run, its step and its config."""
    config, setup, state = restore.open_net(workdir, _CHECKPOINT.value)
    denoise = _DENOISE.value
    if denoise is None:
        denoise = own_denoising(workdir, config)
    kind = config.denoise.kind
    net = Predictor.of(setup, state, denoise=denoise, denoise_kind=kind)
    return net, int(state.step), config


def check_data(workdir: Path, data: dict[str, Any]) -> None:
    """Refuses other tiles than those of the run, unless `--data` asks for them: then notes it."""
    try:
        rundir.check_data(
            workdir, data,
            advice="give the place of the former by --data=DIR; it scores the latter too, if it "
            "names them",
        )  # fmt: skip
    except UserError as error:
        if _DATA.value is None:
            raise
        print(f"note: {str(error).partition('; ')[0]}, and are scored", file=sys.stderr)


def keep(
    out: Path,
    examples: Examples,
    net: Predictor,
    tiling: tiles.Tiling,
    result: scores.Scores,
    report: dict[str, Any],
) -> None:
    """Writes what was found into a folder."""
    from tvjax.training import figures  # matplotlib is slow to load

    (out / "scores.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "results.json").write_text(json.dumps(result.results) + "\n")
    scores.write_csv(result.images, out / "per_image.csv")
    chosen = [(name, k) for name, ks in scores.extremes(result.images).items() for k in ks]
    shown = [examples.get(k) for _, k in chosen]
    figures.save(
        figures.predictions(
            [example.image for example in shown],
            [example.mask for example in shown],
            [scores.probabilities(e, net, tiling, scale=_SCALE.value) for e in shown],
            labels=[f"{name}: IoU {result.images[k]['iou']:.3f}" for name, k in chosen],
        ),
        out / "grid.png",
    )


if __name__ == "__main__":
    program.run(main)
