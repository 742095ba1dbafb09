"""Arguments as functions take them, or an error of one line that names them.

Values are looked at where they are concrete, constants under `jit` too. Of what is traced only
shape and type are known: there `valid` gives NaN for what is not valid, which no result hides.
"""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

SLACK = 1e-3
"""How far probabilities and pixels may leave [0, 1]: what resampling and rounding do."""


def real(name: str, x: Any) -> jax.Array:
    """`x` as an array of real numbers or booleans, each as it was."""
    is_array = isinstance(x, np.ndarray | np.generic | jax.Array)
    if isinstance(x, np.ndarray | np.generic):
        x = x.astype(x.dtype.newbyteorder("="), copy=False)  # JAX takes no foreign order of bytes
    try:
        jnp.promote_types(x.dtype if is_array else jnp.float32, jnp.float32)  # none of 8-bit floats
        array = jnp.asarray(x)
    except (TypeError, ValueError, OverflowError) as error:
        got = f"{x.dtype}: convert them by astype('float32')" if is_array else type(x).__name__
        raise ValueError(f"{name} must hold numbers; got {got}") from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must be real; got {array.dtype}")
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "iu" and array.dtype != x.dtype:
        limits = jnp.iinfo(array.dtype)
        if x.size and (x.min() < limits.min or x.max() > limits.max):
            raise ValueError(
                f"{name} has {x.dtype} values that {array.dtype} cannot hold, {x.min()} to "
                f"{x.max()}; enable x64 or subtract an offset"
            )
    return array


@np.errstate(over="ignore")  # of what is refused here
def valid(name: str, x: Any, ok: Callable[[Any], Any], need: str) -> jax.Array:
    """`x` if all of its values are `ok`; traced ones that are not become NaN.

    Args:
      name: name of the argument.
      x: a number or an array.
      ok: tells for each value whether it is valid, by operators alone; False of NaN.
      need: what the values must be, for the message.

    Raises:
      ValueError: `x` is complex, or concrete with a value that is not valid.
    """
    array = real(name, x)
    if isinstance(x, core.Tracer):
        return array * jnp.where(ok(array), 1, jnp.nan)  # NaN in all derivatives too
    with jax.ensure_compile_time_eval():
        held = x if isinstance(x, jax.Array) else np.asarray(x).astype(array.dtype)
        good = ok(held)
        if not good.all():
            first = np.asarray(x)[~np.asarray(good)].flat[0]
            short = f" in {array.dtype}" if held.dtype != np.asarray(x).dtype and ok(first) else ""
            raise ValueError(f"{name} must be {need}{short}; got {first}")
    return array


def weight(name: str, x: Any) -> jax.Array:
    """Numbers of at least 0."""
    return valid(name, x, lambda v: (v >= 0) & (v < np.inf), "finite and at least 0")


def positive(name: str, x: Any) -> jax.Array:
    """One number above 0, and not so near to it that arithmetic takes it for 0."""
    least = float(jnp.finfo(jnp.promote_types(number(name, x).dtype, jnp.float32)).tiny)
    valid(name, x, lambda v: (v > 0) & (v < np.inf), "positive and finite")
    return valid(name, x, lambda v: (v >= least) & (v < np.inf), f"at least {least:.4g}")


def number(name: str, x: Any) -> jax.Array:
    """One real number: an array of several would be broadcast to pixels and channels."""
    array = numbers(name, x)
    if array.ndim:
        raise ValueError(f"{name} must be one number; got an array of shape {array.shape}")
    return array


@np.errstate(over="ignore")  # what becomes infinite is refused where a value is looked at
def numbers(name: str, x: Any) -> jax.Array:
    """Real numbers: booleans are none where a value is asked for, and would count as 0 and 1."""
    array = real(name, x)
    if array.dtype == jnp.bool_:
        raise ValueError(f"{name} must hold numbers; got bool")
    return array


def fraction(name: str, x: Any) -> jax.Array:
    """One number in [0, 1], without slack: it is chosen, and not computed."""
    number(name, x)
    return valid(name, x, lambda v: (v >= 0) & (v <= 1), "in [0, 1]")


def finite(name: str, x: Any) -> jax.Array:
    """Numbers that are neither infinite nor NaN."""
    return valid(name, numbers(name, x), lambda v: abs(v) < np.inf, "finite")


def share(name: str, x: Any) -> jax.Array:
    """Numbers in [0, 1], or as near as `SLACK`."""
    return valid(name, x, lambda v: (v >= -SLACK) & (v <= 1 + SLACK), "in [0, 1]")


def binary(name: str, x: Any) -> jax.Array:
    """Numbers that are 0 or 1."""
    return valid(name, x, lambda v: (v == 0) | (v == 1), "0 or 1")


def count(name: str, n: Any, least: int, most: float = math.inf) -> int:
    """An integer of at least `least` and at most `most`; no boolean, which Python takes for one."""
    try:
        value = operator.index(n)
    except TypeError:
        value = None
    if value is None or isinstance(n, bool):
        raise ValueError(f"{name} must be an integer; got {n!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}; got {value}")
    return value


def truth(name: str, value: Any) -> None:
    """Refuses what is neither True nor False, such as "no", which Python takes for True."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; got {value!r}")


def choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuses an unknown name."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def images(name: str, shape: tuple[int, ...], *, empty: bool = True) -> None:
    """Refuses what is not `[..., H, W, C]`, or unless `empty` has no pixel."""
    if len(shape) < 3:
        raise ValueError(f"{name} must be [..., H, W, C]; got shape {shape}")
    if not empty and 0 in shape[-3:]:
        raise ValueError(f"{name} must have pixels and channels; got shape {shape}")


def tiles(name: str, x: Any) -> jax.Array:
    """Float `[B, H, W, C]`, as a net takes them: bytes would be 255 times too bright."""
    array = real(name, x)
    if array.ndim != 4 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be float [B, H, W, C]; got {array.dtype} {array.shape}")
    return array


def same_shape(name: str, shape: tuple[int, ...], other: str, wanted: tuple[int, ...]) -> None:
    """Refuses arrays that would be broadcast to each other."""
    if shape != wanted:
        raise ValueError(f"{name} must have the shape of {other}, {wanted}; got {shape}")
