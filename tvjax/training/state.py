"""What a training run carries from step to step, and the optimisers that move it."""

from typing import Any, NamedTuple

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


OPTIMIZERS: dict[str, Any] = {
    "adam": hypergrad.adam,
    "adamw": hypergrad.adamw,
    "sgd": optax.sgd,
}


def make_optimizer(*, name: str, learning_rate: float, **options: Any):
    """The optimiser of this name, e.g. `name="sgd", learning_rate=0.1, momentum=0.9`.

    `adam` and `adamw` are those of `tvjax.hypergrad`: optax's, with a derivative that is finite.

    Raises:
      UserError: for an unknown name, or an option that the optimiser does not have.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer.name={name!r} is unknown; choose one of {sorted(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[name](learning_rate, **options)
    except TypeError as error:
        raise UserError(f"optimizer {name!r}: {error}") from error
