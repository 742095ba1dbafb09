"""Adam with a derivative that is finite and free of cancellation.

Forward values are optax's own. Only the derivative of the direction

    u = mhat / (s + eps),   s = sqrt(vhat + eps_root),
    m' = b1 m + (1-b1) g,   v' = b2 v + (1-b2) g^2,   mhat = m'/c1,   vhat = v'/c2,
    c1 = 1 - b1^t,          c2 = 1 - b2^t

is given in closed form, with D = s + eps:

    du/dg = { [(1-b1) b2 v - b1 (1-b2) g m]/(c1 c2) + (1-b1)/c1 (eps_root + eps s) } / (s D^2)
    du/dm = b1 / (c1 D)
    du/dv = -mhat b2 / (2 c2 s D^2)

The terms in g^2 cancel exactly in du/dg. Automatic differentiation of the forward formula keeps
them, which loses 14 % in float32 at the first step, and divides by s: where g = m = v = 0 (a dead
unit, a zero head) it gives NaN, while the limit along g is (1-b1)/(c1 eps).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tvjax.types import PyTree


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> optax.GradientTransformation:
    """`optax.adam` with the derivative of this module.

    Args:
      learning_rate: a float or an optax schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added outside the square root.
      eps_root: added inside it; the derivative needs none.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> dead = jnp.zeros(1)
      >>> def step(optimizer, g):
      ...     return optimizer.update(g, optimizer.init(dead))[0][0]
      >>> float(jax.grad(lambda g: step(optax.adam(1e-3), g))(dead)[0])
      nan
      >>> round(float(jax.grad(lambda g: step(adam(1e-3), g))(dead)[0]))
      -100000
    """
    return optax.chain(
        scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    """`optax.adamw` with the derivative of this module; arguments as in `adam`.

    Args:
      learning_rate: a float or an optax schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added outside the square root.
      eps_root: added inside it.
      weight_decay: decoupled weight decay, multiplied by the learning rate.
    """
    return optax.chain(
        scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_adam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with the derivative of this module; the state is optax's own."""
    stock = optax.scale_by_adam(b1, b2, eps, eps_root)

    @jax.custom_jvp
    def step(gradient, state) -> tuple[Any, Any]:
        return stock.update(gradient, state)

    @step.defjvp
    def _step_jvp(primals, tangents):
        (gradient, old), (dgradient, dold) = primals, tangents
        u, new = step(gradient, old)
        c1, c2 = 1 - b1**new.count, 1 - b2**new.count
        columns = jax.tree.map(
            partial(_tangent, b1, b2, eps, eps_root, c1, c2),
            gradient, old.mu, old.nu, new.mu, new.nu, dgradient, dold.mu, dold.nu,
        )  # fmt: skip
        du, dmu, dnu = jax.tree.transpose(
            jax.tree.structure(gradient), jax.tree.structure((0, 0, 0)), columns
        )
        return (u, new), (du, optax.ScaleByAdamState(dold.count, dmu, dnu))

    def update(updates, state, params=None):
        del params
        return step(updates, state)

    return optax.GradientTransformation(stock.init, update)


def adam_scaling(*, b2: float = 0.999, eps: float = 1e-8) -> Callable[[PyTree], PyTree]:
    """P = 1 / (sqrt(vhat) + eps) from the state of Adam or AdamW, for `preconditioned`.

    Args:
      b2: the optimiser's decay of the second moment.
      eps: the optimiser's eps.
    """

    def scaling(opt_state):
        states = _adam_states(opt_state)
        if not states:
            raise ValueError("there is no Adam in the optimiser; give `preconditioned` a scaling")
        count, nu = states[0].count, states[0].nu
        return jax.tree.map(lambda v: 1 / (jnp.sqrt(v / (1 - b2**count)) + eps), nu)

    return scaling


def is_first_adam_step(opt_state: PyTree) -> Any:
    """Whether the next step is Adam's first, through which the derivative is all but zero.

    At t = 1 the direction is g / (|g| + eps), the sign of the gradient, and its derivative
    eps / (|g| + eps)^2. Start the updates of hyperparameters after a warm-up.

    Returns:
      a boolean scalar, traced under `jit`; False for an optimiser without Adam in it.
    """
    counts = [state.count for state in _adam_states(opt_state)]
    return jnp.any(jnp.asarray(counts) == 0) if counts else jnp.asarray(False)


def _adam_states(opt_state: PyTree) -> list[optax.ScaleByAdamState]:
    def is_adam(x):
        return isinstance(x, optax.ScaleByAdamState)

    return [x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)]


def _tangent(b1, b2, eps, eps_root, c1, c2, g, m, v, new_m, new_v, dg, dm, dv):
    """`(du, dm', dv')` of one array."""
    c1, c2 = c1.astype(g.dtype), c2.astype(g.dtype)
    s = jnp.sqrt(new_v / c2 + eps_root)
    big = s + eps
    # s = 0 means that no gradient was ever seen (or that its square underflowed): there the terms
    # over s vanish with their numerators and the limit (1-b1)/(c1 eps) remains.
    over_s = jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1), 0)
    moments = ((1 - b1) * b2 * v - b1 * (1 - b2) * g * m) / (c1 * c2)
    du_dg = ((moments + (1 - b1) / c1 * eps_root) * over_s + (1 - b1) / c1 * eps) / (big * big)
    du_dm = b1 / (c1 * big)
    du_dv = -0.5 * (new_m / c1) * (b2 / c2) * over_s / (big * big)
    du = du_dg * dg + du_dm * dm + du_dv * dv
    return du, (1 - b1) * dg + b1 * dm, 2 * (1 - b2) * g * dg + b2 * dv
