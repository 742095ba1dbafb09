"""What a run of each kind does: `(lab, run, folder of results) -> content of its result file`."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import pictures, runs
from experiments.trainer import SPLITS, Trainer, load, save, summary
from tvjax import interruption
from tvjax.data import noise
from tvjax.models.heads import make_head


class Waits(Exception):
    """A training that a run needs has left no net."""


def train(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """Trains a net, keeps it, and scores all splits."""
    del folder
    trainer: Trainer = lab.trainer(run.data)
    config = lab.config(run)
    trained = trainer.train(config)
    save(lab.net(run), trained.state, lab.digest(run.data))
    programs = trainer.programs(config)
    scored = {s: trainer.score(programs, trained.state, s, most=_most(lab, s)) for s in SPLITS}
    weight = np.mean(np.asarray(programs.functions.net.regularizer.lam(trained.state.hyper)))
    shape = (config.train.batch_size, *trainer.tiles["train"].image.shape[1:3])
    return {
        "config": config.to_dict(),
        "tiles": {s: len(trainer.tiles[s].image) for s in SPLITS},
        "training_seconds": trained.seconds,
        "final_lambda": float(weight),
        "lambda_per_pixel": programs.functions.net.regularizer.pixel_weight(float(weight), shape),
        "course": trained.course,
        "scores": {s: summary(found) for s, found in scored.items()},
        "test_iou_permille": _permille(scored["test"]["iou"]),
    }


def denoise(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """U-Net + TV: scores at each weight, and all test scores at the best by validation IoU."""
    del folder
    trainer, programs, state, _ = _net(lab, run)
    curves: dict[str, list[float]] = {s: [] for s in SPLITS}
    most = {"train": lab.scale.denoised, "val": None, "test": lab.scale.denoised}
    for weight in lab.scale.weights:
        for split in SPLITS:
            found = trainer.score(programs, state, split, most=most[split], denoise=weight)
            curves[split].append(summary(found)["iou"])
    best = lab.scale.weights[int(np.argmax(curves["val"]))]
    scored = {
        s: trainer.score(programs, state, s, most=_most(lab, s), denoise=best) for s in SPLITS
    }
    return {
        "weights": lab.scale.weights, "iou": curves, "best": best,
        "scores": {s: summary(found) for s, found in scored.items()},
        "test_iou_permille": _permille(scored["test"]["iou"]),
    }  # fmt: skip


def noisy(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """Test scores under noise (eq. 14, not clipped): of each sigma, a number per noise seed."""
    del folder
    trainer, programs, state, _ = _net(lab, run)
    iou, pooled = [], []
    for sigma in lab.scale.sigmas:
        found = [_under_noise(lab, trainer, programs, state, sigma, s) for s in _seeds(lab, sigma)]
        iou.append([f["iou"] for f in found])
        pooled.append([f["pooled_iou"] for f in found])
    tiles = min(lab.scale.noise_tiles, len(trainer.tiles["test"].image))
    return {"sigmas": lab.scale.sigmas, "iou": iou, "pooled_iou": pooled, "tiles": tiles}


def _seeds(lab, sigma: float) -> range:
    return range(lab.scale.noise_seeds if sigma else 1)


def _under_noise(lab, trainer: Trainer, programs, state, sigma: float, seed: int) -> dict:
    def change(images):
        return noise.add_noise(images, sigma, seed=seed)

    most = lab.scale.noise_tiles
    return summary(trainer.score(programs, state, "test", most=most, change=change))


def cost(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """Seconds of each method's steps, timed in turn, and of an update of lambda."""
    del folder
    trainer: Trainer = lab.trainer(run.data)
    steps = dict(_steps(lab, trainer, run.data))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for step in [*steps.values()] * 2:  # compiles, and warms up
        interruption.check()
        step()
    rng = np.random.default_rng(0)
    for _ in range(lab.scale.rounds):
        for name in rng.permutation(list(steps)).tolist():  # what ran before a step weighs
            interruption.check()
            began = time.perf_counter()
            steps[name]()
            found[name].append(time.perf_counter() - began)
    return {"seconds_per_step": found}


