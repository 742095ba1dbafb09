"""The one list of runs behind the report: what is trained and measured, the most telling first.

A run is one result file. Trainings come with their method, weight and seed; what is measured on
trained nets names the trainings that it takes. `experiments.run` executes the list.
"""

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from tvjax.types import Config

METHODS = {
    "unet": "unet",
    "softmax": "runet_control",
    "runet": "runet",
    "lunet": "lunet",
    "exact": "lunet_bilevel",
    "printed": "lunet_printed",
}
"""The file in `configs/` of each method."""
SOLVERS: dict[str, dict[str, Any]] = {
    "soba": {},
    "amigo": {},
    "stocbio": {},
    "f2sa": {"hypergrad.warmup": 0, "hypergrad.steps": 4},  # its second training never pauses
}
"""Methods that learn lambda by `hypergrad.method` of this name, and the fields that each needs."""
SETTINGS: dict[str, dict[str, Any]] = {
    "slow": {"hypergrad.learning_rate": 0.01},
    "fast": {"hypergrad.learning_rate": 0.2},
    "every_1": {"hypergrad.every": 1, "hypergrad.learning_rate": 0.0125},
    "forward_5": {
        "hypergrad.method": "forward", "hypergrad.steps": 5, "hypergrad.every": 5,
        "hypergrad.learning_rate": 0.0625,
    },
    "forward_20": {
        "hypergrad.method": "forward", "hypergrad.steps": 20, "hypergrad.every": 20,
        "hypergrad.learning_rate": 0.25,
    },
    "online": {
        "hypergrad.method": "forward_online", "hypergrad.every": 1,
        "hypergrad.learning_rate": 0.0125,
    },
    "online_0.9": {
        "hypergrad.method": "forward_online", "hypergrad.every": 1, "hypergrad.decay": 0.9,
        "hypergrad.learning_rate": 0.0125,
    },
    "gated": {"hypergrad.significance": 2.0},
    "training_loss": {"hypergrad.method": "training_loss"},
}  # fmt: skip
"""Ways to learn lambda that differ from `exact` in these fields. Where updates are rarer or more
frequent the rate is such that lambda may go as far in a training."""
LEARNING = {k: {"hypergrad.method": k, **fields} for k, fields in SOLVERS.items()} | SETTINGS
"""What each of them sets in `configs/lunet_bilevel.py`."""
METHODS |= dict.fromkeys(LEARNING, "lunet_bilevel")
PAPER_LAMBDA = 1e-6
"""Lambda of RU-Net and LU-Net in Table 1; where learning begins."""
HIGH_LAMBDA = 1e-5
"""A lambda at which TV harms, from which learning by each of `SETTINGS` begins too."""
LAMBDAS = 1e-8, 5e-8, 1e-7, 5e-7, 1e-6, 5e-6, 1e-5
"""The paper's Lambda_2 and Lambda_3."""
ACTIVE = 0.01, 0.1, 1.0
"""Weights at which RU-Net's layer moves probabilities; up to 1e-5 it moves none by 2e-5."""
SIGMAS = 0.0, 0.02, 0.04, 0.06, 0.08, 0.1
"""Standard deviations of the noise of Figure 8."""


class Scale(NamedTuple):
    """How much is run, and of what size."""

    main: str | None
    """The set behind every item; None: the one that is given."""
    real: str | None
    """A set of real tiles, of which fewer items are run."""
    preset: str | None
    fields: dict[str, Any]
    """Fields of the configs that differ from their own, or the preset's."""
    epochs: int
    seeds: int
    """Seeds behind each row of a table."""
    more_seeds: int
    """Further seeds of the U-Net, for what selection alone gains."""
    real_seeds: int
    long_epochs: int
    """Epochs of the trainings of real tiles to their end; 0: none."""
    lambdas: tuple[float, ...] = LAMBDAS
    active: tuple[float, ...] = ACTIVE
    weights: tuple[float, ...] = tuple(k / 100 for k in range(1, 21))
    """Weights of the denoising: the paper's Lambda_1."""
    sigmas: tuple[float, ...] = SIGMAS
    noise_seeds: int = 3
    noise_tiles: int = 200
    """Test tiles to which noise is added."""
    denoised: int = 60
    """Training and test tiles that are denoised by each weight; by the best one all are."""
    train_scored: int = 200
    """Training tiles of which final scores are taken."""
    solver_seeds: int = 0
    """Seeds of each of `SOLVERS`."""
    setting_seeds: int = 0
    """Seeds of each of `settings`, from either start."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    rounds: int = 10
    """Rounds in which the methods' steps are timed in turn."""


SMALL = {"data.size": 64, "model.width": 8}
SCALES = {
    "smoke": Scale(
        main="tiny", real=None, preset=None, epochs=2, seeds=2, more_seeds=6, real_seeds=0,
        long_epochs=0, lambdas=(1e-6, 1e-5), active=(0.1,), weights=(0.05, 0.1), sigmas=(0.0, 0.04),
        noise_seeds=2, noise_tiles=6, train_scored=6, solver_seeds=1, setting_seeds=1,
        settings=("forward_5",), rounds=2,
        fields={
            "data.size": 16, "model.width": 2, "model.depth": 1, "train.batch_size": 4,
            "hypergrad.batch_size": 4, "hypergrad.warmup": 2, "evaluation.batch_size": 4,
        },
    ),
    "cpu": Scale(
        main="embedded", real="buildings", preset=None, epochs=10, seeds=5, more_seeds=7,
        real_seeds=5, long_epochs=30, fields=SMALL, lambdas=(1e-8, 1e-7, 1e-6, 1e-5),
        solver_seeds=5, setting_seeds=5,
    ),
    "paper": Scale(
        main=None, real=None, preset="paper", epochs=30, seeds=5, more_seeds=7, real_seeds=0,
        long_epochs=0, noise_tiles=10**6, denoised=10**6, train_scored=500, fields={}, rounds=30,
    ),
}  # fmt: skip


