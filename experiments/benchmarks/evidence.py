"""What `hypergrad.until_significant` promises, and what it costs in waiting.

    python -m experiments.benchmarks.evidence --json=FILE

Noise: the share of runs that move at least once within 10,000 gradients of mean 0. Waiting: the
gradients after which half and nine tenths of the runs have moved, for normal gradients whose mean
is some share of their standard deviation, beside Student's t-test that looks once, after as many
gradients as it needs to find that signal in half and in nine tenths of the cases.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from tqdm import tqdm

from experiments import kept
from tvjax import hypergrad, program, provenance

_JSON = kept.json_flag()

RUNS, LOOKS, LONG = 4_000, 10_000, 20_000
THRESHOLDS = 2.0, 3.0
SIGNALS = 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0
BLOCKS = {
    "normal": (1,), "t3": (1,), "cauchy": (1,), "coins": (1,), "exponential": (1, 10),
    "lognormal": (1, 10), "growing": (1,), "shrinking": (1,), "correlated 0.5": (1, 10),
    "correlated 0.9": (1, 50),
}  # fmt: skip

Draw = Callable[[Any, Any, Any], Any]
"""A function of a key, the last gradients and their number: the next gradients, one per run."""


def main(argv):
    del argv
    cases = [(kind, block, z) for kind in BLOCKS for block in BLOCKS[kind] for z in THRESHOLDS]
    noise = [
        {"noise": kind, "block": block, "threshold": z, "moved": moved(kind, block, z)}
        for kind, block, z in tqdm(cases, "noise")
    ]
    pairs = [(signal, z) for z in THRESHOLDS for signal in SIGNALS]
    waits = [waiting(signal, z) for signal, z in tqdm(pairs, "waiting")]
    result = {
        "benchmark": "evidence",
        "config": {"runs": RUNS, "looks": LOOKS, "longest_wait": LONG},
        "noise": noise,
        "waiting": waits,
        **provenance.describe(seed=0),
    }
    kept.write(_JSON.value, result)
    for row in noise + waits:
        print(
            "  ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        )


def draws(kind: str) -> Draw:
    """Gradients of mean 0, of this kind."""
    if kind.startswith("correlated"):
        a = float(kind.split()[1])
        # The first is drawn as all others are distributed.
        return lambda key, last, n: jnp.where(
            n == 0,
            jax.random.normal(key, last.shape),
            a * last + math.sqrt(1 - a**2) * jax.random.normal(key, last.shape),
        )
    kinds: dict[str, Draw] = {
        "normal": lambda key, last, n: jax.random.normal(key, last.shape),
        "t3": _t3,
        "cauchy": lambda key, last, n: jax.random.cauchy(key, last.shape),
        "coins": lambda key, last, n: jax.random.rademacher(key, last.shape, last.dtype),
        "exponential": lambda key, last, n: jax.random.exponential(key, last.shape) - 1,
        "lognormal": lambda key, last, n: (
            jax.random.lognormal(key, shape=last.shape) - math.exp(0.5)
        ),
        "growing": lambda key, last, n: (n + 1) * jax.random.normal(key, last.shape),
        "shrinking": lambda key, last, n: jax.random.normal(key, last.shape) / jnp.sqrt(n + 1.0),
    }
    return kinds[kind]


def _t3(key, last, n):
    normal = jax.random.normal(key, (4, *last.shape))
    return normal[0] / jnp.sqrt(jnp.mean(normal[1:] ** 2, axis=0))


def moved(kind: str, block: int, threshold: float) -> float:
    """The share of runs that noise moved at least once."""
    first, _ = first_moves(draws(kind), block, threshold, LOOKS)
    return float(np.mean(first > 0))


def waiting(signal: float, threshold: float) -> dict[str, Any]:
    """Looks until a move and the share of wrong signs, beside a test that looks once."""

    def draw(key, last, n):
        return signal + jax.random.normal(key, last.shape)

    first, update = first_moves(draw, 1, threshold, LONG)
    looks = np.where(first > 0, first, LONG)
    return {
        "signal": signal,
        "threshold": threshold,
        "once_half": needed(signal, threshold, 0.5),
        "once_nine_tenths": needed(signal, threshold, 0.9),
        "half": int(np.quantile(looks, 0.5)),
        "nine_tenths": int(np.quantile(looks, 0.9)),
        "wrong_sign": float(np.mean(update > 0)),  # of -signal
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def first_moves(draw: Draw, block: int, threshold: float, looks: int) -> tuple[Any, Any]:
    """The number of gradients before each run's first move, 0 for none, and that update."""
    gate = hypergrad.until_significant(optax.sgd(1.0), threshold, block=block)

    def waits(carry):
        n, _, _, first, _ = carry
        return (n < looks) & ~jnp.all(first > 0)

    def look(carry):
        n, state, last, first, update = carry
        gradients = draw(jax.random.fold_in(jax.random.key(0), n), last, n)
        updates, state = jax.vmap(gate.update)(gradients, state)
        updates = jnp.asarray(updates)
        begins = (first == 0) & (updates != 0)
        first = jnp.where(begins, n + 1, first)
        return n + 1, state, gradients, first, jnp.where(begins, updates, update)

    zeros = jnp.zeros(RUNS)
    start = 0, jax.vmap(gate.init)(zeros), zeros, jnp.zeros(RUNS, int), zeros
    *_, first, update = jax.lax.while_loop(waits, look, start)
    return first, update


def needed(signal: float, threshold: float, power: float) -> int:
    """The gradients that Student's t-test needs to find a signal with this probability."""
    level = 2 * stats.norm.sf(threshold)

    def finds(n: int) -> bool:
        critical = stats.t.isf(level / 2, n - 1)
        return bool(stats.nct.sf(critical, n - 1, signal * math.sqrt(n)) >= power)

    low, high = 1, 2
    while not finds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


if __name__ == "__main__":
    program.run(main)
