"""Conjugate gradients that end where rounding does, for any pytree and any dtype."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from tvjax.types import PyTree


class Solution(NamedTuple):
    """A solution of `A q = b`."""

    q: PyTree
    residual: jax.Array
    """||b - A q|| / ||b||, measured by a product of its own."""


def repeat_while(condition: Callable, body: Callable, value: Any, limit: int) -> Any:
    """`value <- body(value)` while the condition holds, at most `limit` times, as one XLA loop."""

    def counted(x):
        i, value = x
        return i + 1, body(value)

    return lax.while_loop(lambda x: (x[0] < limit) & condition(x[1]), counted, (0, value))[1]


class _At(NamedTuple):
    q: PyTree
    r: PyTree
    rr: jax.Array
    p: PyTree
    ap: PyTree
    curvature: jax.Array
    """<p, A p>."""
    pp: jax.Array
    top: jax.Array
    """The largest ||A p||^2 / ||p||^2 so far, a lower bound of ||A||^2."""


def conjugate_gradients(
    product: Callable[[PyTree], PyTree],
    b: PyTree,
    start: PyTree | None = None,
    *,
    tolerance: Any = 0.0,
    iterations: int,
    repeat: Callable = repeat_while,
) -> Solution:
    """Solves `A q = b` for a symmetric A of positive curvature, by products with it.

    It stops at ||A q - b|| <= max(tolerance, eps) ||b||, eps the dtype's: below that the updates
    are rounding, and iterating on would blow it up. It also stops at a direction p whose curvature
    is not above rounding, <p, A p> <= eps ||A|| <p, p>: A is then not positive definite as far as
    the dtype can tell, and no step towards a solution follows. The answer is linear in b down to
    the dtype's smallest numbers: b is scaled to the size of 1 first.

    Args:
      product: v -> A v.
      b: any pytree of floats.
      start: where to begin; zeros if not given.
      tolerance: relative residual.
      iterations: at most so many products, besides two.
      repeat: `repeat(condition, body, value, limit)`.

    Returns:
      the solution and its residual. The solution is NaN where b or a product with A is not
      finite, and where A is singular to rounding and left the iterates worse than 0.
    """
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(b))
    r = b if start is None else _add(b, -1, product(start))
    unit = _largest(r)
    unit = jnp.where(unit > 0, unit, 1)
    r, size = _scaled(r, 1 / unit), norm(b) / unit
    rr = dot(r, r)
    limit = jnp.maximum(tolerance * size, eps * jnp.maximum(size, jnp.sqrt(rr)))

    def along(q, r, rr, p, top) -> _At:
        ap = product(p)
        pp = dot(p, p)
        return _At(q, r, rr, p, ap, dot(p, ap), pp, jnp.maximum(top, dot(ap, ap) / pp))

    def rounding(at: _At):
        return eps * jnp.sqrt(at.top) * at.pp

    def condition(at: _At):
        return (at.rr > limit**2) & (at.curvature > rounding(at))

    def body(at: _At) -> _At:
        alpha = at.rr / at.curvature
        q, r = _add(at.q, alpha, at.p), _add(at.r, -alpha, at.ap)
        rr = dot(r, r)
        return along(q, r, rr, _add(r, rr / at.rr, at.p), at.top)

    zero = jax.tree.map(jnp.zeros_like, r)
    at = repeat(condition, body, along(zero, r, rr, r, jnp.zeros_like(rr)), iterations)
    q = _add(zero if start is None else start, unit, at.q)
    size = norm(b)
    q = jax.tree.map(lambda q: jnp.where(size == 0, 0, q), q)  # wherever it began
    residual = norm(_add(b, -1, product(q))) / jnp.where(size == 0, 1, size)
    flat = (at.rr > limit**2) & (jnp.abs(at.curvature) <= rounding(at))
    sound = jnp.isfinite(residual) & ~(flat & (residual > 1))
    q = jax.tree.map(lambda q: jnp.where(sound, q, jnp.nan), q)
    return Solution(q, residual)


def dot(x: PyTree, y: PyTree) -> jax.Array:
    """<x, y>, in full precision on every device."""
    return jnp.asarray(optax.tree.vdot(x, y))


def norm(x: PyTree) -> jax.Array:
    """||x||, however small or large its square."""
    unit = _largest(x)
    unit = jnp.where(unit > 0, unit, 1)
    return unit * optax.tree.norm(_scaled(x, 1 / unit))


def _largest(x: PyTree) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(x)]))


def _scaled(x: PyTree, scale: Any) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(scale, x.dtype) * x, x)


def _add(x: PyTree, scale: Any, y: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x + jnp.asarray(scale, y.dtype) * y, x, y)
