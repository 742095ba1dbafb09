"""Where a training step's time goes: shares of convolutions, transposes, sums and the rest.

    python -m experiments.benchmarks.profile --width=16 --json=FILE

The plain and the exact bilevel step of the benchmark `steps`, traced by JAX's profiler. Operations
are told apart by their names in the compiled program:

- convolution: convolutions and products, forward and backward;
- transpose: copies that bring an operand of a convolution, as a rule of the gradient of its
  weights, into the order that the convolution takes;
- sum: reductions, as a rule the means of batch normalisation and their gradients;
- elementwise: all else (normalising, ReLU, pooling, concatenation, Adam).
"""

import collections
import gzip
import json
import tempfile
from pathlib import Path

import jax
from absl import flags

from experiments import kept
from experiments.benchmarks import workload
from tvjax import hypergrad, program, provenance
from tvjax.training import parallel, steps

_JSON = kept.json_flag()
_WIDTH, _SIZE, _BATCH = workload.size_flags()
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Steps that are traced.")

KINDS = {
    "convolution": ("convolution", "conv_general", "dot", "gemm"),
    "transpose": ("transpose", "copy"),
    "sum": ("reduce",),
}
"""What the names of operations of a kind contain; the first kind that fits takes an operation."""


def kind_of(name: str) -> str:
    """The kind of an operation of the compiled program, by its name."""
    fits = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return next(fits, "elementwise")


def trace(call, rounds: int) -> dict[str, float]:
    """Milliseconds per call by kind; of operations that threads share, the time of one thread."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(rounds):
                jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spent = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            spent[kind_of(event["args"]["hlo_op"])] += event["dur"] / 1e3 / rounds
    return dict(spent)


def main(argv: list[str]) -> None:
    """Traces both steps and prints their shares."""
    del argv
    layout, optimizer = parallel.make_layout(map="jit"), hypergrad.adam(0.02)
    problem, regularizer, start = workload.unet(width=_WIDTH.value, size=_SIZE.value, rate=1e-3)
    train, val = workload.random_batches(2, batch=_BATCH.value, size=_SIZE.value)
    exact = hypergrad.exact()
    bilevel = steps.bilevel_step(problem, regularizer, exact, optimizer)
    made = {
        "plain": (lambda s, _, t: steps.plain_step(problem, regularizer)(s, t), None, ([train],)),
        "exact": (lambda s, _, t, v: bilevel(s, t, v), exact, ([train], val)),
    }
    found = {}
    for name, (step, estimator, batches) in made.items():
        arguments = start(estimator, optimizer), None, *batches
        compiled = layout.compile(step).lower(*arguments).compile()
        jax.block_until_ready(compiled(*arguments))
        found[name] = trace(lambda run=compiled, given=arguments: run(*given), _ROUNDS.value)
        total = sum(found[name].values())
        shares = (f"{kind} {100 * ms / total:.0f} %" for kind, ms in found[name].items())
        print(f"{name}: {total:.0f} ms per step; {', '.join(shares)}")
    result = {
        "benchmark": "profile",
        "config": {"width": _WIDTH.value, "size": _SIZE.value, "batch": _BATCH.value},
        "ms_per_step": found,
        **provenance.describe(seed=0),
    }
    kept.write(_JSON.value, result)


if __name__ == "__main__":
    program.run(main)
