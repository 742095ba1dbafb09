"""Trains with several weights of TV and several seeds, and shows which weight validates best.

    python -m tvjax.sweep --config=configs/lunet.py --lambdas=0,1e-7,1e-6,1e-5 --seeds=0,1,2

Each pair of a weight and a seed is a run of `tvjax.main` with `--config.regularizer.weight` and
`--config.seed`, and has its numbers but for rounding. On a GPU many of them are one program; else
they are trained one by one, each in a folder of its own. In the workdir: `results.jsonl`, one
line per finished run, `config.json` and `sweep.png`. The same command goes on where it ended.
"""

import json
import math
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax import lax
from tqdm import tqdm

from tvjax import errors, fields, files, interruption, program, provenance
from tvjax.data import pipeline, sets
from tvjax.data.records import Split
from tvjax.errors import UserError
from tvjax.fields import TINY
from tvjax.training import idle, interrupt, learned, loop, members, parallel, pretrained, rundir
from tvjax.training.feeds import check_batches, schedule
from tvjax.training.resident import take
from tvjax.training.setup import Functions, check_sizes, make_functions
from tvjax.types import Batch, Config, PyTree

NUMBER = re.compile(r"[-+.eE0-9]+")
"""Characters of a number; Python reads other digits and `1_000` too."""

CHUNK = 50
"""Updates in one call of a program."""


class Pair(NamedTuple):
    """One run of a sweep."""

    lam: float
    seed: int


def define_flags() -> None:
    """The flags of the program."""
    program.define_config_flag()
    flags.DEFINE_list(
        "lambdas", [], "Weights of TV (or where its learning begins), e.g. 0,1e-7,1e-6."
    )
    flags.DEFINE_list("seeds", ["0"], "Seeds of the initial parameters and batches, e.g. 0,1,2.")
    flags.DEFINE_string(
        "workdir", None, "Folder of the sweep, e.g. runs/weights; default: runs/NAME_sweep."
    )
    flags.DEFINE_enum(
        "train", "auto", ["auto", "together", "singly"],
        "Whether many runs are one program or trained one by one; auto: together on one GPU.",
    )  # fmt: skip
    flags.DEFINE_integer(
        "group", 32, "Most runs in one program, e.g. 8; fewer if memory is short.", lower_bound=1
    )


def pairs(lambdas: Sequence[str], seeds: Sequence[str], config: Config) -> list[Pair]:
    """All pairs, each once.

    Raises:
      UserError: naming the flag that cannot be so.
    """
    for name, values, kind in ("lambdas", lambdas, float), ("seeds", seeds, int):
        for value in values:
            try:
                good = 0 <= kind(value) < 2**31 and NUMBER.fullmatch(value.strip())
            except ValueError:
                good = False
            if good and kind(value) < TINY and re.search("[1-9]", re.split("[eE]", value)[0]):
                raise UserError(f"--{name}: {value!r} must be 0 or at least {TINY:.3g}")
            if not good:
                raise UserError(f"--{name}: {value!r} must be a number in [0, 2^31)")
        if not values:
            raise UserError(f"--{name} must be given: numbers with commas between them")
    if config.regularizer.place == "none":
        raise UserError(
            f"--lambdas: {config.name} has regularizer.place='none'; take configs/lunet.py"
        )
    found = [Pair(float(lam), int(seed)) for lam in lambdas for seed in seeds]
    learned = config.hypergrad.method != "none"
    if any(p.lam == 0 for p in found) and (learned or config.regularizer.place != "loss"):
        raise UserError(
            "--lambdas: 0 needs a weight that is held (hypergrad.method='none') and "
            "regularizer.place='loss'"
        )
    return list(dict.fromkeys(found))


def config_of(config: Config, pair: Pair) -> Config:
    """The config of one run."""
    config = config.copy_and_resolve_references()
    config.seed = pair.seed
    if pair.lam == 0:
        config.regularizer.place = "none"
    else:
        config.regularizer.weight = pair.lam
    return config


def singly(config: Config, todo: list[Pair], workdir: Path) -> Iterator[list[dict[str, Any]]]:
    """Lines of the runs, trained one after another."""
    for k, pair in enumerate(todo):
        print(f"lambda {pair.lam:g}, seed {pair.seed} ({k + 1} of {len(todo)}):", file=sys.stderr)
        own = config_of(config, pair)
        summary = loop.run(own, workdir / "runs" / f"lambda={_short(pair.lam)},seed={pair.seed}")
        scores = summary["splits"]
        yield [line(pair, summary["lambda"], scores, summary["seconds"])]


def _short(lam: float) -> str:
    """A weight as a folder's name has it: short, and never another's."""
    return f"{lam:g}" if float(f"{lam:g}") == lam else repr(lam)


