"""What a run of each kind does: `(lab, run, folder of results) -> content of its result file`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import runs
from experiments.trainer import SPLITS, Trainer, save, summary


class Waits(Exception):
    """A training that a run needs has left no net."""


def train(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """Trains a net, keeps it, and scores all splits."""
    del folder
    trainer: Trainer = lab.trainer(run.data)
    config = lab.config(run)
    trained = trainer.train(config)
    save(lab.net(run), trained.state)
    programs = trainer.programs(config)
    scored = {s: trainer.score(programs, trained.state, s, most=_most(lab, s)) for s in SPLITS}
    weight = np.mean(np.asarray(programs.functions.regularizer.weight(trained.state.hyper)))
    shape = (config.train.batch_size, *trainer.tiles["train"].image.shape[1:3])
    return {
        "config": config.to_dict(),
        "tiles": {s: len(trainer.tiles[s].image) for s in SPLITS},
        "training_seconds": trained.seconds,
        "final_lambda": float(weight),
        "lambda_per_pixel": programs.functions.regularizer.pixel_weight(float(weight), shape),
        "course": trained.course,
        "scores": {s: summary(found) for s, found in scored.items()},
        "test_tiles": [round(float(x), 3) for x in scored["test"]["iou"]],
    }


def _most(lab, split: str) -> int | None:
    return lab.scale.train_scored if split == "train" else None


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "long": train}
"""By the name that a run has."""
