"""Hypergradients through K steps of the inner optimiser, in reverse."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from tvjax.hypergrad.checks import check_least
from tvjax.hypergrad.loops import Loop, chosen
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.hypergrad.pullback import step_pullback
from tvjax.hypergrad.trees import floats, merge
from tvjax.types import PyTree


def reverse(steps: int, *, loop: Loop | None = None) -> Estimator:
    """The exact derivative through K steps, by backpropagation with rematerialisation.

        H = dL_out(theta_K)/dhyper,   theta_{k+1} = theta_k + step(grad L_in(theta_k, hyper))

    backwards: s_K = dL_out/d(state_K), then for k = K-1 .. 0, with the pullback of the step,
    (s_k, H_k) = pullback_k(s_{k+1}) and H = dL_out/dhyper + sum_k H_k, the first term of an outer
    loss that takes `hyper` itself. A state is parameters, optimiser and model state: running
    statistics carry their derivative too. The states are kept; what a step computes on its way is
    computed again when its turn comes.

    Source: Franceschi et al. (2017), arXiv:1703.01785, Algorithm 1; Griewank and Walther (2008)
    for the rematerialisation.

    Cost: (3F + 9F) K + 3F for any number of hyperparameters: each step once forward and, going
    back, once more with its pullback. Memory: K states, and one step's pullback.

    Prefer it where hyperparameters are many (a weight map) and K is tens.

    What it cannot do: look past its K steps: what `hyper` did before is left out, and what it does
    later, so that the short horizon's bias (see `exact`) becomes less with K and ends with the
    whole run; for learning rates 100 steps were still off by orders of magnitude (Wu et al. 2018).
    What to watch: the estimate of 2 K steps from the same state; while the two differ, K is too
    short. Over long horizons the derivative itself may explode: clip it, or use its sign. Where
    Adam has seen next to no gradient, its step has a slope near 1/eps, which going back multiplies
    even rounding at each step; forward nothing is there to be multiplied. Compare the two by
    `audit`.

    Args:
      steps: K >= 1.
      loop: `UNROLLED` or `SCANNED`; None: what suits the backend.

    Raises:
      ValueError: for steps below 1.
    """
    check_least(1, steps=steps)
    loop = chosen(loop)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        batches = loop.stack(inner_batches)

        def forward(state, batch):
            new, aux = step(problem, state, hyper, batch)
            return new, (state, aux)

        new, visited = loop.scan(forward, state, batches, length=steps)
        loss, outer_aux, (cotangent, direct) = outer_pullback(problem, new, hyper, outer_batch)

        def backward(carry, visit, batch):
            cotangent, total = carry
            cotangent, part = _pullback(problem, visit[0], hyper, batch, cotangent)
            return (cotangent, jax.tree.map(jnp.add, total, part)), None

        (_, gradient), _ = loop.scan(
            backward, (cotangent, direct), visited, batches, length=steps, reverse=True
        )
        loss, outer_aux, gradient = problem.mean((loss, outer_aux, gradient))
        return Estimate(gradient, loss, new, (loop.last(visited)[1], outer_aux), carry)

    return Estimator(estimate, steps)


def inner_run(
    problem: Bilevel, state: InnerState, hyper: PyTree, batches: PyTree, steps: int, loop: Loop
):
    """`(state, aux of the last step)` after K steps along stacked batches."""

    def forward(state, batch):
        return step(problem, state, hyper, batch)

    new, auxes = loop.scan(forward, state, batches, length=steps)
    return new, loop.last(auxes)


@partial(jax.jit, static_argnums=0)
def step(problem: Bilevel, state: InnerState, hyper: PyTree, batch: PyTree):
    """`problem.inner_step`, compiled once for every host loop over it."""
    return problem.inner_step(state, hyper, batch)


@partial(jax.jit, static_argnums=0)
def outer_pullback(problem: Bilevel, state: InnerState, hyper: PyTree, outer_batch: PyTree):
    """`(L_out, aux, (dL_out/d(state), dL_out/dhyper))`, of this device alone.

    The first derivative is like `floats(state)`; the second is the direct one, at a fixed state.
    """

    def outer(part, hyper):
        whole = merge(part, state)
        return problem.outer(whole.params, hyper, outer_batch, whole.model_state)

    derivative = jax.value_and_grad(outer, argnums=(0, 1), has_aux=True)
    (loss, aux), cotangents = derivative(floats(state), hyper)
    return loss, aux, cotangents


@partial(jax.jit, static_argnums=0)
def _pullback(problem, state, hyper, batch, cotangent):
    """The cotangents of `state` and `hyper` from that of the state after one step."""
    part = _after(cotangent, floats(state))
    whole = merge(part, state)
    gradient, _ = problem.inner_gradient(whole, hyper, batch)

    step = problem.optimizer, hyper, gradient, whole.opt_state, whole.params
    _, pull = step_pullback(*step)
    along, opt_state, params, by_settings = pull(cotangent.params, cotangent.opt_state)
    through, model_state, by_loss = gradient_pullback(
        problem, whole, hyper, batch, along, cotangent.model_state
    )
    params, share = jax.tree.map(jnp.add, (params, by_loss), (through, by_settings))
    return InnerState(params, opt_state, model_state), share


def gradient_pullback(
    problem: Bilevel, state: InnerState, hyper: PyTree, batch: PyTree, along: PyTree, model: PyTree
):
    """Pulls `along` and `model` back through `(gradient, model_state) = inner_gradient(..)`.

        d/d(theta, m, hyper) [ <along, grad_theta L_in> + <model, m'> ]

    The first product is the derivative of L_in in the direction `along`: taken forward, and its
    gradient in reverse. The same number by the transpose of the gradient needs derivatives of
    weight gradients, convolutions which miss XLA's fast path on a CPU (five times the time for a
    U-Net, and compiling too).

    Returns:
      The cotangents of parameters, of `floats(model_state)` and of `hyper`, of this device alone.
    """
    along, model = problem.mean((along, model))

    def product(params, part, hyper):
        before = merge(part, state.model_state)

        def loss(params):
            value, (after, _) = problem.inner(params, hyper, batch, before)
            return value, floats(after)

        (_, after), (slope, _) = jax.jvp(loss, (params,), (along,))
        return slope + jnp.asarray(optax.tree.vdot(model, after))

    return jax.grad(product, argnums=(0, 1, 2))(state.params, floats(state.model_state), hyper)


def _after(cotangent: PyTree, part: PyTree) -> PyTree:
    """`part`, in a form that is not known before `cotangent` is.

    Otherwise the compiler would find that the forward pass has the same intermediate values, and
    keep those of all K steps instead of computing them again. An optimisation barrier is not
    enough: on the CPU it is gone before such values are looked for (seen with jax 0.10.2, for
    `jax.checkpoint` too). A product with zero stays, since zero times NaN is not zero.
    """
    # One number is enough, and a sum over all leaves would be compiled anew into each of them.
    zero = sum(0 * leaf.ravel()[0] for leaf in jax.tree.leaves(cotangent)[:1] if leaf.size)
    return jax.tree.map(lambda x: x + jnp.asarray(zero, x.dtype), part)
