"""The exact hypergradient through one step of the inner optimiser.

Let g = grad L_in(theta, hyper), theta' = theta + step(g) and H = dL_out(theta')/dhyper. In units
of one forward pass F of the net (a pullback or a tangent costs 2F), a plain step costs 3F.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from tvjax.hypergrad.degenerate import is_optimizer
from tvjax.hypergrad.dependence import reached
from tvjax.hypergrad.derivatives import few, tangents
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.hypergrad.pullback import step_pullback
from tvjax.hypergrad.reverse import gradient_pullback, outer_pullback
from tvjax.hypergrad.trees import floats
from tvjax.types import PyTree


def exact(*, mode: str | None = None) -> Estimator:
    """The exact derivative through one step of any optax optimiser.

        H = dL_out/dhyper + <grad L_out(theta'), dtheta'/dhyper>,
        dtheta'/dhyper = (d step/dg) dg/dhyper + d step/dhyper

    The first term is there if the outer loss takes `hyper` itself, the last if the optimiser is a
    function of it. It is the derivative of the step as it is taken, so it holds for every
    optimiser. No Hessian appears: theta is held fixed, and only the step depends on `hyper`. The
    definition is
    `jax.grad` of the outer loss after the step (`mode="reverse"`). For few hyperparameters the
    same number comes cheaper as one tangent per hyperparameter (`mode="forward"`): of the inner
    forward pass nothing depends on `hyper`, so the tangent costs one more pullback through the
    same linearisation, one pass over the optimiser, and one tangent of the outer loss.

    Source: the chain rule, as in eqs 18 and 19 of the paper; Luketina et al. (2016),
    arXiv:1511.06727, take one step too, but of gradient descent.

    Cost: 7F forward for a scalar; 8F reverse for any number (where they enter after the net, as
    weights of losses do, or in the optimiser). Memory: that of a plain step.

    Prefer it where the next outer loss is what counts, or as the truth of other one-step formulas:
    under Adam none that is cheaper is the derivative of anything. Being exact does not make it a
    good guide of a training, which is another question.

    The short horizon's bias: it is the derivative of the *next* outer loss, and blind to all that
    a hyperparameter does later (Wu et al. 2018, arXiv:1803.02021). One step misleads early in
    training, when any penalty seems to slow the fit, as in the second example below, where its
    sign is the opposite of the whole run's; for learning rates, whose noise costs nothing at once;
    for a decoupled weight decay, of which it sees -eta <grad L_out, theta> and nothing else; and in
    several dimensions, which it weighs by eta where the truth weighs by 1 / curvature. Near the
    inner optimum, and with outer steps that are small against the inner ones, it misleads least.

    What to watch: the outer loss beside that of a run whose `hyper` is held; the path of `hyper`,
    where a drift that does not slow down, or away from what is plausible, is the bias and no
    discovery; and `audit` against a longer horizon at several states. Where signs differ, lower the
    outer learning rate, begin later, or take `forward_online`, `forward` or `reverse` with more
    steps. `until_significant` helps against noise, not against bias.

    What it cannot do: see beyond one step. Measured for the U-Net's lambda (`results/lambda/`): it
    settles at the edge of what is harmless, where a finished training feels a hundred times as
    much, and the final loss was neither lower nor higher than with lambda = 0. For other
    hyperparameters this was not measured. Adam divides by its own running scale, so the exact
    derivative differs from the SGD formula in size and often in sign. At the first step of Adam
    it is all but zero (the step is the gradient's sign): start after a warm-up. Use
    `tvjax.hypergrad.adam`, whose derivative is finite at zero gradients, instead of `optax.adam`.

    Args:
      mode: `"forward"`, `"reverse"`, or None: forward for one hyperparameter. Beside settings of
        the optimiser one that acts in the inner loss is then taken forward as far as its gradient.

    Raises:
      ValueError: for another mode.

    >>> import jax.numpy as jnp, optax
    >>> from tvjax.hypergrad import Bilevel
    >>> def inner_loss(w, lam, batch):
    ...     return (w - batch) ** 2 / 2 + lam * w**2 / 2
    >>> problem = Bilevel(inner_loss, lambda w, lam, batch: (w - batch) ** 2 / 2, optax.sgd(0.5))
    >>> estimate = exact()(problem, problem.init(jnp.array(1.0)), jnp.array(1.0), [0.0], 1.0)
    >>> float(estimate.state.params), float(estimate.gradient)  # w' = 1 - (1 + lam) / 2
    (0.0, 0.5)

    Early in training one step sees a penalty as harmful (+), and the whole run as useful (-):

    >>> from tvjax.hypergrad import SCANNED, reverse
    >>> def inner_loss(y, x, batch):
    ...     return (y - 2) ** 2 / 2 + x * y**2 / 2
    >>> problem = Bilevel(inner_loss, lambda y, x, batch: (y - 1) ** 2 / 2, optax.sgd(0.1))
    >>> args = problem, problem.init(jnp.array(0.5)), jnp.array(0.0)
    >>> one, run = (e(*args, [0.0] * e.steps, 0.0) for e in (exact(), reverse(200, loop=SCANNED)))
    >>> print(f"{one.gradient:+.4f} {run.gradient:+.4f}")
    +0.0175 -2.0000
    """
    if mode not in (None, "forward", "reverse"):
        raise ValueError(f"mode must be None, 'forward' or 'reverse', got {mode!r}")

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        along = mode == "forward" or (mode is None and optax.tree.size(hyper) == 1)
        one_step = _by_tangents if along else partial(_by_pullbacks, pure=mode == "reverse")
        loss, gradient, new, aux = one_step(problem, state, hyper, inner_batches[0], outer_batch)
        loss, outer_aux, gradient = problem.mean((loss, aux[1], gradient))
        return Estimate(gradient, loss, new, (aux[0], outer_aux), carry)

    return Estimator(estimate)


def _by_tangents(problem: Bilevel, state: InnerState, hyper, inner_batch, outer_batch):
    """`(L_out, H, new state, (inner aux, outer aux))` by a tangent per hyperparameter."""

    def loss_after_step(hyper):
        new, inner_aux = problem.inner_step(state, hyper, inner_batch)
        loss, outer_aux = problem.outer(new.params, hyper, outer_batch, new.model_state)
        return loss, (new, (inner_aux, outer_aux))

    (loss, (new, aux)), gradient = tangents(loss_after_step, hyper)
    return loss, gradient, new, aux


def _by_pullbacks(problem: Bilevel, state: InnerState, hyper, inner_batch, outer_batch, pure: bool):
    """The same by the pullbacks of outer loss, optimiser's step and inner gradient in turn."""
    alone = None if pure else _alone_in_loss(problem, state, hyper, inner_batch)
    inner = _with_pullback if alone is None else partial(_with_tangent, alone)
    (slope, (model_state, inner_aux)), pull_gradient = inner(problem, state, hyper, inner_batch)
    step = problem.optimizer, hyper, slope, state.opt_state, state.params
    (params, opt_state), pull_step = step_pullback(*step)
    new = InnerState(params, opt_state, model_state)
    loss, outer_aux, (q, direct) = outer_pullback(problem, new, hyper, outer_batch)
    along, _, _, by_settings = pull_step(q.params, q.opt_state)
    by_loss = pull_gradient(along, q.model_state)
    gradient = jax.tree.map(lambda *shares: sum(shares), by_loss, by_settings, direct)
    return loss, gradient, new, (inner_aux, outer_aux)


def _alone_in_loss(problem: Bilevel, state: InnerState, hyper: PyTree, batch: PyTree) -> int | None:
    """The leaf of one number that acts in the inner loss beside settings, if there is one."""
    if is_optimizer(problem.optimizer) or not few(hyper):
        return None
    leaves = jax.tree.leaves(hyper)

    def slope(k, leaf):
        return problem.inner_gradient(state, _put(hyper, k, leaf), batch)

    found = [k for k, leaf in enumerate(leaves) if any(reached(partial(slope, k), leaf))]
    return found[0] if len(found) == 1 and jnp.size(leaves[found[0]]) == 1 else None


def _put(hyper: PyTree, k: int, leaf: jax.Array) -> PyTree:
    leaves, treedef = jax.tree.flatten(hyper)
    return treedef.unflatten([*leaves[:k], leaf, *leaves[k + 1 :]])


def _with_pullback(problem: Bilevel, state: InnerState, hyper: PyTree, batch: PyTree):
    """`(inner_gradient(..), its pullback to hyper)`."""

    def pull(along, model):
        return gradient_pullback(problem, state, hyper, batch, along, model)[2]

    return problem.inner_gradient(state, hyper, batch), pull


def _with_tangent(k: int, problem: Bilevel, state: InnerState, hyper: PyTree, batch: PyTree):
    """The same by the tangent in the one number that acts there, the k-th leaf.

    As many passes, but what the forward pass computed need not be kept until the outer loss's
    gradient is there.
    """
    leaf = jax.tree.leaves(hyper)[k]

    def gradient(leaf):
        slope, (model_state, aux) = problem.inner_gradient(state, _put(hyper, k, leaf), batch)
        return (slope, floats(model_state)), (slope, (model_state, aux))

    _, tangent, found = jax.jvp(gradient, (leaf,), (jnp.ones_like(leaf),), has_aux=True)

    def pull(along, model):
        share = jnp.asarray(optax.tree.vdot((along, model), tangent))
        return _put(optax.tree.zeros_like(hyper), k, share.astype(leaf.dtype).reshape(leaf.shape))

    return found, pull
