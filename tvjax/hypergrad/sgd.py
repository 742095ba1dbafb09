"""Gradient descent and heavy ball, with settings that may be learned."""

import jax
import numpy as np
import optax

from tvjax.hypergrad.checks import check_truth, check_within


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """`optax.sgd`; beside `adam` and `adamw`, with the same arguments.

        v' = momentum v + g,   theta' = theta - learning_rate v'

    It is linear in v, g and each setting, so that its derivatives lose no digit. Settings may be
    traced arrays, where the optimiser is a function of hyperparameters (`Bilevel`).

    Args:
      learning_rate: a number or an optax schedule.
      momentum: in [0, 1); None keeps no velocity.
      nesterov: looks ahead by momentum v'.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def step(rate, g):
      ...     optimizer = sgd(rate, momentum=0.9)
      ...     return optimizer.update(g, optimizer.init(g))[0]
      >>> float(jax.grad(step)(0.1, jnp.asarray(3.0)))
      -3.0
    """
    check_within(0, np.inf, learning_rate=learning_rate)
    check_within(0, 1, momentum=momentum)
    check_truth(nesterov=nesterov)
    return optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)
