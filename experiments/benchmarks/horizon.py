"""Memory of a K-step hypergradient against the horizon K: online forward needs the same for all.

    python -m experiments.benchmarks.horizon --json=FILE

Bytes that the compiled programs reserve, as the compiler states them; nothing is run. A small U-Net
(the ratio between the estimators is what counts), loops in XLA. `forward_online` is one step's
program plus the tangent that it carries, whatever the horizon; `forward` holds one step's tangents
too, but takes K steps to give one value; `reverse` keeps K states.
"""

from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from experiments import kept
from experiments.benchmarks import workload
from tvjax import hypergrad, interruption, program, provenance
from tvjax.types import PyTree

_JSON = kept.json_flag()

WIDTH, SIZE, BATCH = 4, 32, 4
HORIZONS = (10, 100, 1000)


def main(argv):
    del argv
    problem, _, start = workload.unet(width=WIDTH, size=SIZE)
    state = start(None, hypergrad.adam(0.0))
    batch, val = workload.random_batches(2, batch=BATCH, size=SIZE)
    rows = []
    makers = {
        "forward_online": lambda k: hypergrad.forward_online(),
        "forward": lambda k: hypergrad.forward(k, loop=LOOP),
        "reverse": lambda k: hypergrad.reverse(k, loop=LOOP),
    }
    for horizon in tqdm(HORIZONS, "compiling"):
        row: dict[str, int] = {"horizon": horizon}
        for name, make in makers.items():
            interruption.check()
            row[name] = reserved(make(horizon), problem, state, batch, val)
        rows.append(row)
    result = {
        "benchmark": "horizon",
        "config": {"width": WIDTH, "size": SIZE, "batch": BATCH},
        "bytes": rows,
        **provenance.describe(seed=0),
    }
    kept.write(_JSON.value, result)
    print(f"{'K':>6}" + "".join(f"{name + ', MiB':>22}" for name in makers))
    for row in rows:
        print(f"{row['horizon']:>6}" + "".join(f"{row[n] / 2**20:>22.2f}" for n in makers))


def reserved(estimator, problem, state, batch, val) -> int:
    """Temporary bytes of the estimator's program and the bytes that it carries."""
    carry = estimator.init(problem, state.inner, state.hyper)

    def call(inner, hyper, batch, val, carry):
        return estimator(problem, inner, hyper, [batch] * estimator.batches, val, carry)

    compiled = jax.jit(call).lower(state.inner, state.hyper, batch, val, carry).compile()
    carried = sum(x.nbytes for x in jax.tree.leaves(carry))
    memory: Any = compiled.memory_analysis()  # every backend here tells
    return memory.temp_size_in_bytes + carried


class _Same(NamedTuple):
    """One batch for all steps: K of them are input, and would hide what the estimator needs."""

    batch: PyTree


def _scan(f, carry, *xs, length: int, reverse: bool = False):
    def body(carry, moving):
        now = (x.batch if isinstance(x, _Same) else m for x, m in zip(xs, moving, strict=True))
        return f(carry, *now)

    moving = [None if isinstance(x, _Same) else x for x in xs]
    return jax.lax.scan(body, carry, moving, length=length, reverse=reverse)


LOOP = hypergrad.SCANNED._replace(stack=lambda batches: _Same(batches[0]), scan=_scan)


if __name__ == "__main__":
    program.run(main)
