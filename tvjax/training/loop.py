"""The one training loop: plain or bilevel, resident or streamed, fresh or resumed."""

import contextlib
import errno
import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from tvjax import fields, files, program, provenance
from tvjax.data import sets
from tvjax.data.records import Split
from tvjax.data.sets import open_section
from tvjax.errors import Outage, UserError
from tvjax.training import guard, idle, learned, parallel, pretrained, rundir
from tvjax.training.checkpoint import Checkpoints
from tvjax.training.evaluation import baselines, choose_denoising, describe_boundary, evaluate
from tvjax.training.feeds import (
    Dispatch,
    check_batches,
    dispatches,
    passes,
    streamed_if_large,
)
from tvjax.training.interrupt import Interrupted, Stop
from tvjax.training.logs import Logs, NoLogs, read_metrics
from tvjax.training.setup import Setup, check_sizes, make_setup
from tvjax.training.state import TrainState
from tvjax.types import Config, PyTree

_OTHER_DATA = (
    "give the place of the former by --config.data.directory=DIR, or train on the latter in "
    "another --workdir"
)


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains, evaluates all three splits, and writes the summary; what is done is not done again.

    The test split is read here, once, at the end. All processes of a job run this; the first alone
    writes (checkpoints excepted, which are written by all).

    Returns:
      The content of `summary.json`; in other processes than the first, nothing.

    Raises:
      Interrupted: after saving, on Ctrl-C or SIGTERM.
      UserError: for a config, data or workdir that cannot be so; an `Outage` for a full disk.
    """
    fields.check(config)
    # Checkpoints are of float32, also where the caller computes in float64.
    with jax.enable_x64(False), outages(workdir), Stop() as stop, contextlib.ExitStack() as held:
        config = pretrained.pinned(placed(config), rundir.recorded(workdir))
        rundir.check(workdir, config)
        finished = _finished(config, workdir)
        if finished is not None:
            return finished
        shape = sets.tile_shape(config.data.directory, config.data.size)
        setup = make_setup(config, shape)  # refuses what cannot be before anything is made
        check_sizes(config, setup.layout, shape)
        free = not parallel.is_first() or held.enter_context(rundir.lock(workdir))
        if not parallel.as_the_first(free):  # an outage: it may be one of this run that is ending
            raise Outage(f"--workdir={workdir} is in use by another training; choose another")
        program.cache_compilations(Path(config.data.cache) / "compiled")
        splits = _open_sets(config)
        stop.check()
        data = _identify(config, splits)
        rundir.check_data(workdir, data, advice=_OTHER_DATA)
        check_batches(config, splits)
        streamed = streamed_if_large(config, splits)
        tiles = len(splits["train"]) if "tile_weights" in learned.names(config) else None
        if streamed is not config or tiles is not None:
            config, setup = streamed, make_setup(streamed, shape, tiles=tiles)
            data |= {} if tiles is None else {"train_tiles": tiles}
        for words in idle.notes(config, setup.plan):
            parallel.say(words)
        state, session = train(config, setup, splits, workdir, stop, data)
        seconds = session.seconds()
        began = time.perf_counter()
        summary = _scores(config, setup, state, splits, stop)
        stop.check()
        if parallel.is_first():
            if "denoise_val_score" in summary:
                from tvjax.training import figures  # matplotlib is slow to load

                figures.sweep(summary["denoise_val_score"], workdir / "sweep.png")
            seconds += time.perf_counter() - began
            summary |= {"steps": int(state.step), "seconds": seconds}
            summary |= _provenance(config, state, splits["test"], data, session.changes)
            summary |= guard.describe(session.watch) | session.describe()
            if tiles is not None:
                learned.write_weights(state.hyper, workdir / "tile_weights.csv")
            rundir.write_summary(workdir, summary)
        # A process that ends waits for the others no longer than for one that is lost.
        parallel.wait_for_all("summary written")
        return summary if parallel.is_first() else {}


def _finished(config: Config, workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that is finished, in the first process; in others then nothing."""
    finished = rundir.read_summary(workdir, config)
    if not parallel.as_the_first(finished is not None):
        return None
    if parallel.is_first():
        _check_data_of_finished(config, workdir)
        if not (workdir / "config.json").exists():  # a damaged one was moved away
            rundir.write_config(workdir, config)
        known = finished.get("data") if finished else None
        if isinstance(known, dict) and rundir.read_data(workdir) is None:
            rundir.write_data(workdir, known)
    return finished or {}


