"""What depends on what, found by tracing: nothing is computed, and no numbers are tried."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.hypergrad.trees import dtype_of
from tvjax.types import PyTree


def reached(f: Callable[..., PyTree], moved: PyTree, *fixed: PyTree) -> list[bool]:
    """Whether each leaf of `f(moved, *fixed)` has a derivative in `moved`.

    Arguments may be arrays or their shapes. A derivative that is there and happens to be zero
    counts; one that `lax.stop_gradient`, a comparison or a sign cuts off does not.
    """
    seen: list[bool] = []

    @jax.custom_jvp
    def observe(leaves):
        return leaves

    def observe_jvp(primals, tangents):
        zero = jax.custom_derivatives.SymbolicZero
        seen[:] = [not isinstance(t, zero) for t in tangents[0]]
        return primals[0], tangents[0]

    observe.defjvp(observe_jvp, symbolic_zeros=True)

    def run(moved, *fixed):
        def observed(moved):
            leaves = jax.tree.leaves(f(moved, *fixed))
            seen[:] = [False] * len(leaves)
            return observe(leaves)

        return jax.jvp(observed, (moved,), (moved,))

    jax.eval_shape(run, moved, *fixed)
    return seen


def shapes(tree: PyTree) -> PyTree:
    """`tree` with the shape and type of each leaf in its place."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), dtype_of(x)), tree)


def kind(*trees: PyTree) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """The structure and the shapes of trees, which can be hashed: each kind is looked at once."""
    leaves, treedef = jax.tree.flatten(shapes(trees))
    return treedef, tuple(leaves)