def line(pair: Pair, lam: float, splits: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        "lambda": pair.lam, "seed": pair.seed, "final_lambda": lam, "seconds": seconds,
        "splits": splits, **provenance.describe(pair.seed),
    }  # fmt: skip


def together(
    config: Config, todo: list[Pair], splits: dict[str, Split], group: int
) -> Iterator[list[dict[str, Any]]]:
    """Lines of the runs, many in one program."""
    arrays = {name: pipeline.resident(split) for name, split in splits.items()}
    on_gpu = jax.default_backend() == "gpu"
    functions = make_functions(
        config, arrays["train"].image.shape[1:3],
        net_of=members.Products if on_gpu else lambda module: module,
    )  # fmt: skip
    for words in idle.notes(config, functions.plan):
        parallel.say(words)
    trainer = Trainer(config, functions, arrays)
    while todo:
        size = min(group, len(todo))
        while size > 1 and not trainer.fits(size):
            size = -(-size // 2)
        group = size
        # The last group is filled up with runs that are trained twice: its program is there.
        now, todo = todo[:size], todo[size:]
        yield trainer.train(now)


class Trainer:
    """Trains groups of pairs; holds the tiles and the compiled programs."""

    def __init__(self, config: Config, functions: Functions, arrays: dict[str, Batch]):
        self.config, self.functions, self.arrays = config, functions, arrays
        self.tiles = jax.device_put((arrays["train"], arrays["val"]))
        self.create = parallel.compile_drawing(jax.vmap(functions.create))
        self.run = jax.jit(members.scan(_step(functions)), donate_argnums=0)
        self.evaluate = jax.jit(
            jax.vmap(
                lambda state, batch: functions.evaluation(state, None, batch), in_axes=(0, None)
            )
        )

    def fits(self, size: int) -> bool:
        """Whether a group of so many is trained within nine tenths of the device's memory."""
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        if memory is None:
            return True
        states, seeds = self._start([Pair(1.0, s) for s in range(size)])
        slots = jax.tree.map(lambda x: x[:CHUNK], self._slots([Pair(1.0, 0)] * size))
        needed: Any = self.run.lower(states, (self.tiles, seeds), slots).compile().memory_analysis()
        return needed.temp_size_in_bytes < 0.9 * memory

    def train(self, group: list[Pair]) -> list[dict[str, Any]]:
        """The lines of a group."""
        began = time.perf_counter()
        states, seeds = self._start(group)
        slots = self._slots(group)
        count = len(slots[0])
        with tqdm(total=count * len(group), desc=f"{len(group)} runs", unit="step") as bar:
            for start in range(0, count, CHUNK):
                part = jax.tree.map(lambda x: x[start : start + CHUNK], slots)  # noqa: B023
                interruption.check()
                states, losses = self.run(states, (self.tiles, seeds), part)
                self._check(group, np.asarray(losses))
                bar.update(len(losses) * len(group))
        lams = np.asarray(self.functions.net.regularizer.lam(states.hyper))
        self._check(group, lams.reshape(1, len(group), -1))
        scores = {
            name: members.evaluate(
                self.evaluate, states, tiles, batch_size=self.config.evaluation.batch_size
            )
            for name, tiles in self.arrays.items()
        }
        seconds = (time.perf_counter() - began) / len(group)
        return [
            line(pair, float(np.mean(lams[i])), {k: v[i] for k, v in scores.items()}, seconds)
            for i, pair in enumerate(group)
        ]

    def _start(self, group: list[Pair]) -> tuple[PyTree, jax.Array]:
        seeds = np.asarray([p.seed for p in group], np.int32)
        lams = np.asarray([p.lam for p in group], np.float32)
        with np.errstate(divide="ignore"):  # log 0: a weight of exactly 0
            log = self.config.regularizer.parametrization == "log"
            values = np.log(lams) if log else lams
        shape = self.functions.net.hyper.shape
        values = np.broadcast_to(values.reshape(-1, *[1] * len(shape)), (len(group), *shape))
        states = pretrained.put(self.config.model, self.create(seeds, values))
        return states, jax.device_put(seeds)

    def _slots(self, group: list[Pair]) -> PyTree:
        """`(due [N], inner rows [N, M, K, B], outer rows [N, M, B])` of all updates and steps."""
        config, plan = self.config, self.functions.plan
        steps = config.train.steps
        todo = list(schedule(plan, 0, steps, most=1, pauses=(steps,)))
        seeds = [p.seed for p in group]
        updates = 1 if plan.estimator is None else plan.estimator.batches
        most = max((updates if d.bilevel else d.size for d in todo), default=1)
        train, val = (len(self.arrays[name].image) for name in ("train", "val"))
        inner = np.stack(
            [
                members.rows(
                    train, batch_size=config.train.batch_size, seeds=seeds,
                    positions=[d.before + k for d in todo],
                )
                for k in range(most)
            ], axis=2,
        )  # fmt: skip
        if plan.estimator is None:
            outer = np.zeros((len(todo), len(group), 1), np.int32)
        else:
            outer = members.rows(
                val, batch_size=config.hypergrad.batch_size, seeds=seeds,
                positions=[plan.updates(d.before) for d in todo],
            )  # fmt: skip
        return np.array([d.bilevel for d in todo]), inner, outer

    def _check(self, group: list[Pair], losses: np.ndarray) -> None:
        bad = [i for i in range(len(group)) if not np.all(np.isfinite(losses[:, i]))]
        if bad:
            pair = group[bad[0]]
            raise UserError(
                f"lambda {pair.lam:g}, seed {pair.seed}: the loss or lambda is not finite; leave "
                f"it out of --lambdas or try a smaller optimizer.learning_rate in another --workdir"
            )


def _step(functions: Functions) -> Callable[..., tuple[PyTree, PyTree]]:
    """`(states, (tiles, seeds), slot) -> (states, losses)` of all members."""

    def plain(state, seed, tiles, inner, outer):
        del outer
        state, aux = functions.plain(seed, state, [take(tiles[0], inner[0])])
        return state, aux["loss"]

    def bilevel(state, seed, tiles, inner, outer):
        batches = [take(tiles[0], rows) for rows in inner]
        state, aux = functions.bilevel(seed, state, batches, take(tiles[1], outer))
        return state, aux["loss"]

    def each(step):
        return jax.vmap(step, in_axes=(0, 0, None, 0, 0))

    def step(states, shared, slot):
        (tiles, seeds), (due, inner, outer) = shared, slot
        if functions.plan.estimator is None:
            return each(plain)(states, seeds, tiles, inner, outer)
        # The same for all members: only one of the two is computed.
        return lax.cond(due, each(bilevel), each(plain), states, seeds, tiles, inner, outer)

    return step


def read(workdir: Path) -> list[dict[str, Any]]:
    """The lines of the finished runs.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / "results.jsonl"
    if not path.exists():
        return []
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away") from error
    for number, found in enumerate(lines, 1):
        fault = _fault(found)
        if fault:
            raise UserError(f"{path}: line {number} {fault}; move the file away")
    counts = Counter((found["lambda"], found["seed"]) for found in lines)
    twice = next((pair for pair, count in counts.items() if count > 1), None)
    if twice:
        lam, seed = twice
        raise UserError(f"{path} holds lambda {lam:g}, seed {seed} twice; move the file away")
    return lines


SHOWN = (
    "bce", "pooled_iou", "iou", "nonempty_iou", "components", "true_components", "empty_images",
    "images",
)  # fmt: skip
"""Scores that table and figure show; all but `bce` may be missing in what was written earlier."""


def _fault(line: Any) -> str:
    """What is wrong with a line, in words; nothing: ''."""
    if not isinstance(line, dict):
        return f"is no object: {errors.short(line)}"
    for name in ("lambda", "final_lambda"):
        if not (_is_number(line.get(name)) and (line[name] >= 0 or name == "final_lambda")):
            return f"has no weight under {name}: {errors.short(line.get(name))}"
    seed, splits = line.get("seed"), line.get("splits")
    if not (type(seed) is int and 0 <= seed < 2**31):
        return f"has no whole number in [0, 2^31) under seed: {errors.short(seed)}"
    for split in ("val", "test"):
        scores = splits.get(split) if isinstance(splits, dict) else None
        if not isinstance(scores, dict):
            return f"has no object under splits.{split}: {errors.short(scores)}"
        for name in SHOWN:
            found = scores.get(name)
            is_missing = found is None and (split, name) != ("val", "bce")
            if not (is_missing or _is_number(found)):
                return f"has no number under splits.{split}.{name}: {errors.short(found)}"
    return ""


def _is_number(x: Any) -> bool:
    # JSON knows whole numbers that no float holds, and Python's reads NaN.
    return isinstance(x, int | float) and not isinstance(x, bool) and -1e300 < x < 1e300


def write(workdir: Path, lines: list[dict[str, Any]]) -> None:
    """Writes all lines; an earlier file stays whole until the new one is."""
    files.write_text(workdir / "results.jsonl", "".join(json.dumps(x) + "\n" for x in lines))


def table(lines: list[dict[str, Any]]) -> str:
    """One row a lambda: means over seeds, and the standard deviation of the validation loss."""
    rows = [
        "lambda     seeds  val loss  std dev  val pooled IoU  mean IoU  of non-empty  "
        "components (true)  test pooled IoU  mean IoU"
    ]
    for lam in sorted({x["lambda"] for x in lines}):
        same = [x for x in lines if x["lambda"] == lam]

        def mean(split, name, same=same):
            found = [x["splits"][split].get(name) for x in same]  # earlier runs lack some scores
            return math.nan if None in found else statistics.fmean(found)

        losses = [x["splits"]["val"]["bce"] for x in same]
        spread = f"{statistics.stdev(losses):8.4f}" if len(losses) > 1 else " " * 8
        rows.append(
            f"{lam:<10.3g} {len(same):>5}  {mean('val', 'bce'):8.4f} {spread}  "
            f"{mean('val', 'pooled_iou'):14.4f}  {mean('val', 'iou'):8.4f}  "
            f"{mean('val', 'nonempty_iou'):12.4f}  "
            f"{mean('val', 'components'):10.2f} ({mean('val', 'true_components'):.2f})  "
            f"{mean('test', 'pooled_iou'):15.4f}  {mean('test', 'iou'):8.4f}"
        )
        finals = [x["final_lambda"] for x in same]
        if any(abs(f - lam) > 1e-4 * lam for f in finals):
            rows[-1] += "   lambda became " + ", ".join(f"{f:.2g}" for f in finals)
    empty, images = (lines[0]["splits"]["val"].get(k) for k in ("empty_images", "images"))
    if empty and images:
        rows.append(f"{empty:.0f} of {images:.0f} validation tiles are empty")
    return "\n".join(rows)


def main(argv: list[str]) -> None:
    """Trains what is missing, prints the table, draws the figure."""
    del argv
    args: Any = flags.FLAGS
    config = args.config.copy_and_resolve_references()
    workdir = Path(args.workdir or Path("runs") / f"{config.name}_sweep")
    fields.check(config)
    wanted = pairs(args.lambdas, args.seeds, config)
    for pair in wanted:
        fields.check(config_of(config, pair))
    shape = sets.tile_shape(config.data.directory, config.data.size)
    check_sizes(config, parallel.make_layout(**config.parallel), shape)
    _are_alike(config, args.train)
    config = pretrained.pinned(config, rundir.recorded(workdir))
    rundir.check_sweep(workdir, config)
    with rundir.lock(workdir) as free:
        if not free:
            raise UserError(f"--workdir={workdir} is in use by another sweep; choose another")
        lines = read(workdir)
        done = {(x["lambda"], x["seed"]) for x in lines}
        todo = [p for p in wanted if (p.lam, p.seed) not in done]
        kept = None
        if todo or sets.is_prepared(config.data.directory):
            kept = _check_data(config, workdir)
        rundir.write_config(workdir, config)
        if kept is not None:
            rundir.write_data(workdir, kept)
        if todo:
            program.cache_compilations(Path(config.data.cache) / "compiled")
            for found in _train(config, todo, workdir, args):
                lines += found
                write(workdir, lines)
        from tvjax.training import figures  # matplotlib is slow to load

        figures.sweep_of_seeds(lines, workdir / "sweep.png", score=config.evaluation.score)
    print(table(lines))
    print(f"figure: {workdir}/sweep.png")


def _check_data(config: Config, workdir: Path) -> dict[str, Any]:
    """The identity of the data; other than those of the lines that are there are refused, since one
    table is of one set, and those that are too few for a batch."""
    splits = sets.open_section(config.data)
    data = sets.identify(splits, config.data.directory)
    rundir.check_data(workdir, data, advice="use another --workdir for the latter")
    check_batches(config, splits)
    return data


def _are_alike(config: Config, how: str) -> bool:
    """Whether runs of this config can be trained in one program.

    Raises:
      UserError: they cannot, and `--train` asks for it.
    """
    needed = {
        "hypergrad.learn=('lambda',)": learned.names(config) == ("lambda",),
        "train.patience=0": not config.train.patience,
        "denoise.weights=()": not config.denoise.weights,
        "hypergrad.guard other than 'hold'": config.hypergrad.guard != "hold",
    }
    lacking = [condition for condition, holds in needed.items() if not holds]
    if how == "together" and lacking:
        raise UserError(f"--train=together needs {lacking[0]}; take --train=singly")
    return not lacking


def _train(config: Config, todo: list[Pair], workdir: Path, args: Any):
    devices = jax.devices()
    alone = len(devices) == 1 and devices[0].platform == "gpu"
    are_alike = _are_alike(config, args.train)
    if args.train == "together" or (args.train == "auto" and alone and are_alike):
        return together(config, todo, sets.open_section(config.data), args.group)
    return singly(config, todo, workdir)


if __name__ == "__main__":
    define_flags()
    interrupt.run(main)