def _provenance(
    config: Config, state: TrainState, test: Split, data: dict[str, Any], changes: list[Any]
) -> dict[str, Any]:
    """What the summary says of where its scores come from."""
    return {
        "parameters_sha256": parameters_sha256(state),
        "data": data,
        "test_baselines": baselines(test, batch_size=config.evaluation.batch_size),
        "test_boundary": describe_boundary(test),
        "precision": config.model.precision,
        **({"changes": changes} if changes else {}),
        **provenance.describe(config.seed),
    }


def placed(config: Config) -> Config:
    """The config, with folders that mean the same from every working directory."""
    config = config.copy_and_resolve_references()
    config.data.directory = sets.absolute(config.data.directory)
    config.model.weights = sets.absolute(config.model.weights)
    if not config.data.cache.startswith("~"):  # another machine has another home
        config.data.cache = sets.absolute(config.data.cache)
    return config


def _identify(config: Config, splits: dict[str, Split]) -> dict[str, Any]:
    """What tells the data apart, which must be the same in all processes."""
    data = sets.identify(splits, config.data.directory)
    if not parallel.agree(data["sha256"]):
        raise UserError(
            f"data.directory={config.data.directory}: the processes of this job find different "
            f"tiles there; give all of them the same (this one has {data['sha256'][:12]})"
        )
    return data


def _check_data_of_finished(config: Config, workdir: Path) -> None:
    """Refuses other data where they are at hand; what is gone, or was moved away, is not needed."""
    own, place = rundir.read_data(workdir), config.data.directory
    if own and (place != own["directory"] or sets.is_prepared(place)):
        data = sets.identify(open_section(config.data), place)
        rundir.check_data(workdir, data, advice=_OTHER_DATA)


def _open_sets(config: Config) -> dict[str, Split]:
    """The splits; where they must be made first, by the first process."""
    if parallel.is_first():
        open_section(config.data)
    parallel.wait_for_all("data prepared")
    return open_section(config.data)


def _scores(
    config: Config, setup: Setup, state: TrainState, splits: dict[str, Split], stop: Stop
) -> dict[str, Any]:
    """What the summary says of the trained net; computed by all processes together."""
    options = {"batch_size": config.evaluation.batch_size, "before_each": stop.check}
    denoise, found = None, []
    if config.denoise.weights:
        denoise, found = choose_denoising(
            setup, state, splits["val"], config.denoise.weights,
            score=config.evaluation.score, **options,
        )  # fmt: skip
    scores = {
        name: evaluate(setup, state, split, denoise=denoise, **options)
        for name, split in splits.items()
    }
    lams = np.asarray(setup.net.regularizer.lam(state.hyper))
    lam = float(np.mean(lams))
    batch = (config.train.batch_size, *splits["train"][0]["image"].shape[:2])
    return {
        "score": config.evaluation.score,  # the headline; the mean IoU over images is always told
        **{f"{name}_iou": score["iou"] for name, score in scores.items()},
        **{f"{name}_pooled_iou": score["pooled_iou"] for name, score in scores.items()},
        "lambda": lam,
        **({"lambdas": lams.tolist()} if lams.ndim else {}),
        "lambda_per_pixel": setup.net.regularizer.pixel_weight(lam, batch, config.loss.train),
        **learned.describe(state.hyper),
        "denoise_weight": denoise,
        **({"denoise_val_score": found} if found else {}),
        "splits": scores,
    }


