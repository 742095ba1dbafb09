"""Trains and scores nets of many configs in one process: seeds and weights share their programs.

A training has the batches, first parameters and steps of `tvjax.main` with the same config, but
writes no folder of its own; what differs in seed and `regularizer.weight` alone is compiled once.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from experiments.results import DIGEST
from tvjax import fields, files, interruption
from tvjax.data import pipeline
from tvjax.errors import UserError
from tvjax.scoring.mask_scores import summarise
from tvjax.training import members, parallel, resident
from tvjax.training.evaluation import image_scores
from tvjax.training.feeds import schedule
from tvjax.training.setup import Functions, make_functions
from tvjax.training.state import TrainState
from tvjax.types import Batch, Config, PyTree

SPLITS = "train", "val", "test"
COURSE = 10
"""Scores on the validation split during a training, the last one included."""


class Programs(NamedTuple):
    """The compiled functions of one kind of config."""

    functions: Functions
    create: Any
    """`(seed, hyper) -> state`."""
    plain: Any
    """`(state, (seed, train), rows) -> (state, metrics)`."""
    bilevel: Any
    """`(state, (seed, train), [rows], batch of val) -> (state, metrics)`."""
    score: Any
    """`(state, denoise, batch) -> (masks, bce)`; `denoise` may be None."""
    predict: Any
    """`(state, images) -> (logits, probabilities)`."""


class Trained(NamedTuple):
    """A net and how it came about."""

    state: TrainState
    course: dict[str, list[float]]
    """Steps, validation scores, the training batches' IoU and lambda, at each of `COURSE`."""
    seconds: float
    """Seconds of the training, without compilation and scores."""