def _steps(lab, trainer: Trainer, data: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Functions that take one step and wait for it, by name."""
    solvers = runs.SOLVERS if lab.scale.solver_seeds else ()
    for method in ("unet", "softmax", "runet", "lunet", "exact", "printed", *solvers):
        held = method in ("unet", "softmax")
        lam, epochs = None if held else runs.PAPER_LAMBDA, lab.scale.epochs
        run = runs.Run("train", data, 0, method, lam, epochs)  # whose programs trainings share
        config = lab.config(run)
        states, take = [trainer.start(config)], trainer.stepper(config)
        learns = trainer.programs(config).functions.plan.estimator is not None

        def step(states=states, take=take, learns=learns):
            states[0], _ = take(states[0], 0, learns)
            jax.block_until_ready(states[0])

        yield method, step


def layer(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """The most that RU-Net's layer moves any probability of a trained net, by lambda."""
    del folder
    trainer, programs, state, config = _net(lab, run)
    images = trainer.tiles["val"].image[:16]
    logits, _ = programs.predict(state, images)
    of = make_head(
        name="tv_softmax", num_iterations=config.model.head_iterations, kind=config.model.head_kind
    ).probabilities
    weights = (*lab.scale.lambdas, *lab.scale.active)
    plain = of(logits, jnp.float32(0))  # the softmax
    moved = [float(jnp.abs(of(logits, jnp.float32(lam)) - plain).max()) for lam in weights]
    return {"lambdas": weights, "moves": moved}


def figure1(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """A 10x10 mask with outliers, denoised at lambda = 1/4 exactly and by L-BFGS."""
    del lab, run, folder
    return pictures.outliers()


def figure2(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """A tile at its own size and as it is trained on, with its mask."""
    return pictures.downsampled(lab, run, folder / f"{run.name}.png")


def figure4(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """The masks of three methods on test tiles, chosen by stated rules."""
    methods = {"U-Net": ("unet", None)}
    methods |= {"RU-Net": ("runet", runs.PAPER_LAMBDA), "LU-Net": ("lunet", runs.PAPER_LAMBDA)}
    found = {}
    for title, (method, lam) in methods.items():
        trainer, programs, state, _ = _net(lab, run._replace(method=method, lam=lam))
        tiles = trainer.tiles["test"]
        found[title] = trainer.predict(programs, state, tiles.image)
    return pictures.masks(tiles, found, folder / f"{run.name}.png")


def figure7(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """A tile without and with noise of 0.05."""
    tiles = lab.trainer(run.data).tiles["test"]
    return pictures.noisy(tiles, folder / f"{run.name}.png")


def outlines(lab, run: runs.Run, folder: Path) -> dict[str, Any]:
    """Trains to the end, and draws outlines of truth and prediction of the first seed, without
    imagery."""
    found = train(lab, run, folder)
    if run.seed:
        return found
    trainer, programs, state, _ = _net(lab, run, kind="long")
    tiles = trainer.tiles["test"]
    probabilities = trainer.predict(programs, state, tiles.image)
    return found | pictures.contours(tiles, probabilities, folder / f"{run.name}.png")


def _permille(ious: np.ndarray) -> list[int]:
    """IoU of each tile in thousandths: short in a file."""
    return [round(1000 * float(x)) for x in ious]


def _most(lab, split: str) -> int | None:
    return lab.scale.train_scored if split == "train" else None


def _net(lab, run: runs.Run, kind: str = "train"):
    """`(trainer, programs, state, config)` of the net of a run's method, weight and seed.

    Raises:
      Waits: it was not trained yet.
      UserError: its file is damaged, or of a net that was trained on other tiles.
    """
    epochs = run.epochs or lab.scale.epochs
    wanted = run._replace(kind=kind, epochs=epochs)
    if not lab.net(wanted).exists():
        raise Waits(wanted.name)
    config, trainer = lab.config(wanted), lab.trainer(run.data)
    state = load(lab.net(wanted), trainer.start(config), lab.digest(run.data))
    return trainer, trainer.programs(config), state, config


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "train": train,
    "long": outlines,
    "denoise": denoise,
    "noise": noisy,
    "layer": layer,
    "cost": cost,
    "figure1": figure1,
    "figure2": figure2,
    "figure4": figure4,
    "figure7": figure7,
}
"""Functions that do a run, by the name of its kind."""
