"""Adam with a derivative that is finite and free of cancellation.

Forward values are optax's own. Only the derivative of the direction

    u = mhat / (s + eps),   s = sqrt(vhat + eps_root),
    m' = b1 m + (1-b1) g,   v' = b2 v + (1-b2) g^2,   mhat = m'/c1,   vhat = v'/c2,
    c1 = 1 - b1^t,          c2 = 1 - b2^t

is given in closed form, with D = s + eps:

    du/dg = { [(1-b1) b2 v - b1 (1-b2) g m]/(c1 c2) + (1-b1)/c1 (eps_root + eps s) } / (s D^2)
    du/dm = b1 / (c1 D)
    du/dv = -mhat b2 / (2 c2 s D^2)

evaluated as ratios to s and D, since squares overflow or vanish (in float32 outside about 1e-19 to
1e19). A second moment that has overflowed makes every later step 0, and its derivative too.

The terms in g^2 cancel exactly in du/dg. Automatic differentiation of the forward formula keeps
them, which loses 14 % in float32 at the first step, and divides by s: where g = m = v = 0 (a dead
unit, a zero head) it gives NaN, while the limit along g is (1-b1)/(c1 eps).

Settings may be learned: given as JAX arrays, traced ones too, they have derivatives, of b1 and b2
through mhat and vhat as weighted means (`_mean_slope`). Automatic differentiation takes differences
of terms 1/(1-b2) times as large, and has no digit right at b2 in the first steps in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tvjax.hypergrad.checks import check_not_negative, check_within
from tvjax.types import PyTree


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
) -> optax.GradientTransformation:
    """`optax.adam` with the derivative of this module.

    Args:
      learning_rate: a number or an optax schedule. It and the others may be traced arrays, which
        are differentiated, where the optimiser is a function of hyperparameters (`Bilevel`).
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
    check_within(0, np.inf, learning_rate=learning_rate)
    return optax.chain(
        scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
    weight_decay: float | jax.Array = 1e-4,
) -> optax.GradientTransformation:
    """`optax.adamw` with the derivative of this module; arguments as in `adam`.

    The `weight_decay` is decoupled, and multiplied by the learning rate.
    """
    check_within(0, np.inf, learning_rate=learning_rate, weight_decay=weight_decay)
    return optax.chain(
        scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_adam(
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    eps_root: float | jax.Array = 0.0,
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with the derivative of this module; the state is optax's own.

    Arguments that are JAX arrays, as `optax.inject_hyperparams` makes them, are differentiated too.

    Raises:
      ValueError: when differentiated at complex gradients, for which the formula is not made.
    """
    check_within(0, 1, b1=b1, b2=b2)
    check_within(0, np.inf, eps=eps, eps_root=eps_root)
    settings: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    # Plain numbers stay outside, where they are rounded as optax rounds them; arrays may be tracers
    # and must come in as arguments.
    arrays = {name: x for name, x in settings.items() if isinstance(x, jax.Array)}

    @jax.custom_jvp
    def step(arrays, gradient, state) -> tuple[Any, Any]:
        return optax.scale_by_adam(**(settings | arrays)).update(gradient, state)

    @step.defjvp
    def _step_jvp(primals, tangents):
        (arrays, gradient, old), (darrays, dgradient, dold) = primals, tangents
        u, new = step(arrays, gradient, old)
        tangent = partial(_tangent, settings | arrays, darrays, new.count)
        columns = jax.tree.map(
            tangent, u, new.mu, new.nu, gradient, old.mu, old.nu, dgradient, dold.mu, dold.nu
        )
        du, dmu, dnu = jax.tree.transpose(
            jax.tree.structure(gradient), jax.tree.structure((0, 0, 0)), columns
        )
        return (u, new), (du, optax.ScaleByAdamState(dold.count, dmu, dnu))

    def update(updates, state, params=None):
        del params
        return step(arrays, updates, state)

    return optax.GradientTransformation(optax.scale_by_adam(**settings).init, update)


def adam_scaling(*, b2: float = 0.999, eps: float = 1e-8) -> Callable[[PyTree], PyTree]:
    """P = 1 / (sqrt(vhat) + eps) from the state of Adam or AdamW, for `preconditioned`.

    Args:
      b2: the optimiser's decay of the second moment.
      eps: the optimiser's eps.

    Raises:
      ValueError: they are no numbers in [0, 1) and of at least 0.
    """
    check_within(0, 1, b2=b2)
    check_not_negative(eps=eps)

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


def _tangent(settings, dsettings, count, u, new_m, new_v, g, m, v, dg, dm, dv):
    """`(du, dm', dv')` of one array."""
    if jnp.iscomplexobj(g):
        raise ValueError(f"hypergrad.adam differentiates real gradients only, got {g.dtype}")
    b1, b2, eps, eps_root = (settings[k] for k in ("b1", "b2", "eps", "eps_root"))
    c1, c2 = (1 - b1**count).astype(g.dtype), (1 - b2**count).astype(g.dtype)
    full = v == jnp.inf  # overflowed: the step is 0 from then on
    v = jnp.where(full, 0, v)
    s = _root(g, v, b2, c2, eps_root)
    d = s + eps

    def over_s(x):
        # s = 0 means that no gradient was ever seen: there the terms over s vanish with their
        # numerators, and the limit (1-b1)/(c1 eps) along g remains.
        return jnp.where(s > 0, x / jnp.where(s > 0, s, 1), 0)

    # Ratios to s and d, which are about 1, in place of squares, which overflow in float32.
    moments = ((1 - b1) * b2 * over_s(over_s(v)) - b1 * (1 - b2) * over_s(g) * over_s(m)) / c1 / c2
    du_dg = (moments + (1 - b1) / c1 * over_s(over_s(eps_root))) * (s / d) + (1 - b1) / c1 * eps / d
    # Learned decays: what moves a moment and what moves its correction all but cancel.
    k1 = _correction(b1, count, g.dtype)[0] if "b1" in dsettings else c1
    k2 = _correction(b2, count, g.dtype)[0] if "b2" in dsettings else c2
    du = du_dg * (dg / d) + b1 / k1 * (dm / d) - b2 / c1 / k2 / 2 * over_s(new_m) * (dv / d / d)
    dm, dv = (1 - b1) * dg + b1 * dm, 2 * (1 - b2) * g * dg + b2 * dv
    if dsettings:
        more = _tangent_in_settings(settings, dsettings, count, c1, c2, new_m, g, m, v, s, over_s)
        du, dm, dv = du + more[0], dm + more[1], dv + more[2]
    du, dv = jnp.where(full, 0, du), jnp.where(new_v == jnp.inf, 0, dv)
    return du.astype(u.dtype), dm.astype(new_m.dtype), dv.astype(new_v.dtype)


def _tangent_in_settings(settings, dsettings, count, c1, c2, new_m, g, m, v, s, over_s):
    """The share of `(du, dm', dv')` that comes from b1, b2, eps and eps_root."""
    b1, b2, eps = (settings[k] for k in ("b1", "b2", "eps"))
    db1, db2, deps, deps_root = (dsettings.get(k, 0) for k in ("b1", "b2", "eps", "eps_root"))
    dmhat: Any = 0
    ds, d = over_s(deps_root) / 2, s + eps
    if "b1" in dsettings:
        p, q = _mean_slope(b1, count, g.dtype)
        dmhat = (p * m - q * g) * db1
    if "b2" in dsettings:
        p, q = _mean_slope(b2, count, g.dtype)
        ds = ds + (p * over_s(v) - q * over_s(g) * g) * db2 / 2
    du = (dmhat - new_m / c1 / d * (ds + deps)) / d
    return du, (m - g) * db1, (v - g * g) * db2


def _mean_slope(b, count, dtype):
    """`(p, q)` of d/db [(b m + (1-b) g) / (1 - b^t)] = p m - q g, both without cancellation.

        p = (c + t b^t) / c^2,   q = (c - t b^(t-1) (1-b)) / c^2,   c = 1 - b^t

    The numerator of q is 0 at t = 1 and of second order in 1 - b. With e = 1/b - 1 it is
    1 - (1 + t e) / (1 + e)^t = -expm1(r(t e) - t r(e)),   r(x) = log(1 + x) - x.
    """
    c, power, e = _correction(b, count, dtype)
    b, t = jnp.asarray(b, dtype), count.astype(dtype)
    plain = c - t * b ** (count - 1) * (1 - b)
    rest = jnp.where(b < 0.5, plain, -jnp.expm1(_log1p_rest(t * e) - t * _log1p_rest(e)))
    return (c + t * power) / c / c, rest / c / c


def _correction(b, count, dtype):
    """`(1 - b^t, b^t, 1/b - 1)` to full relative precision; the last for b >= 1/2 alone."""
    b, t = jnp.asarray(b, dtype), count.astype(dtype)
    is_far = b < 0.5  # from 1: there nothing cancels, and 1/b may be infinite
    near = jnp.where(is_far, 0.5, b)
    e = (1 - near) / near
    power = jnp.where(is_far, b**count, jnp.exp(-t * jnp.log1p(e)))
    return jnp.where(is_far, 1 - power, -jnp.expm1(-t * jnp.log1p(e))), power, e


def _log1p_rest(x):
    """log(1 + x) - x for x >= 0, to full relative precision near 0 too."""
    small = jnp.minimum(x, 0.1)
    series = sum((-1) ** k * small ** (k - 2) / k for k in range(2, 18))
    return jnp.where(x < 0.1, -(small**2) * series, jnp.log1p(x) - x)


def _root(g, v, b2, c2, eps_root):
    """s = sqrt([b2 v + (1-b2) g^2] / c2 + eps_root), without a square that overflows or is 0."""
    parts = jnp.sqrt(v), jnp.abs(g), jnp.sqrt(jnp.asarray(eps_root, g.dtype))
    scale = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2]))
    scale = jnp.where(scale > 0, scale, 1)
    v, g, root = ((x / scale) ** 2 for x in parts)
    return scale * jnp.sqrt((b2 * v + (1 - b2) * g) / c2 + root)
