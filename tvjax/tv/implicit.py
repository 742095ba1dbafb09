"""Derivatives of converged total variation problems, by the implicit function theorem.

At the solution u of `min_u F(u) - <u, b> + lam TV(u)` each difference d = D u (isotropic: each
pixel's vector) is either tied, `d = 0` with its dual strictly inside the bound, or active, with its
dual on the bound at `lam n`, `n = sign(d)` or `d / |d|`. A small change of b and lam moves no
difference from one set to the other, unless one stands exactly between (a kink, where what is
returned is the derivative on one side: finite, and no average of the two sides). So

  du = J (db - dlam D^T n - D^T w),   J = (the Hessian of F)^-1,

where w keeps tied differences at 0 and turns the vectors of active pixels (isotropic):

  tied:    (D du) = 0
  active:  w = lam M D du,  M = (I - n n^T) / |d|   (isotropic; anisotropic: w = 0)

For ROF's anisotropic form (J = I, no turning) the tied pixels form regions, du is constant on each,
and the equations say that it is the region's mean of `db - dlam D^T n`: no system is solved.

Everything is linear in (db, dlam) and made of transposable parts: forward and reverse mode both
work. All arrays are of one image, `[H, W, C]`; lam is a scalar.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tvjax.krylov import conjugate_gradients
from tvjax.tv.dual import Field, adjoint, differences
from tvjax.tv.variation import has_next

MAX_CG_ITERATIONS = 2000


class Active(NamedTuple):
    """The state of each difference at a solution."""

    tied: Field
    """bool: must stay 0."""
    normal: Field
    """n where active, 0 elsewhere."""
    length: jax.Array
    """|d| of each pixel; used by the isotropic kind."""


def active_set(u: jax.Array, v: Field, lam: jax.Array, *, kind: str, step: float) -> Active:
    """Reads from a projected gradient step on v which differences are tied.

    The projection's derivative decides: where it moves `z = v + step D u` the dual is on its bound.
    That is sharper than |v| < lam, which rounding of the projection upsets, and than d = 0, which
    an iterate reaches only to its accuracy. With lam = 0 nothing is tied, and du = db.
    """
    d = differences(u)
    z = lax.stop_gradient(Field(v.y + step * d.y, v.x + step * d.x))
    inside = Field(has_next(u.shape, -3), has_next(u.shape, -2))
    if kind == "anisotropic":
        tied = Field(jnp.abs(z.y) < lam, jnp.abs(z.x) < lam)
        normal = Field(_zero_where(tied.y, jnp.sign(z.y)), _zero_where(tied.x, jnp.sign(z.x)))
        length = jnp.ones_like(u)
    else:
        both = jnp.square(z.y) + jnp.square(z.x) < jnp.square(lam)
        tied = Field(both, both)
        # An active vector that is exactly 0 has no direction; a normal of 0 leaves it finite.
        square = jnp.square(d.y) + jnp.square(d.x)
        pick = ~both & (square > 0)
        length = jnp.sqrt(jnp.where(pick, square, 1))
        normal = Field(_zero_where(~pick, d.y / length), _zero_where(~pick, d.x / length))
        length = jnp.where(pick, length, 0)
    return Active(Field(tied.y & inside.y, tied.x & inside.x), normal, length)


def regions(tied: Field) -> jax.Array:
    """int32 `[H, W, C]`: one label for each set of pixels connected by ties.

    Each pixel takes the least label among its tied neighbours, and then its label's label, which
    halves the distance still to go: about log2(H + W) rounds, where a plain flood needs H + W.
    """
    shape = tied.y.shape
    start = lax.iota(jnp.int32, tied.y.size).reshape(shape)

    def spread(labels: jax.Array) -> jax.Array:
        for tie, axis in ((tied.y, -3), (tied.x, -2)):
            ahead = jnp.where(tie, jnp.roll(labels, -1, axis), start.size)
            behind = jnp.roll(jnp.where(tie, labels, start.size), 1, axis)
            labels = jnp.minimum(labels, jnp.minimum(ahead, behind))
        return labels.reshape(-1)[labels]

    def step(carry):
        labels, _ = carry
        new = spread(labels)
        return new, jnp.any(new != labels)

    return lax.while_loop(lambda carry: carry[1], step, (start, jnp.array(True)))[0]


def region_mean(x: jax.Array, labels: jax.Array) -> jax.Array:
    """Replaces each pixel by the mean of its region; a symmetric projection."""
    flat = labels.reshape(-1)
    total = jnp.zeros(x.size, x.dtype).at[flat].add(x.reshape(-1))
    count = jnp.zeros(x.size, x.dtype).at[flat].add(jnp.ones(x.size, x.dtype))
    return (total / jnp.maximum(count, 1))[labels]


def tangent_by_regions(active: Active, db: jax.Array, dlam: jax.Array) -> jax.Array:
    """du of anisotropic ROF: `mean_R(db) - dlam s_R / |R|`, s_R the signed boundary of region R."""
    return region_mean(db - dlam * adjoint(active.normal), regions(active.tied))


def tangent_by_cg(
    active: Active,
    db: jax.Array,
    lam: jax.Array,
    dlam: jax.Array,
    *,
    kind: str,
    response: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """du of any problem with the Hessian's inverse `response` = J, by conjugate gradients on w.

    With w = B y, B the tied components and the turning directions of active pixels, the equations
    are `(B^T D J D^T B + E) y = B^T D J (db - dlam D^T n)`, E = |d| / lam on active pixels and 0
    on ties: positive semidefinite and consistent. Rows where E > 1 are scaled by E^(-1/2), so that
    a small lam neither divides by 0 nor spoils the condition, which is that of the Laplacian on the
    tied regions: CG takes about as many iterations as the largest region is wide.
    """
    tied, n, length = active
    if kind == "anisotropic":
        scale, extra = jnp.zeros_like(length), jnp.ones_like(length)
    else:
        # min(1, lam / |d|)^(1/2) and min(1, |d| / lam); each division only where it is taken.
        far = length > lam
        ratio = lam / jnp.where(far, length, 1)
        scale = jnp.where(far & (ratio > 0), jnp.sqrt(jnp.where(ratio > 0, ratio, 1)), ~far)
        extra = jnp.where(far, 1, length / jnp.where(lam > 0, lam, 1))

    def basis(y: Field) -> Field:  # B, symmetric: the turning direction is t = (-n.x, n.y)
        along = scale * (n.x * y.y - n.y * y.x)
        return Field(
            jnp.where(tied.y, y.y, n.x * along),
            jnp.where(tied.x, y.x, -n.y * along),
        )

    def operator(y: Field) -> Field:
        w = basis(differences(response(adjoint(basis(y)))))
        return Field(
            w.y + jnp.where(tied.y, 0, extra * y.y),
            w.x + jnp.where(tied.x, 0, extra * y.x),
        )

    def cg(matvec, b):
        return conjugate_gradients(matvec, b, iterations=MAX_CG_ITERATIONS).q

    b = db - dlam * adjoint(n)
    right = basis(differences(response(b)))
    y = lax.custom_linear_solve(operator, right, solve=cg, symmetric=True)
    return response(b - adjoint(basis(y)))


def _zero_where(condition: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(condition, 0, x)
