"""Solvers of bilevel problems against a value function that is known.

    python -m experiments.bilevel --problem=quadratic|logistic|cleaning --json=FILE [--figure=PNG]

Each solver is tuned over a grid of inner and outer rates with two seeds, then run with others. The
file holds the grid, and over calls, forward passes and seconds of the processor the gap between the
exact value h(x) and the best one, the norm of its exact gradient and the test error; and whether
the end is what theory says. Solvers that the file has are not run again. Without `--problem` the
figure is drawn from the file.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import kept
from experiments.bilevel import figure, runs
from experiments.bilevel.known import Known
from experiments.bilevel.solvers import SOLVERS
from tvjax import files, interruption, program, provenance

PROBLEMS = "quadratic", "logistic", "cleaning"


def define_flags() -> None:
    flags.DEFINE_enum("problem", None, list(PROBLEMS), "What to solve.")
    kept.json_flag(new=False)
    flags.DEFINE_string("figure", None, "PNG of the courses, e.g. result.png.")
    flags.DEFINE_integer("seeds", 5, "Runs of each solver, once it is tuned.")
    flags.DEFINE_list("only", None, "Solvers to run, e.g. soba,amigo; default: all.")


def main(argv) -> None:
    del argv
    args = flags.FLAGS
    file, only = Path(args.json), kept.chosen(args.only, SOLVERS)
    if args.figure:
        files.check_file("figure", Path(args.figure))
    if args.problem:
        files.check_file("json", file)
        jax.config.update("jax_enable_x64", True)
        run(args.problem, args.seeds, only, file)
    results = kept.load(file, table, "json")
    print(table(results))
    if args.figure:
        figure.draw(results, Path(args.figure))


def run(name: str, seeds: int, only: list[str], file: Path) -> None:
    """Measures the solvers that the file does not have."""
    known = importlib.import_module(f"experiments.bilevel.{name}").make(0)
    results = _begun(name, known, seeds, file)
    for solver in tqdm(only, name, disable=None):
        if solver in results["solvers"]:
            continue
        interruption.check()
        reason = SOLVERS[solver].refuses(known)
        found = {"left_out": reason} if reason else runs.measure(known, SOLVERS[solver], seeds)
        results["solvers"][solver] = found
        kept.write(file, results, allow_nan=False, indent=1)
        print(f"{solver}: {found.get('final_gap_of_best')}", file=sys.stderr, flush=True)


def _begun(name: str, known: Known, seeds: int, file: Path) -> dict[str, Any]:
    """The results so far, of the same problem and seeds."""
    h, _ = known.values(np.stack([np.asarray(known.hyper), known.best]))
    config = {
        "problem": name,
        "seeds": seeds,
        "tuning_seeds": list(runs.TUNING_SEEDS),
        "rates": known.rates, "whole_rates": known.whole_rates,
        "moves": known.moves, "scale": known.scale,
        "budget_passes": known.budget,
        "tolerance": runs.TOLERANCE,
        "samples_in_a_pass": 64,
    }  # fmt: skip

    def read(solvers: dict[str, Any]) -> str:
        return table({"best_value": float(h[1]), "solvers": solvers})

    solvers = kept.lines(file, config, "solvers", read, "json")
    return {
        "benchmark": "bilevel",
        "config": json.loads(json.dumps(config)),
        "first_value": float(h[0]),
        "best_value": float(h[1]),
        "best_is": "the optimum" if known.is_optimum else "the least that L-BFGS found",
        **provenance.describe(seed=0),
        "solvers": dict(solvers),
    }


def table(results: dict[str, Any]) -> str:
    """Where each solver ended."""
    lines = [
        f"{'':<16}{'gap/best':>10}{'local':>10}{'predicted':>11}{'reaches':>9}{'passes':>10}{'s':>8}"
    ]
    for name, found in results["solvers"].items():
        if "left_out" in found:
            lines.append(f"{name:<16}left out: {found['left_out']}")
            continue
        best = abs(results["best_value"])
        predicted = found["predicted_gap"]
        lines.append(
            f"{name:<16}{found['final_gap_of_best'] or np.inf:>10.1e}"
            f"{found['local_gap_of_best'] or np.inf:>10.1e}"
            f"{'' if predicted is None else f'{predicted / best:.1e}':>11}{found['reaches']!s:>9}"
            f"{found['calls'] * found['passes_per_call']:>10.0f}"
            f"{found['calls'] * found['seconds_per_call']:>8.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    program.run(main)
