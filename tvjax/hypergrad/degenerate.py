"""Optimisers through which no hypergradient flows, recognised instead of returning 0."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tvjax.types import PyTree

_PROBES = 8


def warn_if_flat(optimizer: optax.GradientTransformation, params: PyTree) -> None:
    """Warns where the optimiser's step does not depend on the size of the gradient.

    The step of Lion, sign-SGD and Rprop is the gradient's sign times something: its derivative is
    zero wherever it exists, and so is every hypergradient through it. Recognised by its behaviour,
    not by its name: the derivative of 8 steps along random gradients is exactly zero. Each pair
    of an optimiser and shapes of parameters is probed once, at trace time.
    """
    leaves, treedef = jax.tree.flatten(params)
    # Small arrays of the same rank are enough, and make the probe cheap for any net.
    shapes = tuple(tuple(min(d, 2) for d in jnp.shape(leaf)) for leaf in leaves)
    if _is_flat(optimizer, treedef, shapes):
        warnings.warn(
            "the optimiser's step does not depend on the size of the gradient: its derivative was "
            f"zero in {_PROBES} random steps, as it is for Lion, sign-SGD and Rprop. Every "
            "hypergradient through its steps is identically zero and means nothing; differentiate "
            "through another optimiser, or use an implicit estimator.",
            stacklevel=3,
        )


@functools.lru_cache(maxsize=256)
def _is_flat(optimizer: optax.GradientTransformation, treedef: Any, shapes: tuple) -> bool:
    rng = np.random.default_rng(0)

    def draw(*leading: int) -> PyTree:
        return treedef.unflatten(
            [jnp.asarray(rng.normal(size=leading + shape), jnp.float32) for shape in shapes]
        )

    # Evaluated now, even while a program that uses the estimator is being traced.
    with jax.ensure_compile_time_eval():
        params, gradients, directions = draw(), draw(_PROBES), draw(_PROBES)
        walk = jax.jit(lambda t: _walk(optimizer, params, gradients, directions, t))
        try:
            _, slope = jax.jvp(walk, (0.0,), (1.0,))
        except (TypeError, ValueError):
            return False  # made for the shapes of these very parameters: it cannot be probed
        return all(bool((x == 0).all()) for x in jax.tree.leaves(slope))


def _walk(optimizer, params: PyTree, gradients: PyTree, directions: PyTree, t: Any) -> PyTree:
    """The parameters after a step along `gradient + t direction` for each pair of the two."""

    def step(carry, pair):
        params, state = carry
        gradient = jax.tree.map(lambda g, d: g + t * d, *pair)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, (gradients, directions))[0][0]
