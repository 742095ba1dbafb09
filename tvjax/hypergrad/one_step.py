"""Hypergradients through one step of the inner optimiser.

Let g = grad L_in(theta, hyper), theta' = theta + step(g) and H = dL_out(theta')/dhyper. In units
of one forward pass F of the net (a pullback or a tangent costs 2F), a plain step costs 3F.
"""

from typing import Any

import jax
import optax
from jax.flatten_util import ravel_pytree

from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.types import PyTree

_FEW = 4  # up to here n tangents (4F each) compare with one reverse pass, and need less memory


def exact(*, mode: str | None = None) -> Estimator:
    """The exact derivative through one step of any optax optimiser.

        H = <grad L_out(theta'), dtheta'/dhyper>,   dtheta'/dhyper = (d step/dg) dg/dhyper

    It is the derivative of the step as it is taken, so it holds for every optimiser. No Hessian
    appears: theta is held fixed, and only the step depends on `hyper`. The definition is
    `jax.grad` of the outer loss after the step (`mode="reverse"`). For few hyperparameters the
    same number comes cheaper as one tangent per hyperparameter (`mode="forward"`): of the inner
    forward pass nothing depends on `hyper`, so the tangent costs one more pullback through the
    same linearisation, one pass over the optimiser, and one tangent of the outer loss.

    Cost: 7F forward for a scalar, 9F reverse for any number. Memory: that of a plain step
    forward; reverse keeps both linearisations at once.

    What it cannot do: see beyond one step. Adam divides by its own running scale, so the exact
    derivative differs from the SGD formula in size and often in sign. At the first step of Adam
    it is all but zero (the step is the gradient's sign): start after a warm-up. Use
    `tvjax.hypergrad.adam`, whose derivative is finite at zero gradients, instead of `optax.adam`.

    Args:
      mode: `"forward"`, `"reverse"`, or None: forward up to 4 hyperparameters.

    Raises:
      ValueError: for another mode.
    """
    if mode not in (None, "forward", "reverse"):
        raise ValueError(f"mode must be None, 'forward' or 'reverse', got {mode!r}")

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        def loss_after_step(hyper):
            new, inner_aux = problem.inner_step(state, hyper, inner_batches[0])
            loss, outer_aux = problem.outer(new.params, outer_batch, new.model_state)
            return loss, (new, inner_aux, outer_aux)

        forward = mode == "forward" or (mode is None and _size(hyper) <= _FEW)
        gradient_of = tangents if forward else jax.value_and_grad
        (loss, (new, inner_aux, outer_aux)), gradient = gradient_of(loss_after_step, has_aux=True)(
            hyper
        )
        loss, outer_aux, gradient = problem.mean((loss, outer_aux, gradient))
        return Estimate(gradient, loss, new, (inner_aux, outer_aux), carry)

    return Estimator(estimate)


def sgd_formula(learning_rate: optax.ScalarOrSchedule) -> Estimator:
    """The formula for gradient descent, with the regulariser's gradient at theta(t).

        H = -learning_rate <grad L_out(theta'), d/dhyper grad L_in(theta, hyper)>

    Equation 26 of the paper, read as it is derived (eqs 20 to 25). Exact for SGD and heavy ball;
    for any other optimiser it is not the gradient: with Adam both size and sign can be wrong.

    Cost: 8F. Memory: that of a plain step.

    Args:
      learning_rate: a float, or a schedule of the optimiser's own `count`.
    """

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        new, inner_aux = problem.inner_step(state, hyper, inner_batches[0])
        return _formula(
            problem, learning_rate, state, new, hyper, inner_batches[0], outer_batch, inner_aux
        )._replace(carry=carry)

    return Estimator(estimate)


def paper(learning_rate: optax.ScalarOrSchedule) -> Estimator:
    """Algorithm 1 of the paper as printed: the regulariser's gradient at theta(t+1).

        H = -learning_rate <grad L_out(theta'), d/dhyper grad L_in(theta', hyper)>

    For comparison only. It differs from eq. 26's own derivation in the point at which g_TV is
    taken, so it is not the derivative of the step even for SGD, and it needs a forward pass more.

    Cost: 9F. Memory: that of a plain step.

    Args:
      learning_rate: a float, or a schedule of the optimiser's own `count`.
    """

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        new, inner_aux = problem.inner_step(state, hyper, inner_batches[0])
        # The statistics of the new state are the step's; the old ones only seed this forward pass.
        at = new._replace(opt_state=state.opt_state, model_state=state.model_state)
        return _formula(
            problem, learning_rate, at, new, hyper, inner_batches[0], outer_batch, inner_aux
        )._replace(carry=carry)

    return Estimator(estimate)


def tangents(f, *, has_aux: bool = False):
    """`jax.value_and_grad(f)` by one tangent per element of the argument instead of a reverse pass.

    One element costs one `jvp`; several share one linearisation.
    """

    def value_and_tangents(x: PyTree):
        flat, unravel = ravel_pytree(x)

        def basis(i):
            return unravel(flat * 0 + jax.nn.one_hot(i, flat.size, dtype=flat.dtype))

        g = f if has_aux else lambda x: (f(x), None)
        if flat.size == 1:
            value, tangent, aux = jax.jvp(g, (x,), (basis(0),), has_aux=True)
            columns = [tangent]
        else:
            value, linear, aux = jax.linearize(g, x, has_aux=True)
            columns = [linear(basis(i)) for i in range(flat.size)]
        gradient = unravel(jax.numpy.stack(columns))
        return ((value, aux) if has_aux else value), gradient

    return value_and_tangents


def _formula(
    problem: Bilevel,
    learning_rate: optax.ScalarOrSchedule,
    at: InnerState,
    new: InnerState,
    hyper: PyTree,
    inner_batch: PyTree,
    outer_batch: PyTree,
    inner_aux: PyTree,
) -> Estimate:
    """-learning_rate <grad L_out(new), d/dhyper grad L_in(at, hyper)>, without any step's aid."""
    (loss, outer_aux), outer_gradient = problem.outer_gradient(new, outer_batch)

    def along_outer_gradient(hyper):
        gradient, _ = problem.inner_gradient(at, hyper, inner_batch)
        return optax.tree.vdot(gradient, outer_gradient)

    _, product = tangents(along_outer_gradient)(hyper)
    rate = _rate(learning_rate, at.opt_state)
    gradient = jax.tree.map(lambda p: -rate * p, product)
    return Estimate(gradient, loss, new, (inner_aux, outer_aux))


def _rate(learning_rate: optax.ScalarOrSchedule, opt_state: PyTree) -> Any:
    if not callable(learning_rate):
        return learning_rate
    counts = optax.tree.get_all_with_path(opt_state, "count")
    if not counts:
        raise ValueError("the learning rate is a schedule, but the optimiser keeps no count")
    return learning_rate(counts[0][1])


def _size(tree: PyTree) -> int:
    return sum(jax.numpy.size(leaf) for leaf in jax.tree.leaves(tree))
