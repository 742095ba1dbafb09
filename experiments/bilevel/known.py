"""Bilevel problems whose value function h(x) = f(x, y*(x)) can be computed, and how."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax

from tvjax.types import PyTree

Loss = Callable[[Any, Any, Any], Any]


class Known(NamedTuple):
    """A problem with finite sets of samples, and what is known of it."""

    inner_loss: Loss
    """`(params, hyper, samples) -> loss`, the mean of the samples'."""
    outer_loss: Loss
    train: PyTree
    """Arrays with one row per sample of the inner loss."""
    validation: PyTree
    params: jax.Array
    """Where y begins."""
    hyper: jax.Array
    """Where x begins."""
    values: Callable[[Any], tuple[np.ndarray, np.ndarray]]
    """`[n, d] -> (h [n], grad h [n, d])`, from the whole sets."""
    best: np.ndarray
    """The x of the least value that is known."""
    is_optimum: bool
    """Whether that is the least there is; else the least that was found."""
    rates: tuple[float, ...]
    """Inner learning rates to tune over, for batches."""
    whole_rates: tuple[float, ...]
    """The same for whole sets."""
    scale: float
    """Step size on the linear system of the solvers, and of `bome` to its fixed point."""
    moves: tuple[float, ...]
    """Outer learning rates to tune over."""
    budget: int
    """Forward passes of one batch that a run may take."""
    whole_calls: int
    """Calls of a run on whole sets, which would be few for that budget."""
    box: tuple[float, float] = (-np.inf, np.inf)
    """Least and greatest value of x, which is projected after each move."""
    test: Callable[[Any], Any] | None = None
    """Error of parameters on the test set."""
    stationary: Callable[[Any], np.ndarray] | None = None
    """The x where the direction vanishes if this matrix stands for the inverse Hessian."""
    pulled: Callable[[float], np.ndarray] | None = None
    """The x where the direction of `f2sa` with this sigma vanishes."""


def projected_norm(x: np.ndarray, gradient: np.ndarray, box: tuple[float, float]) -> np.ndarray:
    """|x - P(x - gradient)| along the last axis: 0 where x is stationary in the box."""
    return np.linalg.norm(x - np.clip(x - gradient, *box), axis=-1)


def by_newton(
    inner: Callable[[Any, Any], Any],
    outer: Callable[[Any, Any], Any],
    start: jax.Array,
    hessian: Callable[[Any, Any], Any] | None = None,
) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
    """The function `values` of an inner loss that is strictly convex in a flat y.

    Newton's method, each step as long as lowers the loss most, and a dense implicit derivative.

    Args:
      inner: `(y, x) -> loss` over the whole set.
      outer: the same of the outer loss.
      start: where y begins.
      hessian: `(y, x) -> matrix`, of the inner loss; None: by differentiation.

    Returns:
      `[n, d] -> (h [n], grad h [n, d])`; NaN where x is not finite, or where the inner gradient
      does not fall below 1e-8.
    """
    slope = jax.grad(inner)
    curvature = hessian or jax.hessian(inner)
    lengths = 0.5 ** jnp.arange(0.0, 8.0)

    def goes_on(carry):
        y, x, n = carry
        return (jnp.linalg.norm(slope(y, x)) > 1e-11) & (n < 40)

    def step(carry):
        y, x, n = carry
        step = jnp.linalg.solve(curvature(y, x), slope(y, x))
        tries = y[None] - lengths[:, None] * step[None]
        losses = jax.vmap(inner, in_axes=(0, None))(tries, x)
        # Where losses tie to rounding, the whole step is the most exact.
        chosen = jnp.argmax(losses <= jnp.min(losses) + 1e-14 * jnp.abs(jnp.min(losses)))
        return tries[chosen], x, n + 1

    def value(x):
        y, _, _ = lax.while_loop(goes_on, step, (start, x, 0))
        v = jnp.linalg.solve(curvature(y, x), jax.grad(outer)(y, x))
        direct = jax.grad(outer, argnums=1)(y, x)
        across = jax.grad(lambda x: jnp.vdot(slope(y, x), v))(x)
        solved = jnp.linalg.norm(slope(y, x)) < 1e-8
        return jnp.where(solved, outer(y, x), jnp.nan), direct - across

    mapped = jax.jit(lambda xs: lax.map(value, xs))

    def values(xs):
        h, gradient = mapped(jnp.asarray(xs))
        return np.asarray(h), np.asarray(gradient)

    return values


def least(
    values: Callable, starts: list[np.ndarray], box: tuple[float, float], most: int = 300
) -> np.ndarray:
    """The best x that L-BFGS finds from some starts, by the exact gradient, `most` times each."""

    def objective(x):
        h, gradient = values(x[None])
        return h[0], gradient[0]

    found = [
        scipy.optimize.minimize(
            objective, x, jac=True, method="L-BFGS-B", bounds=[box] * x.size,
            options={"maxiter": most, "maxfun": most, "ftol": 1e-12, "gtol": 1e-9},
        )
        for x in starts
    ]  # fmt: skip
    return min(found, key=lambda result: result.fun).x