def train(
    config: Config,
    setup: Setup,
    splits: dict[str, Split],
    workdir: Path,
    stop: Stop,
    data: dict[str, Any] | None = None,
) -> tuple[TrainState, "_Session"]:
    """Trains to `config.train.steps`, resuming from the newest checkpoint in `workdir`.

    `data` is the identity of the tiles, which is kept in `workdir` as the config is: where nothing
    is refused any more.

    Returns:
      The final state, and what is known of the run besides: its seconds over all sessions, and
      what was changed between them after a loss or lambda that was not finite.

    Raises:
      Interrupted: after saving, on Ctrl-C or SIGTERM.
      UserError: on a loss or lambda that is not finite; the last good checkpoint stays.
    """
    state = setup.create()
    run = {"seconds": 0.0, "sums": {}, "best_val_iou": -1.0, "worse": 0, "changes": [], "watch": {}}
    keep = {name: config.checkpoint[name] for name in ("keep", "keep_best")}
    keep["keep_best"] = max(keep["keep_best"], config.train.patience > 0)
    folder = workdir / "checkpoints"
    with files.making(folder), Checkpoints(folder, **keep) as checkpoints:
        restored = checkpoints.restore(state)
        if restored is not None:
            state, run = restored[0], run | restored[1]
            rundir.check_net(workdir, config, run, data)
            _note_other_cores(setup, run)
        else:
            state = pretrained.put(config.model, state, setup.layout.replicate)
        start = int(state.step)
        first = parallel.is_first()
        run["changes"] += [{"step": start} | c for c in rundir.changes(workdir, config)]
        stop.check()
        if first:
            if data is not None:
                rundir.write_data(workdir, data)
            rundir.write_config(workdir, config)
        logs = Logs(workdir, start=start, steps=config.train.steps) if first else NoLogs()
        digest = None if data is None else data["sha256"]
        session = _Session(config, setup, splits, workdir, checkpoints, logs, run, digest)
        with logs:
            # Again from where the guard took hold.
            while int(state.step) < config.train.steps and not session.ends_early:
                state = session.steps(state, stop)
        stop.check()
        if config.train.patience:
            state = session.take_best(state)
    return state, session


def _note_other_cores(setup: Setup, run: dict[str, Any]) -> None:
    """Notes another number of cores: a CPU's last bits depend on the threads that share a sum."""
    before, now = run.get("visible_cores"), provenance.visible_cores()
    on_cpu = setup.layout.devices[0].platform == "cpu"
    if on_cpu and before not in (None, now):
        parallel.say(
            f"note: this run was trained on {before} CPU cores up to here and goes on with {now}: "
            f"from here on its last bits are others than without the interruption"
        )


