"""AmIGO: gradient steps on the parameters and on the linear system, both begun where they ended."""

from tvjax.hypergrad.loops import Loop
from tvjax.hypergrad.problem import Estimator
from tvjax.hypergrad.quadratic import by_descent


def amigo(
    terms: int,
    scale: float,
    *,
    damping: float = 0.0,
    steps: int = 1,
    loop: Loop | None = None,
) -> Estimator:
    """The implicit hypergradient by some steps on theta and some on the linear system.

        theta <- `steps` steps of the inner optimiser,
        v <- v - scale (A v - grad L_out(theta)), `terms` times, from the last call's v,
        H = dL_out/dhyper - <v, d/dhyper grad L_in>

    with A = d^2 L_in/dtheta^2 + damping I at the new theta. v rides in `carry`: while `hyper` moves
    slowly, few terms follow the solution, and the error of the inner problem and that of v shrink
    together. Each term shrinks the error of v in a direction of curvature a by the factor
    1 - scale a.

    Source: Arbel and Mairal (2022), arXiv:2111.14580, Algorithm 1. A call takes `steps + terms`
    inner batches: one per step on theta, then one per step on v, the last of which also serves H.
    Differs from the paper: theta moves by the problem's optimiser, and one outer batch serves.

    Cost: 3F a step, 9F a term, and 8F. Memory: that of a plain step and two vectors like the
    parameters, one of them in `carry`.

    Prefer it to `cg` where batches are small: v averages over them from call to call. Prefer it to
    `soba` where outer steps are dear or large, since it follows `hyper` more closely.

    What it cannot do: go beyond scale < 2 / the largest eigenvalue of A, nor an indefinite A: a net
    needs damping, which biases H. Nor see the optimiser's settings, which are refused.

    Args:
      terms: steps on v, >= 1.
      scale: size of a step on v, > 0.
      damping: added to the diagonal of the Hessian.
      steps: inner steps before them, >= 1.
      loop: how to run both; None: what suits the backend.

    Raises:
      ValueError: for terms or steps below 1, or a scale that is not positive.
    """
    return by_descent(terms, scale, damping, steps, loop, warm=True)
