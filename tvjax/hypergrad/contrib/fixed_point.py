"""Heavy ball in fixed-point arithmetic, which runs backwards without losing a bit.

    v' = gamma v + g(theta),    theta' = theta - eta v'
    theta = theta' + eta v',    v = (v' - g(theta)) / gamma

In floating point the inverse loses digits, by 1/gamma a step. Here theta and v are integers, two
each: a number of units of 2^-24 (int32, for float32) or 2^-52 (int64, for float64), and one below
2^16 of units 2^-16 as large. Their sums are exact, and a product with gamma = n/d loses only the
remainder of a division by d. An information buffer keeps it: one number of mixed radix per
parameter, log2(d/n) bits longer each step. What the buffer gives back in the remainder's place is
random below n: the second integer keeps that, 99 units for 0.99, below float32's own rounding.
Integers end at 128 in float32 and at 2048 in float64, and wrap around there: `Fixed.fits` tells.

Source: Maclaurin, Duvenaud, Adams (2015), arXiv:1502.03492, Algorithm 3. Differs from the paper:
the buffer's words are counted in advance, from the number of steps, so that programs compile.
"""

import dataclasses
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.types import PyTree

_PARTS = 1 << 16


class Fixed(NamedTuple):
    """Position, velocity, and the information buffer."""

    position: PyTree
    """Integers `[2, ...]` for each parameter: units, and their 2^-16ths."""
    velocity: PyTree
    """The same."""
    buffer: PyTree
    """Unsigned integers `[words, ...]` for each parameter."""
    fits: jax.Array
    """Whether every number was in range so far; false for good where one was not, or was NaN."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeavyBall:
    """`optax.sgd(learning_rate, momentum)` with a rational momentum, on integers."""

    learning_rate: float | jax.Array
    momentum: Fraction = dataclasses.field(metadata={"static": True})

    def start(self, params: PyTree, velocity: PyTree, steps: int) -> Fixed:
        """Floats in fixed point, with an empty buffer for a number of steps."""
        words = 1 + int(self.words(steps)[-1])
        floats = params, velocity
        position, velocity = jax.tree.map(to_fixed, floats)
        buffer = jax.tree.map(lambda p: jnp.zeros((words, *p.shape[1:]), f"u{p.dtype}"), position)
        return Fixed(position, velocity, buffer, in_range(floats))

    def words(self, steps: int) -> np.ndarray:
        """The word of the buffer that each step uses: the next one before 32 bits overflow."""
        return _words(steps, self.momentum)

    @jax.jit  # once for every host loop over it, as the two that follow
    def advance(self, fixed: Fixed, gradient: PyTree, word: Any) -> Fixed:
        """One step, given the gradient at the position."""
        slowed, buffer = times(fixed.velocity, self.momentum, fixed.buffer, word)
        velocity = jax.tree.map(lambda v, g: _carried(v + to_fixed(g)), slowed, gradient)
        position = jax.tree.map(lambda p, v: _carried(p - self._move(v)), fixed.position, velocity)
        # The same sums in floating point, which neither wrap around nor saturate.
        floats = jax.tree.map(lambda v, g: to_float(v) + g, slowed, gradient)
        moves = jax.tree.map(self._scaled, floats)
        ends = jax.tree.map(lambda p, m: to_float(p) - m, fixed.position, moves)
        fits = fixed.fits & in_range((gradient, floats, moves, ends))
        return Fixed(position, velocity, buffer, fits)

    @jax.jit
    def position_before(self, fixed: Fixed) -> PyTree:
        """The position from which the step to `fixed` was taken."""
        return jax.tree.map(
            lambda p, v: _carried(p + self._move(v)), fixed.position, fixed.velocity
        )

    @jax.jit
    def retreat(self, fixed: Fixed, gradient: PyTree, word: Any) -> Fixed:
        """The inverse of `advance`, given the gradient at `position_before`."""
        velocity = jax.tree.map(lambda v, g: _carried(v - to_fixed(g)), fixed.velocity, gradient)
        velocity, buffer = times(velocity, 1 / self.momentum, fixed.buffer, word)
        return fixed._replace(
            position=self.position_before(fixed), velocity=velocity, buffer=buffer
        )

    def _move(self, velocity):
        return to_fixed(self._scaled(to_float(velocity)))

    def _scaled(self, velocity):
        return jnp.asarray(self.learning_rate, velocity.dtype) * velocity


def times(x: PyTree, factor: Fraction, buffer: PyTree, word: Any) -> tuple[PyTree, PyTree]:
    """`(x * factor, buffer)` on integers; `times(_, 1 / factor, _, word)` gives both back.

    The remainder of x by the denominator is pushed into the word, and what the product leaves
    free below the numerator is filled from it. The integers of x are `[2, ...]`.
    """
    n, d = factor.numerator, factor.denominator

    def one(x, words):
        whole, part = x
        part = (whole % d) * _PARTS + part  # below 2^26, for d up to 1000
        store = words[word] * d + (part % d).astype(words.dtype)
        part = (part // d) * n + (store % n).astype(x.dtype)
        return _carried(jnp.stack([(whole // d) * n, part])), words.at[word].set(store // n)

    pairs = jax.tree.map(one, x, buffer)
    return jax.tree.transpose(jax.tree.structure(x), jax.tree.structure((0, 0)), pairs)


def in_range(tree: PyTree) -> Any:
    """Whether all floats are below 127 in size (2047 in float64), one short of the end."""

    def within(x):
        return jnp.all(jnp.abs(x) < (2047 if x.dtype == jnp.float64 else 127))

    return jnp.all(jnp.stack([within(x) for x in jax.tree.leaves(tree)]))


def to_fixed(x: Any) -> Any:
    """Floats `[...]` to integers `[2, ...]`, see the module; for less than float32, of float32."""
    wide = x.dtype == jnp.float64
    x = x * 2.0**52 if wide else x.astype(jnp.float32) * 2.0**24
    whole = jnp.floor(x)
    parts = jnp.stack([whole, jnp.round((x - whole) * _PARTS)])
    return _carried(parts.astype(jnp.int64 if wide else jnp.int32))


def to_float(x: Any) -> Any:
    """The inverse of `to_fixed`."""
    dtype, unit = (jnp.float64, 2.0**-52) if x.dtype == jnp.int64 else (jnp.float32, 2.0**-24)
    return x[0].astype(dtype) * unit + x[1].astype(dtype) * (unit / _PARTS)


def _carried(x: Any) -> Any:
    """The same numbers, with parts from 0 to 2^16 - 1."""
    return jnp.stack([x[0] + x[1] // _PARTS, x[1] % _PARTS])


@lru_cache
def _words(steps: int, momentum: Fraction) -> np.ndarray:
    words, bound = np.zeros(steps, np.int32), 0  # bound: the largest number the word may hold
    n, d = momentum.numerator, momentum.denominator
    for k in range(steps):
        full = (bound + 1) * d > 2**32
        words[k] = (words[k - 1] if k else 0) + full
        bound = ((0 if full else bound) * d + d - 1) // n
    return words
