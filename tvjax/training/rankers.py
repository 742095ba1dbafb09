"""Rankers of training tiles: the likelier a tile's label is wrong, the higher its score.

A ranker is a function of its work. Each trains by the program's own loop, in folders of its own, so
that what was interrupted goes on, and what is finished is read again.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from tvjax import files
from tvjax.data import arrangement
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.fields import TINY
from tvjax.training import feeds, loop, rundir, slopes
from tvjax.training.evaluation import tile_scores
from tvjax.training.interrupt import Stop
from tvjax.training.setup import Functions, Setup, check_sizes, make_setup
from tvjax.training.state import TrainState
from tvjax.types import Config

FOLDS = 3
"""Parts of the training tiles, each of which a net of the others judges."""
EPOCHS, RUNS = 2, 8
"""Passes over the tiles in a run of the hypergradient, and runs."""
DESCENT = MappingProxyType({"name": "sgd", "learning_rate": 0.05, "momentum": 0.9})
"""Optimiser in a run of the hypergradient, as fields of `config.optimizer`."""
TOGETHER, MOST = 512, 256
"""Most training tiles in a run of the hypergradient, whose memory grows with its steps, and most
validation tiles."""


class Work(NamedTuple):
    """What a ranker works with."""

    config: Config
    """How its nets are trained; lambda is held."""
    splits: dict[str, Split]
    folder: Path
    """Where its trainings lie."""
    stop: Stop
    setup: Setup
    """The functions of the config."""


class Ranking(NamedTuple):
    """What a ranker found."""

    score: np.ndarray
    """Float `[N]`, one number per training tile: the higher, the likelier its label is wrong."""
    iou: np.ndarray
    """Float `[N]`: IoU of label and net, 1 where both are empty."""
    nets: list[TrainState]
    net: np.ndarray
    """Int `[N]`: which of the nets judged the tile."""


Ranker = Callable[[Work], Ranking]


def make_work(config: Config, splits: dict[str, Split], folder: Path, stop: Stop) -> Work:
    """What rankers need, from the config of a training, in which nothing is learned but the net.

    The tiles of `splits["train"]` are ranked; `folder` is where trainings are kept.

    Raises:
      UserError: naming the field that cannot be so, or a link in the folder or in its place.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and trainings have a folder of their own; remove it")
    rundir.check_links(folder, "")
    config = config.copy_and_resolve_references()
    config.hypergrad.method = "none"
    config.evaluation.every = config.train.steps or 1
    config.evaluation.panels = config.checkpoint.keep_best = 0
    feeds.check_batches(config, splits)
    shape = splits["train"][0]["image"].shape[:2]
    setup = make_setup(config, shape)
    check_sizes(config, setup.layout, shape)
    return Work(config, splits, folder, stop, setup)


def train(work: Work, rows: np.ndarray, name: str) -> TrainState:
    """The state of a net after training on these tiles, perhaps by an earlier call.

    Of the tiles `rows` are the places among the training tiles; `name` is the training's folder.

    Raises:
      Interrupted: after saving.
      UserError: the training cannot be.
    """
    print(f"training {name.replace('_', ' ')}:", file=sys.stderr)
    folder = work.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    splits = work.splits | {"train": work.splits["train"].part(rows)}
    return loop.train(work.config, work.setup, splits, folder, work.stop)[0]


def training_loss(work: Work) -> Ranking:
    """The loss of each tile under a net that was trained on all of them.

        score_i = l(theta, tile_i),   l the cross-entropy, a mean over pixels

    Cost: one training. A net fits wrong labels last, and late: with few tiles or many steps it has
    learned them by heart, and their loss tells nothing.

    Raises:
      Interrupted: after saving.
      UserError: the training cannot be.
    """
    rows = np.arange(len(work.splits["train"]))
    state = train(work, rows, "on_all")
    found = _judge(work, state, rows)
    return Ranking(found["bce"], found["iou"], [state], np.zeros(len(rows), int))


def out_of_fold(folds: int = FOLDS) -> Ranker:
    """The loss of each tile under a net that never saw it.

        score_i = l(theta_k, tile_i),   theta_k trained without part k, which holds tile i

    Near-duplicates, and whatever else was prepared as one cluster, are in one part. All nets begin
    with the same parameters and are trained on as many tiles.

    Cost: one training per part. Nothing that a net judges can it have learned by heart; each is
    trained on fewer tiles, and on wrong labels of others.
    """

    def rank(work: Work) -> Ranking:
        part = parts(_clusters(work.splits["train"]), folds, work.config.seed)
        fewest = len(part) - np.bincount(part).max()
        score, iou, nets = np.zeros(len(part)), np.zeros(len(part)), []
        for k in range(folds):
            seen, own = np.flatnonzero(part != k), np.flatnonzero(part == k)
            kept = np.random.default_rng([work.config.seed, k]).permutation(seen)[:fewest]
            nets.append(train(work, np.sort(kept), f"without_part_{k + 1}_of_{folds}"))
            found = _judge(work, nets[-1], own)
            score[own], iou[own] = found["bce"], found["iou"]
        return Ranking(score, iou, nets, part)

    return rank


