"""Certified solvers of `min_u F(u) + lam TV(u)` through its dual, for whole batches at once.

With the bounded field v = lam p (`|v| <= lam` for each difference, or each pixel's vector), D the
forward differences and F strongly convex, the dual is `max_v -F*(-D^T v)` and a field v has the
primal point `u(v) = argmin_u F(u) + <v, D u>`. Nothing here divides by lam: lam = 0 just pins v
at 0. The duality gap of (u(v), v) is

  gap = lam TV(u) - <v, D u> = sum (lam |d| - v d),    d = D u,

a sum of terms that are never negative, so that it does not cancel as `primal - dual` would.

Arrays are `[N, H, W, C]`, scalars of an image `[N]`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tvjax.tv.variation import backward_difference, forward_difference, sum_from
from tvjax.types import Dimension, PyTree

Primal = Callable[[jax.Array, PyTree], jax.Array]
"""`primal(s, data)` is u(v) for s = D^T v."""

CHECK_EVERY = 20
"""Iterations between two evaluations of the gap, which costs about one of them."""
SLOT_PIXELS = {"cpu": 1 << 16}
"""How many values are iterated together: on a CPU, what its cache holds; elsewhere 2^22."""
ROUNDS = 8
"""The largest part of a batch that a CPU iterates together, see `run`."""
STALE_CHECKS = 10
ROUNDING = 64


class Field(NamedTuple):
    """A vector for each pixel; v.y is 0 on the last row and v.x on the last column."""

    y: jax.Array
    x: jax.Array


class Certificate(NamedTuple):
    """How far each image is from its optimum."""

    gap: jax.Array
    iterations: jax.Array


class Fista(NamedTuple):
    """State of `fista_step`: the field, the point extrapolated from it, steps since a restart."""

    v: Field
    r: Field
    k: jax.Array


def differences(u: jax.Array) -> Field:
    """`D u`."""
    return Field(forward_difference(u, -3), forward_difference(u, -2))


def adjoint(v: Field) -> jax.Array:
    """`D^T v = -div v`."""
    return -(backward_difference(v.y, -3) + backward_difference(v.x, -2))


def project(q: Field, lam: jax.Array, kind: str) -> Field:
    """The nearest field with |v| <= lam: in each component, or each pixel's vector."""
    lam = per_image(lam)
    if kind == "anisotropic":
        return Field(jnp.clip(q.y, -lam, lam), jnp.clip(q.x, -lam, lam))
    square = jnp.square(q.y) + jnp.square(q.x)
    # `tiny` only serves lam = 0, where the other two can both be 0.
    tiny = jnp.finfo(lam.dtype).tiny
    shrink = lam * lax.rsqrt(jnp.maximum(square, jnp.square(lam)) + tiny)
    return Field(q.y * shrink, q.x * shrink)


def per_image(a: jax.Array) -> jax.Array:
    """`[N]` -> `[N, 1, 1, 1]`."""
    return a[:, None, None, None]


def duality_gap(d: Field, v: Field, lam: jax.Array, kind: str) -> jax.Array:
    """`sum (lam |d| - v d)` of each image, for d = D u(v).

    As `|d| (lam - v n)`, n = d / |d|, which is exactly 0 where v has reached its bound.
    """
    lam = per_image(lam)
    if kind == "anisotropic":
        parts = [jnp.abs(d_k) * (lam - v_k * jnp.sign(d_k)) for d_k, v_k in zip(d, v, strict=True)]
        return sum_from(parts[0] + parts[1], 1)
    size = jnp.sqrt(jnp.square(d.y) + jnp.square(d.x))
    safe = jnp.where(size > 0, size, 1)
    slack = lam - (v.y * (d.y / safe) + v.x * (d.x / safe))
    return sum_from(size * jnp.maximum(slack, 0), 1)


def fista_start(u: jax.Array) -> Fista:
    """The zero field."""
    zero = Field(jnp.zeros_like(u), jnp.zeros_like(u))
    return Fista(zero, zero, jnp.zeros(u.shape[:1], u.dtype))


def fista_step(
    state: Fista, data: PyTree, lam: jax.Array, *, primal: Primal, step: float, kind: str
) -> Fista:
    """One accelerated projected gradient step on the dual (Beck and Teboulle 2009).

    `step` is at most 1 / L, where L = 8 / (strong convexity of F).
    """
    v, r, k = state
    d = differences(primal(adjoint(r), data))
    new = project(Field(r.y + step * d.y, r.x + step * d.x), lam, kind)
    momentum = per_image(k / (k + 3))
    r = Field(new.y + momentum * (new.y - v.y), new.x + momentum * (new.x - v.x))
    return Fista(new, r, k + 1)


def fista_check(
    state: Fista, data: PyTree, lam: jax.Array, *, primal: Primal, kind: str
) -> tuple[jax.Array, Fista]:
    """The gap, and a restart of the momentum where it points downhill.

    The gradient restart of O'Donoghue and Candes (2015). The dual's gradient at v is D u(v), which
    the gap needs anyhow, so that asking at the checks alone makes the restart free.
    """
    v, r, k = state
    d = differences(primal(adjoint(v), data))
    gap = duality_gap(d, v, lam, kind)
    downhill = sum_from(d.y * (r.y - v.y) + d.x * (r.x - v.x), 1) < 0
    pick = per_image(downhill)
    r = Field(jnp.where(pick, v.y, r.y), jnp.where(pick, v.x, r.x))
    return gap, Fista(v, r, jnp.where(downhill, 0, k))


