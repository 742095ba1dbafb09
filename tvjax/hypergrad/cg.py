"""The implicit hypergradient by conjugate gradients; see `tvjax.hypergrad.implicit`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tvjax.hypergrad.checks import check_least, check_not_negative, check_truth, check_within
from tvjax.hypergrad.implicit import damped, implicit, widened
from tvjax.hypergrad.loops import Loop, chosen
from tvjax.hypergrad.problem import Estimator
from tvjax.krylov import conjugate_gradients
from tvjax.types import PyTree


class CGCarry(NamedTuple):
    """What `cg` remembers."""

    solution: PyTree
    """A^{-1} b of the last call; `()` without a warm start."""
    calls: jax.Array
    residual: jax.Array
    """||A q - b|| / ||b|| of the last call's answer; 0 before the first."""


def cg(
    iterations: int,
    *,
    damping: float = 0.0,
    tolerance: float | Callable[[jax.Array], Any] = 0.0,
    warm_start: bool = False,
    steps: int = 1,
    loop: Loop | None = None,
) -> Estimator:
    """A^{-1} by conjugate gradients.

        H = -<q_n, d/dhyper grad L_in>,   q_n = argmin_q <q, A q> / 2 - <b, q> over the first n
        Krylov vectors b, A b, .., A^{n-1} b,   b = grad L_out

    They stop at ||A q - b|| <= max(tolerance, eps) ||b||, eps the dtype's: more iterations change
    nothing then. They also stop at a direction whose curvature is negative, or zero to rounding,
    which an indefinite or singular A has and from which no step towards a solution follows.
    Whether the system was solved is told by `carry.residual`, the ||A q - b|| / ||b|| reached. It
    is above the tolerance where iterations or curvature ran out, and where rounding holds it: at
    about eps times the condition number of A. Where A is singular to rounding and b outside its
    range there is no solution: H is NaN once the iterates are worse than 0.

    With a decreasing `tolerance` and `warm_start`, this is the estimator of HOAG: a rough answer
    is enough while the hyperparameter is far from its optimum. HOAG also solves the inner problem
    to that tolerance: take as many steps between calls.

    Source: Pedregosa (2016), arXiv:1602.02355, Algorithm 1; Foo, Do, Ng (2008).

    Cost: at most 6F an iteration and 12F around them, beyond the module's. Memory: that of a plain
    step and five vectors like the parameters.

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
      loop: how to run the steps and the iterations; None: what suits the backend.

    Raises:
      ValueError: for iterations or steps below 1, a damping or a tolerance below 0, and a
        `warm_start` that is no boolean.
    """
    check_least(1, iterations=iterations)
    check_not_negative(damping=damping, tolerance=tolerance)
    check_truth(warm_start=warm_start)
    loop = chosen(loop)

    def init(problem, state, hyper):
        start = optax.tree.zeros_like(widened(state.params))
        residual = jnp.zeros((), jnp.result_type(*jax.tree.leaves(start)))
        return CGCarry(start if warm_start else (), jnp.zeros((), jnp.int32), residual)

    def solve(product, b, carry):
        q, residual = conjugate_gradients(
            damped(product, damping),
            b,
            carry.solution if warm_start else None,
            tolerance=tolerance(carry.calls) if callable(tolerance) else tolerance,
            iterations=iterations,
            repeat=loop.repeat,
        )
        return q, CGCarry(q if warm_start else (), carry.calls + 1, residual)

    return implicit(solve, steps, loop, init)


def hoag_tolerance(first: float = 0.1, *, rate: float = 0.9) -> Callable[[jax.Array], Any]:
    """HOAG's exponentially decreasing tolerance, `first * rate^calls` (as in its experiments).

    Raises:
      ValueError: `first` is not at least 0, or `rate` not in [0, 1).
    """
    check_not_negative(first=first)
    check_within(0, 1, rate=rate)
    return lambda calls: first * rate**calls