def parameters_sha256(state: TrainState) -> str:
    """The digest of the bytes of all parameters (in the order of their names) and of hyper."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((state.inner.params, state.hyper)):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


class _Session:
    """One uninterrupted stretch of a run: what its steps write to, and since when."""

    def __init__(self, config, setup, splits, workdir, checkpoints, logs, run, tiles):
        self.config, self.setup, self.splits, self.workdir = config, setup, splits, workdir
        self.checkpoints, self.logs, self.tiles = checkpoints, logs, tiles
        self.before, self.began = run["seconds"], time.perf_counter()
        # Sums of metrics since the last line of the log: saved, so that a resumed run logs the same
        self.sums = {name: tuple(pair) for name, pair in run["sums"].items()}
        self.best: float = run["best_val_iou"]
        self.worse: int = run["worse"]
        self.trained: int | None = None
        self.changes: list[dict[str, Any]] = run["changes"]
        self.watch = guard.Watch(**run["watch"])
        self.shown: dict[str, str] = {}

    @property
    def ends_early(self) -> bool:
        """Whether as many evaluations as `train.patience` found nothing better."""
        return 0 < self.config.train.patience <= self.worse

    def take_best(self, state: TrainState) -> TrainState:
        """The state of the best checkpoint, which is the newest from now on."""
        best, self.trained = self.checkpoints.best, int(state.step)
        if best is None:
            return state
        self.checkpoints.drop_after(best)
        restored = self.checkpoints.restore(state, best)
        return state if restored is None else restored[0]

    def describe(self) -> dict[str, Any]:
        """What the summary says of a run with patience."""
        if self.trained is None:
            return {}
        return {"patience": {"trained": self.trained, "ended": self.ends_early}}

    def seconds(self) -> float:
        """Seconds of the whole run up to now."""
        return self.before + time.perf_counter() - self.began

    def steps(self, state: TrainState, stop: Stop) -> TrainState:
        """Takes the steps that are left, or those up to where the guard takes hold."""
        config = self.config
        setup, state = guard.applied(self.watch, self.setup, state)
        pending: tuple[Dispatch, PyTree] | None = None
        for dispatch in dispatches(config, setup, self.splits, int(state.step)):
            if dispatch.before == 0:
                self._evaluate(state, 0)
            take = setup.bilevel if dispatch.bilevel else setup.plain
            state, metrics = take(state, *dispatch.arguments)
            # The metrics of the steps before are fetched only now: the device is never idle.
            if pending is not None:
                self._log(*pending)
            pending = dispatch, metrics
            before, step = dispatch.before, dispatch.after
            done, asked = step == config.train.steps, stop.asked()
            evaluates = done or passes(before, step, config.evaluation.every)
            saves = waits = done or passes(before, step, config.checkpoint.every)
            if evaluates or saves or asked:
                self._log(*pending)
                pending = None
                self._check(state, step)
            val_iou = self._evaluate(state, step) if evaluates else None
            held = self.watch.held and not setup.plan.held
            _, state = guard.applied(self.watch, setup, state)
            best = val_iou is not None and val_iou > self.best
            if val_iou is not None:
                self.worse = 0 if best else self.worse + 1
                self.best = max(self.best, val_iou)
            saves |= best and bool(config.checkpoint.keep_best or config.train.patience)
            if saves or asked:
                # What is saved for an interruption alone has no score: it would compete for the
                # best. Were steps taken meanwhile, a kill would cost more than an interval.
                self._save(state, step, val_iou if saves else None, wait=waits or asked)
            if evaluates and parallel.is_first():
                self._draw(state, step)  # after it: what fails here costs no steps
            if asked:
                raise Interrupted(step)
            if held or self.ends_early:
                break
        return state

    def _log(self, dispatch: Dispatch, metrics: PyTree) -> None:
        metrics, before = jax.device_get(metrics), dispatch.before
        for line in range(dispatch.count):
            after = before + dispatch.size
            self._log_step(
                before, after,
                {k: float(np.mean(v if self.setup.most == 1 else v[line]))
                 for k, v in metrics.items()},
            )  # fmt: skip
            before = after

    def _log_step(self, before: int, step: int, values: dict[str, float]) -> None:
        # An infinite lambda makes all else so.
        bad = [k for k in ("lambda", *values) if not math.isfinite(values[k])]
        if bad:
            self._fail(step, bad[0], values[bad[0]])
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        done = step == self.config.train.steps
        if done or passes(before, step, self.config.train.log_every):
            means = {k: total / count for k, (total, count) in self.sums.items()}
            means |= {k: values[k] for k in learned.NAMES if k in values}
            both, either = means.pop("intersection", 0.0), means.pop("union", 0.0)
            means["pooled_iou"] = both / either if either else 1.0
            self.logs.scalars(step, "train", means)
            score = means[self.config.evaluation.score]
            self.shown |= {"loss": f"{means['loss']:.3f}", "train IoU": f"{score:.3f}"}
            self.sums = {}
        if self.config.regularizer.place != "none":
            self.shown["lambda"] = f"{values['lambda']:.3g}"
        self.logs.advance(step, self.shown, images=self.config.train.batch_size)

    def _evaluate(self, state: TrainState, step: int) -> float:
        scores = evaluate(
            self.setup, state, self.splits["val"], batch_size=self.config.evaluation.batch_size
        )
        self.logs.scalars(step, "val", {k: v for k, v in scores.items() if v is not None})
        score = scores[self.config.evaluation.score]
        self.shown["val IoU"] = f"{score:.3f} (step {step})"
        watch = guard.look(self.watch, self.config, self.setup, state, scores)
        if watch.said and not self.watch.said:
            self.logs.say(watch.said)
        self.watch = watch
        return score

    def _draw(self, state: TrainState, step: int) -> None:
        from tvjax.training import figures  # matplotlib is slow to load

        metrics = read_metrics(self.workdir)
        score = self.config.evaluation.score
        figures.learning_curves(metrics, self.workdir / "curves.png", score=score)
        names = learned.names(self.config) if self.setup.plan.estimator is not None else ()
        if "lambda" in names:
            figures.learned_over_time(metrics, ("lambda",), self.workdir / "lambda.png")
        if names not in ((), ("lambda",)):
            figures.learned_over_time(metrics, names, self.workdir / "learned.png")
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

    def _check(self, state: TrainState, step: int) -> None:
        """Ends the run where the state could neither be scored nor resumed."""
        checked = {"lambda": self.setup.net.regularizer.lam(state.hyper), "": state.inner}
        checked |= learned.values(state.hyper)
        for path, leaf in jax.tree.leaves_with_path(checked):
            bad = np.asarray(leaf)[~np.isfinite(np.asarray(leaf))]
            if bad.size:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                self._fail(step, name.lstrip("/"), bad.flat[0])

    def _fail(self, step: int, name: str, value: float) -> NoReturn:
        """Ends the run, and lets the next command change what may have been too large."""
        rates = [] if name == "lambda" else ["optimizer.learning_rate"]
        if self.setup.plan.estimator is not None:
            rates += learned.rate_fields(self.config)
        last, smaller = next(iter(self.checkpoints.steps), None), " or ".join(rates)
        weight = "regularizer.weight" * (self.config.regularizer.place != "none")
        fields = " or ".join(filter(None, (smaller, weight)))
        advice = f"no checkpoint was saved yet; try a smaller {fields}"
        if last is not None:
            advice = (
                f"checkpoint {last} is kept in {self.workdir}; the same command goes on from it "
                f"with a smaller {smaller}"
                + f", or try a smaller {weight} in another --workdir"
                * bool(weight)
            )
            if parallel.is_first():
                rundir.let_change(self.workdir, rates)
        raise UserError(f"step {step}: {name} is {value}, training stops; {advice}")

    def _save(self, state: TrainState, step: int, val_iou: float | None, *, wait: bool) -> None:
        run = {
            "seconds": self.seconds(),
            "sums": self.sums,
            "best_val_iou": self.best,
            "worse": self.worse,
            "changes": self.changes,
            "watch": self.watch._asdict(),
            "visible_cores": provenance.visible_cores(),
            "net": rundir.describe_net(self.config),
            "tiles": self.tiles,
        }
        self.checkpoints.save(state, run, val_iou=val_iou, wait=wait)


@contextlib.contextmanager
def outages(workdir: Path, flag: str = "workdir") -> Iterator[None]:
    """A file of the run that cannot be written, or a device that is too small, is the user's to
    mend: one line, no traceback. `flag` is the one that names the folder."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).partition("\n")[0][:160]
        raise UserError(
            f"the device's memory is too small for this training ({said}); try more devices, "
            f"data.resident=False, a smaller evaluation.batch_size, or in a new run a smaller "
            f"train.batch_size, hypergrad.batch_size or model.width"
        ) from error
    except OSError as error:
        # A failed write to an open file names none.
        named = Path(str(error.filename or workdir / "log")).absolute()
        elsewhere = workdir.absolute() not in named.parents
        full = errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES
        if not elsewhere and error.filename and error.errno not in full:
            raise UserError(
                f"{error.filename} cannot be read or written ({error.strerror}); move it away, and "
                f"run the same command again"
            ) from error
        if elsewhere or error.errno not in full:
            raise
        raise Outage(
            f"--{flag}={workdir} cannot be written ({error.strerror}); the newest checkpoint is "
            f"kept. Make room, or the folder writable, and run the same command again"
        ) from error
