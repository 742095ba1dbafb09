"""SOBA: parameters, linear system and hyperparameters move together, one step each."""

from tvjax.hypergrad.checks import check_not_negative, check_positive
from tvjax.hypergrad.formulas import response
from tvjax.hypergrad.implicit import widened
from tvjax.hypergrad.problem import Estimate, Estimator
from tvjax.hypergrad.quadratic import no_solution, quadratic_step


def soba(scale: float, *, damping: float = 0.0) -> Estimator:
    """The direction of SOBA: one step on the linear system beside each on the parameters.

        theta' = theta + step(grad L_in(theta)),   v' = v - scale (A v - grad L_out(theta)),
        H = dL_out/dhyper - <v, d/dhyper grad L_in>

    with A = d^2 L_in/dtheta^2 + damping I. All three are taken at the old theta and v, on the same
    inner batch; v rides in `carry`. Nothing is solved: once `hyper` rests, theta and v converge,
    and H with them to the implicit hypergradient.

    **MA-SOBA** is `soba` under an outer optimiser that moves along the moving average of H, as in
    `optax.chain(optax.ema(0.9, debias=False), optax.sgd(gamma))` (Chen, Xiao, Balasubramanian
    2023, arXiv:2306.12067, Algorithm 1).

    Source: Dagreou, Ablin, Vaiter, Moreau (2022), arXiv:2201.13409, Algorithm 1 with its SOBA
    directions. Differs from the paper: theta moves by the problem's optimiser, theirs is SGD.

    Cost: at most 21F, of which a compiler that finds what the three share saves 6F; F of it tells
    the outer loss at theta'. Memory: that of a plain step and a vector like the parameters in
    `carry`.

    Prefer it where batches are small and calls many: each sample moves all three, and its rate is
    that of SGD on one level.

    What it cannot do: tell the hypergradient at once: from v = 0 the first H is the direct term
    alone, and v lags behind a `hyper` that moves fast; let outer steps be small against the inner
    ones. Nor go beyond scale < 2 / the largest eigenvalue of A, nor an indefinite A: a net needs
    damping, which biases H. Nor see the optimiser's settings, which are refused.

    Args:
      scale: size of a step on v, > 0.
      damping: added to the diagonal of the Hessian.

    Raises:
      ValueError: for a scale that is not positive, or a damping below 0.
    """
    check_positive(scale=scale)
    check_not_negative(damping=damping)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        batch = inner_batches[0]
        new, inner_aux = problem.inner_step(state, hyper, batch)
        _, b = problem.outer_gradient(new._replace(params=state.params), hyper, outer_batch)
        v = quadratic_step(problem, state, hyper, batch, carry, widened(b), scale, damping)
        h = response(problem, state, state, hyper, batch, outer_batch, carry)
        loss, outer_aux = problem.outer_at(new, hyper, outer_batch)
        return Estimate(h, loss, new, (inner_aux, outer_aux), v)

    return Estimator(
        estimate, init=no_solution, through_steps=False, through_settings=False, horizon="optimum"
    )
