"""The one training loop: plain or bilevel, resident or streamed, fresh or resumed."""

import hashlib
import itertools
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tvjax import program, provenance
from tvjax.data import pipeline
from tvjax.data.records import Split
from tvjax.data.sets import open_sets
from tvjax.errors import UserError
from tvjax.training import figures, rundir
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.evaluation import baselines, choose_denoising, evaluate
from tvjax.training.logs import Logs, read_metrics
from tvjax.training.setup import Setup, make_setup
from tvjax.training.state import TrainState
from tvjax.types import Config, PyTree


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run was saved at `step` and resumes by the same command."""

    def __init__(self, step: int):
        super().__init__(f"interrupted: saved at step {step}; the same command resumes from there")


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains, evaluates all three splits, and writes the summary; what is done is not done again.

    The test split is read here, once, at the end.

    Returns:
      The content of `summary.json`.

    Raises:
      Interrupted: after saving, on Ctrl-C or SIGTERM.
      UserError: for a config, data or workdir that cannot be so.
    """
    rundir.open_run(workdir, config)
    finished = rundir.read_summary(workdir, config)
    if finished is not None:
        return finished
    program.cache_compilations(Path(config.data.cache) / "compiled")
    splits = open_sets(**{k: config.data[k] for k in config.data if k != "resident"})
    image_shape = splits["train"][0]["image"].shape
    setup = make_setup(config, image_shape[:2])
    state, seconds = train(config, setup, splits, workdir)
    batch_size = config.evaluation.batch_size
    began = time.perf_counter()
    denoise, sweep = None, {}
    if config.denoise.weights:
        denoise, ious = choose_denoising(
            setup, state, splits["val"], config.denoise.weights, batch_size=batch_size
        )
        sweep = {"denoising_val_iou": ious}
        figures.sweep(ious, workdir / "sweep.png")
    scores = {
        name: evaluate(setup, state, split, batch_size=batch_size, denoise=denoise)
        for name, split in splits.items()
    }
    weights = setup.regularizer.weight(state.hyper)
    lam = float(np.mean(weights)) if denoise is None else denoise
    batch = (config.train.batch_size, *image_shape[:2])
    summary = {
        **{f"{name}_iou": score["iou"] for name, score in scores.items()},
        "lambda": lam,
        **({"lambdas": np.asarray(weights).tolist()} if np.ndim(weights) else {}),
        "lambda_per_pixel": setup.regularizer.pixel_weight(lam, batch),
        **sweep,
        "steps": int(state.step),
        "seconds": seconds + time.perf_counter() - began,
        "parameters_sha256": parameters_sha256(state),
        "splits": scores,
        "test_baselines": baselines(splits["test"], batch_size=batch_size),
        **provenance.describe(config.seed),
    }
    rundir.write_summary(workdir, summary)
    return summary


def train(
    config: Config, setup: Setup, splits: dict[str, Split], workdir: Path
) -> tuple[TrainState, float]:
    """Trains to `config.train.steps`, resuming from the newest checkpoint in `workdir`.

    Returns:
      The final state, and the seconds of training and evaluation over all sessions of the run.

    Raises:
      Interrupted: after saving, on Ctrl-C or SIGTERM.
      UserError: on a loss that is not finite; the last good checkpoint stays.
    """
    state, run = setup.create(), {"seconds": 0.0, "sums": {}, "count": 0}
    with Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep) as checkpoints:
        restored = checkpoints.restore(state)
        if restored is not None:
            state, run = restored
        start = int(state.step)
        with Logs(workdir, start=start, steps=config.train.steps) as logs, _Stop() as stop:
            session = _Session(config, setup, splits, workdir, checkpoints, logs, run)
            state = session.steps(state, start, stop)
    return state, session.seconds()


def parameters_sha256(state: TrainState) -> str:
    """The digest of the bytes of all parameters (in the order of their names) and of hyper."""
    digest = hashlib.sha256()
    for leaf in [*jax.tree.leaves(state.inner.params), state.hyper]:
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


