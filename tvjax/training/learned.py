"""What is learned beside the parameters: which quantities, on which scale, from where.

`hyper` is what the hypergradient moves: the bare array of lambda where nothing else is learned, and
else a dict by name. Lambda has a scale of its own (`steps.Regularizer`); the others are

    learning_rate   exp h            of the inner optimiser, the highest of its schedule
    weight_decay    exp h            of adamw
    loss_mix        1 / (1 + e^-h)   the share of Dice in (1 - mix) BCE + mix Dice
    tile_weights    2 / (1 + e^-h)   one weight per training tile in the mean of the inner loss

so that every h is any real number, and no step leaves the range.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tvjax import files, hypergrad
from tvjax.errors import UserError
from tvjax.types import Config, PyTree

NAMES = "lambda", "learning_rate", "weight_decay", "loss_mix", "tile_weights"

_READ: dict[str, Callable[[jax.Array], jax.Array]] = {
    "learning_rate": jnp.exp,
    "weight_decay": jnp.exp,
    "loss_mix": jax.nn.sigmoid,
    "tile_weights": lambda h: 2 * jax.nn.sigmoid(h),
}


def part(hyper: PyTree, name: str) -> Any:
    """What is learned of this name, as it is moved; None where it is not learned."""
    if isinstance(hyper, Mapping):
        return hyper.get(name)
    return hyper if name == "lambda" else None


def value(hyper: PyTree, name: str, fixed: Any) -> Any:
    """The value of a quantity other than lambda: the learned one, or else the fixed one."""
    found = part(hyper, name)
    return fixed if found is None else _READ[name](found)


def values(hyper: PyTree) -> dict[str, Any]:
    """The value of each learned quantity but lambda, by name."""
    return {
        name: read(hyper[name]) for name, read in _READ.items() if part(hyper, name) is not None
    }


def weighted(hyper: PyTree, each: jax.Array, batch: Any) -> jax.Array:
    """The losses `[B]` of a batch's images, times the learned weights of its tiles, if any."""
    weights = value(hyper, "tile_weights", None)
    return each if weights is None else weights[batch.row] * each


def by_name(hyper: PyTree) -> dict[str, Any]:
    """`hyper`, or something like it, as a dict."""
    return dict(hyper) if isinstance(hyper, Mapping) else {"lambda": hyper}


def describe(hyper: PyTree) -> dict[str, Any]:
    """What a summary says of what is learned beside lambda; nothing where that is nothing."""
    found = {name: np.asarray(x) for name, x in values(hyper).items()}
    scalars = {name: float(x) for name, x in found.items() if x.ndim == 0}
    if (weights := found.get("tile_weights")) is not None:
        spread = {"least": weights.min(), "mean": weights.mean(), "most": weights.max()}
        scalars |= {"tile_weights": {k: float(x) for k, x in spread.items()}}
    return {"learned": scalars} if scalars else {}


def write_weights(hyper: PyTree, path: Path) -> None:
    """Writes the learned weight of each training tile, by its place in the split."""
    weights = np.asarray(values(hyper)["tile_weights"])
    lines = [f"{row},{weight:.9g}\n" for row, weight in enumerate(weights)]
    files.write_text(path, "row,weight\n" + "".join(lines))


def start(config: Config, lam: jax.Array, tiles: int | None) -> PyTree:
    """The first `hyper` of a config, where lambda begins at `lam` and all else at its own field.

    `tiles` is the number of training tiles; None where they are not known yet.
    """
    learn = names(config)
    if learn == ("lambda",):
        return lam
    first = {
        "lambda": lambda: lam,
        "learning_rate": lambda: jnp.log(config.optimizer.learning_rate),
        "weight_decay": lambda: jnp.log(config.optimizer.weight_decay),
        "loss_mix": lambda: jax.scipy.special.logit(config.loss.mix),
    }
    found: dict[str, Any] = {
        name: jnp.asarray(first[name](), jnp.float32) for name in learn if name in first
    }
    if "tile_weights" in learn:  # numpy's zeros take memory where they are used only
        found["tile_weights"] = np.zeros(tiles or 1, np.float32)
    return found


def names(config: Config) -> tuple[str, ...]:
    """The names of what is learned, lambda alone where nothing is: then it is held."""
    return ("lambda",) if config.hypergrad.method == "none" else tuple(config.hypergrad.learn)


def rate_fields(config: Config) -> list[str]:
    """The fields of the step sizes of what is learned."""
    return [
        "hypergrad.learning_rate" if name == "lambda" else f"hypergrad.rates.{name}"
        for name in names(config)
    ]


def make_optimizer(
    learn: Sequence[str],
    rate: float,
    rates: Mapping[str, float],
    *,
    significance: float,
    block: int,
) -> optax.GradientTransformation:
    """Adam on each quantity that is learned, with a step size of its own: lambda's is `rate`.

    With a `significance` above 0, the threshold of `hypergrad.until_significant`, each waits as
    that has it; else each hypergradient moves it.
    """

    def adam(name: str) -> optax.GradientTransformation:
        made = optax.adam(rate if name == "lambda" else rates[name])
        if not significance:
            return made
        return hypergrad.until_significant(made, significance, block=block)

    if tuple(learn) == ("lambda",):
        return adam("lambda")
    each: Any = {name: adam(name) for name in learn}
    return optax.partition(each, {name: name for name in learn})


def check(config: Config) -> None:
    """Checks that what is to be learned can be.

    Raises:
      UserError: naming the field that cannot be so with others.
    """
    if config.hypergrad.method == "none":
        if tuple(config.hypergrad.learn) != ("lambda",):
            raise UserError(
                f"hypergrad.learn={tuple(config.hypergrad.learn)} is learned by no method; give "
                "hypergrad.method, e.g. 'exact', or leave ('lambda',) there, which is then held"
            )
        return
    learn, method = names(config), config.hypergrad.method
    if not learn or len(set(learn)) < len(learn):
        raise UserError(f"hypergrad.learn={learn} must name at least one quantity, each once")
    needs = {
        "lambda": (
            config.regularizer.place != "none", "regularizer.place='loss' or 'head'",
        ),
        "learning_rate": (
            config.optimizer.learning_rate > 0, "optimizer.learning_rate above 0, where it begins",
        ),
        "weight_decay": (
            config.optimizer.name == "adamw" and config.optimizer.weight_decay > 0,
            "optimizer.name='adamw' and optimizer.weight_decay above 0, where it begins",
        ),
        "loss_mix": (
            config.loss.train == "mix" and 0 < config.loss.mix < 1,
            "loss.train='mix' and loss.mix between 0 and 1, where it begins",
        ),
        "tile_weights": (
            method not in ("forward", "forward_online"),
            "hypergrad.method='exact' or 'reverse': forward methods keep a tangent per weight",
        ),
    }  # fmt: skip
    for name in learn:
        holds, what = needs[name]
        if not holds:
            raise UserError(f"hypergrad.learn={learn}: {name} needs {what}")
    others = [name for name in learn if name in ("loss_mix", "tile_weights")]
    if others and method == "training_loss":
        raise UserError(
            f"hypergrad.method='training_loss' cannot learn {others[0]}: the training loss falls "
            f"with it, whatever it does to the net; take exact"
        )
    settings = [name for name in learn if name in ("learning_rate", "weight_decay")]
    sees = ("exact", "reverse", "forward", "forward_online")
    if settings and method not in sees:
        raise UserError(
            f"hypergrad.method={method!r} does not see {settings[0]}, a setting of the optimiser; "
            f"choose one of {', '.join(sees)}"
        )
