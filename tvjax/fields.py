"""What each field of a config may be; `configs/base.py` says what it means, and its usual value.

One table for all: a field without a line in it is refused, and so is a line without its field.
What several fields must be together is checked where they meet (`tvjax.training.setup`).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tvjax.errors import UserError, short
from tvjax.types import Config

TINY, HUGE = 2.0**-126, 2.0**127
"""Smaller numbers are 0 in float32 and larger ones infinite."""


class Range(NamedTuple):
    """What a value may be."""

    words: str
    """The words that go on after "must be"."""
    holds: Callable[[Any], bool]
    """Whether a value is so; of any type."""


def whole(least: int, most: int = 2**31 - 1) -> Range:
    """An integer of this range."""
    words = f"one of {least} to {most}"
    if most == 2**31 - 1:
        words = f"an integer of at least {least}, at most {most}"
    return Range(words, lambda x: type(x) is int and least <= x <= most)


def real(least: float, most: float = HUGE, *, below: bool = False) -> Range:
    """A finite number of this range; with `below` its upper end is left out."""
    if most < HUGE:
        words = f"a number in [{least:g}, {most:g}{')' if below else ']'}"
    else:
        words = "a positive number" if least == TINY else f"a number of at least {least:g}"
        words += ", and finite"
        if least == 0:
            words += f" (0, or at least {TINY:.2g}: float32 holds no smaller one)"

    def holds(x: Any) -> bool:
        number = isinstance(x, (int, float)) and not isinstance(x, bool)
        return number and least <= x <= most and not (below and x == most) and not 0 < x < TINY

    return Range(words, holds)


def one_of(*names: str) -> Range:
    """One of these words."""
    return Range("one of " + ", ".join(names), lambda x: isinstance(x, str) and x in names)


def text(*, empty: bool = False) -> Range:
    """A text that can be a path."""

    def holds(x: Any) -> bool:
        return isinstance(x, str) and (empty or bool(x)) and "\0" not in x

    return Range("a text" if empty else "a text, and not empty", holds)


def or_none(given: Range) -> Range:
    """The same, or None."""
    return Range(f"{given.words}, or None", lambda x: x is None or given.holds(x))


def many(each: Range) -> Range:
    """A tuple (in JSON a list) whose members are so; it may be empty."""
    return Range(
        f"a tuple, each of it {each.words}",
        lambda x: isinstance(x, (tuple, list)) and all(map(each.holds, x)),
    )


TRUTH = Range("True or False", lambda x: isinstance(x, bool))
SEED = whole(0)
COUNT = whole(1)
POSITIVE = real(TINY)
AT_LEAST_0 = real(0)
SHARE = real(0, 1)
DECAY = real(0, 1, below=True)

FIELDS = {
    "name": text(),
    "seed": SEED,
    "data.directory": or_none(text(empty=True)),
    "data.cache": text(),
    "data.size": whole(1, 2**14),
    "data.limit": or_none(COUNT),
    "data.seed": SEED,
    "data.resident": TRUTH,
    "data.boundaries": TRUTH,
    "model.name": text(),  # of a net of `models.NETS`, to which others may be added
    "model.head": one_of("sigmoid", "softmax", "tv_softmax"),
    "model.head_iterations": or_none(whole(0)),
    "model.head_kind": one_of("anisotropic", "isotropic"),
    "model.width": whole(1, 4096),
    "model.depth": whole(1, 64),
    "model.encoder": or_none(
        one_of("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
    ),
    "model.encoder_rate": AT_LEAST_0,
    "model.weights": or_none(text()),
    "model.weights_sha256": or_none(text()),
    "model.momentum": DECAY,
    "model.dtype": or_none(one_of("float32", "bfloat16")),
    "model.precision": one_of("highest", "high", "default"),
    "regularizer.place": one_of("none", "loss", "head"),
    "regularizer.weight": AT_LEAST_0,
    "regularizer.blocks": whole(1, 4096),
    "regularizer.per_class": TRUTH,
    "regularizer.kind": one_of("anisotropic", "isotropic", "huber"),
    "regularizer.reduction": one_of("sum", "image", "pixel"),
    "regularizer.parametrization": one_of("log", "linear"),
    "optimizer.name": one_of("adam", "adamw", "sgd"),
    "optimizer.learning_rate": AT_LEAST_0,
    "optimizer.b1": DECAY,
    "optimizer.b2": DECAY,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.momentum": DECAY,
    "schedule.name": one_of("constant", "cosine", "linear"),
    "schedule.warmup": whole(0),
    "schedule.final": SHARE,
    "loss.train": one_of("bce", "dice", "focal", "mix"),
    "loss.mix": SHARE,
    "loss.validation": one_of("bce", "dice", "focal", "mix"),
    "loss.dice_smoothing": POSITIVE,
    "loss.focal_gamma": AT_LEAST_0,
    "loss.focal_alpha": or_none(SHARE),
    "augmentation.flips": TRUTH,
    "augmentation.turns": TRUTH,
    "augmentation.brightness": DECAY,
    "augmentation.rotation": real(0, 180),
    "augmentation.scale": real(0, 3),
    "augmentation.crop": real(0, 0.9),
    "augmentation.contrast": DECAY,
    "augmentation.saturation": DECAY,
    "augmentation.hue": real(0, 180),
    "augmentation.blur": real(0, 10),
    "hypergrad.method": one_of(
        "none", "exact", "sgd_formula", "paper", "preconditioned", "darts", "reverse", "forward",
        "forward_online", "training_loss", "soba", "amigo", "stocbio", "f2sa",
    ),
    "hypergrad.steps": whole(1, 1000),
    "hypergrad.solver.scale": POSITIVE,
    "hypergrad.solver.damping": AT_LEAST_0,
    "hypergrad.solver.terms": whole(1, 1000),
    "hypergrad.solver.sigma": POSITIVE,
    "hypergrad.decay": real(0, 1),
    "hypergrad.learn": many(
        one_of("lambda", "learning_rate", "weight_decay", "loss_mix", "tile_weights")
    ),
    "hypergrad.learning_rate": AT_LEAST_0,
    "hypergrad.rates.learning_rate": AT_LEAST_0,
    "hypergrad.rates.weight_decay": AT_LEAST_0,
    "hypergrad.rates.loss_mix": AT_LEAST_0,
    "hypergrad.rates.tile_weights": AT_LEAST_0,
    "hypergrad.warmup": whole(0),
    "hypergrad.every": COUNT,
    "hypergrad.significance": AT_LEAST_0,
    "hypergrad.block": COUNT,
    "hypergrad.batch_size": COUNT,
    "hypergrad.statistics": one_of("batch", "running"),
    "hypergrad.guard": one_of("warn", "hold", "none"),
    "denoise.weights": many(AT_LEAST_0),
    "denoise.kind": one_of("anisotropic", "isotropic"),
    "train.steps": whole(0),
    "train.batch_size": COUNT,
    "train.accumulate": COUNT,
    "train.log_every": COUNT,
    "train.steps_per_dispatch": or_none(whole(1, 10_000)),
    "train.ema": real(0, 1, below=True),
    "train.patience": whole(0),
    "evaluation.every": COUNT,
    "evaluation.batch_size": whole(1, 2**16),
    "evaluation.score": one_of("pooled_iou", "iou"),
    "evaluation.panels": whole(0, 100),
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,  # the newest: what is trained would be lost without it
    "checkpoint.keep_best": whole(0),
    "parallel.map": one_of("pmap", "jit"),
    "parallel.devices": or_none(COUNT),
}  # fmt: skip


def check(config: Config) -> None:
    """Checks every field of a config by itself; opens nothing and makes nothing.

    Raises:
      UserError: naming the first field that is missing, unknown, or cannot be so, with its value
        and what is allowed.
    """
    found = dict(flat(config))
    for name in sorted(found.keys() | FIELDS.keys(), key=str):
        if name not in FIELDS:
            raise UserError(f"{name}: there is no such field; see configs/base.py and {__name__}")
        if name not in found:
            raise UserError(f"{name} is missing in the config; see configs/base.py")
    for name, allowed in FIELDS.items():
        if not allowed.holds(found[name]):
            raise UserError(f"{name}={short(found[name])} must be {allowed.words}")


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`("train.steps", 400)` and so on."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
