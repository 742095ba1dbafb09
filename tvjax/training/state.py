"""What a training run carries from step to step, and the optimisers that move it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tvjax import hypergrad
from tvjax.errors import UserError
from tvjax.hypergrad import Bilevel, Estimator, InnerState
from tvjax.types import PyTree


class TrainState(NamedTuple):
    """Everything that the next step depends on, and so everything that a checkpoint holds."""

    step: jax.Array
    """int32: how many steps were taken; also the position in the training data."""
    inner: InnerState
    """Parameters, optimiser, and BatchNorm's running statistics."""
    hyper: jax.Array
    """What the hypergradient moves: alpha = log lambda, or lambda itself."""
    hyper_opt_state: PyTree
    carry: PyTree
    """What the estimator remembers between its calls."""


def create(
    problem: Bilevel,
    params: PyTree,
    model_state: PyTree,
    hyper: jax.Array,
    estimator: Estimator | None,
    hyper_optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step."""
    inner = problem.init(params, model_state)
    carry = () if estimator is None else estimator.init(problem, inner, hyper)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        inner=inner,
        hyper=hyper,
        hyper_opt_state=hyper_optimizer.init(hyper),
        carry=carry,
    )


def make_optimizer(
    *,
    name: str,
    learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> optax.GradientTransformation:
    """The optimiser of this name.

    `adam` and `adamw` are those of `tvjax.hypergrad`: optax's, with a derivative that is finite.

    Args:
      name: `"adam"`, `"adamw"` or `"sgd"`.
      learning_rate: step size.
      b1: of adam and adamw.
      b2: of adam and adamw.
      eps: of adam and adamw.
      weight_decay: of adamw.
      momentum: of sgd.

    Raises:
      UserError: for an unknown name.
    """
    moments = {"b1": b1, "b2": b2, "eps": eps}
    if name == "adam":
        return hypergrad.adam(learning_rate, **moments)
    if name == "adamw":
        return hypergrad.adamw(learning_rate, weight_decay=weight_decay, **moments)
    if name == "sgd":
        return optax.sgd(learning_rate, momentum=momentum or None)
    raise UserError(f"optimizer.name={name!r} is unknown; choose one of adam, adamw, sgd")
