"""What a hypergradient costs: one training step under each estimator, side by side in one run.

    python -m experiments.benchmarks.steps --width=16 --json=FILE

The real U-Net at 16 x 100 x 100 (`--batch`, `--size`) and Adam. All estimators see
the same state and batches; they are timed in turn, round after round, so that a drift of the
machine's speed hits all alike. `ratios_to_plain` is the figure to quote.

`exact_with_decay` learns AdamW's weight decay beside lambda. The solvers take one step of the
optimiser, `amigo_2` and `stocbio_2` two products with the Hessian, and `bome` one step to its fixed
point.

`reverse_10` and `forward_10` take ten inner steps, and are divided by plain steps all the same;
they are timed once. On a CPU their steps are a host's loop over one compiled step (unrolled in one
program, ten steps of this net take the compiler more than 20 GiB), on an accelerator a scan. Their
`temporary` bytes are those of the scan.
"""

import os
import time
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
_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each step is timed.")
_ONLY = flags.DEFINE_list(
    "only", None, "Steps to time beside plain, e.g. exact,paper; default: all."
)

RATE, SCALE, DAMPING = 1e-3, 0.01, 0.1


def estimators(loop: hypergrad.Loop, ten: int = 10) -> dict[str, hypergrad.Estimator]:
    """The estimators by name; `loop` runs ten steps, or as many as given."""
    return {
        "exact": hypergrad.exact(),
        "paper": hypergrad.paper(RATE),
        "sgd_formula": hypergrad.sgd_formula(RATE),
        "exact_by_reverse": hypergrad.exact(mode="reverse"),
        "exact_with_decay": hypergrad.exact(),
        "forward_online": hypergrad.forward_online(),
        "soba": hypergrad.soba(SCALE, damping=DAMPING),
        "amigo_2": hypergrad.amigo(2, SCALE, damping=DAMPING),
        "stocbio_2": hypergrad.stocbio(2, SCALE, damping=DAMPING),
        "f2sa": hypergrad.f2sa(10.0),
        "bome": hypergrad.bome(0.5, SCALE),
        "reverse_10": hypergrad.reverse(ten, loop=loop),
        "forward_10": hypergrad.forward(ten, loop=loop),
    }


def make_steps():
    """`{name: (step, estimator, batches)}`, each step as training compiles it, and the states.

    Ten steps are a scan here, whose memory is looked at; `host_step` is what runs on a CPU.
    """
    layout = parallel.make_layout(map="jit")
    options: dict = {"width": _WIDTH.value, "size": _SIZE.value, "rate": RATE}
    problem, regularizer, start = workload.unet(**options)
    two, _, start_two = workload.unet(**options, decay=0.01)
    *train, val = workload.random_batches(11, batch=_BATCH.value, size=_SIZE.value)
    optimizer = hypergrad.adam(0.02)
    made = {}
    plain = layout.compile(lambda s, _, t: steps.plain_step(problem, regularizer)(s, t))
    made["plain"] = plain, None, (train[:1],)
    for name, estimator in estimators(hypergrad.SCANNED).items():
        if _ONLY.value and name not in _ONLY.value:
            continue
        own = two if name == "exact_with_decay" else problem
        bilevel = steps.bilevel_step(own, regularizer, estimator, optimizer)
        step = layout.compile(lambda s, _, t, v, bilevel=bilevel: bilevel(s, t, v))
        made[name] = step, estimator, (train[: estimator.batches], val)
    states = {
        name: (start_two if name == "exact_with_decay" else start)(made[name][1], optimizer)
        for name in made
    }

    def host_step(name, state, _, batches, val):
        estimator = estimators(hypergrad.UNROLLED, len(batches))[name]
        return estimator(problem, state.inner, state.hyper, batches, val, state.carry).gradient

    return made, states, host_step


def measure() -> dict:
    made, states, host_step = make_steps()
    compile_s, memory, calls, long = {}, {}, {}, {}
    for name, (step, _, batches) in tqdm(made.items(), "compiling"):
        began = time.perf_counter()
        compiled = step.lower(states[name], None, *batches).compile()
        compile_s[name] = time.perf_counter() - began
        analysis = compiled.memory_analysis()
        memory[name] = {
            "temporary": analysis.temp_size_in_bytes,
            "carry": sum(x.nbytes for x in jax.tree.leaves(states[name].carry)),
        }
        if not name.endswith("_10"):
            calls[name] = partial(compiled, states[name], None, *batches)
            jax.block_until_ready(calls[name]())
        elif jax.default_backend() == "cpu":
            train, val = batches
            long[name] = partial(host_step, name, states[name], None, train, val)
            host_step(name, states[name], None, train[:1], val)  # compiles what ten steps call
        else:
            long[name] = partial(compiled, states[name], None, *batches)
    medians = workload.median_seconds(calls, _ROUNDS.value)
    medians |= workload.median_seconds(long, 1)
    return {
        "benchmark": "steps",
        "config": {
            "width": _WIDTH.value, "batch": _BATCH.value, "size": _SIZE.value,
            "rounds": _ROUNDS.value,
        },
        "medians_s": medians,
        "ratios_to_plain": {name: value / medians["plain"] for name, value in medians.items()},
        "compile_s": compile_s,
        "bytes": memory,
        **provenance.describe(seed=0),
    }  # fmt: skip


def main(argv):
    del argv
    # What training gives the compiler for a CPU (`parallel`), here for what a host's loop calls.
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    result = measure()
    kept.write(_JSON.value, result)
    print(f"{'':<18}{'seconds':>10}{'plain steps':>13}{'compile s':>11}{'MiB':>9}")
    for name, value in result["medians_s"].items():
        print(
            f"{name:<18}{value:>10.3f}{result['ratios_to_plain'][name]:>13.2f}"
            f"{result['compile_s'][name]:>11.1f}{result['bytes'][name]['temporary'] / 2**20:>9.0f}"
        )


if __name__ == "__main__":
    program.run(main)
