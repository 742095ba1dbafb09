"""Total variation of images and volumes, and the discrete gradient and divergence beneath it.

Images are `[..., H, W, C]`. `axes` names the spatial axes, counted from the end: the default
`(-3, -2)` is H and W; `(-4, -3, -2)` takes volumes `[..., D, H, W, C]` and `(-2, -1)` images
without a channel axis. Only pairs of neighbours inside the image count: nothing wraps around and
nothing is padded.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from tvjax import arguments
from tvjax.types import Dimension

KINDS = ("anisotropic", "isotropic", "huber")


def grad(
    u: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."], *, axes: Sequence[int] = (-3, -2)
) -> Float[Array, "..."]:
    """Forward differences, `(grad u)_k = u[i + e_k] - u[i]`, and 0 on the last index of axis k.

    Its norm is at most `2 sqrt(D)`: `||grad||^2 <= 8` for images.

    Args:
      u: images `[..., H, W, C]`, any range; of integers the differences are exact.
      axes: the D spatial axes, counted from the end.

    Returns:
      `[D, ..., H, W, C]`, one slice for each of `axes`.

    Raises:
      ValueError: `u` is complex or lacks one of `axes`, or `axes` are not distinct integers below
        0.

    >>> grad(jnp.array([[[0.0], [3.0]], [[1.0], [5.0]]]))[:, 0, 0, 0]
    Array([1., 3.], dtype=float32)
    """
    u = arguments.real("u", u)
    axes = _checked_axes(u.shape, axes)
    return jnp.stack([_neighbour_difference(u, axis) for axis in axes])


def div(
    p: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."], *, axes: Sequence[int] = (-3, -2)
) -> Float[Array, "..."]:
    """Divergence, the negative adjoint of `grad`: `<grad u, p> = -<u, div p>`.

    Args:
      p: a vector field `[D, ..., H, W, C]`; its last index along each axis is not used.
      axes: the D spatial axes, counted from the end.

    Returns:
      `[..., H, W, C]`; it sums to 0 over each image.

    Raises:
      ValueError: `p` is complex, has not one slice for each of `axes`, or lacks one of them, or
        `axes` are not distinct integers below 0.

    >>> div(grad(jnp.array([[[0.0], [3.0]], [[1.0], [5.0]]])))[..., 0]
    Array([[ 4., -1.],
           [ 3., -6.]], dtype=float32)
    """
    p = arguments.real("p", p)
    p = p.astype(_float_type(p))
    axes = _checked_axes(p.shape[1:], axes)
    if p.shape[0] != len(axes):
        raise ValueError(f"p must have {len(axes)} slices, one for each of {axes}; got {p.shape}")
    return sum(
        (backward_difference(p_k, axis) for p_k, axis in zip(p, axes, strict=True)),
        start=jnp.zeros(p.shape[1:], p.dtype),
    )


def total_variation(
    x: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."],
    *,
    kind: str = "anisotropic",
    delta: float | int | Num[ArrayLike, ""] = 0.01,
    axes: Sequence[int] = (-3, -2),
    weights: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    """Total variation of each image.

    With `d = grad x`, and the sum over pixels and channels,

      anisotropic   sum |d_y| + |d_x|                            (eq. 2)
      isotropic     sum sqrt(d_y^2 + d_x^2)
      huber         sum h(d_y) + h(d_x),  h(d) = d^2 / (2 delta)   where |d| <= delta
                                                 |d| - delta / 2   elsewhere

    At a tie (`d = 0`) the function has a kink, and the derivative taken is the subgradient 0, so a
    constant image has gradient 0. All derivatives of any order are finite. The second derivative of
    the anisotropic form is 0 everywhere: an estimator that needs curvature needs `huber`, which is
    at most `delta / 2` a pair below it. Differences are those of `x` as it is: `TV(x + c) = TV(x)`
    up to the rounding of `x + c`, and integers lose nothing.

    Args:
      x: `[..., H, W, C]`, any range: floats, integers or booleans.
      kind: "anisotropic", "isotropic" or "huber".
      delta: width > 0 of the quadratic part of `huber`, in the unit of `x`. A traced one that is
        not positive and finite is read as NaN.
      axes: the spatial axes, counted from the end.
      weights: non-negative weight of each pixel, or a boolean mask; must broadcast to the shape of
        `x`. A pair of neighbours weighs as much as the lesser of its two pixels, so that a mask
        keeps the pairs within it, as if the image ended there. What a boolean mask leaves out may
        hold anything, NaN too. Traced ones that are negative or infinite are read as NaN.

    Returns:
      `[...]`: the sum over the axes from the first of `axes` to the last one of `x` (H, W and C),
      in float32 if `x` is less precise. NaN where `x` holds NaN, or infinities side by side.

    Raises:
      ValueError: an unknown `kind`, a `delta` that is not one positive and finite number (an
        array, a boolean or a text is none), an `x` that is complex or lacks one of `axes`, `axes`
        that are not distinct integers below 0, or `weights` that do not broadcast to `x`, are
        negative or not finite.

    Source: Rudin, Osher and Fatemi (1992); Fraccaroli, eq. 2.

    >>> total_variation(jnp.array([[[0.0], [3.0]], [[1.0], [5.0]]]))
    Array(10., dtype=float32)
    """
    arguments.choice("kind", kind, KINDS)
    x = arguments.real("x", x)
    delta = arguments.positive("delta", delta)
    axes = _checked_axes(x.shape, axes)
    if weights is not None and not _broadcasts(jnp.shape(weights), x.shape):
        raise ValueError(f"weights {jnp.shape(weights)} do not broadcast to x {x.shape}")
    if weights is not None:
        weights = arguments.weight("weights", weights)
    return _total_variation(x, delta.astype(_float_type(x)), weights, kind=kind, axes=axes)


@functools.partial(jax.jit, static_argnames=("kind", "axes"))
def _total_variation(x, delta, weights, *, kind, axes):
    """`total_variation` of checked arguments; compiled, as it would be slow op by op."""
    d = [_neighbour_difference(x, axis) for axis in axes]
    dtype = d[0].dtype
    w = [jnp.ones((), dtype)] * len(axes)
    if weights is not None:
        w = _pair_weights(weights, x.shape, axes)
        if w[0].dtype == jnp.bool_:  # a select beside the product, since 0 * NaN is NaN
            d = [jnp.where(w_k, d_k, 0) for w_k, d_k in zip(w, d, strict=True)]
        w = [w_k.astype(dtype) for w_k in w]
    if kind == "isotropic":
        v = norm([w_k * d_k for w_k, d_k in zip(w, d, strict=True)])
    else:
        h = _abs if kind == "anisotropic" else lambda d_k: _huber(d_k, delta)
        v = sum(w_k * h(d_k) for w_k, d_k in zip(w, d, strict=True))
    return sum_from(jnp.asarray(v), x.ndim + min(axes))


def forward_difference(u: jax.Array, axis: int) -> jax.Array:
    """`u[i + 1] - u[i]` along `axis`, 0 at the last i.

    A roll and a select rather than slices: sums of several directions then fuse into one loop, and
    so do their derivatives, where slices would transpose to pads, several times slower on a CPU.
    """
    return jnp.where(has_next(u.shape, axis), jnp.roll(u, -1, axis) - u, 0)


def backward_difference(p: jax.Array, axis: int) -> jax.Array:
    """`p[i] - p[i - 1]` along `axis`, with 0 in place of p[-1] and of the last p."""
    p = jnp.where(has_next(p.shape, axis), p, 0)
    return p - jnp.roll(p, 1, axis)


def _neighbour_difference(u: jax.Array, axis: int) -> jax.Array:
    """`forward_difference` of arrays of any type, in floats, and 0 where neighbours tie."""
    if jnp.issubdtype(u.dtype, jnp.floating):
        # Differences of bfloat16 probabilities would lose most of their digits.
        u = u.astype(_float_type(u))
    elif u.dtype == jnp.bool_:
        u = u.astype(jnp.uint8)
    return jnp.where(has_next(u.shape, axis), _difference(jnp.roll(u, -1, axis), u), 0)


@jax.custom_jvp
def _difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a - b`, never as part of another operation.

    Where `a` and `b` are products, compilers fuse one of them into the subtraction, unrounded: of
    equal numbers then remains that product's rounding error, of another sign for each use of
    `sign(d)`. Wherever a net's features are dead neighbours tie, and a gradient that should vanish
    is as large as the weight. The greater and the lesser of two numbers are no products. Nor does
    their difference overflow in integers without a sign, whatever the range.
    """
    size = jnp.maximum(a, b) - jnp.minimum(a, b)
    if jnp.issubdtype(a.dtype, jnp.integer):
        size = size.astype(f"uint{jnp.iinfo(a.dtype).bits}").astype(_float_type(a))
    return jnp.where(a < b, -size, size)