def hypergradient(
    *,
    epochs: int = EPOCHS,
    runs: int = RUNS,
    optimizer: Mapping[str, Any] = DESCENT,
    most: int = MOST,
) -> Ranker:
    """The derivative of the validation loss by each tile's weight, through whole short trainings.

        score_i = sum_r s_ri / rms(s_r),   s_ri = dL_val(theta_K) / dw_i  in run r,

    where theta_K comes of K steps (`epochs` passes over the tiles) of gradient descent with
    momentum from new parameters, and w_i = 1 is the weight of tile i in the inner loss. One reverse
    pass gives a run's derivatives by all weights. What raises the validation loss is likely wrong.

    Why so: the derivative is the change of the tile's loss along a direction that lowers the
    validation loss. Early in training all tiles agree on that direction; later it is the noise of a
    few validation tiles. One step sees a tile by one noisy direction, many steps average. Through
    Adam each number of the net is divided by its own running size, those that hardly matter too.

    What it cannot do: find wrong labels as well as the training loss does, which sums such changes
    over a whole training, with all other tiles in the place of a few validation tiles. Measured in
    docs/label-faults.md.

    Cost: per run four times that of its K steps; and one training, for the IoU.

    Raises:
      UserError: a derivative is not finite.
    """

    def rank(work: Work) -> Ranking:
        split = work.splits["train"]
        functions = slopes.make_weighted(work.config, split, optimizer)
        score = np.zeros(len(split))
        for run in range(runs):
            order = np.random.default_rng([work.config.seed, run]).permutation(len(split))
            for part, rows in enumerate(np.array_split(order, -(-len(split) // TOGETHER))):
                task = slopes.Run(rows, epochs, work.config.seed + run, most)
                found = _kept(work, functions, task, f"hypergradient_{run + 1}_{part + 1}")
                score[rows] += found / max(float(np.sqrt(np.mean(found**2))), TINY)
        return training_loss(work)._replace(score=score)

    return rank


def _kept(work: Work, functions: Functions, run: slopes.Run, name: str) -> np.ndarray:
    """The slopes of a run's tiles, float `[n]`, which an earlier call may have kept."""
    path = work.folder / f"{name}.npy"
    if not path.exists():
        found = _slopes(work, functions, run, name.replace("_", " "))
        work.folder.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            np.save(temporary, found)
    try:
        found = np.load(path)
        if found.shape == run.rows.shape and np.all(np.isfinite(found)):
            return found
    except (OSError, ValueError, EOFError):
        pass
    raise UserError(f"{path} is damaged; delete it, and run the same command again")


def _slopes(work: Work, functions: Functions, run: slopes.Run, label: str) -> np.ndarray:
    batches = slopes.batches_of(run, work.splits, work.config.train.batch_size)
    state = slopes.first(functions, work.config, run)
    found = slopes.through(functions, state, batches, stop=work.stop, label=label)[run.rows]
    if not np.all(np.isfinite(found)):
        raise UserError(f"{label}: a derivative is not finite; take another --ranker")
    return found


def predict(work: Work, ranking: Ranking, row: int) -> np.ndarray:
    """The probabilities of a training tile by the net that judged it, `[H, W, 1]` in [0, 1]."""
    image = work.splits["train"][row]["image"][None]
    return np.asarray(work.setup.predict(ranking.nets[ranking.net[row]], image)[1][0])


def parts(clusters: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Parts of about one size, int `[N]` from 0; each of the clusters, labels `[N]`, is in one.

    Raises:
      UserError: there are fewer clusters than parts.
    """
    labels, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    if len(labels) < folds:
        raise UserError(
            f"{len(clusters)} training tiles in {len(labels)} clusters of near-duplicates cannot "
            f"be judged in {folds} parts; take another --ranker, or more tiles"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    of, filled = np.zeros(len(labels), int), np.zeros(folds, int)
    for label in order[np.argsort(-sizes[order], kind="stable")]:
        of[label] = np.argmin(filled)
        filled[of[label]] += sizes[label]
    return of[index.ravel()]


def _judge(work: Work, state: TrainState, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each of these tiles under a net, `[n]`."""
    found = list(
        tile_scores(
            work.setup, state, work.splits["train"].part(rows),
            batch_size=work.config.evaluation.batch_size, before_each=work.stop.check,
        )
    )  # fmt: skip
    return {name: np.concatenate([each[name] for each in found]) for name in ("bce", "iou")}


def _clusters(split: Split) -> np.ndarray:
    """The number of the cluster of each tile, int `[N]`; own ones where none is known."""
    known = arrangement.read_clusters(split.directory)
    return np.array([known.get(split[k]["id"], -1 - k) for k in range(len(split))])
