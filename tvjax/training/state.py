"""What a training run carries from step to step, and the optimisers that move it."""

from collections.abc import Callable
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
    hyper: PyTree
    """What the hypergradient moves: alpha = log lambda (or lambda itself), or a dict of more."""
    hyper_opt_state: PyTree
    carry: PyTree
    """What the estimator remembers between its calls."""
    average: PyTree = ()
    """The moving average of the weights, see `tvjax.training.average`; `()`: there is none."""


def create(
    problem: Bilevel,
    params: PyTree,
    model_state: PyTree,
    hyper: PyTree,
    estimator: Estimator | None,
    hyper_optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step."""
    inner = problem.init(params, model_state, hyper)
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
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> optax.GradientTransformation:
    """The optimiser of this name; the arguments are the fields of `config.optimizer`.

    `adam` and `adamw` are those of `tvjax.hypergrad`: optax's, with a derivative that is finite.
    """
    moments = {"b1": b1, "b2": b2, "eps": eps}
    if name == "adam":
        return hypergrad.adam(learning_rate, **moments)
    if name == "adamw":
        return hypergrad.adamw(learning_rate, weight_decay=weight_decay, **moments)
    assert name == "sgd", name
    return optax.sgd(learning_rate, momentum=momentum or None)


def with_rate(
    optimizer: optax.GradientTransformation, part: str, rate: float
) -> optax.GradientTransformation:
    """The optimiser, whose updates of one part of the parameters are multiplied by `rate`."""

    def scale(updates: Any, params: Any = None) -> Any:
        del params
        return updates | {part: jax.tree.map(lambda x: rate * x, updates[part])}

    return optax.chain(optimizer, optax.stateless(scale))


def make_schedule(
    learning_rate: float, *, steps: int, name: str, warmup: int, final: float
) -> optax.ScalarOrSchedule:
    """The learning rate over the steps of a run.

    Args:
      learning_rate: the highest value.
      steps: steps of the run.
      name: `"constant"`, or after the warm-up `"cosine"` (half a period) or `"linear"`, falling to
        `final` at the last step.
      warmup: steps over which it rises to its highest value, linearly; the first of them is taken
        at 1 / (warmup + 1) of it.
      final: the last value, as a part of the highest one; in [0, 1].

    Returns:
      The number itself where it stays the same, else an optax schedule.

    Raises:
      UserError: the warm-up is not over before the last step.
    """
    left = steps - warmup
    if left <= 0 and steps > 0:
        raise UserError(f"schedule.warmup={warmup} must be below train.steps={steps}")
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, max(left, 1), alpha=final),
        "linear": lambda: optax.linear_schedule(learning_rate, final * learning_rate, max(left, 1)),
    }
    if warmup == 0:
        return learning_rate if name == "constant" else schedules[name]()
    rise = optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, warmup)
    return optax.join_schedules([rise, schedules[name]()], [warmup])