class _Session:
    """One uninterrupted stretch of a run: what its steps write to, and since when."""

    def __init__(self, config, setup, splits, workdir, checkpoints, logs, run):
        self.config, self.setup, self.splits, self.workdir = config, setup, splits, workdir
        self.checkpoints, self.logs = checkpoints, logs
        self.before, self.began = run["seconds"], time.perf_counter()
        # Sums of metrics since the last line of the log: saved, so that a resumed run logs the same
        self.sums, self.count = dict(run["sums"]), run["count"]
        self.shown: dict[str, str] = {}

    def seconds(self) -> float:
        """Seconds of the whole run up to now."""
        return self.before + time.perf_counter() - self.began

    def steps(self, state: TrainState, start: int, stop: "_Stop") -> TrainState:
        """Takes the steps that are left."""
        config, setup = self.config, self.setup
        resident, train, val = _feeds(config, setup, self.splits, start)
        pending: tuple[int, int, PyTree] | None = None
        if start == 0 < config.train.steps:
            self._evaluate(state, 0)
        step = start
        while step < config.train.steps:
            before, k = step, setup.plan.estimator.steps if setup.plan.estimator else 1
            if setup.plan.is_due(step) and step + k <= config.train.steps:
                inner = [next(train) for _ in range(k)]
                state, metrics = setup.bilevel(state, resident, inner, next(val))
                step += k
            else:
                state, metrics = setup.plain(state, resident, [next(train)])
                step += 1
            # The metrics of the step before are fetched only now: the device is never idle.
            if pending is not None:
                self._log(*pending)
            pending = before, step, metrics
            done = step == config.train.steps
            evaluates = done or _passes(before, step, config.evaluation.every)
            saves = done or stop.asked or _passes(before, step, config.checkpoint.every)
            if evaluates or saves:
                self._log(*pending)
                pending = None
            if evaluates:
                self._evaluate(state, step)
            if saves:
                self._save(state, step, wait=done or stop.asked)
            if stop.asked and not done:
                raise Interrupted(step)
        return state

    def _log(self, before: int, step: int, metrics: PyTree) -> None:
        values = {k: float(np.mean(v)) for k, v in jax.device_get(metrics).items()}
        bad = [k for k, v in values.items() if not math.isfinite(v)]
        if bad:
            last = next(iter(self.checkpoints.steps), None)
            kept = "no checkpoint was saved yet" if last is None else f"checkpoint {last} is kept"
            raise UserError(
                f"step {step}: {bad[0]} is {values[bad[0]]}, training stops ({kept} in "
                f"{self.workdir}); try a smaller optimizer.learning_rate or regularizer.weight"
            )
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        self.count += 1
        done = step == self.config.train.steps
        if done or _passes(before, step, self.config.train.log_every):
            means = {k: total / count for k, (total, count) in self.sums.items()}
            means["lambda"] = values["lambda"]
            self.logs.scalars(step, "train", means)
            self.shown |= {"loss": f"{means['loss']:.3f}", "IoU": f"{means['iou']:.3f}"}
            self.sums, self.count = {}, 0
        self.shown["lambda"] = f"{values['lambda']:.3g}"
        self.logs.advance(step, self.shown, images=self.config.train.batch_size)

    def _evaluate(self, state: TrainState, step: int) -> None:
        scores = evaluate(
            self.setup, state, self.splits["val"], batch_size=self.config.evaluation.batch_size
        )
        self.logs.scalars(step, "val", scores)
        self.shown["val IoU"] = f"{scores['iou']:.3f}"
        self._draw(state, step)

    def _draw(self, state: TrainState, step: int) -> None:
        metrics = read_metrics(self.workdir)
        figures.learning_curves(metrics, self.workdir / "curves.png")
        if self.setup.plan.estimator is not None:
            figures.lambda_over_time(metrics, self.workdir / "lambda.png")
        split = self.splits["val"]
        shown = [split[i] for i in range(min(self.config.evaluation.panels, len(split)))]
        if not shown:
            return
        images = np.stack([record["image"] for record in shown])
        _, probabilities = self.setup.predict(state, images)
        masks = np.stack([record["mask"] for record in shown])
        figure = figures.predictions(images, masks, np.asarray(probabilities))
        self.logs.image(step, "val/predictions", figures.pixels(figure))
        figures.save(figure, self.workdir / "predictions.png")

    def _save(self, state: TrainState, step: int, *, wait: bool) -> None:
        for path, leaf in jax.tree.leaves_with_path(state.inner):
            if not np.all(np.isfinite(np.asarray(leaf))):
                raise UserError(
                    f"step {step}: {jax.tree_util.keystr(path)} is not finite, training stops; "
                    f"earlier checkpoints in {self.workdir} are kept"
                )
        run = {"seconds": self.seconds(), "sums": self.sums, "count": self.count}
        self.checkpoints.save(state, run, wait=wait)


def _feeds(
    config: Config, setup: Setup, splits: dict[str, Split], start: int
) -> tuple[PyTree, Iterator[Any], Iterator[Any]]:
    """`(resident, train, val)`: arrays on the device, and endless iterators of batches.

    Positions are functions of the step: one training batch a step, one validation batch an update.
    """
    resident, train = _feed(
        config, setup, splits["train"], "train.batch_size", config.train.batch_size, start
    )
    if setup.plan.estimator is None:
        return (resident, ()), train, iter(())
    resident_val, val = _feed(
        config, setup, splits["val"], "hypergrad.batch_size", config.hypergrad.batch_size,
        setup.plan.updates(start),
    )  # fmt: skip
    return (resident, resident_val), train, val


def _feed(
    config: Config, setup: Setup, split: Split, field: str, batch_size: int, position: int
) -> tuple[PyTree, Iterator[Any]]:
    """What resides on the device of a split, and its batches (or their rows) from a position."""
    setup.layout.check_batch(field, batch_size)
    options = {"batch_size": batch_size, "seed": config.seed}
    try:
        indices = pipeline.train_indices(len(split), **options)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    if not config.data.resident:
        return (), pipeline.train_batches(split, start=position, **options)
    resident = setup.layout.replicate(pipeline.resident(split))
    return resident, (indices[t].astype(np.int32) for t in itertools.count(position))


def _passes(before: int, step: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, step]."""
    return step // every > before // every


class _Stop:
    """Notes Ctrl-C and SIGTERM for the loop to act on between steps; a second one is immediate."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "_Stop":
        self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _note(self, *_) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
