"""Runs the benchmarks whose results are missing, and writes the table of what was aimed at.

    python -m experiments.benchmarks [--only=steps_w16,denoise] [--results=DIR] [--table=FILE]
    python -m experiments.benchmarks --check

Each benchmark is a program of this folder in a process of its own; its result is
`DIR/NAME_HARDWARE.json`, and the same command goes on where the last one stopped. One that fails,
because a peer is not installed, is told of and stops no other. The table, by default
`docs/benchmarks.md`, has a row per aim: the figure, the bound, the file, and the command.

`--check` takes small sizes, writes nothing, and ends with status 1 where a ratio is beyond its
bound: two minutes that tell whether a change has made something slow.
"""

import json
import operator
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments import kept
from tvjax import files, program

PROGRAMS: dict[str, str] = {
    "steps_w16": "steps --width=16",
    "steps_w64": "steps --width=64 --rounds=3 --only=exact,paper,sgd_formula,forward_online",
    "peers_w16": "peers --width=16",
    "peers_w64": "peers --width=64 --rounds=3",
    "profile_w16": "profile --width=16",
    "heads": "heads",
    "variation": "variation",
    "denoise": "denoise",
    "predict": "predict",
    "predict_peers": "predict --peers --sizes=2000",
    "prepare": "prepare",
    "input_pipeline": "input_pipeline",
    "scaling": "scaling",
    "horizon": "horizon",
}
"""The program and flags of each result."""


class Aim(NamedTuple):
    """A figure of a result, and what it should be."""

    text: str
    name: str
    """The result that has it."""
    figure: Callable[[dict[str, Any]], float]
    bound: float
    at_most: bool = True

    def met(self, value: float) -> bool:
        """Whether the figure is within its bound."""
        return (operator.le if self.at_most else operator.ge)(value, self.bound)

    def says(self) -> str:
        """The bound in words."""
        return f"{'<=' if self.at_most else '>='} {self.bound:.3g}"


def over(top: str, bottom: str) -> Callable[[dict[str, Any]], float]:
    """The ratio of two medians of a result."""
    return lambda found: found["medians_s"][top] / found["medians_s"][bottom]


def least_speedup(found: dict[str, Any]) -> float:
    """The least speed-up of ROF's default over scikit-image at a relative error of 1e-4."""
    rows = [row for row in found["rows"] if row["accuracy"] == 1e-4]
    return min(row["primal_dual"]["speedup"] for row in rows)


def least_share(found: dict[str, Any]) -> float:
    """The least share of the net's own throughput that rasters and pictures reach."""
    key = "megapixels_per_processor_s"
    return min(case[key] / case[f"forward_{key}"] for case in found["cases"])


def build_speedup(found: dict[str, Any]) -> float:
    """How many times quicker a tile is prepared than by dense products."""
    return found["build"]["dense over 1 process, per tile"]["seconds"]


def tiled(found: dict[str, Any]) -> float:
    """Time of our tiled inference over PyTorch's, the same U-Net."""
    medians = found["cases"][0]["medians_s"]
    return medians["unet, ours"] / medians["unet, PyTorch"]


