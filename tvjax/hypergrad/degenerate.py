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

from tvjax.types import PyTree


def first_state(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """`optimizer.init(params)`; a ValueError with the reason where it cannot be."""
    with _refusing():
        return optimizer.init(params)


def take_step(
    optimizer: optax.GradientTransformation, gradient: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """`(params', opt_state')`; a ValueError with the reason where the optimiser takes no step.

    That is where its update asks for more than the gradient, its state and the parameters, or does
    not make updates of the parameters' shapes (`optax.polyak_sgd`, `optax.contrib.dpsgd`).
    """
    with _refusing():
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, params):
            raise ValueError("its updates have other shapes than the parameters")
        return optax.apply_updates(params, updates), opt_state


def check_slope(optimizer: optax.GradientTransformation, params: PyTree, opt_state: PyTree) -> None:
    """Raises ValueError if the derivative of the steps is identically zero in every gradient."""
    leaves, treedef = jax.tree.flatten((params, opt_state))
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(x), _dtype(x)) for x in leaves)
    if _is_flat(optimizer, treedef, shapes):
        raise ValueError(
            "the optimiser's step does not depend on the size of the gradient, as in Lion, "
            "sign-SGD and Rprop: every hypergradient through its steps is identically zero and "
            "means nothing; take another optimiser, or an implicit estimator such as hypergrad.cg"
        )


@functools.lru_cache(maxsize=256)
def _is_flat(optimizer: optax.GradientTransformation, treedef: Any, shapes: tuple) -> bool:
    """Whether no step depends on any earlier gradient by way of a derivative."""
    params = len(jax.tree.leaves(treedef.unflatten(shapes)[0]))
    reached = [False] * len(shapes)
    while True:
        try:
            new = _reached(optimizer, treedef, shapes, reached)
        except jax.errors.ConcretizationTypeError:
            return False  # its steps depend on values: they cannot be judged by shapes
        if any(new[:params]):
            return False
        if new == reached:
            return True
        reached = new


def _reached(optimizer, treedef: Any, shapes: tuple, before: Sequence[bool]) -> list[bool]:
    """Which leaves of `(params, state)` depend on a gradient after one more step."""
    seen = [False] * len(shapes)

    @jax.custom_jvp
    def observe(leaves):
        return leaves

    def observe_jvp(primals, tangents):
        zero = jax.custom_derivatives.SymbolicZero
        seen[:] = [not isinstance(t, zero) for t in tangents[0]]
        return primals[0], tangents[0]

    observe.defjvp(observe_jvp, symbolic_zeros=True)

    def run(gradient, leaves):
        def step(gradient, part):
            whole = [p if b else x for p, x, b in zip(part, leaves, before, strict=True)]
            params, opt_state = treedef.unflatten(whole)
            after = take_step(optimizer, gradient, opt_state, params)
            return observe(jax.tree.leaves(after))

        part = [x if b else None for x, b in zip(leaves, before, strict=True)]
        return jax.jvp(step, (gradient, part), (gradient, part))

    jax.eval_shape(run, treedef.unflatten(shapes)[0], list(shapes))
    return seen


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


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
