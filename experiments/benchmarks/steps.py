"""What a hypergradient costs: one training step under each estimator, side by side in one run.

    python -m experiments.benchmarks.steps --width=16 --json=FILE

The real U-Net at 16 x 100 x 100 (`--batch`, `--size`) and Adam. All estimators see
the same state and batches; they are timed in turn, round after round, so that a drift of the
machine's speed hits all alike. `ratios_to_plain` is the figure to quote. `reverse_10` and
`forward_10` take ten inner steps, and are divided by plain steps all the same.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

from tvjax import hypergrad, provenance
from tvjax.models import make_model
from tvjax.training import parallel, state, steps
from tvjax.types import Batch

_JSON = flags.DEFINE_string("json", None, "Where to write the result.", required=True)
_WIDTH = flags.DEFINE_integer("width", 16, "Filters of the U-Net's first block.")
_SIZE = flags.DEFINE_integer("size", 100, "Height and width of the images.")
_BATCH = flags.DEFINE_integer("batch", 16, "Images in a batch.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the computation: float32 or bfloat16.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each is timed.")
_ONLY = flags.DEFINE_list("only", None, "Names to time, beside plain; default all.")

RATE = 1e-3


def estimators() -> dict[str, hypergrad.Estimator]:
    return {
        "exact": hypergrad.exact(),
        "paper": hypergrad.paper(RATE),
        "sgd_formula": hypergrad.sgd_formula(RATE),
        "exact_by_reverse": hypergrad.exact(mode="reverse"),
        "forward_online": hypergrad.forward_online(),
        "reverse_10": hypergrad.reverse(10),
        "forward_10": hypergrad.forward(10),
    }


def make_steps():
    """`{name: (step, batches)}`, each step compiled as training compiles it, and the state."""
    layout = parallel.make_layout(map="jit")
    net, head = make_model(
        name="unet", head="sigmoid", head_iterations=1, head_kind="anisotropic",
        width=_WIDTH.value, depth=2, momentum=0.9, dtype=_DTYPE.value,
    )  # fmt: skip
    regularizer = steps.Regularizer("loss", "anisotropic", "sum", "log")
    problem = steps.make_problem(net, head, hypergrad.adam(RATE), regularizer)
    shape = (_BATCH.value, _SIZE.value, _SIZE.value)
    variables = jax.jit(
        lambda: net.init(jax.random.key(0), jnp.zeros((1, *shape[1:], 3)), train=False)
    )()
    alpha = jnp.log(jnp.float32(1e-6))
    model_state = steps.model_state_of(variables["batch_stats"], jnp.exp(alpha))
    rng = np.random.default_rng(0)

    def batch():
        image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        return Batch(jnp.asarray(image), jnp.asarray(image[..., :1] > 128, dtype=jnp.uint8))

    train, val = [batch() for _ in range(10)], batch()
    optimizer = hypergrad.adam(0.02)
    made = {}
    plain = layout.compile(lambda s, _, t: steps.plain_step(problem, regularizer)(s, t))
    made["plain"] = plain, None, (train[:1],)
    for name, estimator in estimators().items():
        if _ONLY.value and name not in _ONLY.value:
            continue
        bilevel = steps.bilevel_step(problem, regularizer, estimator, optimizer)
        step = layout.compile(lambda s, _, t, v, bilevel=bilevel: bilevel(s, t, v))
        made[name] = step, estimator, (train[: estimator.steps], val)
    start = partial(state.create, problem, variables["params"], model_state, alpha)
    states = {name: start(made[name][1], optimizer) for name in made}
    return made, states


def measure() -> dict:
    made, states = make_steps()
    compile_s, memory, calls = {}, {}, {}
    for name, (step, _, batches) in tqdm(made.items(), "compiling"):
        began = time.perf_counter()
        compiled = step.lower(states[name], None, *batches).compile()
        compile_s[name] = time.perf_counter() - began
        analysis = compiled.memory_analysis()
        memory[name] = {
            "temporary": analysis.temp_size_in_bytes,
            "carry": sum(x.nbytes for x in jax.tree.leaves(states[name].carry)),
        }
        calls[name] = partial(compiled, states[name], None, *batches)
        jax.block_until_ready(calls[name]())
    seconds = {name: [] for name in calls}
    for _ in tqdm(range(_ROUNDS.value), "timing rounds"):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    return {
        "benchmark": "steps",
        "config": {
            "width": _WIDTH.value, "batch": _BATCH.value, "size": _SIZE.value,
            "dtype": _DTYPE.value, "rounds": _ROUNDS.value,
        },
        "medians_s": medians,
        "ratios_to_plain": {name: value / medians["plain"] for name, value in medians.items()},
        "compile_s": compile_s,
        "bytes": memory,
        **provenance.describe(seed=0),
    }  # fmt: skip


def main(argv):
    del argv
    result = measure()
    Path(_JSON.value).write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'':<18}{'seconds':>10}{'plain steps':>13}{'compile s':>11}{'MiB':>9}")
    for name, value in result["medians_s"].items():
        print(
            f"{name:<18}{value:>10.3f}{result['ratios_to_plain'][name]:>13.2f}"
            f"{result['compile_s'][name]:>11.1f}{result['bytes'][name]['temporary'] / 2**20:>9.0f}"
        )
    print(f"written to {_JSON.value}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