COUNTED = 7 / 3
"""Forward passes of an exact step over those of a plain one."""
AIMS = (
    Aim("exact bilevel step over a plain one, width 16", "steps_w16",
        over("exact", "plain"), COUNTED),
    Aim("the same, width 64", "steps_w64", over("exact", "plain"), COUNTED),
    Aim("exact with AdamW's decay over exact", "steps_w16",
        over("exact_with_decay", "exact"), 1.1),
    Aim("plain step over PyTorch's, width 16", "peers_w16", over("plain", "torch_plain"), 1.2),
    Aim("the same, width 64", "peers_w64", over("plain", "torch_plain"), 1.0),
    Aim("exact over the printed formula in PyTorch, width 16", "peers_w16",
        over("exact", "torch_printed"), 1.0),
    Aim("exact over TorchOpt, width 16", "peers_w16", over("exact", "torchopt"), 0.4),
    Aim("exact over higher, width 16", "peers_w16", over("exact", "higher"), 0.4),
    Aim("exact over TorchOpt, width 64", "peers_w64", over("exact", "torchopt"), 0.4),
    Aim("exact over higher, width 64", "peers_w64", over("exact", "higher"), 0.4),
    Aim("TV-softmax of one iteration over softmax, a step", "heads",
        over("tv_softmax, 1 iteration", "softmax"), 1.3),
    Aim("TV's value over a copy", "variation", over("value", "copy"), 2.0),
    Aim("TV's value and gradient over two copies", "variation", over("gradient", "copies"), 2.0),
    Aim("ROF's speed-up over scikit-image, to 1e-4", "denoise", least_speedup, 10.0, False),
    Aim("predict's share of the net's throughput", "predict", least_share, 0.7, False),
    Aim("predict's tiled inference over PyTorch's, the same U-Net", "predict_peers", tiled, 1.0),
    Aim("prepare's speed-up over dense products, per tile", "prepare", build_speedup, 10.0, False),
)  # fmt: skip
CHECKS: dict[str, tuple[str, dict[str, float]]] = {
    "steps_w16": ("steps --width=8 --size=64 --batch=8 --only=exact", {"exact bilevel": 3.3}),
    "heads": ("heads --width=8 --size=64 --batch=8 --rounds=5", {"TV-softmax": 1.4}),
    "variation": ("variation", {"TV's value over": 4.0, "TV's value and": 4.5}),
    "denoise": ("denoise --cases=256x1", {"ROF's": 5.0}),
    "predict": ("predict --sizes=1500 --pictures=10", {"predict's": 0.6}),
}
"""What `--check` runs, small, and its bounds by the beginnings of the aims' texts. They are wider
than the aims: other sizes have other ratios, and a busy machine disturbs them."""

TITLE = "Benchmarks: what was aimed at, and what was measured"
READING = """\
- "A over B" is the time of A divided by the time of B: less is better, and the aim is an upper
  bound (`<=`). In the rows of a speed-up or a share more is better (`>=`).
- A plain step is a step of training without a hypergradient. "Exact" is a step with the exact
  hypergradient (`tvjax.hypergrad.exact`). The printed formula is Algorithm 1 of the paper.
  TorchOpt and higher are libraries that differentiate through PyTorch's steps.
- ROF is the denoising of `tvjax.denoise_tv`; its speed-up is the least of several sizes.
- predict's share: the pixels per processor second of all of `tvjax.predict`, divided by those of
  the net's forward pass alone.
- prepare's speed-up: the seconds per tile where dense matrix products shrink and hash the images,
  divided by those of `tvjax.data.prepare`, which needs no such products.
"""
"""How the figures of the table are read."""

_ONLY = flags.DEFINE_list("only", None, "Results to make, e.g. steps_w16,denoise; default: all.")
_RESULTS = flags.DEFINE_string("results", "results/benchmarks", "Folder of the results.")
_TABLE = flags.DEFINE_string("table", "docs/benchmarks.md", "File of the table.")
_CHECK = flags.DEFINE_bool("check", False, "Whether to hold small cases to their bounds instead.")


def main(argv: list[str]) -> None:
    """Makes what is missing and writes the table, or checks."""
    del argv
    known = CHECKS if _CHECK.value else PROGRAMS
    names = kept.chosen(_ONLY.value, known)
    if _CHECK.value:
        sys.exit(0 if check(names) else 1)
    folder, page = Path(_RESULTS.value), Path(_TABLE.value)
    kept.check_report("table", page.parent, [page.name], TITLE)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = result(folder, name)
        if not path.exists():
            measure(PROGRAMS[name], path)
    files.write_text(page, table(folder))
    print(f"table: {_TABLE.value}")


