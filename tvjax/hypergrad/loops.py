"""Two ways of running a loop of many steps, as values: `UNROLLED` in Python, `SCANNED` in XLA.

Where no loop is given, the backend decides: `UNROLLED` on a CPU, `SCANNED` on an accelerator.

`UNROLLED`, called outside `jit`, is a host loop over one compiled step, so that compile time does
not grow with the number of steps. Inside `jit` it is an unrolled program.

`SCANNED` compiles one step however many there are, inside `jit` too. It is right on accelerators
and for losses without convolutions: on a CPU, convolutions run 14 to 25 times slower inside a loop
body, because XLA rearranges them only outside (jax issue 12868).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from tvjax.krylov import repeat_while
from tvjax.types import PyTree


class Loop(NamedTuple):
    """How to run a loop."""

    stack: Callable[[Sequence[PyTree]], Any]
    """Makes what `scan` walks along out of a sequence of pytrees."""
    scan: Callable[..., tuple[Any, Any]]
    """`scan(f, carry, *xs, length=n, reverse=False)`, where `f(carry, *x) -> (carry, y)`."""
    last: Callable[[Any], PyTree]
    """The last of the `y`s of a scan."""
    repeat: Callable[..., Any]
    """`repeat(condition, body, value, limit)`: while the condition holds, at most `limit` times."""


def _python_scan(f, carry, *xs, length: int, reverse: bool = False):
    ys: list[Any] = [None] * length
    for i in reversed(range(length)) if reverse else range(length):
        carry, ys[i] = f(carry, *(x[i] for x in xs))
    return carry, ys


def _lax_scan(f, carry, *xs, length: int, reverse: bool = False):
    return lax.scan(lambda c, x: f(c, *x), carry, xs, length=length, reverse=reverse)


def _python_repeat(condition, body, value, limit: int):
    for _ in range(limit):
        go = condition(value)
        if isinstance(go, jax.core.Tracer):
            # A traced condition cannot end the loop: what comes after it changes nothing.
            value = jax.tree.map(
                lambda new, old, go=go: jnp.where(go, new, old), body(value), value
            )
        elif go:
            value = body(value)
        else:
            break
    return value


def default_loop() -> Loop:
    """`UNROLLED` where JAX runs on a CPU, `SCANNED` on an accelerator."""
    return UNROLLED if jax.default_backend() == "cpu" else SCANNED


UNROLLED = Loop(list, _python_scan, lambda ys: ys[-1], _python_repeat)
SCANNED = Loop(
    lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees),
    _lax_scan,
    lambda ys: jax.tree.map(lambda y: y[-1], ys),
    repeat_while,
)
_BACKENDS = Loop(
    lambda trees: default_loop().stack(trees),
    lambda *args, **options: default_loop().scan(*args, **options),
    lambda ys: default_loop().last(ys),
    lambda *args: default_loop().repeat(*args),
)
"""`default_loop()` as it is when it runs: to make an estimator does not start a backend."""


def chosen(loop: Loop | None) -> Loop:
    """`loop`, or the one that suits the backend where it is None.

    Raises:
      ValueError: it is no function.
    """
    if not (loop is None or isinstance(loop, Loop)):
        raise ValueError(f"loop must be one of tvjax.hypergrad.loops or None, got {loop!r}")
    return _BACKENDS if loop is None else loop
