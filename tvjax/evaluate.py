"""Scores a trained run: `python -m tvjax.evaluate --workdir=DIR [--split=val]`.

Prints one JSON object: IoU, pooled IoU and F1, boundary IoU, and how compact the masks are.
"""

import json
from pathlib import Path

from absl import flags, logging

from tvjax import program
from tvjax.errors import UserError
from tvjax.training import restore, rundir
from tvjax.training.evaluation import evaluate

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_enum("split", "val", ["train", "val", "test"], "Tiles to score.")
_DATA = flags.DEFINE_string("data", None, "Other tiles: prepared, or a COCO folder.")
_DENOISE = flags.DEFINE_float(
    "denoise", None, "Weight of a TV denoising of the probabilities; default: the run's own."
)


def main(argv: list[str]) -> None:
    """Evaluates and prints."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; all are flags, see --help")
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: give the folder of a run")
    logging.set_verbosity(logging.WARNING)
    workdir = Path(_WORKDIR.value)
    run = restore.open_run(workdir, directory=_DATA.value)
    denoise = _DENOISE.value
    if denoise is None and run.config.denoise.weights:
        summary = rundir.read_summary(workdir, run.config)
        denoise = summary["lambda"] if summary else None
    scores = evaluate(
        run.setup,
        run.state,
        run.splits[_SPLIT.value],
        batch_size=run.config.evaluation.batch_size,
        denoise=denoise,
    )
    print(json.dumps({"split": _SPLIT.value, "step": int(run.state.step), **scores}))


if __name__ == "__main__":
    program.run(main)
