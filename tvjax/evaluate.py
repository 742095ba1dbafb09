r"""Scores a trained run, or compares two methods: `python -m tvjax.evaluate --workdir=DIR`.

The last line is a JSON object: pooled IoU and F1, IoU as a mean over images (an empty one without a
prediction counts as 1) and over those that hold objects, boundary IoU, how compact the masks are,
and COCO's average precision and recall of the objects, whose score is their mean probability;
`score` names the headline, which is the config's `evaluation.score`. Scored are the tiles of a
split, or the images of any COCO file in their own size:

    python -m tvjax.evaluate --workdir=DIR --annotations=A.json --images=DIR --scale=0.3333

(`--scale`, and what holds without it, as in `tvjax.predict`). `--out=DIR` keeps `scores.json`,
`per_image.csv`, `results.json` (COCO results) and `grid.png`, the images of best, median and worst
IoU.

Two methods are compared by several runs of each, which differ in their seeds, on the same images:

    python -m tvjax.evaluate --workdir=A1,A2,A3 --against=B1,B2,B3 --split=test

The interval of the difference counts the chance of seeds and of images, of which neighbours are
drawn together; runs of the same seeds and data are paired. What may be claimed is said in words.
One run of either cannot tell methods apart: then two runs are compared by image, by Wilcoxon's
signed-rank test and a bootstrap. `--out` then holds the folders `1`, `2`, ... of the runs in their
order, and `comparison.json`.

`--checkpoint` chooses what is scored of a run: `newest`, `best` by validation score, or a step.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from tvjax import files, interruption, program
from tvjax.data import arrangement, coco, pictures, scaling, workspace
from tvjax.data.reading import Reading
from tvjax.errors import UserError, short
from tvjax.inference import separation, tiles
from tvjax.inference.predictor import Predictor
from tvjax.inference.scales import Scales
from tvjax.scoring import claims, mask_scores, neighbours, scores, sides
from tvjax.scoring.comparison import describe_run
from tvjax.scoring.examples import Examples
from tvjax.training import restore, rundir
from tvjax.types import Config

COMPARISON = "comparison.json"
MADE = {
    "reading": "how their images were read (--bands, --black, --white)",
    "resolution": "metres per pixel",
    "scale": "the scale by which their images were shrunk",
}
"""What tiles may differ in, so that a net is asked for another task than it learned."""
KEPT = ("scores.json", "results.json", "per_image.csv", "grid.png")
"""What is written of each run."""

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", [], "Folder of the run, e.g. runs/roofs; or of runs of one method: A1,A2,A3."
)
_AGAINST = flags.DEFINE_multi_string(
    "against", [], "Folders of runs of another method to compare them with, e.g. B1,B2,B3."
)
_CHECKPOINT = program.define_checkpoint_flag()
_AUGMENT = program.define_augment_flag()
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
    "default: the only one. results.json has the first.",
)  # fmt: skip
_SCALE = flags.DEFINE_float(
    "scale",
    None,
    "The net's pixels per pixel of the COCO file's images, by side, e.g. 0.3333; default: images "
    "on a map as the run's tiles, others 1.",
)
_DENOISE = flags.DEFINE_float(
    "denoise",
    None,
    "Weight of a TV denoising of the probabilities, e.g. 0.1; default: the run's own; 0: none.",
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder to write into, e.g. SCORES; without it, scores are printed alone."
)


class Opened(NamedTuple):
    """A run that is to be scored."""

    run: sides.Run
    net: Predictor
    config: Config
    scales: Scales
    """How the images are scaled for it."""
    out: Path | None
    """Where its scores go."""


def main(argv: list[str]) -> None:
    """Evaluates and prints."""
    del argv
    first, second = sides.folders(_WORKDIR.value), sides.folders(_AGAINST.value)
    _check_flags(first, second)
    chosen = _CATEGORY.value[0] if _CATEGORY.value else None
    category = coco.choose_category(_ANNOTATIONS.value, chosen) if _OUT.value else 1
    places = _folders(len(first) + len(second))
    for place in filter(None, places):
        files.check_folder("out", place)
        _check_replaced(place, KEPT)
    if _OUT.value and second:
        _check_replaced(Path(_OUT.value), (COMPARISON,))
    opened = [_open(*pair) for pair in zip([*first, *second], places, strict=True)]
    runs = [one.run for one in opened]
    sides.check(runs[: len(first)], runs[len(first) :])
    examples, source, clusters = _open_examples(opened)
    scales = _scale(opened, examples)
    found = [
        _score(one, examples, scaled, source, category)
        for one, scaled in zip(opened, scales, strict=True)
    ]
    reports = [report for report, _ in found]
    if not second:
        print(describe_run(reports[0]), file=sys.stderr)  # stdout is the JSON object alone
    names = "boundary_pixels", "true_components", "narrow_components"
    print(mask_scores.describe_band(*(reports[0][name] for name in names)), file=sys.stderr)
    if not second:
        print(json.dumps(reports[0]))
        return
    rows = [result.images for _, result in found]
    one, two = runs[: len(first)], runs[len(first) :]
    blocks = neighbours.find([r["name"] for r in rows[0]], [r["id"] for r in rows[0]], clusters)
    compared = claims.compare(one, two, rows, blocks=blocks, score=reports[0]["score"])
    interruption.check()
    warnings = sides.warn(one, two)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(claims.describe(compared, reports))
    result = {
        "runs": reports[: len(first)], "against": reports[len(first) :], **_settings(),
        "comparison": compared, "warnings": warnings,
    }  # fmt: skip
    print(json.dumps(result))
    if _OUT.value:
        with files.writing("out", Path(_OUT.value)):
            text = json.dumps(result, indent=2) + "\n"
            files.write_text(Path(_OUT.value) / COMPARISON, text)


def _check_replaced(out: Path, names: Sequence[str]) -> None:
    """Refuses to replace what is not of this program, whose first file is known by its fields."""
    try:
        if files.read_object(out / names[0]).keys() >= {"denoise", "checkpoint"}:
            return
    except (OSError, ValueError):
        pass  # none, or of something else
    files.check_replaced("out", out, names, f"there is no {names[0]} of tvjax.evaluate")


def _check_flags(first: list[str], second: list[str]) -> None:
    """Refuses flags that cannot be so, or that would not matter."""
    if not first:
        raise UserError("--workdir: give the folder of a run, or of runs of one method: A1,A2,A3")
    if len(first) > 1 and not second:
        raise UserError(
            f"--workdir names {len(first)} runs; name those to compare them with by --against"
        )
    sides.check_folders(first, second)
    if bool(_ANNOTATIONS.value) != bool(_IMAGES.value):
        raise UserError("--annotations and --images belong together: a COCO file and its folder")
    if _SCALE.value is not None:
        scaling.check_scale(_SCALE.value)
    is_file = bool(_ANNOTATIONS.value)
    useless = {
        f"split={_SPLIT.value}": is_file and flags.FLAGS["split"].present,
        f"data={_DATA.value}": is_file and _DATA.value,
        f"category={next(iter(_CATEGORY.value), None)}": not is_file and _CATEGORY.value,
        f"scale={_SCALE.value}": not is_file and _SCALE.value not in (None, 1),
    }
    why = "prepared tiles, and --annotations scores the images of a COCO file; leave one out"
    if not is_file:
        why = "a COCO file's images; leave it out, or give --annotations and --images"
    for flag in (flag for flag, is_given in useless.items() if is_given):
        raise UserError(f"--{flag} is of {why}")
    for place in filter(None, _folders(len(first) + len(second))):
        _check_no_images(place)


def _check_no_images(out: Path) -> None:
    """Refuses the folder of the images, or one of theirs within, where `grid.png` would be one."""
    real, images = Path(os.path.realpath(out)), Path(os.path.realpath(_IMAGES.value or out))
    there = real.iterdir() if images in real.parents and real.is_dir() else ()
    if (_IMAGES.value and real == images) or any(
        file.suffix.lower() in pictures.SUFFIXES and file.name not in KEPT for file in there
    ):
        raise UserError(f"--out={out} holds images; grid.png there would be taken for an image")


def _folders(number: int) -> list[Path | None]:
    """Where the results of each run go."""
    if not _OUT.value:
        return [None] * number
    out = Path(_OUT.value)
    return [out] if number == 1 else [out / str(k + 1) for k in range(number)]


def _open(workdir: str, out: Path | None) -> Opened:
    interruption.check()
    net, config = open_net(Path(workdir))
    digest = hashlib.sha256(repr((net.denoise, net.denoise_kind)).encode())
    for leaf in jax.tree.leaves(net.state):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    method, data = rundir.method_of(config), rundir.read_data(Path(workdir))
    scales = rundir.read_scales(Path(workdir), _SCALE.value) if _ANNOTATIONS.value else Scales()
    run = sides.Run(workdir, config.seed, method, digest.hexdigest(), data)
    return Opened(run, net, config, scales, out)


def open_net(workdir: Path) -> tuple[Predictor, Config]:
    """The net of a run and its config."""
    net = Predictor.load(
        workdir, denoise=_DENOISE.value, checkpoint=_CHECKPOINT.value, augment=_AUGMENT.value,
        contact=True,
    )  # fmt: skip
    if net.channels > 1:
        separation.require_skimage()
    return net, restore.read_config(workdir)


def _open_examples(opened: list[Opened]) -> tuple[Examples, dict[str, Any], dict[int, int]]:
    """What is scored, what says so in the reports, and which tiles are known to be neighbours."""
    if _ANNOTATIONS.value and _IMAGES.value:
        reading = _reading([Path(one.run.workdir) for one in opened])
        examples = Examples.of_coco(_ANNOTATIONS.value, _IMAGES.value, _CATEGORY.value, reading)
        return examples, {"annotations": _ANNOTATIONS.value}, {}
    first = opened[0]
    splits, data = restore.open_data(first.config, _DATA.value)
    check_data(Path(first.run.workdir), data)
    for one in opened:
        _note_other_making(Path(one.run.workdir), data)
    split = splits[_SPLIT.value]
    clusters = arrangement.read_clusters(split.directory)
    return Examples.of_split(split), {"split": _SPLIT.value, "data": data}, clusters


def _reading(workdirs: list[Path]) -> Reading:
    """How the images of a COCO file are read, as those of the runs' tiles were."""
    first, *others = (rundir.read_images_of(workdir)[0] for workdir in workdirs)
    for workdir, other in zip(workdirs[1:], others, strict=True):
        if other != first:
            raise UserError(
                f"{workdir} was trained on images that were read otherwise than those of "
                f"{workdirs[0]} (--bands, --black or --white); score them one by one"
            )
    return first


