"""Optimisers that no hypergradient can use, refused with the reason.

Those without a slope are recognised by what their update does, not by name: it is traced, and
nothing is computed. Each pair of an optimiser and a state's shapes is looked at once.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tvjax.hypergrad.dependence import kind, reached
from tvjax.hypergrad.trees import dtype_of
from tvjax.types import PyTree


def is_optimizer(x: Any) -> bool:
    """Whether it is an optimiser itself, and no function of hyperparameters."""
    return hasattr(x, "init") and hasattr(x, "update")


def optimizer_at(optimizer: Any, hyper: PyTree) -> optax.GradientTransformation:
    """The optimiser, or what a function `hyper -> optimiser` makes of these hyperparameters.

    Raises:
      ValueError: for anything else, and for a function that asks for the values of `hyper`, which
        are traced.
    """
    if is_optimizer(optimizer):
        return optimizer
    if not callable(optimizer):
        raise ValueError(f"{_OPTIMIZER}; got a {type(optimizer).__name__}")
    try:
        made: Any = optimizer(hyper)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "the function hyper -> optimiser asks for the values of hyper, which are traced: it "
            "must not convert them to Python numbers or branch on them (some schedules of optax "
            "do; a schedule is any function of the count)"
        ) from error
    if not is_optimizer(made):
        raise ValueError(f"{_OPTIMIZER}; it returned a {type(made).__name__}")
    return made


_OPTIMIZER = "optimizer must be an optax optimiser, or a function of hyper that returns one"


def first_state(optimizer: Any, params: PyTree, hyper: PyTree) -> PyTree:
    """`optimizer.init(params)`; a ValueError with the reason where it cannot be."""
    if hyper is None and not is_optimizer(optimizer) and callable(optimizer):
        raise ValueError("the optimiser is a function of hyper: call init(params, hyper=hyper)")
    made = optimizer_at(optimizer, hyper)
    with _refusing():
        return made.init(params)


def take_step(
    optimizer: Any, hyper: PyTree, gradient: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """`(params', opt_state')`; a ValueError with the reason where the optimiser takes no step.

    That is where its update asks for more than the gradient, its state and the parameters, or does
    not make updates of the parameters' shapes (`optax.polyak_sgd`, `optax.contrib.dpsgd`).
    """
    made = optimizer_at(optimizer, hyper)
    with _refusing():
        updates, new = made.update(gradient, opt_state, params)
        if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, params):
            raise ValueError("its updates have other shapes than the parameters")
        if made is not optimizer:
            new = _of_the_same_types(new, opt_state)
        return optax.apply_updates(params, updates), new


def _of_the_same_types(new: PyTree, old: PyTree) -> PyTree:
    """Settings of more digits than the parameters must not widen the optimiser's state."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        return new
    return jax.tree.map(
        lambda n, o: n.astype(dtype_of(o)) if n.dtype != dtype_of(o) else n, new, old
    )


def check_slope(optimizer: Any, hyper: PyTree, params: PyTree, opt_state: PyTree) -> None:
    """Raises ValueError if the derivative of the steps is identically zero in every gradient."""
    if _is_flat(optimizer, *kind(params, opt_state, hyper)):
        raise ValueError(
            "the optimiser's step does not depend on the size of the gradient, as in Lion, "
            "sign-SGD and Rprop: every hypergradient through its steps is identically zero and "
            "means nothing; take another optimiser, or an implicit estimator such as hypergrad.cg"
        )


@functools.lru_cache(maxsize=256)
def _is_flat(optimizer: Any, treedef: Any, leaves: tuple) -> bool:
    """Whether no step depends on any earlier gradient by way of a derivative."""
    params = len(jax.tree.leaves(treedef.unflatten(leaves)[0]))
    before = [False] * len(leaves)
    while True:
        try:
            new = _reached(optimizer, treedef, leaves, before)
        except jax.errors.ConcretizationTypeError:
            return False  # its steps depend on values: they cannot be judged by shapes
        if any(new[:params]):
            return False
        if new == before:
            return True
        before = new


def _reached(optimizer: Any, treedef: Any, leaves: tuple, before: Sequence[bool]) -> list[bool]:
    """Which leaves of `(params, state, hyper)` depend on a gradient after one more step."""

    def step(moved, leaves):
        gradient, part = moved
        whole = [p if b else x for p, x, b in zip(part, leaves, before, strict=True)]
        params, opt_state, hyper = treedef.unflatten(whole)
        return (*take_step(optimizer, hyper, gradient, opt_state, params), hyper)

    part = [x if b else None for x, b in zip(leaves, before, strict=True)]
    return reached(step, (treedef.unflatten(leaves)[0], part), list(leaves))


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turns what an optimiser objects to into a line that says what it is about."""
    try:
        yield
    except jax.errors.ConcretizationTypeError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            "the optimiser takes no step with the gradient, its state and the parameters alone: "
            f"{reason}; one that asks for the loss's value or function (optax.lbfgs), for a "
            "gradient per example (optax.contrib.dpsgd) or for parameters of its own kind "
            "(optax.lookahead) has no hypergradient here: take another"
        ) from error
