"""Fields of a config that have no effect beside its others, told before anybody trains for them."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tvjax.errors import short
from tvjax.training.feeds import schedule
from tvjax.training.plan import HyperPlan
from tvjax.types import Config

WAIT = ((3, 19), (2, 14))
"""Values of `hypergrad.significance`, and blocks of hypergradients without which nothing moves."""


class Need(NamedTuple):
    """What fields need in order to have an effect."""

    fields: dict[str, Any]
    """Names of fields, and their values in `configs/base.py`, which nobody asked for."""
    words: str
    holds: Callable[[Config], bool]


def _losses(config: Config) -> set[str]:
    return {config.loss.train, config.loss.validation}


NEEDS = (
    Need({"optimizer.b1": 0.9, "optimizer.b2": 0.999, "optimizer.eps": 1e-8},
         "optimizer.name='adam' or 'adamw'", lambda c: c.optimizer.name != "sgd"),
    Need({"optimizer.momentum": 0.0}, "optimizer.name='sgd'", lambda c: c.optimizer.name == "sgd"),
    Need({"optimizer.weight_decay": 0.0}, "optimizer.name='adamw'",
         lambda c: c.optimizer.name == "adamw"),
    Need({"schedule.final": 0.0}, "schedule.name='cosine' or 'linear'",
         lambda c: c.schedule.name != "constant"),
    Need({"regularizer.weight": 1e-6}, "regularizer.place='loss' or 'head'",
         lambda c: c.regularizer.place != "none"),
    Need({"regularizer.kind": "anisotropic", "regularizer.reduction": "sum"},
         "regularizer.place='loss'", lambda c: c.regularizer.place == "loss"),
    Need({"model.head_iterations": 1, "model.head_kind": "anisotropic"}, "model.head='tv_softmax'",
         lambda c: c.model.head == "tv_softmax"),
    Need({"loss.mix": 0.5}, "a loss 'mix'", lambda c: "mix" in _losses(c)),
    Need({"loss.focal_gamma": 2.0, "loss.focal_alpha": None}, "a loss 'focal'",
         lambda c: "focal" in _losses(c)),
    Need({"loss.dice_smoothing": 1.0}, "a loss 'dice' or 'mix'",
         lambda c: bool({"dice", "mix"} & _losses(c))),
    Need({"hypergrad.guard": "warn", "hypergrad.significance": 0.0, "loss.validation": "bce",
          "hypergrad.statistics": "batch"},
         "a hypergrad.method", lambda c: c.hypergrad.method != "none"),
    Need({"hypergrad.steps": 1}, "a hypergrad.method of several steps, such as 'reverse'",
         lambda c: c.hypergrad.method in ("reverse", "forward", "amigo", "stocbio", "f2sa")),
    Need({"hypergrad.block": 1}, "hypergrad.significance", lambda c: c.hypergrad.significance > 0),
    *(
        Need({f"hypergrad.rates.{name}": rate}, f"{name!r} in hypergrad.learn",
             lambda c, name=name: name in c.hypergrad.learn and c.hypergrad.method != "none")
        for name, rate in (("learning_rate", 0.01), ("weight_decay", 0.05), ("loss_mix", 0.05),
                           ("tile_weights", 0.1))
    ),
    Need({"denoise.kind": "anisotropic"}, "denoise.weights", lambda c: len(c.denoise.weights) > 0),
)  # fmt: skip


def notes(config: Config, plan: HyperPlan) -> Iterable[str]:
    """Lines about what was asked for and has no effect."""
    for need in NEEDS:
        asked = {name: _value(config, name) for name in need.fields}
        idle = [f"{k}={short(v)}" for k, v in asked.items() if v != need.fields[k]]
        if idle and not need.holds(config):
            yield f"note: {' and '.join(idle)}: without effect, since it needs {need.words}"
    if plan.estimator is None:
        return
    steps, found = config.train.steps, config.hypergrad
    parts = schedule(plan, 0, steps, most=1, pauses=())
    updates = sum(part.bilevel for part in parts)
    if steps and not updates:
        yield (
            f"note: hypergrad.warmup={found.warmup} and hypergrad.steps={found.steps} leave no "
            f"update in train.steps={steps}: nothing is learned by hypergradients"
        )
    least = next((count for value, count in WAIT if found.significance >= value), 0) * found.block
    if 0 < updates < least:
        yield (
            f"note: hypergrad.significance={found.significance:g} with hypergrad.block="
            f"{found.block} needs {least} hypergradients before anything moves, and train.steps="
            f"{steps} takes {updates}"
        )


def _value(config: Config, name: str) -> Any:
    for key in name.split("."):
        config = config[key]
    return config
