"""stocBiO: a Neumann series in which every factor has a batch of its own."""

from tvjax.hypergrad.loops import Loop
from tvjax.hypergrad.problem import Estimator
from tvjax.hypergrad.quadratic import by_descent


def stocbio(
    terms: int,
    scale: float,
    *,
    damping: float = 0.0,
    steps: int = 1,
    loop: Loop | None = None,
) -> Estimator:
    """The implicit hypergradient by a Neumann series with a fresh batch for each factor.

        theta <- `steps` steps of the inner optimiser,
        v = scale sum_{q=0}^{Q} prod_{j=1}^{q} (I - scale A_j) grad L_out(theta),   Q = `terms`,
        H = dL_out/dhyper - <v, d/dhyper grad L_in>

    A_j is d^2 L_in/dtheta^2 + damping I on batch j. Batches that are drawn independently make the
    mean of each product the product of means, which powers of one batch's A do not. The sum is
    taken by Horner's rule: Q steps v <- v - scale (A_j v - b) from v = scale b. With one batch for
    all it is `neumann`: a component of curvature a is short by (1 - scale a)^(Q + 1).

    Source: Ji, Yang, Liang (2021), arXiv:2010.07962, Algorithm 2. A call takes `steps +
    terms` inner batches, one per factor after those of the steps; the last also serves H. Differs
    from the paper: theta moves by the problem's optimiser, and one outer batch serves.

    Cost: 3F a step, 9F a term, and 8F. Memory: that of a plain step and a vector like the
    parameters. `carry` is empty.

    Prefer it to `neumann` where batches are small, and to `amigo` where `hyper` jumps from call to
    call or nothing may be remembered.

    What it cannot do: get rid of the truncation's bias otherwise than by more terms; go beyond
    scale < 2 / the largest eigenvalue of A, nor an indefinite A: a net needs damping. Nor see the
    optimiser's settings, which are refused.

    Args:
      terms: Q, products with A, >= 1.
      scale: factor of the series above, > 0.
      damping: added to the diagonal of the Hessian.
      steps: inner steps before it, >= 1.
      loop: how to run both; None: what suits the backend.

    Raises:
      ValueError: for terms or steps below 1, or a scale that is not positive.
    """
    return by_descent(terms, scale, damping, steps, loop, warm=False)
