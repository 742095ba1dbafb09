"""Derivatives of functions of pytrees, by a tangent per element or by one reverse pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from tvjax.hypergrad.trees import basis
from tvjax.types import PyTree

_FEW = 4  # up to here n tangents compare with one reverse pass, and need less memory


def gradient_of(f: Callable[[PyTree], Any], x: PyTree) -> PyTree:
    """The gradient of a scalar function, in whichever mode is cheaper: forward up to 4 elements."""
    return tangents(lambda x: (f(x), None), x)[1] if few(x) else jax.grad(f)(x)


def tangents(f: Callable[[PyTree], tuple[Any, Any]], x: PyTree) -> tuple[Any, PyTree]:
    """`jax.value_and_grad(f, has_aux=True)(x)`, by one tangent per element of the argument."""
    flat, unravel = ravel_pytree(x)
    value, columns, aux = push(f, x, basis(x))
    return (value, aux), unravel(columns.astype(flat.dtype))


def push(f: Callable[[PyTree], Any], x: PyTree, directions: PyTree) -> tuple[Any, PyTree, Any]:
    """`(f(x), its derivative along each direction, aux)` where `f(x) -> (value, aux)`.

    The leaves of `directions` and of the derivative are `[n, ...]`. One direction costs one `jvp`;
    several share one linearisation, and many are one batch, since a program does not grow by it.
    """
    n = jax.tree.leaves(directions)[0].shape[0]
    along = [jax.tree.map(lambda t, i=i: t[i], directions) for i in range(min(n, _FEW))]
    if n == 1:
        value, column, aux = jax.jvp(f, (x,), (along[0],), has_aux=True)
        columns = [column]
    else:
        value, linear, aux = jax.linearize(f, x, has_aux=True)
        if n > _FEW:
            return value, jax.vmap(linear)(directions), aux
        columns = [linear(direction) for direction in along]
    return value, jax.tree.map(lambda *c: jnp.stack(c), *columns), aux


def few(tree: PyTree) -> bool:
    """Whether a tangent per element is cheaper than a reverse pass."""
    return optax.tree.size(tree) <= _FEW
