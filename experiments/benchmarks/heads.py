"""What a TV-softmax head adds to the U-Net's training step, side by side in one run.

    python -m experiments.benchmarks.heads --json=FILE

The U-Net at width 16 and 16 x 100 x 100 (`--width`, `--batch`, `--size`), Adam: with a sigmoid, a
softmax, the paper's TV-softmax of one iteration, and the converged one at two weights (its cost
grows with lambda: the solver needs more iterations). `over_softmax` is the figure to quote.
"""

from functools import partial

import jax
from absl import flags
from tqdm import tqdm

from experiments import kept
from experiments.benchmarks import workload
from tvjax import hypergrad, program, provenance
from tvjax.training import parallel, steps

_JSON = kept.json_flag()
_WIDTH, _SIZE, _BATCH = workload.size_flags()
_ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each step is timed.")

HEADS = {
    "sigmoid": ("sigmoid", 1, 1e-6),
    "softmax": ("softmax", 1, 1e-6),
    "tv_softmax, 1 iteration": ("tv_softmax", 1, 1e-6),
    "tv_softmax, 10 iterations": ("tv_softmax", 10, 1e-6),
    "tv_softmax converged, lambda 1e-6": ("tv_softmax", None, 1e-6),
    "tv_softmax converged, lambda 0.25": ("tv_softmax", None, 0.25),
}


def make_step(head: str, iterations: int | None, lam: float):
    """A compiled call `() -> (state, metrics)` of one training step."""
    problem, regularizer, start = workload.unet(
        width=_WIDTH.value, size=_SIZE.value, lam=lam, head=head, head_iterations=iterations,
        place="head",
    )  # fmt: skip
    batches = workload.random_batches(1, batch=_BATCH.value, size=_SIZE.value)
    step = steps.plain_step(problem, regularizer)
    compiled = parallel.make_layout(map="jit").compile(lambda s, _, b: step(s, b))
    return partial(compiled, start(None, hypergrad.adam(0.0)), None, batches)


def main(argv):
    del argv
    calls = {}
    for name, head in tqdm(HEADS.items(), "compiling"):
        calls[name] = make_step(*head)
        jax.block_until_ready(calls[name]())
    medians = workload.median_seconds(calls, _ROUNDS.value)
    result = {
        "benchmark": "heads",
        "config": {
            "width": _WIDTH.value, "batch": _BATCH.value, "size": _SIZE.value,
            "rounds": _ROUNDS.value,
        },
        "medians_s": medians,
        "over_softmax": {name: value / medians["softmax"] for name, value in medians.items()},
        **provenance.describe(seed=0),
    }  # fmt: skip
    kept.write(_JSON.value, result)
    for name, value in medians.items():
        print(f"{name:<36}{value:>9.3f} s{result['over_softmax'][name]:>8.2f} softmax steps")


if __name__ == "__main__":
    program.run(main)