def _scale(opened: list[Opened], examples: Examples) -> list[list[float]]:
    """The scales of all images for each run; says once what is to be told of them."""
    found = {scales: examples.scales(scales) for scales in dict.fromkeys(o.scales for o in opened)}
    for words in dict.fromkeys(words for _, told in found.values() for words in told):
        print(f"note: {words}", file=sys.stderr)
    return [found[one.scales][0] for one in opened]


def _settings() -> dict[str, Any]:
    """How runs are scored, as the flags say."""
    return {
        "scale": _SCALE.value, "denoise": _DENOISE.value, "checkpoint": _CHECKPOINT.value,
        "augment": _AUGMENT.value,
    }  # fmt: skip


def _own_settings(one: Opened, scales: Sequence[float]) -> dict[str, Any]:
    """How a run is scored: its own denoising, and the scale, or the least and the greatest one."""
    ends = [min(scales, default=1.0), max(scales, default=1.0)]
    scale = ends[0] if ends[0] == ends[1] else ends
    return _settings() | {"scale": scale, "denoise": one.net.denoise or 0.0}


def _score(
    one: Opened,
    examples: Examples,
    scales: Sequence[float],
    source: dict[str, Any],
    category: int,
) -> tuple[dict[str, Any], scores.Scores]:
    """The report of a run and its scores, which are written if they are to be kept."""
    interruption.check()
    is_split = not _ANNOTATIONS.value  # whose tiles are taken as in training
    whole = (
        next(iter(examples.sizes), None) if is_split else rundir.read_size(Path(one.run.workdir))
    )
    sizes = scores.scaled_sizes(examples, scales)
    tiling = tiles.choose_tiling(sizes, one.net, whole=whole)
    result = scores.score(examples, one.net, tiling, scales=scales, category=category)
    report = {
        "workdir": one.run.workdir, "seed": one.run.seed, **source, **_own_settings(one, scales),
        "step": int(one.net.state.step), "score": one.config.evaluation.score, **result.summary,
    }  # fmt: skip
    if one.out:
        with workspace.beside(one.out / "scores.json") as work, files.writing("out", one.out):
            keep(work, examples, scales, one.net, tiling, result, report)
            interruption.check()
            for name in KEPT:
                (work / name).replace(one.out / name)
    return report, result


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
        print(
            f"note: {str(error).partition('; ')[0]}, and are scored: the "
            "run may have been trained on some of them",
            file=sys.stderr,
        )


