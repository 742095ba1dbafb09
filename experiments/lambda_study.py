"""Which estimator finds the lambda that lowers the validation loss of a finished training?

    python -m experiments.lambda_study --scale=smoke|cpu|gpu --out=DIR [--minutes=N]
        [--data=embedded=FILE.npz,buildings=FILE.npz] [--only=PATTERN]

Runs what is missing in DIR, the most telling first, and leaves one JSON per piece; the same command
goes on where the last one stopped, and one of other sizes or tiles is refused.
`experiments.lambda_report` draws from these files alone.

    curve    final losses and scores of U-Nets trained at fixed lambdas, each with the same seeds
    learn    lambda learned while training, by each estimator and from several starts
    slope    d(final validation loss)/d log lambda at fixed lambdas, by the tangent of the whole
             run, and the mean of the derivatives through 1, 5 and 20 steps along the same run
    whole    descent by that slope: each step of lambda is a whole training of each seed
    nudge    central differences of whole runs, lambda e^h against lambda e^-h, beside the slope
    select   more seeds of the plain U-Net, for what choosing the best of several alone gains
    single   one run alone, as it is in the curve: what training many in one program saves

Many members are trained in one program (`tvjax.training.members`); all members of a piece use the
program of one estimator, with lambda, seed, step size, schedule and memory as data.
"""

import fnmatch
import json
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from configs import lunet
from experiments import kept, pack
from experiments.results import DIGEST
from tvjax import hypergrad, interruption, program, provenance
from tvjax.data import identity
from tvjax.errors import UserError
from tvjax.hypergrad.trees import floats, merge
from tvjax.training import members, resident, steps
from tvjax.training.interrupt import INTERRUPTED
from tvjax.training.setup import make_functions
from tvjax.types import Batch, Config

KEPT = "loss", "bce", "tv", "lambda", "hypergradient", "outer_loss"
"""Names of the metrics of a step that are kept."""
DRAWN = "bce", "hypergradient", "outer_loss"
"""The metrics of `KEPT` whose course a result file keeps."""


def define_flags() -> None:
    flags.DEFINE_enum(
        "scale",
        "smoke",
        list(SCALES),
        "How much to run: smoke for a minute, cpu for hours, gpu on a GPU.",
    )
    flags.DEFINE_string("out", None, "Folder of the results, e.g. results/lambda.", required=True)
    flags.DEFINE_float(
        "minutes",
        1e9,
        "Time budget in minutes, e.g. 15: no piece begins that would not end in time.",
    )
    flags.DEFINE_list("data", ["embedded"], "Sets, each as NAME=FILE.npz or NAME=TILES.")
    flags.DEFINE_string("only", "*", "Pattern of names of pieces to run, e.g. 'learn_*'.")
    flags.DEFINE_string(
        "cache", None, "Folder of compiled programs, e.g. ~/.cache/tvjax; default: none."
    )
    flags.DEFINE_string("commit", None, "Commit to record, e.g. 57f7a64, where the code is a copy.")


class Scale(NamedTuple):
    """The sizes of a study."""

    together: bool
    """Whether the members of a piece are one program."""
    width: int
    depth: int
    size: int
    """Pixels of the tiles; larger ones are cropped."""
    steps: int
    batch: int
    warmup: int
    """Steps before lambda is first moved."""
    chunk: int
    """Steps in one call of a program."""
    rate: float
    """Learning rate of Adam on log lambda, per training step that an update looks at."""
    lambdas: tuple[float, ...]
    starts: tuple[float, ...]
    slopes: tuple[float, ...]
    curve_seeds: int
    learn_seeds: int
    select_seeds: int
    whole_steps: int
    train_scored: int = 256
    """Training tiles of which final scores are taken."""


