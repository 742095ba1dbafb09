"""Hypergradient estimators side by side over a training, against a reference.

    python -m experiments.hypergradients --problem=ridge --json=FILE [--figure=FILE.png]

prints a table for the last snapshot and writes all of them as JSON: config, commit, versions,
hardware, seed, and `records`. Without `--problem` the figure is drawn from the JSON alone.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from absl import flags
from tqdm import tqdm

from experiments import kept, problems
from experiments.problems.setting import Setting
from tvjax import files, hypergrad, interruption, program, provenance
from tvjax.hypergrad.audit import Record
from tvjax.types import PyTree

ONLINE = "forward_online"


def define_flags() -> None:
    flags.DEFINE_enum("problem", None, list(problems.PROBLEMS), "What to audit.")
    kept.json_flag(new=False)
    flags.DEFINE_string(
        "figure", None, "PNG of errors and values over the training, e.g. ridge.png."
    )
    flags.DEFINE_integer("seed", 0, "Seed of mini-batches and noise.")
    flags.DEFINE_integer(
        "snapshots", None, "Number of points of the training to audit, e.g. 2; default: all."
    )
    flags.DEFINE_string(
        "data", None, "Folder of tiles for segmentation, e.g. TILES; default: drawn ones."
    )


def main(argv) -> None:
    del argv
    args = flags.FLAGS
    file = Path(args.json)
    if args.figure:
        files.check_file("figure", Path(args.figure))
    if args.problem:
        kept.check_new(file)
        # A reference is worth its digits only in float64.
        jax.config.update("jax_enable_x64", True)
        results = run(args.problem, args.seed, args.snapshots, args.data)
        kept.write(file, results, allow_nan=False, indent=1)
    if args.figure:
        draw(kept.load(file, _read, "json"), Path(args.figure))


def run(name: str, seed: int, snapshots: int | None = None, data: str | None = None) -> dict:
    """Audits a problem at every snapshot of its training; prints the last table."""
    setting = problems.make(name, seed, data)
    setting = setting._replace(snapshots=setting.snapshots[:snapshots])
    records = []
    bar = tqdm(total=len(setting.snapshots) * len(setting.estimators), desc=name, disable=None)
    for step, state, carries in walk(setting):

        def progress(names, step=step):
            for estimator in names:
                interruption.check()
                bar.set_postfix_str(f"step {step}, {estimator}")
                yield estimator
                bar.update()

        found = hypergrad.audit(
            setting.problem, setting.estimators, state, setting.hyper, setting.inner_batches,
            setting.outer_batch, reference=setting.reference,
            reference_horizon=setting.reference_horizon, draws=setting.draws,
            carries=carries, step=step, progress=progress,
        )  # fmt: skip
        records += found
    bar.close()
    print(f"{name}, after {step} inner steps; reference: {setting.reference_name}")
    print(hypergrad.table(found))
    config = {
        "problem": name,
        "snapshots": list(setting.snapshots),
        "draws": len(setting.draws),
        "reference": setting.reference_name,
    }
    return {
        "config": config,
        **provenance.describe(seed),
        "records": [r._asdict() for r in records],
    }


def walk(setting: Setting) -> Iterator[tuple[int, hypergrad.InnerState, Mapping[str, PyTree]]]:
    """Trains at a fixed hyperparameter: `(step, state, what estimators carry)` at snapshots."""
    online = hypergrad.forward_online()
    problem, state, hyper = setting.problem, setting.state, setting.hyper
    carry = online.init(problem, state, hyper)

    @jax.jit
    def advance(state, carry, batch):
        estimate = online(problem, state, hyper, [batch], setting.outer_batch, carry)
        return estimate.state, estimate.carry

    for step in range(setting.snapshots[-1] + 1):
        if step in setting.snapshots:
            yield step, state, {ONLINE: carry} if ONLINE in setting.estimators else {}
        batch = setting.inner_batches[step % len(setting.inner_batches)]
        state, carry = advance(state, carry, batch)


def draw(results: dict, path: Path) -> None:
    """Relative error and value of each estimator over the training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = results["records"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    names = list(dict.fromkeys((r["estimator"], r["element"]) for r in records))
    for i, (name, element) in enumerate(names):
        mine = [r for r in records if (r["estimator"], r["element"]) == (name, element)]
        style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--", "lw": 1.2}
        steps = [r["step"] for r in mine]
        left.plot(steps, [_or_nan(r["relative_error"]) for r in mine], **style)
        right.plot(steps, [_or_nan(r["value"]) for r in mine], label=f"{name} {element}", **style)
        wrong = [r for r in mine if r["sign_agrees"] is False]
        left.plot(
            [r["step"] for r in wrong], [_or_nan(r["relative_error"]) for r in wrong],
            "x", color=style["color"],
        )  # fmt: skip
    references = {r["step"]: r["reference"] for r in records if r["reference"] is not None}
    if references:
        right.plot(list(references), list(references.values()), "k:", lw=2, label="reference")
        size = max(map(abs, references.values()))
        right.set_yscale("symlog", linthresh=size / 10)
        right.set_ylim(-100 * size, 100 * size)
    left.set(xscale="log", yscale="log", xlabel="inner steps")
    left.set_ylim(top=min(left.get_ylim()[1], 1e3))  # what explodes leaves the figure
    left.set_title("relative error (x: wrong sign)")
    right.set(xscale="log", xlabel="inner steps", title="hypergradient")
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{results['config']['problem']}; reference: {results['config']['reference']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _read(results: dict) -> None:
    """What is drawn."""
    _ = results["config"]["problem"], results["config"]["reference"]
    for record in results["records"]:
        Record(**record)


def _or_nan(x: float | None) -> float:
    return float("nan") if x is None else x


if __name__ == "__main__":
    define_flags()
    program.run(main)
