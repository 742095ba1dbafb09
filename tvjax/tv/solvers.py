"""Solvers of `min_u 1/2 ||u - f||^2 + lam TV(u)` for batches `[N, H, W, C]`.

Each takes the `tolerance` and `max_iterations` of `denoise_tv` as its limits, and returns u, its
dual field v = lam p (see `tvjax.tv.dual`) and a certificate. They know nothing of derivatives:
`tvjax.tv.rof` supplies those at the solution, whichever solver found it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tvjax.tv import dual
from tvjax.tv.dual import Field

STEP = 1 / 8
"""1 / ||D||^2, the largest step with a proof."""
CHAMBOLLE_STEP = 1 / 4
"""Converges in practice; the proof has 1 / 8."""
LBFGS_SMOOTHING = 1e-3


def _primal(s: jax.Array, f: jax.Array) -> jax.Array:
    return f - s


def _rounding(f: jax.Array, lam: jax.Array) -> jax.Array:
    return jnp.finfo(f.dtype).eps * lam * jnp.sum(jnp.abs(f), axis=(1, 2, 3))


def fista(f, lam, *, kind, **limits):
    """FISTA on the dual."""
    options = {"step": STEP, "kind": kind, "rounding": _rounding(f, lam), **limits}
    v, certificate = dual.fista(_primal, f, lam, **options)
    return _primal(dual.adjoint(v), f), v, certificate


def chambolle(f, lam, *, kind, **limits):
    """The fixed point of Chambolle (2004)."""

    def check(v, f, lam):
        d = dual.differences(_primal(dual.adjoint(v), f))
        return dual.duality_gap(d, v, lam, kind), v

    v, certificate = dual.run(
        functools.partial(chambolle_step, kind=kind),
        check,
        dual.fista_start(f).v,
        f,
        lam,
        rounding=_rounding(f, lam),
        **limits,
    )
    return _primal(dual.adjoint(v), f), v, certificate


def chambolle_step(v: Field, f: jax.Array, lam: jax.Array, *, kind: str) -> Field:
    """p <- (p + tau g) / (1 + tau |g|), g = grad u / lam, for v = lam p."""
    tau = CHAMBOLLE_STEP
    d = dual.differences(_primal(dual.adjoint(v), f))
    lam = dual.per_image(lam)
    if kind == "anisotropic":
        size = Field(jnp.abs(d.y), jnp.abs(d.x))
    else:
        size = Field(*[jnp.sqrt(jnp.square(d.y) + jnp.square(d.x))] * 2)
    tiny = jnp.finfo(f.dtype).tiny  # for lam = |d| = 0
    return Field(
        lam * (v.y + tau * d.y) / (lam + tau * size.y + tiny),
        lam * (v.x + tau * d.x) / (lam + tau * size.x + tiny),
    )


class _PrimalDual(NamedTuple):
    u: jax.Array
    ahead: jax.Array
    v: Field
    tau: jax.Array


def primal_dual(f, lam, *, kind, **limits):
    """Chambolle and Pock (2011), algorithm 2, with sigma = 1 / (8 tau).

    The steps shrink as if F were 1/2-strongly convex; it is 1-strongly convex, and believing half
    of it halves the iterations to a relative gap of 1e-6.
    """
    gamma = 0.5

    def step(state, f, lam):
        u, ahead, v, tau = state
        sigma, t = dual.per_image(STEP / tau), dual.per_image(tau)
        d = dual.differences(ahead)
        v = dual.project(Field(v.y + sigma * d.y, v.x + sigma * d.x), lam, kind)
        new = u + t / (1 + t) * (f - dual.adjoint(v) - u)  # f itself where lam = 0
        theta = lax.rsqrt(1 + 2 * gamma * tau)
        return _PrimalDual(new, new + dual.per_image(theta) * (new - u), v, theta * tau)

    def check(state, f, lam):
        return _pair_gap(state.u, state.v, f, lam, kind), state

    zero = dual.fista_start(f).v
    state, certificate = dual.run(
        step,
        check,
        _PrimalDual(f, f, zero, jnp.full(lam.shape, 0.5, f.dtype)),
        f,
        lam,
        rounding=_rounding(f, lam),
        **limits,
    )
    return state.u, state.v, certificate


def lbfgs(f, lam, *, kind, tolerance, max_iterations):
    """Minimises the smoothed primal with jaxopt; the certificate is of the problem itself."""
    try:
        import jaxopt
    except ImportError as error:
        raise ImportError('method "lbfgs" needs jaxopt: pip install "tvjax[lbfgs]"') from error
    eps = LBFGS_SMOOTHING

    def root(d: Field) -> Field:
        square = Field(jnp.square(d.y), jnp.square(d.x))
        if kind == "anisotropic":
            return Field(jnp.sqrt(square.y + eps**2), jnp.sqrt(square.x + eps**2))
        return Field(*[jnp.sqrt(square.y + square.x + eps**2)] * 2)

    def objective(u, f, lam):
        size = root(dual.differences(u))
        total = jnp.sum(size.y + size.x) if kind == "anisotropic" else jnp.sum(size.y)
        return 0.5 * jnp.sum(jnp.square(u - f)) + lam * total

    def one(f, lam):
        solver = jaxopt.LBFGS(objective, maxiter=max_iterations, tol=tolerance)
        u, state = solver.run(f, f, lam)
        return u, state.iter_num

    u, iterations = jax.vmap(one)(f, lam)
    d = dual.differences(u)
    size = root(d)
    v = Field(dual.per_image(lam) * d.y / size.y, dual.per_image(lam) * d.x / size.x)
    gap = _pair_gap(u, v, f, lam, kind)
    return u, v, dual.Certificate(gap, jnp.asarray(iterations, jnp.int32))


def _pair_gap(u, v, f, lam, kind):
    """The gap of any u and v: `sum (lam |d| - v d) + 1/2 ||u - u(v)||^2`."""
    distance = u - _primal(dual.adjoint(v), f)
    return dual.duality_gap(dual.differences(u), v, lam, kind) + 0.5 * dual.sum_from(
        jnp.square(distance), 1
    )