@_difference.defjvp
def _difference_jvp(primals, tangents):
    return _difference(*primals), tangents[0] - tangents[1]


def _float_type(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def has_next(shape: tuple[Dimension, ...], axis: int) -> Bool[Array, "..."]:
    """True but on the last index along `axis`, which is counted from the end."""
    return lax.broadcasted_iota(jnp.int32, shape, len(shape) + axis) < shape[axis] - 1


def _abs(d: jax.Array) -> jax.Array:
    """|d| with derivative sign(d), which is 0 at 0; jax takes 1 there."""
    return d * lax.stop_gradient(jnp.sign(d))


def norm(d: Sequence[jax.Array]) -> jax.Array:
    """`sqrt(sum_k d_k^2)`, with all derivatives 0 at d = 0 and no overflow or underflow near it.

    The scale m is a constant to the derivative, which is exact: the value does not depend on it.
    Where m = 0 the 1 beneath the root keeps its derivative finite, and the factor m makes it 0.
    """
    m = lax.stop_gradient(functools.reduce(jnp.maximum, map(jnp.abs, d)))
    zero = m == 0
    scale = jnp.where(zero | (m == jnp.inf), 1, m)
    return m * jnp.sqrt(sum((jnp.square(d_k / scale) for d_k in d), start=zero.astype(m.dtype)))


def _huber(d: jax.Array, delta: float | jax.Array) -> jax.Array:
    a = _abs(d)
    return jnp.where(a <= delta, jnp.square(d) / (2 * delta), a - delta / 2)


def _pair_weights(
    weights: ArrayLike, shape: tuple[int, ...], axes: Sequence[int]
) -> list[jax.Array]:
    """The lesser weight of the two pixels of each difference."""
    weights = jnp.broadcast_to(jnp.asarray(weights), shape)
    return [jnp.minimum(weights, jnp.roll(weights, -1, axis)) for axis in axes]


def sum_from(v: jax.Array, first: int) -> jax.Array:
    """Sum over the axes from `first` to the last.

    As a product with ones: XLA's CPU reductions of fused expressions are not vectorised, and this
    is about ten times faster. HIGHEST keeps GPUs and TPUs from rounding to fewer bits.
    """
    n = math.prod(v.shape[first:])
    rows = lax.reshape(v, (*v.shape[:first], n))
    return jnp.matmul(rows, jnp.ones((n,), v.dtype), precision=lax.Precision.HIGHEST)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    fits = all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))
    return len(shape) <= len(to) and fits


def _checked_axes(shape: tuple[int, ...], axes: Any) -> tuple[int, ...]:
    """The axes as integers, refused where they are none or not there."""
    need = "distinct integers counted from the end, such as (-3, -2)"
    try:
        found = tuple(operator.index(axis) for axis in axes)
    except TypeError:
        raise ValueError(f"axes must be {need}; got {axes!r}") from None
    if not found or max(found) >= 0 or len(set(found)) != len(found):
        raise ValueError(f"axes must be {need}; got {found}")
    if len(shape) < -min(found):
        raise ValueError(f"need at least {-min(found)} axes, such as [..., H, W, C]; got {shape}")
    return found
