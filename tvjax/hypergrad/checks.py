"""Arguments that cannot be so, refused with their names and values."""

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from tvjax.hypergrad.trees import dtype_of
from tvjax.types import PyTree


def check_positive(**values: float) -> None:
    """Raises ValueError unless all are above 0 and finite, in JAX's floats too."""
    least, most = _ends()
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a number of Python or NumPy, got {value!r}")
        if not 0 < value < np.inf:
            need = "finite" if value == np.inf else "positive"
            raise ValueError(f"{name} must be {need}, got {value}")
        if not least <= value <= most:
            raise ValueError(f"{name} must be in [{least:.3g}, {most:.3g}], got {value}")


def _ends() -> tuple[float, float]:
    """The least and the largest positive number that JAX computes with."""
    floats = jnp.finfo(jnp.result_type(float))
    return float(floats.tiny), float(floats.max)


def check_within(least: float, below: float, **values: Any) -> None:
    """Raises ValueError unless all numbers are in [least, below), where they are known: traced ones
    are not, nor are schedules, and None says that there is none."""
    for name, value in values.items():
        if value is None or callable(value) or isinstance(value, core.Tracer):
            continue
        array = np.asarray(value)
        is_real = array.dtype.kind in "iuf" or jnp.issubdtype(array.dtype, jnp.floating)
        most = _ends()[1]
        array = array.astype(np.float64) if is_real else array  # whose range holds all the ends
        if not is_real or not ((array >= least) & (array < below) & (array <= most)).all():
            need = "finite and at least" if below == np.inf else f"below {below:g} and at least"
            raise ValueError(f"{name} must be a number, {need} {least:g}; got {value!r}")


def check_not_negative(**values: Any) -> None:
    """Raises ValueError unless all are finite and at least 0, as in `check_within`."""
    check_within(0, np.inf, **values)


def check_least(least: int, **values: int) -> None:
    """Raises ValueError unless all are integers of at least `least`."""
    for name, value in values.items():
        try:
            operator.index(None if isinstance(value, bool) else value)  # pyright: ignore
        except TypeError:
            raise ValueError(f"{name} must be an integer, got {value!r}") from None
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_truth(**values: Any) -> None:
    """Raises ValueError unless all are True or False, for which Python takes any object."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False; got {value!r}")


def check_floats(**trees: PyTree) -> None:
    """Raises ValueError unless every leaf is a real float, and there is a number at all."""
    for name, tree in trees.items():
        check_real(**{name: tree})
        for where, leaf in _leaves(name, tree):
            if not jnp.issubdtype(dtype_of(leaf), jnp.floating):
                raise ValueError(
                    f"{name} must hold floats, and {where} is of {dtype_of(leaf)}, which has no "
                    "derivative: convert it, or keep it out of there"
                )
        if sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree)) == 0:
            raise ValueError(f"{name} must hold at least one number, and it is empty")


def check_precise(**trees: PyTree) -> None:
    """Raises ValueError where a leaf has fewer bits than float32: differences are lost in it."""
    for name, tree in trees.items():
        for where, leaf in _leaves(name, tree):
            dtype = dtype_of(leaf)
            if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
                raise ValueError(
                    f"{name} must be of float32 or float64 for a finite difference, and {where} is "
                    f"of {dtype}, which rounds it away"
                )


def check_real(**trees: PyTree) -> None:
    """Raises ValueError where a leaf is complex."""
    for name, tree in trees.items():
        for where, leaf in _leaves(name, tree):
            if jnp.issubdtype(dtype_of(leaf), jnp.complexfloating):
                raise ValueError(
                    f"{name} must be real, and {where} is of {dtype_of(leaf)}: give its real and "
                    "imaginary parts as two arrays, and join them in the loss"
                )


def check_batches(inner_batches: Sequence[PyTree], number: int, outer_batch: PyTree) -> None:
    """Raises ValueError unless there are so many inner batches, and none has an empty array."""
    is_list = hasattr(inner_batches, "__getitem__") and not isinstance(inner_batches, dict)
    if not is_list or len(inner_batches) != number:
        raise ValueError(
            f"inner_batches must be a list of {number}, the `batches` of this estimator; "
            f"got {len(inner_batches) if is_list else f'a {type(inner_batches).__name__}'}"
        )
    for name, batch in (("inner_batches", list(inner_batches)), ("outer_batch", outer_batch)):
        for where, leaf in _leaves(name, batch):
            if jnp.size(leaf) == 0:
                raise ValueError(
                    f"{name} must have examples, and {where} is empty, of shape {jnp.shape(leaf)}"
                )


def check_loss(name: str, loss: Any) -> None:
    """Raises ValueError unless what a loss function returned is a real scalar."""
    if not hasattr(loss, "dtype") and not isinstance(loss, int | float | complex):
        raise ValueError(f"{name} must return a scalar, got a {type(loss).__name__}")
    if jnp.shape(loss) != ():
        raise ValueError(
            f"{name} must return a scalar, got shape {jnp.shape(loss)}: take the mean or sum"
        )
    if not jnp.issubdtype(dtype_of(loss), jnp.floating):
        raise ValueError(f"{name} must return a real float, got {dtype_of(loss)}")


def arrays(tree: PyTree) -> PyTree:
    """`tree` with an array in place of each Python or numpy number."""

    def array(x):
        return x if isinstance(x, jax.Array) else jnp.asarray(x, jnp.result_type(x))

    return jax.tree.map(array, tree)


def _leaves(name: str, tree: PyTree) -> list[tuple[str, Any]]:
    """Each leaf with its place, such as `params['w']`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