def fista(
    primal: Primal, data: PyTree, lam: jax.Array, *, step: float, kind: str, **limits: Any
) -> tuple[Field, Certificate]:
    """The field at the optimum, from 0, by accelerated steps with restarts.

    Args:
      primal: see `Primal`.
      data: the problem, arrays `[N, H, W, C]`.
      lam: `[N]`, not negative.
      step: at most 1 / L, see `fista_step`.
      kind: "anisotropic" or "isotropic".
      **limits: `rounding`, `tolerance` and `max_iterations` of `run`.
    """
    state, certificate = run(
        functools.partial(fista_step, primal=primal, step=step, kind=kind),
        functools.partial(fista_check, primal=primal, kind=kind),
        fista_start(data), data, lam, **limits,
    )  # fmt: skip
    return state.v, certificate


class _Progress(NamedTuple):
    state: PyTree
    gap: jax.Array
    best: jax.Array
    stale: jax.Array
    iterations: jax.Array

    def moved(self, found: tuple[jax.Array, PyTree], iterations: int) -> "_Progress":
        gap, state = found
        better = gap < self.best
        return _Progress(
            state=state,
            gap=gap,
            best=jnp.where(better, gap, self.best),
            stale=jnp.where(better, 0, self.stale + 1),
            iterations=self.iterations + iterations,
        )


def run(
    step: Callable,
    check: Callable,
    state: PyTree,
    data: PyTree,
    lam: jax.Array,
    *,
    rounding: jax.Array,
    tolerance: float | jax.Array,
    max_iterations: int,
) -> tuple[PyTree, Certificate]:
    """Iterates each image until `gap <= tolerance`.

    The batch is a queue: as many unfinished images as fill the cache are iterated together for
    `CHECK_EVERY` steps, then their gaps are looked at, and each image that is done gives its slot
    to the next. So a finished image costs nothing (a masked loop would go on computing it), slow
    images do not hold up the batch, and the working set of a large batch stays in the cache. Only
    the last images, too few for the slots, are iterated with finished ones: on a CPU with less than
    an eighth of the batch. Under `vmap` there is no queue: give a batch instead.

    An image also stops, uncertified, where rounding holds its gap: when the gap is within `ROUNDING
    * rounding` and has not fallen for `STALE_CHECKS` checks.

    Args:
      step: `(state, data, lam) -> state`.
      check: `(state, data, lam) -> (gap, state)`.
      state: start, a pytree of `[N, ...]`.
      data: the problem, a pytree of `[N, ...]`.
      lam: `[N]`, not negative.
      rounding: `[N]`, the size of the gap's own rounding error.
      tolerance: largest duality gap, absolute.
      max_iterations: rounded down to a multiple of `CHECK_EVERY` if above it.
    """
    n = lam.shape[0]
    pixels = max([1, *(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(data))])
    slots = _slots(n, pixels)
    chunk = min(CHECK_EVERY, max_iterations)

    def active(p: _Progress) -> jax.Array:
        stuck = (p.stale >= STALE_CHECKS) & (p.best <= ROUNDING * rounding)
        # Written so that a gap of NaN (an image with NaN) stops at once.
        return (p.gap > tolerance) & ~stuck & (p.iterations + chunk <= max_iterations)

    def iterate(state, data, lam):
        state = lax.fori_loop(0, chunk, lambda _, s: step(s, data, lam), state)
        return check(state, data, lam)

    def advance(p: _Progress) -> _Progress:
        go = active(p)
        if n <= slots:
            return _where(go, p.moved(iterate(p.state, data, lam), chunk), p)
        # A stable sort puts the unfinished images first; `slot` has no index twice.
        slot = jnp.argsort(~go, stable=True)[:slots]
        some = jax.tree.map(lambda a: a[slot], (p.state, data, lam))
        found = jax.tree.map(lambda a, b: a.at[slot].set(b), (p.gap, p.state), iterate(*some))
        go &= jnp.zeros_like(go).at[slot].set(True)
        return _where(go, p.moved(found, chunk), p)

    infinite = jnp.full((n,), jnp.inf, lam.dtype)
    zero = jnp.zeros((n,), jnp.int32)
    start = _Progress(state, infinite, infinite, zero, zero)
    end = lax.while_loop(lambda p: jnp.any(active(p)), advance, start)
    return end.state, Certificate(end.gap, end.iterations)


def _slots(n: Dimension, pixels: Dimension) -> Dimension:
    """How many of n images are iterated together; all where a size is open, as in an export."""
    if not isinstance(n, int) or not isinstance(pixels, int):
        return n
    slots = max(1, SLOT_PIXELS.get(jax.default_backend(), 1 << 22) // pixels)
    return min(slots, -(-n // ROUNDS)) if jax.default_backend() == "cpu" else slots


def _where(pick: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    def select(x, y):
        return jnp.where(jnp.reshape(pick, pick.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(select, a, b)
