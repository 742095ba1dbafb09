"""Roofs by our nets and by segmentation-models-pytorch's U-Net, on the same tiles in equal time.

    pip install segmentation-models-pytorch    # its rows are left out without it
    python -m tvjax.data.prepare --annotations=A.json --images=DIR --out=TILES --size=96
    python -m experiments.benchmarks.segmentation_peers --data=TILES --json=FILE [--minutes=6]

Each method is trained for the number of steps that it takes in `--minutes` of this machine, which
is found first and kept in the file; ours by `tvjax.main`. All read the tiles of one split, 16 in a
step, with flips and quarter turns, and the scores of all are computed by the same functions, of the
masks at p > 0.5 of the test tiles. The peer is smp's U-Net with the encoder
`tu-tf_efficientnet_lite0` and the pretrained file that ours begins from, AdamW at 1e-3 on a
one-cycle schedule. What the file has is not run again.
"""

# PyTorch and smp are no dependency.
# pyright: reportMissingImports=false

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from scipy import special

from experiments import kept
from tvjax import files, interruption, program, provenance
from tvjax.data.sets import identify, open_prepared
from tvjax.models.encoders import weights
from tvjax.scoring.mask_scores import summarise
from tvjax.training.evaluation import add_up, image_scores, sums

_DATA = flags.DEFINE_string("data", None, "Folder of prepared tiles, e.g. TILES.", required=True)
_JSON = kept.json_flag(new=False)
_MINUTES = flags.DEFINE_float("minutes", 6.0, "Minutes of one training, without compilation.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each method.")
_ONLY = flags.DEFINE_list("only", None, "Methods to run, e.g. scratch,smp; default: all.")

FLIPPED = ["--config.augmentation.flips", "--config.augmentation.turns"]
SCRATCH = [*FLIPPED, "--config.optimizer.learning_rate=2e-3", "--config.schedule.name=cosine"]
FROZEN = ["--config=configs/roofs.py", "--config.model.encoder_rate=0"]
OURS: dict[str, list[str]] = {
    "scratch": ["--config=configs/unet.py", *SCRATCH],
    "scratch, lambda learned": ["--config=configs/lunet_bilevel.py", *SCRATCH],
    "pretrained": ["--config=configs/roofs.py"],
    "pretrained, encoder at a tenth of the rate": [
        "--config=configs/roofs.py", "--config.model.encoder_rate=0.1",
    ],
    "pretrained, encoder frozen": FROZEN,
    "pretrained, encoder frozen, lambda learned": [
        *FROZEN, "--config.regularizer.place=loss", "--config.hypergrad.method=exact",
    ],
}  # fmt: skip
"""Flags of `tvjax.main` by method."""
PEER, BATCH = "smp", 16
SCORES = "iou", "pooled_iou", "boundary_iou"


def main(argv: list[str]) -> None:
    """Finds the steps of each method, trains what is missing, and prints the table."""
    del argv
    path, methods = Path(_JSON.value), kept.chosen(_ONLY.value, [*OURS, PEER])
    files.check_file("json", path)
    found = begun(path, config := describe())
    for method in methods:
        if method not in found["steps"]:
            found["steps"][method] = round(60 * _MINUTES.value / seconds_per_step(method))
            keep(path, config, found)
    done = {(run["method"], run["seed"]) for run in found["runs"]}
    for seed in range(_SEEDS.value):
        for method in methods:
            if (method, seed) not in done:
                began = time.perf_counter()
                scores = train(method, seed, found["steps"][method])
                seconds = time.perf_counter() - began
                found["runs"].append({"method": method, "seed": seed, **scores, "seconds": seconds})
                keep(path, config, found)
    print(table(found))


def describe() -> dict[str, Any]:
    """What the trainings of one file have in common."""
    data = Path(_DATA.value)
    found = {"minutes": _MINUTES.value, "batch": BATCH, "data": data.name}
    return found | {kept.DIGEST: identify(open_prepared(data), _DATA.value)["sha256"]}


