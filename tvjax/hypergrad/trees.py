"""Pytrees as vectors: their unit directions, and the part that has derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from tvjax.types import PyTree


def basis(x: PyTree) -> PyTree:
    """The n unit directions of a pytree of n elements; leaves `[n, ...]`."""
    flat, unravel = ravel_pytree(x)
    return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))


def floats(tree: PyTree) -> PyTree:
    """`tree` with None for every leaf that has no derivative, such as a step count or a key."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(dtype_of(x), jnp.inexact) else None, tree)


def merge(part: PyTree, tree: PyTree) -> PyTree:
    """`tree` with the leaves that `floats` keeps taken from `part`."""
    return jax.tree.map(lambda a, b: b if a is None else a, part, tree, is_leaf=lambda a: a is None)


def dtype_of(x: Any) -> Any:
    """The dtype of an array, of its shape, or of a Python number."""
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