class Trainer:
    """The programs of all configs that were met so far, on the tiles of one set.

    With `like` they are those of another trainer, on other tiles of the same size.
    """

    def __init__(self, tiles: Mapping[str, Batch], like: "Trainer | None" = None):
        self.tiles = tiles
        self.resident = {s: jax.device_put(tiles[s]) for s in ("train", "val")}
        self._programs: dict[str, Programs] = like._programs if like else {}
        # Of the same section `model`, and `hypergrad`: what the regulariser does not change.
        self._scores: dict[str, tuple[Any, Any]] = like._scores if like else {}
        self._creates: dict[str, Any] = like._creates if like else {}

    def programs(self, config: Config) -> Programs:
        """What this config is trained and scored by."""
        key = config.copy_and_resolve_references()
        key.name, key.seed, key.regularizer.weight = "", 0, 1.0
        key = key.to_json()
        if key not in self._programs:
            made = _compile(config, self.tiles["train"].image.shape[1:3])
            net = config.model.to_json()
            score, predict = self._scores.setdefault(net, (made.score, made.predict))
            learns = str(config.hypergrad) if config.hypergrad.method != "none" else ""
            create = self._creates.setdefault(net + learns, made.create)
            self._programs[key] = made._replace(score=score, predict=predict, create=create)
        return self._programs[key]

    def train(self, config: Config) -> Trained:
        """Trains to the end.

        Raises:
          UserError: for a config that cannot be, and where loss or lambda stops being a number.
        """
        fields.check(config)
        programs = self.programs(config)
        state, take = self.start(config), self.stepper(config)
        course: dict[str, list[float]] = {}
        recent, total = [], config.train.steps
        marks = {round(total * (k + 1) / COURSE) for k in range(COURSE)}
        seconds, seen = 0.0, set()
        began = time.perf_counter()
        for step, after, bilevel in self.plan(config):
            interruption.check()
            called = time.perf_counter()
            state, metrics = take(state, step, bilevel)
            recent.append(metrics)
            if bilevel not in seen:  # its call may have compiled
                seen.add(bilevel)
                jax.block_until_ready(state)
                seconds, began = seconds + called - began, time.perf_counter()
            if after in marks:
                jax.block_until_ready(state)
                seconds += time.perf_counter() - began
                _note(course, after, recent, self.score(programs, state, "val"))
                recent, began = [], time.perf_counter()
        return Trained(state, course, seconds)

    def plan(self, config: Config) -> Iterator[tuple[int, int, bool]]:
        """`(steps before, steps after, whether lambda moves)` of each call of a program."""
        plan = self.programs(config).functions.plan
        for d in schedule(plan, 0, config.train.steps, most=1, pauses=(config.train.steps,)):
            yield d.before, d.after, d.bilevel

    def start(self, config: Config) -> TrainState:
        """The state before the first step."""
        functions = self.programs(config).functions
        weight, log = config.regularizer.weight, config.regularizer.parametrization == "log"
        value = np.log(np.float32(weight)) if log else np.float32(weight)
        if config.regularizer.place == "none":
            value = functions.net.hyper
        hyper = jnp.full(functions.net.hyper.shape, value, jnp.float32)
        return self.programs(config).create(jnp.int32(config.seed), hyper)

    def stepper(self, config: Config):
        """`(state, step, bilevel) -> (state, metrics)`."""
        programs, seed = self.programs(config), jnp.int32(config.seed)
        plan, train = programs.functions.plan, (seed, self.resident["train"])
        size = config.train.batch_size
        inner = _rows(self.tiles["train"], size, config.seed)
        outer = _rows(self.tiles["val"], plan.batch_size, config.seed) if plan.estimator else None
        several = plan.estimator.batches if plan.estimator else 1

        def take(state, step, bilevel):
            if not bilevel:
                return programs.plain(state, train, inner[step])
            batches = [inner[step + k] for k in range(several)]
            assert outer is not None
            rows = outer[plan.updates(step)]
            return programs.bilevel(state, train, batches, self.resident["val"], rows)

        return take

    def score(
        self, programs: Programs, state: TrainState, split: str, *,
        most: int | None = None, denoise: float | None = None, change=None, batch_size: int = 32,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Scores of each of the first `most` tiles of a split, `[N]`.

        Args:
          programs: programs of the net's config.
          state: state of the net.
          split: name of the split.
          most: number of tiles; None: all.
          denoise: weight of a TV denoising of the probabilities, or None.
          change: function that changes the images, float32 `[N, H, W, 3]` in [0, 1], before.
          batch_size: images in a batch.
        """
        tiles, found = Batch(*(x[:most] for x in self.tiles[split])), []
        weight = None if denoise is None else jnp.float32(denoise)
        images = np.asarray(tiles.image, np.float32) / 255  # one program, with or without a change
        images = images if change is None else change(images)
        state = _bare(state)
        for batch, valid in members.padded_batches(Batch(images, tiles.mask), batch_size):
            interruption.check()
            masks, bce = jax.device_get(programs.score(state, weight, batch))
            found.append(image_scores(masks, np.asarray(batch.mask), bce, valid))
        return {k: np.concatenate([f[k] for f in found]) for k in found[0]}

    def predict(self, programs: Programs, state: TrainState, images: np.ndarray) -> np.ndarray:
        """Probabilities of images, `[N, H, W, 1]`."""
        state, found = _bare(state), []
        blank = np.zeros((*images.shape[:-1], 1), np.uint8)
        for batch, valid in members.padded_batches(Batch(images, blank), 32):
            interruption.check()
            found.append(np.asarray(programs.predict(state, batch.image)[1])[valid])
        return np.concatenate(found)


def summary(tiles: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means and pooled scores of a split, as in a run's summary, from those of its tiles."""
    return summarise({k: np.sum(v, dtype=np.float64) for k, v in tiles.items()})


def save(path: Path, state: TrainState, tiles: str | None = None) -> None:
    """Keeps what a prediction needs of a net, and the digest of the tiles it was trained on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _kept(state) | {"name": path.stem} | ({} if tiles is None else {DIGEST: tiles})
    written = serialization.to_bytes(jax.device_get(content))
    with files.replacing(path) as temporary:
        temporary.write_bytes(written + hashlib.sha256(written).digest())


def load(path: Path, like: TrainState, tiles: str | None = None) -> TrainState:
    """The state with the net of a file.

    Args:
      path: file of `save`.
      like: state of a net of the same shape.
      tiles: digest of the tiles; a net that was kept with another one is refused.

    Raises:
      UserError: it is no such file, damaged, or of another net or other tiles.
    """
    anew = "delete it and the result file of its name, and the same command trains it anew"
    try:
        written = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    written, digest = written[:-32], written[-32:]
    if hashlib.sha256(written).digest() != digest:
        raise UserError(f"{path} is damaged; {anew}")
    found: Any = serialization.msgpack_restore(written)
    name, known = found.pop("name"), found.pop(DIGEST, None)
    wanted = _kept(like)
    try:
        kept = serialization.from_state_dict(wanted, found)
    except ValueError as error:
        raise UserError(f"{path} is of another net ({error}); {anew}") from error
    if name != path.stem or jax.tree.map(jnp.shape, kept) != jax.tree.map(jnp.shape, wanted):
        raise UserError(f"{path} is of another net ({name}); {anew}")
    inner, hyper = kept["inner"], kept["hyper"]
    if tiles is not None and known not in (None, tiles):
        raise UserError(f"{path} was trained on other tiles; name another folder by --nets")
    state = like.inner._replace(params=inner["params"], model_state=inner["model_state"])
    return like._replace(inner=state, hyper=jnp.asarray(hyper))


def _kept(state: TrainState) -> dict[str, PyTree]:
    inner = {"params": state.inner.params, "model_state": state.inner.model_state}
    return {"inner": inner, "hyper": state.hyper}


def _bare(state: TrainState) -> TrainState:
    """What a score reads, the same for all methods, whose scores then are one program."""
    inner = state.inner._replace(opt_state=())
    return state._replace(inner=inner, hyper_opt_state=(), carry=())


def _rows(tiles: Batch, batch_size: int, seed: int):
    return pipeline.TrainIndices(len(tiles.image), batch_size=batch_size, seed=seed)


def _compile(config: Config, shape: tuple[int, int]) -> Programs:
    functions = make_functions(config, shape)
    layout = parallel.make_layout(map="jit", devices=1)

    def plain(state, seed_and_tiles, rows):
        seed, tiles = seed_and_tiles
        return functions.plain(seed, state, [resident.take(tiles, rows)])

    def bilevel(state, seed_and_tiles, rows, tiles_val, rows_val):
        seed, tiles = seed_and_tiles
        batches = [resident.take(tiles, r) for r in rows]
        return functions.bilevel(seed, state, batches, resident.take(tiles_val, rows_val))

    return Programs(
        functions, parallel.compile_drawing(functions.create), layout.compile(plain, donate=True),
        layout.compile(bilevel, donate=True), layout.compile(functions.evaluation),
        layout.compile(functions.net.predict),
    )  # fmt: skip


def _note(course, step: int, recent: list[PyTree], scores: dict[str, np.ndarray]) -> None:
    metrics = jax.device_get(recent)
    losses = np.asarray([m["loss"] for m in metrics])
    lam = float(np.mean(metrics[-1]["lambda"]))
    if not (np.all(np.isfinite(losses)) and np.isfinite(lam)):
        raise UserError(f"the loss or lambda is no number by step {step}; lower a learning rate")
    found = summary(scores)
    values = {
        "step": step, "lambda": lam, "val_bce": found["bce"], "val_iou": found["iou"],
        "val_pooled_iou": found["pooled_iou"],
        "train_iou": float(np.mean([m["iou"] for m in metrics])),
        "train_loss": float(losses.mean()),
    }  # fmt: skip
    for name, value in values.items():
        course.setdefault(name, []).append(value)
