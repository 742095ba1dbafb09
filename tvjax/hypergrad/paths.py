"""The ways from hyperparameters to the outer loss, and who does not see them all.

`hyper` acts in the inner loss, in the optimiser's settings, and in the outer loss directly. A way
is there if a derivative is, which tracing tells; each is traced for the estimators only that would
leave it out. A part of a derivative is no estimate of it: they refuse.
"""

import functools
from typing import Any

import jax

from tvjax.hypergrad.degenerate import check_slope, is_optimizer, optimizer_at, take_step
from tvjax.hypergrad.dependence import kind, reached
from tvjax.types import PyTree

_PARTIAL = "which this estimator does not see, and a part of the derivative is none: take"


def check_paths(
    estimator: Any,
    problem: Any,
    state: Any,
    hyper: PyTree,
    inner_batch: PyTree,
    outer_batch: PyTree,
) -> None:
    """Raises ValueError unless the estimator sees all ways that a problem has."""
    is_fixed = is_optimizer(problem.optimizer)
    check_start(problem.optimizer, hyper, state.params)
    in_settings = not is_fixed and _in_settings(problem.optimizer, *kind(hyper, *state[:2]))
    if in_settings and not estimator.through_settings:
        raise ValueError(
            f"the optimiser's settings depend on hyper, {_PARTIAL} exact, reverse, forward or "
            "forward_online, or keep hyper out of the optimiser"
        )
    if not estimator.through_outer and _in_outer(problem, state, hyper, outer_batch):
        raise ValueError(
            f"the outer loss depends on hyper directly, {_PARTIAL} exact, reverse, forward or "
            "forward_online, or lax.stop_gradient(hyper) in an outer loss that is only reported"
        )
    # A step without a slope in the gradient may have one in its own settings.
    if estimator.through_steps and not (
        in_settings and not _in_inner(problem, state, hyper, inner_batch)
    ):
        check_slope(problem.optimizer, hyper, state.params, state.opt_state)


def check_start(optimizer: Any, hyper: PyTree, params: PyTree) -> None:
    """Raises ValueError if the optimiser's first state has a derivative in `hyper`.

    Such a state was made of hyperparameters that may have moved since, and has them without their
    derivative.
    """
    if not is_optimizer(optimizer) and _in_start(optimizer, *kind(hyper, params)):
        raise ValueError(
            "the optimiser's first state depends on hyper, as with optax.inject_hyperparams, and "
            "its steps would read there what hyper once was: give hyper to the optimiser itself, "
            "as in lambda hyper: hypergrad.adam(hyper)"
        )


@functools.lru_cache(maxsize=256)
def _in_start(optimizer: Any, treedef: Any, leaves: tuple) -> bool:
    def start(hyper, params):
        return optimizer_at(optimizer, hyper).init(params)

    return any(reached(start, *treedef.unflatten(leaves)))


@functools.lru_cache(maxsize=256)
def _in_settings(optimizer: Any, treedef: Any, leaves: tuple) -> bool:
    def step(hyper, params, opt_state):
        return take_step(optimizer, hyper, params, opt_state, params)

    return any(reached(step, *treedef.unflatten(leaves)))


def _in_inner(problem: Any, state: Any, hyper: PyTree, batch: PyTree) -> bool:
    def gradient(hyper, params, batch, model_state):
        derivative = jax.grad(problem.inner, has_aux=True)
        slope, (after, _) = derivative(params, hyper, batch, model_state)
        return slope, after

    return any(reached(gradient, hyper, state.params, batch, state.model_state))


def _in_outer(problem: Any, state: Any, hyper: PyTree, batch: PyTree) -> bool:
    def loss(hyper, params, batch, model_state):
        return problem.outer(params, hyper, batch, model_state)[0]

    return any(reached(loss, hyper, state.params, batch, state.model_state))