LAMBDAS = 0.0, 1e-8, 1e-7, 1e-6, 3e-6, 1e-5, 2e-5, 3e-5, 5e-5, 1e-4, 3e-4
GPU = Scale(
    together=True, width=16, depth=2, size=64, steps=400, batch=16, warmup=40, chunk=50, rate=0.05,
    lambdas=LAMBDAS, starts=(1e-8, 1e-6, 1e-4), slopes=(1e-7, 1e-6, 3e-6, 1e-5, 3e-5),
    curve_seeds=8, learn_seeds=5, select_seeds=22, whole_steps=10,
)  # fmt: skip
SCALES = {
    "smoke": GPU._replace(
        width=2, depth=1, size=16, steps=8, batch=4, warmup=2, chunk=4, lambdas=(0.0, 1e-6, 1e-3),
        starts=(1e-6, 1e-4), slopes=(1e-6, 1e-3), curve_seeds=2, learn_seeds=2, select_seeds=2,
        whole_steps=2, train_scored=16,
    ),
    "cpu": GPU._replace(together=False, curve_seeds=5, learn_seeds=5, select_seeds=8),
    "gpu": GPU,
}  # fmt: skip


class Member(NamedTuple):
    """One training."""

    seed: int
    lam: float
    """Lambda at the start."""
    rate: float = 0.0
    """Learning rate of Adam on log lambda; 0: lambda is held."""
    every: int = 1
    """Steps from one update of lambda to the next."""
    warmup: int = 0
    horizon: int | None = None
    """Steps that a derivative looks back; None: all since the warm-up. Of `memory` alone."""
    decay: float = 1.0
    """Decay of the tangent's memory, where the horizon is None."""


class Slot(NamedTuple):
    """What one step of one member takes."""

    inner: Any
    outer: Any
    due: Any
    """Whether lambda is moved."""
    decay: Any
    rate: Any