class Run(NamedTuple):
    """One result file."""

    kind: str
    """A name of `experiments.items.KINDS`."""
    data: str
    seed: int = 0
    method: str = ""
    lam: float | None = None
    """Weight of TV, held or where its learning begins; None: the method has none."""
    epochs: int = 0
    """Epochs of a training."""

    @property
    def name(self) -> str:
        """Name of the result file and of the net."""
        weight = "" if self.lam is None else f"_{self.lam:g}"
        method = f"_{self.method}{weight}" if self.method else ""
        kind = "" if self.kind == "train" else f"{self.kind}_"
        return f"{kind}{self.data}{method}_s{self.seed}"


def config_of(run: Run, scale: Scale, steps: int) -> Config:
    """The config of a training of so many steps."""
    module = importlib.import_module(f"configs.{METHODS[run.method]}")
    config: Config = module.get_config(scale.preset)
    config.seed, config.train.steps = run.seed, steps
    if run.lam is not None:
        config.regularizer.weight = run.lam
    for name, value in (scale.fields | LEARNING.get(run.method, {})).items():
        config.update_from_flattened_dict({name: value})
    return config


def runs(scale: Scale, main: str) -> list[Run]:
    """All of them, on the main set and on that of real tiles; each once."""
    return list(dict.fromkeys(_ordered(scale, main)))


def _ordered(scale: Scale, main: str) -> Iterator[Run]:
    seeds = range(scale.seeds)
    for seed in seeds:
        yield from core(scale, main, seed)
    yield from pictures(main)
    yield Run("cost", main)
    yield Run("layer", main, 0, "softmax")
    for seed in seeds:
        for lam in sorted(scale.lambdas, reverse=True):
            yield training(scale, main, "lunet", lam, seed)
    for seed in seeds:
        yield Run("denoise", main, seed, "unet")
        for method, lam in NOISY:
            yield Run("noise", main, seed, method, lam)
    for seed in seeds:
        for lam in scale.active:
            yield training(scale, main, "runet", lam, seed)
    for seed in range(scale.seeds, scale.seeds + scale.more_seeds):
        yield training(scale, main, "unet", None, seed)
        yield training(scale, main, "lunet", PAPER_LAMBDA, seed)
    for seed in seeds:
        for lam in readings(scale).values():
            yield training(scale, main, "lunet", lam, seed)
    for seed in range(scale.solver_seeds):
        for method in SOLVERS:
            yield training(scale, main, method, PAPER_LAMBDA, seed)
    for seed in range(scale.setting_seeds):
        for lam in (HIGH_LAMBDA, PAPER_LAMBDA):
            for method in ("exact", *scale.settings):
                yield training(scale, main, method, lam, seed)
    if scale.real is not None:
        yield from on_real_tiles(scale, scale.real)


NOISY = (("unet", None), ("runet", PAPER_LAMBDA), ("lunet", PAPER_LAMBDA), ("lunet", 1e-5))
"""Methods of Figure 8, with their weights."""


def readings(scale: Scale) -> dict[str, float]:
    """The three readings of the TV term at the paper's lambda, as lambdas of the default one.

    TV in the loss is summed over pixels and batch; a mean over B images is that sum at lambda / B,
    one over all B H W pixels at lambda / (B H W): the same trainings but for rounding.
    """
    config = config_of(Run("train", "", method="lunet"), scale, 1)
    images, side = config.train.batch_size, config.data.size
    counts = {"sum": 1, "image": images, "pixel": images * side * side}
    return {name: float(f"{PAPER_LAMBDA / count:.3g}") for name, count in counts.items()}


def training(scale: Scale, data: str, method: str, lam: float | None, seed: int) -> Run:
    """A training of the usual length."""
    return Run("train", data, seed, method, lam, scale.epochs)


def core(scale: Scale, data: str, seed: int) -> Iterator[Run]:
    """One seed of each row of Table 1, and of the methods that learn lambda."""
    yield training(scale, data, "unet", None, seed)
    for method in ("lunet", "exact", "runet", "printed"):
        yield training(scale, data, method, PAPER_LAMBDA, seed)
    yield training(scale, data, "softmax", None, seed)


def pictures(data: str) -> Iterator[Run]:
    """The figures that show tiles."""
    yield Run("figure1", data)
    yield Run("figure2", data)
    yield Run("figure4", data, seed=0)
    yield Run("figure7", data)


def on_real_tiles(scale: Scale, data: str) -> Iterator[Run]:
    """U-Net and LU-Net, some epochs and to the end."""
    for seed in range(scale.real_seeds):
        for method, lam in (("exact", PAPER_LAMBDA), ("unet", None)):
            yield training(scale, data, method, lam, seed)
            if scale.long_epochs:
                yield Run("long", data, seed, method, lam, scale.long_epochs)