def hardware() -> str:
    """What results are told apart by, such as x86_64_cpu_2cores or NVIDIA_H200."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind.replace(" ", "_")
    return f"{platform.machine()}_cpu_{len(os.sched_getaffinity(0))}cores"


def result(folder: Path, name: str) -> Path:
    """Where a result lies."""
    return folder / f"{name}_{hardware()}.json"


def measure(words: str, path: Path) -> bool:
    """Runs a benchmark; whether it left its result."""
    module, *options = words.split()
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", *options]
    print(f"{' '.join(command[1:])} --json={path}", flush=True)
    ended = subprocess.run([*command, f"--json={path}"], check=False).returncode
    if ended:
        print(f"no result: it ended with status {ended}", file=sys.stderr)
    return not ended


def check(names: list[str]) -> bool:
    """Whether every small case is within its bound."""
    rows, kept = [], True
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            words, bounds = CHECKS[name]
            path = Path(folder) / f"{name}.json"
            if not measure(words, path):
                kept = False
                continue
            found = json.loads(path.read_text())
            for aim in bounded(name, bounds):
                value, met = aim.figure(found), aim.met(aim.figure(found))
                kept &= met
                rows.append(
                    f"{'ok' if met else 'SLOW':<5}{value:>7.2f} {aim.says():>7}  {aim.text}"
                )
    print("\n".join(rows))
    return kept


def bounded(name: str, bounds: dict[str, float]) -> Iterator[Aim]:
    """The aims of a result with the bounds of its small case."""
    for start, bound in bounds.items():
        yield from [
            aim._replace(bound=bound)
            for aim in AIMS
            if aim.name == name and aim.text.startswith(start)
        ]


def table(folder: Path) -> str:
    """The page: every aim with its figure, and every result with its command."""
    lines = [
        f"# {TITLE}", "",
        "`python -m experiments.benchmarks` makes results that are missing and writes this page;",
        "`make bench-check` holds small cases to their bounds. Figures are ratios of things that",
        "ran by turns in one process, medians of the rounds: they compare programs, not machines.",
        "", READING,
        "| figure | measured | aim | met | result |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for aim in AIMS:
        path = result(folder, aim.name)
        value = aim.figure(kept.load(path, aim.figure, "results")) if path.exists() else None
        shown = "not measured" if value is None else f"{value:.2f}"
        met = "" if value is None else "yes" if aim.met(value) else "**no**"
        lines.append(f"| {aim.text} | {shown} | {aim.says()} | {met} | `{aim.name}` |")
    lines += [
        "", f"Hardware: `{hardware()}`, by which the files of results in `{folder}` end. A + after",
        "a commit: the code had changes that were not committed.", "",
        "| result | made by `python -m experiments.benchmarks.` | commit |", "| --- | --- | --- |",
    ]  # fmt: skip
    for name, words in PROGRAMS.items():
        path = result(folder, name)
        found = kept.load(path, operator.itemgetter("commit"), "results") if path.exists() else {}
        commit = found.get("commit", "not made")
        lines.append(f"| `{name}` | `{words}` | {commit} |")
    path = result(folder, "predict_peers")
    lines += beside_pytorch(kept.load(path, beside_pytorch, "results")) if path.exists() else []
    notes = folder / "notes.md"
    return "\n".join(lines) + "\n" + (f"\n{notes.read_text()}" if notes.exists() else "")


def beside_pytorch(found: dict[str, Any]) -> list[str]:
    """Tiled inference by us and by PyTorch, and the nets alone, with the spread of the rounds."""
    rounds = found["config"]["rounds"]
    whole, alone = [], []
    for case in found["cases"]:
        for name, times in case["seconds"].items():
            three = case["medians_s"][name], min(times), max(times)
            cells = [f"{x:.3f}" for x in three]
            if name.endswith(" alone"):
                height, width = case["tilings"][name.split(",")[0]]["tile"]
                tiles = f"{found['config']['batch']} of {height} x {width}"
                alone.append(" | ".join([name, tiles, *cells]))
            else:
                whole.append(" | ".join([name, str(case["side"]), *cells]))
    return [
        "", f"Seconds of tiled inference, {rounds} rounds in turn, from an image's file to the map",
        "of probabilities (`lite0`: U-Nets on EfficientNet-lite0, ours and that of",
        "segmentation-models-pytorch, whose decoder differs):", "",
        "| | side of the image | median | least | most |", "| --- | --- | --- | --- | --- |",
        *(f"| {row} |" for row in whole),
        "", "Seconds of the net alone, in the same rounds: one forward pass of the tiles of the",
        "second column, without file and tiling:", "",
        "| | tiles and their pixels | median | least | most |", "| --- | --- | --- | --- | --- |",
        *(f"| {row} |" for row in alone),
    ]  # fmt: skip


if __name__ == "__main__":
    program.run(main)