def slots(group: list[Member], scale: Scale, tiles: dict[str, int]) -> Slot:
    """All steps of a group, leaves `[T, M, ...]`; `tiles` are the numbers of tiles of the splits.

    As in training: an update looks at `horizon` steps, the first one begins after the warm-up,
    and each takes the next batch of validation tiles.
    """
    t = np.arange(scale.steps)[:, None]
    warmup = np.array([m.warmup for m in group])
    size = np.array([m.horizon or 1 for m in group])
    period = np.maximum([m.every for m in group], size)
    whole = np.array([m.horizon is None for m in group])
    since = t - warmup
    due = (since >= 0) & (since % period == size - 1)
    decay = np.where(whole, [m.decay for m in group], since % size > 0)
    decay = np.where(since > 0, decay, 0)
    seeds = [m.seed for m in group]
    of = partial(members.rows, batch_size=scale.batch, seeds=seeds)
    return Slot(
        inner=of(tiles["train"], positions=t[:, 0]),
        outer=of(tiles["val"], positions=np.maximum(since, 0) // period),
        due=due,
        decay=decay.astype(np.float32),
        rate=np.broadcast_to(np.asarray([m.rate for m in group], np.float32), due.shape),
    )


def config_of(scale: Scale) -> Config:
    """LU-Net at these sizes."""
    config: Config = lunet.get_config()
    config.model.width, config.model.depth = scale.width, scale.depth
    config.train.batch_size = config.hypergrad.batch_size = scale.batch
    config.train.steps = scale.steps
    if "precision" in config.model:
        config.model.precision = "highest"
    return config


def estimators(rate: float) -> dict[str, Callable[[Any], hypergrad.Estimator] | None]:
    """Functions of the decay of the memory to an estimator, by the name of its program."""
    return {
        "plain": None,
        "exact": lambda decay: hypergrad.exact(mode="forward"),
        "memory": lambda decay: hypergrad.forward_online(decay=decay),
        "sgd_formula": lambda decay: hypergrad.sgd_formula(rate),
        "paper": lambda decay: hypergrad.paper(rate),
        "training_loss": lambda decay: hypergrad.training_loss(),
    }


COST = {"plain": 3, "exact": 7, "memory": 12, "sgd_formula": 8, "paper": 9, "training_loss": 5}
"""Forward passes in a step; only until a program's own time is known."""


def member_step(functions, estimator_of) -> Callable:
    """`(state, tiles, slot) -> (state, metrics)` of one member."""

    def plain(state, tiles, slot):
        state, aux = functions.plain(0, state, [resident.take(tiles["train"], slot.inner)])
        return state, {k: aux[k] for k in KEPT if k in aux}

    def learning(state, tiles, slot):
        step = steps.bilevel_step(
            functions.problem, functions.net.regularizer, estimator_of(slot.decay),
            optax.adam(slot.rate),
        )  # fmt: skip
        outer = resident.take(tiles["val"], slot.outer)
        moved, aux = step(state, [resident.take(tiles["train"], slot.inner)], outer)
        held = moved._replace(hyper=state.hyper, hyper_opt_state=state.hyper_opt_state)
        moves = slot.due & (slot.rate > 0)  # what is not finite moves nothing that is held
        state = jax.tree.map(partial(jnp.where, moves), moved, held)
        return state, {k: aux[k] for k in KEPT}

    return plain if estimator_of is None else learning


def final_slope(functions) -> Callable:
    """`(state, batch, valid) -> d(sum of the cross-entropy)/dhyper` along the carried tangent."""

    def slope(state, batch, valid):
        def total(part):
            inner = merge(part, state.inner)
            _, bce = functions.evaluation(state._replace(inner=inner), None, batch)
            return jnp.sum(jnp.where(valid, bce, 0))

        tangent = jax.tree.map(lambda z: z[0], state.carry)
        return jax.jvp(total, (floats(state.inner),), (tangent,))[1]

    return slope


class OutOfTime(Exception):
    """The next piece would not end in time."""


class Lab:
    """The compiled programs, the tiles, and the time that is left."""

    def __init__(self, scale: Scale, sets: dict[str, dict[str, Batch]], *, minutes: float):
        self.scale, self.began, self.limit = scale, time.perf_counter(), 60 * minutes
        self.sets = {name: _cropped(tiles, scale.size) for name, tiles in sets.items()}
        self.digests = {
            name: identity.digest({s: zip(*tiles[s], strict=True) for s in pack.SPLITS})
            for name, tiles in sets.items()
        }
        self.pool, self.tracing = ThreadPoolExecutor(12), threading.Lock()
        self.programs: dict[Any, Future] = {}
        self.cost: dict[str, float] = {}  # seconds a step of one member
        on_gpu = jax.default_backend() == "gpu"  # where products are the faster ones
        self.convolutions = "products" if on_gpu else "direct"
        net_of = members.Products if on_gpu else lambda net: net
        self.config = config_of(scale)
        self.functions = make_functions(self.config, (scale.size, scale.size), net_of=net_of)
        self.estimators = estimators(self.config.optimizer.learning_rate)
        # One size for all sets, so that one program serves them all.
        most = {s: max(len(t[s].image) for t in self.sets.values()) for s in ("train", "val")}
        self.tiles = {
            name: {s: jax.device_put(_filled(tiles[s], most[s])) for s in most}
            for name, tiles in self.sets.items()
        }

    def say(self, text: str) -> None:
        """Prints a line with the seconds since the beginning."""
        print(f"[{time.perf_counter() - self.began:6.1f} s] {text}", flush=True)

    def left(self) -> float:
        """Seconds that are left."""
        return self.limit - (time.perf_counter() - self.began)

    # Programs, compiled in threads ahead of their use.

    def prepare(self, name: str, count: int) -> list[Future]:
        """Begins to compile what a group of so many members needs."""
        if not self.scale.together:
            count = 1
        keys: list[Any] = [("create", name == "memory", count), (name, count), ("evaluate", count)]
        if name == "memory":
            keys.append(("slope", count))
        return [self._program(key) for key in keys]

    def close(self, status: int = 0) -> None:
        """Ends the process at once if time is up or status is not 0, whatever still compiles."""
        if self.left() < 0 or status:
            os._exit(status)

    def _program(self, key) -> Future:
        if key not in self.programs:
            self.programs[key] = self.pool.submit(self._compile, key)
        return self.programs[key]

    def _compile(self, key):
        with self.tracing:  # in the order of need: threads that trace share one interpreter
            began = time.perf_counter()
            function, arguments, donated = self._traced(key)
            lowered = jax.jit(function, donate_argnums=donated).lower(*arguments)
        traced = time.perf_counter()
        compiled = _compiled(lowered)
        self.say(f"{key}: traced in {traced - began:.1f} s, compiled in "
                 f"{time.perf_counter() - traced:.1f} s")  # fmt: skip
        return compiled

    def _traced(self, key):
        """The function of a program, its arguments' shapes, and which of them are given away."""
        name, *_, count = key
        if name == "create":
            estimator = hypergrad.forward_online() if key[1] else None

            def create(seed, hyper):
                state = self.functions.create(seed, hyper)
                if estimator is None:
                    return state
                return state._replace(
                    carry=estimator.init(self.functions.problem, state.inner, hyper)
                )

            numbers = (_shape((count,), jnp.int32), _shape((count,), jnp.float32))
            return jax.vmap(create), numbers, ()
        tiles = next(iter(self.tiles.values()))
        if name in ("evaluate", "slope"):
            batch = jax.tree.map(
                lambda x: _shape((self.scale.batch, *x.shape[1:]), x.dtype), tiles["val"]
            )
            if name == "slope":
                slope = jax.vmap(final_slope(self.functions), in_axes=(0, None, None))
                valid = _shape((self.scale.batch,), jnp.bool_)
                return slope, (self._states(True, count), batch, valid), ()

            def step(state, batch):
                return self.functions.evaluation(state, None, batch)

            states = _bare(self._states(False, count))
            return jax.vmap(step, in_axes=(0, None)), (states, batch), ()
        step = jax.vmap(member_step(self.functions, self.estimators[name]), in_axes=(0, None, 0))
        length = {s: len(t.image) for s, t in tiles.items()}
        example = slots([Member(0, 1.0)] * count, self.scale._replace(steps=1), length)
        lead = (self.scale.chunk,) if self.scale.together else ()
        slot = jax.tree.map(lambda x: _shape((*lead, *x.shape[1:]), x.dtype), example)
        step = members.scan(step) if self.scale.together else step
        tiles = jax.tree.map(lambda x: _shape(x.shape, x.dtype), tiles)
        return step, (self._states(name == "memory", count), tiles, slot), (0,)

    def _states(self, carries: bool, count: int):
        function, arguments, _ = self._traced(("create", carries, count))
        return jax.eval_shape(function, *arguments)

    # Runs.

    def expected(self, name: str, count: int) -> float:
        """Seconds of a group, from what was measured; 0 before anything was."""
        known = {k: v / COST[k] for k, v in self.cost.items()}
        each = self.cost.get(name, COST[name] * max(known.values(), default=0.0))
        return each * count * self.scale.steps

    def train(self, name: str, set_name: str, group: list[Member], label: str, slope=False):
        """Trains a group: the records of its members, in their order.

        Raises:
          OutOfTime: it would not end within the minutes given.
        """
        if not self.scale.together:
            return [self._train(name, set_name, [m], label, slope)[0] for m in group]
        return self._train(name, set_name, group, label, slope)

    def _train(self, name, set_name, group, label, slope):
        if self.expected(name, len(group)) > self.left():
            raise OutOfTime
        self.prepare(name, len(group))
        tiles, sets = self.tiles[set_name], self.sets[set_name]
        count, total = len(group), self.scale.steps
        create = self._program(("create", name == "memory", count)).result()
        run = self._program((name, count)).result()
        with np.errstate(divide="ignore"):
            alphas = np.log(np.asarray([m.lam for m in group], np.float32))
        states = create(np.asarray([m.seed for m in group], np.int32), alphas)
        plan = slots(group, self.scale, {s: len(t.image) for s, t in sets.items()})
        began, logs = time.perf_counter(), []
        size = self.scale.chunk if self.scale.together else 1
        for start in range(0, total, size):
            interruption.check()
            part = jax.tree.map(lambda x: x[start : start + size], plan)  # noqa: B023
            if not self.scale.together:
                part = jax.tree.map(lambda x: x[0], part)
            states, metrics = run(states, tiles, part)
            logs.append(jax.tree.map(lambda x: np.atleast_2d(jax.device_get(x)), metrics))
            if self.scale.together:
                done = min(start + size, total)
                each = (time.perf_counter() - began) / done
                self.say(f"{label}: step {done} of {total}, {1e3 * each:.1f} ms a step")
                if start == 0 and (total - done) * each > self.left():
                    raise OutOfTime
        seconds = time.perf_counter() - began
        self.cost[name] = seconds / total / count
        log = jax.tree.map(lambda *x: np.concatenate(x), *logs)
        slopes = self._slopes(states, sets["val"], count) if slope else [None] * count
        scores = self._scores(states, sets, count)
        self.say(f"{label}: {seconds:.1f} s, and scored; {self.left():.0f} s are left")
        return [
            {
                **m._asdict(),
                "estimator": name,
                "set": set_name,
                "final_lambda": float(np.exp(np.asarray(states.hyper)[i])),
                **scores[i],
                "slope": slopes[i],
                **_summary({k: v[:, i] for k, v in log.items()}, plan.due[:, i]),
                "seconds": seconds / count,
            }
            for i, m in enumerate(group)
        ]

    def _scores(self, states, sets, count):
        step, batch = self._program(("evaluate", count)).result(), self.scale.batch
        first = jax.tree.map(lambda x: x[: self.scale.train_scored], sets["train"])
        splits = {"train": first, "val": sets["val"], "test": sets["test"]}
        found = {
            name: members.evaluate(step, _bare(states), tiles, batch_size=batch)
            for name, tiles in splits.items()
        }
        return [{name: scores[i] for name, scores in found.items()} for i in range(count)]

    def _slopes(self, states, tiles, count) -> list[float]:
        step = self._program(("slope", count)).result()
        batches = members.padded_batches(tiles, self.scale.batch)
        total = sum(np.asarray(step(states, batch, valid)) for batch, valid in batches)
        return [float(x) / len(tiles.image) for x in np.atleast_1d(total)]


def _summary(log: dict[str, np.ndarray], due: np.ndarray) -> dict[str, Any]:
    """One member's metrics `[T]` in short: means of tenths of the run, and derivatives."""
    finite = {k: np.where(np.isfinite(v), v, np.nan) for k, v in log.items()}
    tenths = np.array_split(np.arange(len(due)), min(10, len(due)))
    last = max(1, len(due) // 4)
    found: dict[str, Any] = {
        "curves": {
            k: [float(np.mean(finite[k][part])) for part in tenths] for k in DRAWN if k in finite
        }
    }
    path = log["lambda"][:: max(1, len(due) // 40)]
    if np.ptp(path):
        found["lambda_path"] = [float(x) for x in path]
    if "hypergradient" in log:
        h = finite["hypergradient"]
        late = h[-last:][due[-last:]]
        h = h[due]
        found["hypergradient"] = {
            "mean": _mean(h), "deviation": _deviation(h), "count": int(due.sum()),
            "late_mean": _mean(late), "late_deviation": _deviation(late), "late_count": len(late),
        }  # fmt: skip
    return found


def _mean(x) -> float | None:
    return float(np.mean(x)) if len(x) else None


def _deviation(x) -> float | None:
    return float(np.std(x, ddof=1)) if len(x) > 1 else None


# The pieces.


class Piece(NamedTuple):
    """One result file."""

    name: str
    program: str
    set: str
    group: list[Member]
    slope: bool = False


def curve(scale: Scale, data: str) -> Iterator[Piece]:
    """All lambdas for two seeds at a time."""
    for first in range(0, scale.curve_seeds, 2):
        group = [Member(s, lam) for s in (first, first + 1) for lam in scale.lambdas]
        yield Piece(f"curve_{data}_{first}", "plain", data, group)


LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("exact", {}),
    "online": ("memory", {}),
    "sgd_formula": ("sgd_formula", {}),
    "paper": ("paper", {}),
    "forward_5": ("memory", {"horizon": 5}),
    "training_loss": ("training_loss", {}),
    "exact_slow": ("exact", {"rate": 0.01}),
    "exact_fast": ("exact", {"rate": 0.2}),
    "exact_every_4": ("exact", {"every": 4}),
    "forward_20": ("memory", {"horizon": 20}),
    "decay_0.9": ("memory", {"decay": 0.9}),
    "decay_0.99": ("memory", {"decay": 0.99}),
    "online_slow": ("memory", {"rate": 0.01}),
}
"""The program of each, and in what its members differ."""


def learn(scale: Scale, data: str, name: str) -> Piece:
    """Lambda learned by one estimator, from all starts for all seeds."""
    program_name, given = LEARNERS[name]
    # What looks at K steps moves once in K, and so K times as far.
    rate = given.get("rate", scale.rate) * given.get("horizon", 1)
    fields: dict[str, Any] = {"horizon": None if program_name == "memory" else 1, **given}
    fields |= {"rate": rate, "warmup": scale.warmup}
    group = [Member(s, lam, **fields) for lam in scale.starts for s in range(scale.learn_seeds)]
    return Piece(f"learn_{data}_{name}", program_name, data, group)


SLOPES: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("memory", {}),
    "1": ("exact", {"horizon": 1}),
    "5": ("memory", {"horizon": 5}),
    "20": ("memory", {"horizon": 20}),
}


def slope(scale: Scale, data: str, name: str) -> Iterator[Piece]:
    """The derivative at fixed lambdas, for three seeds at a time."""
    program_name, fields = SLOPES[name]
    most = max(1, len(scale.starts) * scale.learn_seeds // len(scale.slopes))
    for first in range(0, 2 * most, most):
        seeds = range(first, first + most)
        group = [Member(s, lam, **fields) for s in seeds for lam in scale.slopes]
        yield Piece(
            f"slope_{data}_{name}_{first}", program_name, data, group, slope=name == "whole"
        )


def nudge(scale: Scale, data: str, h: float = 0.1) -> Iterator[Piece]:
    """Runs at lambda e^h and lambda e^-h."""
    for first in range(0, 6, 2):
        group = [
            Member(s, lam * math.exp(sign * h))
            for s in (first, first + 1) for lam in scale.slopes for sign in (-1, 1)
        ]  # fmt: skip
        missing = 2 * len(scale.lambdas) - len(group)  # to the size of the curve's program
        group += [Member(first, scale.slopes[0])] * max(0, missing)
        yield Piece(f"nudge_{data}_{h:g}_{first}", "plain", data, group)


def select(scale: Scale, data: str) -> Piece:
    """Seeds of the plain U-Net beyond those of the curve."""
    seeds = range(scale.curve_seeds, scale.curve_seeds + scale.select_seeds)
    return Piece(f"select_{data}", "plain", data, [Member(s, 0.0) for s in seeds])


def whole(scale: Scale, data: str, k: int, before: dict | None) -> Piece:
    """The k-th step of descent by the slope of the whole run."""
    lams = list(scale.starts) if before is None else next_lambdas(before["members"])
    seeds = range(scale.learn_seeds)
    group = [Member(s, lam) for lam in lams for s in seeds]
    return Piece(f"whole_{data}_{k:02d}", "memory", data, group, slope=True)


def next_lambdas(found: list[dict], *, step: float = 1.5) -> list[float]:
    """Each start's next lambda: by the sign of the mean slope, half as far once it has turned.

    The walk so far rides in the members (`walk`), as `(sign, step)`.
    """
    lams: dict[int, list[dict]] = {}
    for m in found:
        lams.setdefault(m["start"], []).append(m)
    return [
        group[0]["lam"] * math.exp(-sign * size)
        for group in lams.values()
        for sign, size in [turn(group, step)]
    ]


def turn(group: list[dict], step: float = 1.5) -> tuple[float, float]:
    """`(sign, size)` of the next step of log lambda, from the slopes of one start's seeds."""
    slopes = [m["slope"] for m in group if m["slope"] is not None and math.isfinite(m["slope"])]
    sign = float(np.sign(np.mean(slopes))) if slopes else 0.0
    before, size = group[0]["walk"] or (sign, step)
    return sign, size if sign == before else size / 2


def pieces(scale: Scale, data: list[str]) -> list[Any]:
    """All of them, the most telling first; `("whole", SET, k)` waits for the one before it."""
    first, others = data[0], data[1:]
    main = ["exact", "online", "sgd_formula", "paper", "forward_5", "training_loss"]
    slopes = {name: list(slope(scale, first, name)) for name in SLOPES}
    order: list[Any] = [*curve(scale, first), select(scale, first)]
    order += [learn(scale, first, name) for name in main[:4]]
    order += [slopes["whole"][0], slopes["1"][0]]
    for name in others:
        order += [*list(curve(scale, name))[:2], learn(scale, name, "exact"),
                  learn(scale, name, "online")]  # fmt: skip
    order += [("whole", first, k) for k in range(min(4, scale.whole_steps))]
    order += [learn(scale, first, name) for name in main[4:]]
    order += [slopes["whole"][1], slopes["1"][1]]
    order.append(Piece(f"single_{first}", "plain", first, [Member(0, scale.lambdas[1])]))
    order += [("whole", first, k) for k in range(4, scale.whole_steps)]
    order += [learn(scale, first, name) for name in LEARNERS if name not in main]
    order += [*nudge(scale, first), *slopes["5"], *slopes["20"]]
    for name in others:
        order += list(curve(scale, name))[2:]
        order += [learn(scale, name, learner) for learner in main[2:]]
        order += [*slope(scale, name, "whole"), *slope(scale, name, "1")]
    return order


def run(lab: Lab, out: Path, *, only: str = "*", commit: str | None = None) -> None:
    """Runs what is missing; a piece that fails leaves its traceback and stops no other.

    Raises:
      UserError: a piece that is there is damaged, or of another scale or other tiles.
    """
    wanted = pieces(lab.scale, list(lab.sets))
    there = [p for p in wanted if _file(out, p).exists()]
    truths = {name: _variation_of_masks(tiles) for name, tiles in lab.sets.items()}
    for piece in there:
        path, data = _file(out, piece), piece.set if isinstance(piece, Piece) else piece[1]
        made_of = _config(lab, path.stem) | {DIGEST: lab.digests[data]}
        for member in kept.lines(path, made_of, "members", len):
            _check_masks(path, member, truths[data])
    out.mkdir(parents=True, exist_ok=True)
    todo = [p for p in wanted if p not in there]
    todo = [p for p in todo if fnmatch.fnmatch(_file(out, p).stem, only)]
    lab.say(f"{len(todo)} pieces to run, convolutions {lab.convolutions}")
    needed = {id(piece): lab.prepare(*_program_of(lab.scale, piece)) for piece in todo}
    while todo and lab.left() > 0:
        interruption.check()
        # The first whose programs are there, so that none waits for another's compilation.
        ready = [p for p in todo if all(future.done() for future in needed[id(p)])]
        if not ready:
            missing = [f for future in needed.values() for f in future if not f.done()]
            wait(missing, timeout=min(1, max(0, lab.left())), return_when=FIRST_COMPLETED)
            continue
        todo.remove(ready[0])
        _try_piece(lab, out, ready[0], commit)
    for piece in todo:
        lab.say(f"{_file(out, piece).stem}: its turn did not come")


def _variation_of_masks(tiles: dict[str, Batch]) -> dict[str, float]:
    """The mean TV of the masks that are scored, by split."""
    masks = {split: tiles[split].mask.astype(float) for split in ("val", "test")}
    return {
        split: sum(np.abs(np.diff(mask, axis=k)).sum() for k in (1, 2)) / len(mask)
        for split, mask in masks.items()
    }


def _check_masks(path: Path, member: Any, truths: dict[str, float]) -> None:
    """Refuses a piece of other masks; pieces of earlier versions do not tell their tiles.

    Raises:
      UserError: it is one.
    """
    for split, own in truths.items():
        then = member[split]["true_tv"]
        if abs(then - own) > 1e-3 * own:
            raise UserError(
                f"{path} was made of other tiles: the masks of {split} had a TV of {then:.6g} "
                f"each, and now {own:.6g}; name another --out"
            )


def _config(lab: Lab, name: str) -> dict[str, Any]:
    """What a result file says of its piece: every field that differs is said by the members."""
    return {**lab.scale._asdict(), "convolutions": lab.convolutions, "piece": name}


def _program_of(scale: Scale, piece: Any) -> tuple[str, int]:
    if isinstance(piece, Piece):
        return piece.program, len(piece.group)
    return "memory", len(scale.starts) * scale.learn_seeds


def _try_piece(lab: Lab, out: Path, piece: Any, commit: str | None) -> None:
    path = _file(out, piece)
    try:
        _run_piece(lab, out, piece, path, commit)
    except OutOfTime:
        lab.say(f"{path.stem}: no time is left for it")
    except Exception:
        lab.say(f"{path.stem} failed:\n{traceback.format_exc()}")
        (out / f"{path.stem}.error").write_text(traceback.format_exc())


def _run_piece(lab: Lab, out: Path, piece: Any, path: Path, commit: str | None) -> None:
    before: Any = None
    if not isinstance(piece, Piece):
        _, data, k = piece
        if k and not (out / f"whole_{data}_{k - 1:02d}.json").exists():
            return
        if k:
            before = json.loads((out / f"whole_{data}_{k - 1:02d}.json").read_text())
        piece = whole(lab.scale, data, k, before)
    began = time.perf_counter()
    found = lab.train(piece.program, piece.set, piece.group, piece.name, piece.slope)
    if piece.name.startswith("whole"):
        seeds = lab.scale.learn_seeds
        for i, m in enumerate(found):
            m["start"] = i // seeds
            same = [b for b in before["members"] if b["start"] == m["start"]] if before else []
            m["walk"] = list(turn(same)) if same else None
    content = {
        "config": _config(lab, piece.name),
        DIGEST: lab.digests[piece.set],
        **provenance.describe(0),
        "members": found,
        "seconds": time.perf_counter() - began,
    }
    if commit:
        content["commit"] = commit
    kept.write(path, kept.strict(content, 7), separators=(",", ":"))


def _file(out: Path, piece: Any) -> Path:
    name = piece.name if isinstance(piece, Piece) else f"whole_{piece[1]}_{piece[2]:02d}"
    return out / f"{name}.json"


def _compiled(lowered: Any) -> Any:
    """Compiles without the search for the fastest kernels, which takes longer than the runs."""
    quick = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
    options = {"gpu": quick, "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""}}
    choice = options.get(jax.default_backend())
    if choice is not None:
        try:
            return lowered.compile(compiler_options=choice)
        except Exception as error:  # a version that knows no such option
            print(f"compiler options {choice}: {error}", flush=True)
    return lowered.compile()


def _cropped(tiles: dict[str, Batch], size: int) -> dict[str, Batch]:
    return {s: Batch(*(x[:, :size, :size] for x in t)) for s, t in tiles.items()}


def _filled(tiles: Batch, count: int) -> Batch:
    missing = count - len(tiles.image)
    return Batch(*(np.pad(x, [(0, missing), (0, 0), (0, 0), (0, 0)]) for x in tiles))


def _bare(states):
    """What an evaluation reads, the same for every estimator."""
    return states._replace(hyper_opt_state=(), carry=())


def _shape(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def main(argv) -> None:
    del argv
    args: Any = flags.FLAGS
    scale = SCALES[args.scale]
    jax.config.update("jax_default_matmul_precision", "highest")
    if args.cache:
        program.cache_compilations(args.cache)
    sets = {}
    for part in args.data:
        name, _, path = part.partition("=")
        sets[name] = pack.read(path or name)
    if not sets:
        raise UserError("--data is empty: give NAME=FILE.npz")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    lab = Lab(scale, sets, minutes=args.minutes)
    try:
        run(lab, Path(args.out), only=args.only, commit=args.commit)
    except KeyboardInterrupt:
        lab.say("interrupted; run the same command again")
        lab.close(INTERRUPTED)
    lab.say("done: " + ", ".join(f"{k} {1e3 * v:.2f} ms" for k, v in lab.cost.items())
            + " a step of one member")  # fmt: skip
    lab.close()


if __name__ == "__main__":
    define_flags()
    program.run(main, interrupted=INTERRUPTED)
