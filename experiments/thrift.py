"""What cheaper updates of lambda cost in accuracy: `hypergrad.batch_size` and `.every`.

    python -m experiments.thrift --workdir=runs/lunet_bilevel --json=FILE

At the end of a trained run: the exact hypergradient over many pairs of training and validation
batches, for several sizes of the latter. `spread` is the standard deviation of one estimate over
its mean, `sign` the share of estimates whose sign is the mean's, `seconds` those of a bilevel step.
`cost` is a training step's mean cost, in plain steps, when every n-th step updates lambda:
`(n - 1 + bilevel / plain) / n`; n updates' worth of spread falls as the square root of how often
lambda is updated, all else equal.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import kept
from experiments.benchmarks import workload
from tvjax import program, provenance
from tvjax.data import pipeline
from tvjax.errors import UserError
from tvjax.training import restore
from tvjax.training.setup import make_setup
from tvjax.types import Batch

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a bilevel run, e.g. runs/lunet_bilevel.", required=True
)
_JSON = kept.json_flag()
_SIZES = flags.DEFINE_list("sizes", ["4", "8", "16", "32"], "Validation images in an update.")
_DRAWS = flags.DEFINE_integer("draws", 48, "Number of pairs of batches for each size.")

EVERY = (1, 2, 4, 8)


def main(argv):
    del argv
    workdir = Path(_WORKDIR.value)
    config = restore.read_config(workdir)
    setup, splits = make_setup(config, restore.ANY_SHAPE), restore.open_splits(workdir, config)
    state = restore.open_state(workdir, setup.create())
    estimator, problem = setup.plan.estimator, setup.problem
    if estimator is None or estimator.steps != 1:
        raise UserError(f"{_WORKDIR.value} learns no lambda one step at a time")

    @setup.layout.compile
    def bilevel(at, _, train, val):
        return estimator(problem, at.inner, at.hyper, [train], val, at.carry).gradient

    @setup.layout.compile
    def plain(at, _, train):
        return problem.inner_step(at.inner, at.hyper, train)[0]

    train = batches(splits["train"], config.train.batch_size, _DRAWS.value)
    rows, calls = [], {"plain": partial(plain, state, None, train[0])}
    jax.block_until_ready(calls["plain"]())
    for size in map(int, _SIZES.value):
        val = batches(splits["val"], size, _DRAWS.value)
        pairs = tqdm(list(zip(train, val, strict=True)), f"{size} validation images")
        found = np.asarray([bilevel(state, None, t, v) for t, v in pairs], np.float64)
        mean, deviation = found.mean(), found.std(ddof=1)
        rows.append(
            {
                "batch_size": size,
                "mean": mean,
                "standard_error": deviation / np.sqrt(len(found)),
                "spread": deviation / abs(mean),
                "sign": float(np.mean(np.sign(found) == np.sign(mean))),
            }
        )
        calls[str(size)] = partial(bilevel, state, None, train[0], val[0])
    medians = workload.median_seconds(calls, 7)
    for row in rows:
        row["seconds"] = medians[str(row["batch_size"])]
        ratio = row["seconds"] / medians["plain"]
        row["cost"] = {n: (n - 1 + ratio) / n for n in EVERY}
    result = {
        "config": {"run": config.name, "draws": _DRAWS.value},
        "plain_seconds": medians["plain"],
        "rows": rows,
        **provenance.describe(config.seed),
    }
    kept.write(_JSON.value, result)
    print(
        "images      mean +- error       spread  sign   cost, every " + ", ".join(map(str, EVERY))
    )
    for row in rows:
        print(
            f"{row['batch_size']:>6}{row['mean']:>12.2e} +- {row['standard_error']:.0e}"
            f"{row['spread']:>11.2f}{row['sign']:>6.0%}   "
            + "  ".join(f"{cost:.2f}" for cost in row["cost"].values())
        )


def batches(split, size: int, count: int) -> list[Batch]:
    """Whole batches in the order of training, from a fixed seed."""
    indices = pipeline.TrainIndices(len(split), batch_size=size, seed=1)
    data = pipeline.resident(split)
    return [
        Batch(jnp.asarray(data.image[indices[t]]), jnp.asarray(data.mask[indices[t]]))
        for t in range(count)
    ]


if __name__ == "__main__":
    program.run(main)