def _note_other_making(workdir: Path, data: dict[str, Any]) -> None:
    """Tells where the tiles that are scored were made otherwise than those of a run's training."""
    own = rundir.read_data(workdir) or {"sha256": data["sha256"]}
    for name, words in MADE.items() if own["sha256"] != data["sha256"] else ():
        one, two = own.get(name), data.get(name)
        is_number = not (None in (one, two) or isinstance(one, dict) or isinstance(two, dict))
        if not (np.allclose(one, two, rtol=0.1) if is_number else one == two):  # pyright: ignore
            print(
                f"note: the tiles that {workdir} was trained on and those that are scored differ "
                f"in {words}: {short(one)} and {short(two)}",
                file=sys.stderr,
            )


def keep(
    out: Path,
    examples: Examples,
    scales: Sequence[float],
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
    shown = [(examples.get(k), scales[k]) for _, k in chosen]
    figures.save(
        figures.predictions(
            [example.image for example, _ in shown],
            [example.mask for example, _ in shown],
            [scores.probabilities(e, net, tiling, scale=scale)[..., :1] for e, scale in shown],
            labels=[f"{name}: IoU {result.images[k]['iou']:.3f}" for name, k in chosen],
        ),
        out / "grid.png",
    )


if __name__ == "__main__":
    program.run(main)
