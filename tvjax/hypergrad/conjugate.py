"""The implicit hypergradient by conjugate gradients; see `tvjax.hypergrad.implicit`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tvjax.hypergrad.checks import check_least
from tvjax.hypergrad.derivatives import zeros
from tvjax.hypergrad.implicit import damped, implicit
from tvjax.hypergrad.loops import UNROLLED, Loop
from tvjax.hypergrad.problem import Estimator
from tvjax.types import PyTree


class CGCarry(NamedTuple):
    """What `cg` remembers."""

    solution: PyTree
    """A^{-1} b of the last call; `()` without a warm start."""
    calls: jax.Array


def cg(
    iterations: int,
    *,
    damping: float = 0.0,
    tolerance: float | Callable[[jax.Array], Any] = 0.0,
    warm_start: bool = False,
    steps: int = 1,
    loop: Loop = UNROLLED,
) -> Estimator:
    """A^{-1} by conjugate gradients.

        H = -<q_n, d/dhyper grad L_in>,   q_n = argmin_q <q, A q> / 2 - <b, q> over the first n
        Krylov vectors b, A b, .., A^{n-1} b,   b = grad L_out

    They stop at ||A q - b|| <= tolerance ||b||, and at a direction of negative curvature, which
    an indefinite A has and from which no step towards a solution follows.

    With a decreasing `tolerance` and `warm_start`, this is the estimator of HOAG: a rough answer
    is enough while the hyperparameter is far from its optimum. HOAG also solves the inner problem
    to that tolerance: take as many steps between calls.

    Source: Pedregosa (2016), arXiv:1602.02355, Algorithm 1; Foo, Do, Ng (2008).

    Cost: at most 6F an iteration, beyond the module's. Memory: that of a plain step and four
    vectors like the parameters.

    Prefer it at an optimum: with as many iterations as A has distinct eigenvalues it is exact.

    What it cannot do: an indefinite Hessian, such as a net's, without damping; nor speak of an
    inner problem that is not solved. With `UNROLLED` under `jit` the
    tolerance freezes the answer but saves no time.

    Args:
      iterations: at most so many products with A, >= 1.
      damping: added to the diagonal of the Hessian.
      tolerance: relative residual, or a function of the number of calls so far, such as
        `hoag_tolerance()`.
      warm_start: begin from the last call's solution, which rides in `carry`.
      steps: inner steps before the estimate, >= 1.
      loop: how to run the steps and the iterations.

    Raises:
      ValueError: for iterations or steps below 1.
    """
    check_least(1, iterations=iterations)

    def init(problem, state, hyper):
        return CGCarry(zeros(state.params) if warm_start else (), jnp.zeros((), jnp.int32))

    def solve(product, b, carry):
        q = carry.solution if warm_start else zeros(b)
        limit = tolerance(carry.calls) if callable(tolerance) else tolerance
        q = conjugate_gradients(damped(product, damping), b, q, limit, iterations, loop)
        return q, CGCarry(q if warm_start else (), carry.calls + 1)

    return implicit(solve, steps, loop, init)


def hoag_tolerance(first: float = 0.1, *, rate: float = 0.9) -> Callable[[jax.Array], Any]:
    """HOAG's exponentially decreasing tolerance, `first * rate^calls` (as in its experiments)."""
    return lambda calls: first * rate**calls


def conjugate_gradients(product, b, q, tolerance, iterations: int, loop: Loop) -> PyTree:
    """Solves `product(q) = b` from `q`; stops at the relative tolerance, or negative curvature."""
    dot = optax.tree.vdot
    limit = tolerance**2 * dot(b, b)

    def add(x, scale, y):
        return jax.tree.map(lambda x, y: x + scale * y, x, y)

    def curved(p):
        a = product(p)
        return a, dot(p, a)

    def condition(at):
        _, _, _, _, curvature, rr = at
        return (rr > limit) & (curvature > 0)

    def body(at):
        q, r, p, a, curvature, rr = at
        alpha = rr / curvature
        q, r = add(q, alpha, p), add(r, -alpha, a)
        new = dot(r, r)
        p = add(r, new / rr, p)
        return q, r, p, *curved(p), new

    r = add(b, -1, product(q))
    return loop.repeat(condition, body, (q, r, r, *curved(r), dot(r, r)), iterations)[0]
