"""What the total variation of images costs, beside copies of the same arrays.

    python -m experiments.benchmarks.variation --json=FILE

TV reads its input once: its floor is a copy, which reads and writes as much. With its gradient it
is a read and a write more, so that two copies are the floor. All are timed by turns.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import kept
from experiments.benchmarks import workload
from tvjax import program, provenance, total_variation

_JSON = kept.json_flag()
_SIZE = flags.DEFINE_integer("size", 1024, "Height and width of the images, in pixels.")
_BATCH = flags.DEFINE_integer("batch", 16, "Number of images.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "How often each is timed.")


def main(argv: list[str]) -> None:
    """Times TV, its gradient, and the copies."""
    del argv
    shape = _BATCH.value, _SIZE.value, _SIZE.value, 1
    x = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))

    def loss(x):
        return jnp.sum(total_variation(x))

    programs = {
        "copy": jax.jit(lambda x: x + 1),
        "copies": jax.jit(lambda x: (x + 1, x * 2)),
        "value": jax.jit(loss),
        "gradient": jax.jit(jax.value_and_grad(loss)),
    }
    calls = {name: lambda run=run: run(x) for name, run in programs.items()}
    for call in calls.values():
        jax.block_until_ready(call())
    medians = workload.median_seconds(calls, _ROUNDS.value)
    result = {
        "benchmark": "variation",
        "config": {"size": _SIZE.value, "batch": _BATCH.value, "rounds": _ROUNDS.value},
        "medians_s": medians,
        "over_copy": {name: value / medians["copy"] for name, value in medians.items()},
        **provenance.describe(seed=0),
    }
    kept.write(_JSON.value, result)
    for name, value in medians.items():
        print(f"{name:<10}{1e3 * value:>9.2f} ms{value / medians['copy']:>8.2f} copies")


if __name__ == "__main__":
    program.run(main)
