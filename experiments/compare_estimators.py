"""Exact against approximate hypergradients in training: lambda and IoU over time, side by side.

    python -m experiments.compare_estimators --out=DIR [--names=lunet_bilevel,lunet_printed]

Trains each config in turn into `DIR/NAME` (resumable, like any run), writes `DIR/result.json` and
draws `DIR/estimators.png` from that file alone.
"""

import importlib
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from absl import flags

from tvjax import program
from tvjax.errors import UserError
from tvjax.training import figures, logs, loop

_OUT = flags.DEFINE_string(
    "out", None, "Folder of the runs and the figure, e.g. runs/compare.", required=True
)
_NAMES = flags.DEFINE_list(
    "names", ["lunet", "lunet_bilevel", "lunet_printed", "lunet_online", "lunet_forward"],
    "Names of the configs to train.",
)  # fmt: skip
_STEPS = flags.DEFINE_integer(
    "steps", None, "Steps of each run, e.g. 160; default: the config's own."
)
_DIRECTORY = flags.DEFINE_string(
    "data", None, "Folder of prepared tiles, e.g. TILES; default: the embedded set."
)


def train(name: str, out: Path) -> dict:
    """Trains one config; its fields, its summary and the lines of its log."""
    config = importlib.import_module(f"configs.{name}").get_config()
    if _STEPS.value:
        config.train.steps = _STEPS.value
    if _DIRECTORY.value:
        config.data.directory = _DIRECTORY.value
    print(f"{name}:")
    try:
        summary = loop.run(config, out / name)
    except loop.Interrupted as interrupted:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(75)
    if summary["steps"] != config.train.steps:
        raise UserError(
            f"{out / name} holds a run of {summary['steps']} steps, and this comparison is of "
            f"{config.train.steps}; give another --out, or --steps={summary['steps']}"
        )
    return {
        "config": json.loads(config.to_json()),
        "summary": summary,
        "metrics": logs.read_metrics(out / name),
    }


def draw(result: dict, path: Path) -> None:
    """Lambda, validation IoU and validation loss over steps, one colour a config."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    panels = (("train", "lambda"), ("val", "iou"), ("val", "bce"))
    for axis, (kind, field) in zip(axes, panels, strict=True):
        for name, run in result.items():
            lines = [m for m in run["metrics"] if m["kind"] == kind]
            label = f"{name}, test IoU {run['summary']['test_iou']:.3f}"
            axis.plot([m["step"] for m in lines], [m[field] for m in lines], label=label)
        axis.set(xlabel="step", ylabel=f"{'' if field == 'lambda' else 'validation '}{field}")
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].legend(fontsize=7)
    figures.save(figure, path)


def main(argv):
    del argv
    out = Path(_OUT.value)
    result = {name: train(name, out) for name in _NAMES.value}
    (out / "result.json").write_text(json.dumps(result) + "\n")
    draw(json.loads((out / "result.json").read_text()), out / "estimators.png")
    for name, run in result.items():
        s = run["summary"]
        print(f"{name:<16} test IoU {s['test_iou']:.4f}  lambda {s['lambda']:.3g}  "
              f"{s['seconds']:.0f} s")  # fmt: skip


if __name__ == "__main__":
    program.run(main)
