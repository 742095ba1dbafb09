"""Derivatives of functions of pytrees, by a tangent per element or by one reverse pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from tvjax.hypergrad.trees import basis, size
from tvjax.types import PyTree

_FEW = 4  # up to here n tangents compare with one reverse pass, and need less memory


def value_and_gradient(
    f: Callable[[PyTree], Any], *, mode: str | None = None, has_aux: bool = False
) -> Callable[[PyTree], Any]:
    """`jax.value_and_grad(f)`, in whichever mode is cheaper for the argument's size.

    Args:
      f: a scalar function of one pytree, or `(scalar, aux)` with `has_aux`.
      mode: `"forward"`, `"reverse"`, or None: forward up to 4 elements.
      has_aux: whether `f` returns more, as in `jax.value_and_grad`.
    """

    def value_and_gradient_of(x: PyTree):
        forward = mode == "forward" or (mode is None and few(x))
        return (tangents if forward else jax.value_and_grad)(f, has_aux=has_aux)(x)

    return value_and_gradient_of


def tangents(f: Callable[[PyTree], Any], *, has_aux: bool = False) -> Callable[[PyTree], Any]:
    """`jax.value_and_grad(f)` by one tangent per element of the argument."""

    def value_and_tangents(x: PyTree):
        flat, unravel = ravel_pytree(x)
        value, columns, aux = push(f if has_aux else lambda x: (f(x), None), x, basis(x))
        gradient = unravel(columns.astype(flat.dtype))
        return ((value, aux) if has_aux else value), gradient

    return value_and_tangents


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
    return size(tree) <= _FEW