def begun(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The steps and trainings that the file has."""
    runs = kept.lines(
        path, config, "runs", lambda runs: table({"steps": dict.fromkeys(OURS, 0), "runs": runs}),
        "json",
    )  # fmt: skip
    steps = dict(kept.lines(path, config, "steps", dict.items, "json"))
    return {"steps": steps, "runs": runs}


def keep(path: Path, config: dict[str, Any], found: dict[str, Any]) -> None:
    """Writes the file, with what it was made by."""
    content = {"benchmark": "segmentation_peers", "config": config, **found}
    kept.write(path, content | provenance.describe(seed=0))


def seconds_per_step(method: str) -> float:
    """Seconds of a training step, without compilation and evaluations."""
    if method == PEER:
        return torch_training(0, 20, score=False)["seconds_per_step"]
    few, more = [ours(method, 0, steps)["seconds"] for steps in (10, 10, 130)][
        1:
    ]  # warm: the first
    return (more - few) / 120


def train(method: str, seed: int, steps: int) -> dict[str, float]:
    """The scores on test tiles after a training."""
    if method == PEER:
        return torch_training(seed, steps, score=True)
    summary = ours(method, seed, steps)
    return {name: summary["splits"]["test"][name] for name in SCORES}


def ours(method: str, seed: int, steps: int) -> dict[str, Any]:
    """The summary of a run of `tvjax.main`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "tvjax.main", *OURS[method], f"--workdir={folder}",
            f"--config.data.directory={_DATA.value}", f"--config.train.steps={steps}",
            f"--config.seed={seed}", f"--config.train.batch_size={BATCH}",
            "--config.schedule.warmup=5" if steps < 100 else "--config.schedule.warmup=20",
            f"--config.evaluation.every={steps}", f"--config.checkpoint.every={steps}",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        interruption.check()  # which the run was told of too
        done.check_returncode()
        return json.loads((Path(folder) / "summary.json").read_text())


def torch_training(seed: int, steps: int, *, score: bool) -> dict[str, float]:
    """Trains smp's U-Net; its scores on test tiles, or its seconds per step."""
    import torch

    torch.manual_seed(seed)
    net = peer()
    splits = open_prepared(Path(_DATA.value))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    loss_of = torch.nn.BCEWithLogitsLoss()
    times = []
    for images, masks in batches(splits["train"], seed, steps):
        interruption.check()
        began = time.perf_counter()
        loss = loss_of(net(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        times.append(time.perf_counter() - began)
    if not score:
        return {"seconds_per_step": float(np.median(times[3:]))}
    net.eval()
    found = []
    with torch.no_grad():
        for record in (splits["test"][i] for i in range(len(splits["test"]))):
            prediction = net(tensor(record["image"][None])).numpy().transpose(0, 2, 3, 1) > 0
            one = prediction, record["mask"][None], np.zeros(1), np.ones(1, bool)
            found.append(sums(image_scores(*one)))
    summary = summarise(add_up(found))
    return {name: summary[name] for name in SCORES}


def peer():
    """smp's U-Net, whose encoder has the weights of the file that ours begins from."""
    import segmentation_models_pytorch as smp
    import torch

    net = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, in_channels=3, classes=1)
    encoder = net.encoder.model
    file = torch.load(weights.find("efficientnet_lite0", None), weights_only=True)
    given = dict(renamed(file, encoder.state_dict()))
    unfilled = encoder.load_state_dict(given, strict=False).missing_keys
    if [name for name in unfilled if "num_batches" not in name]:
        raise RuntimeError(f"arrays that the file lacks: {unfilled}")
    return net.to(memory_format=torch.channels_last)


def renamed(file: dict[str, Any], there: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The file's arrays under timm's names: both list layers in the order of the net."""
    ours = [n for n in file if not n.startswith(("_conv_head", "_bn1", "_fc"))]
    theirs = [n for n in there if not n.startswith(("conv_head", "bn2", "classifier"))]
    for name, other in zip(ours, theirs, strict=True):
        if file[name].shape != there[other].shape:
            raise RuntimeError(f"{name} {file[name].shape} is not {other} {there[other].shape}")
        yield other, file[name]


def batches(split, seed: int, steps: int) -> Iterator[tuple[Any, Any]]:
    """Shuffled batches, epoch after epoch, with flips and quarter turns."""
    import torch

    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(len(split)).tolist()
        records = [split[order.pop()] for _ in range(BATCH)]
        images, masks = [], []
        for record in records:
            turns, flip = int(rng.integers(4)), rng.integers(2)
            pair = (np.rot90(record[key], turns) for key in ("image", "mask"))
            image, mask = (part[:, ::-1] if flip else part for part in pair)
            images.append(image)
            masks.append(mask)
        truth = np.stack(masks).transpose(0, 3, 1, 2) > 0
        yield tensor(np.stack(images)), torch.from_numpy(truth.astype(np.float32))


def tensor(images: np.ndarray):
    """Images `[N, H, W, 3]` of bytes as the encoder takes them."""
    import torch

    scaled = (images.astype(np.float32) - 127) / 128
    chosen = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
    return chosen.to(memory_format=torch.channels_last)


def table(found: dict[str, Any]) -> str:
    """Means over seeds with 95 % intervals of Student's t."""
    lines = [f"{'':<34}{'steps':>6}{'seeds':>6}  " + "".join(f"{s:>22}" for s in SCORES)]
    for method, steps in found["steps"].items():
        runs = [run for run in found["runs"] if run["method"] == method]
        cells = [interval([run[score] for run in runs]) for score in SCORES]
        lines.append(f"{method:<34}{steps:>6}{len(runs):>6}  " + "".join(f"{c:>22}" for c in cells))
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """The mean and half the width of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "none"
    half = special.stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1)
    return f"{np.mean(values):.3f} +- {half / math.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    program.run(main)
