"""Total variation of images and volumes, and the discrete gradient and divergence beneath it.

Images are `[..., H, W, C]`. `axes` names the spatial axes, counted from the end: the default
`(-3, -2)` is H and W; `(-4, -3, -2)` takes volumes `[..., D, H, W, C]` and `(-2, -1)` images
without a channel axis. Only pairs of neighbours inside the image count: nothing wraps around and
nothing is padded.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

KINDS = ("anisotropic", "isotropic", "huber")


def grad(u: Float[Array, "*shape"], *, axes: Sequence[int] = (-3, -2)) -> Float[Array, "D *shape"]:
    """Forward differences, `(grad u)_k = u[i + e_k] - u[i]`, and 0 on the last index of axis k.

    Its norm is at most `2 sqrt(D)`: `||grad||^2 <= 8` for images.

    Args:
      u: images `[..., H, W, C]`, any range.
      axes: the D spatial axes, counted from the end.

    Returns:
      `[D, ..., H, W, C]`, one slice for each of `axes`.

    Raises:
      ValueError: `u` lacks one of `axes`.

    >>> grad(jnp.array([[[0.0], [3.0]], [[1.0], [5.0]]]))[:, 0, 0, 0]
    Array([1., 3.], dtype=float32)
    """
    _check_axes(u.shape, axes)
    return jnp.stack([forward_difference(u, axis) for axis in axes])


def div(p: Float[Array, "D *shape"], *, axes: Sequence[int] = (-3, -2)) -> Float[Array, "*shape"]:
    """Divergence, the negative adjoint of `grad`: `<grad u, p> = -<u, div p>`.

    Args:
      p: a vector field `[D, ..., H, W, C]`; its last index along each axis is not used.
      axes: the D spatial axes, counted from the end.

    Returns:
      `[..., H, W, C]`; it sums to 0 over each image.

    Raises:
      ValueError: `p` has not one slice for each of `axes`, or lacks one of them.

    >>> div(grad(jnp.array([[[0.0], [3.0]], [[1.0], [5.0]]])))[..., 0]
    Array([[ 4., -1.],
           [ 3., -6.]], dtype=float32)
    """
    _check_axes(p.shape[1:], axes)
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
    delta: float | int | Float[Array, ""] = 0.01,
    axes: Sequence[int] = (-3, -2),
    weights: Num[ArrayLike, "..."] | Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    """Total variation of each image.

    With `d = grad x`, and the sum over pixels and channels,

      anisotropic   sum |d_y| + |d_x|                            (eq. 2)
      isotropic     sum sqrt(d_y^2 + d_x^2)
      huber         sum h(d_y) + h(d_x),  h(d) = d^2 / (2 delta)   where |d| <= delta
                                                 |d| - delta / 2   elsewhere

    At a tie (`d = 0`, up to 8 units of rounding) the function has a kink, and the derivative taken
    is the subgradient 0, so a constant image has gradient 0. All derivatives of any order are
    finite. The second derivative of the anisotropic form is 0 everywhere: an estimator that needs
    curvature needs `huber`, which is at most `delta / 2` a pair below it.

    Args:
      x: `[..., H, W, C]`, any range; integers and booleans are read as floats.
      kind: "anisotropic", "isotropic" or "huber".
      delta: width > 0 of the quadratic part of `huber`, in the unit of `x`.
      axes: the spatial axes, counted from the end.
      weights: non-negative weight of each pixel, or a boolean mask; must broadcast to the shape of
        `x`. A pair of neighbours weighs as much as the lesser of its two pixels, so that a mask
        keeps the pairs within it, as if the image ended there. What a boolean mask leaves out may
        hold anything, NaN too.

    Returns:
      `[...]`: the sum over the axes from the first of `axes` to the last one of `x` (H, W and C),
      in float32 if `x` is less precise.

    Raises:
      ValueError: an unknown `kind`, a `delta` that is not positive, an `x` that lacks one of
        `axes`, or `weights` that do not broadcast to `x`.

    Source: Rudin, Osher and Fatemi (1992); Fraccaroli, eq. 2.

    >>> total_variation(jnp.array([[[0.0], [3.0]], [[1.0], [5.0]]]))
    Array(10., dtype=float32)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if isinstance(delta, int | float) and not delta > 0:
        raise ValueError(f"delta must be positive; got {delta}")
    x = jnp.asarray(x)
    _check_axes(x.shape, axes)
    axes = tuple(axes)
    if weights is not None and not _broadcasts(jnp.shape(weights), x.shape):
        raise ValueError(f"weights {jnp.shape(weights)} do not broadcast to x {x.shape}")
    return _total_variation(x, delta, weights, kind=kind, axes=axes)


@functools.partial(jax.jit, static_argnames=("kind", "axes"))
def _total_variation(x, delta, weights, *, kind, axes):
    """`total_variation` of checked arguments; compiled, as it would be slow op by op."""
    # Differences of bfloat16 probabilities would lose most of their digits.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    d = [forward_difference(x, axis) for axis in axes]
    w = [jnp.ones((), x.dtype)] * len(axes)
    if weights is not None:
        w = _pair_weights(weights, x.shape, axes)
        if w[0].dtype == jnp.bool_:  # a select beside the product, since 0 * NaN is NaN
            d = [jnp.where(w_k, d_k, 0) for w_k, d_k in zip(w, d, strict=True)]
        w = [w_k.astype(x.dtype) for w_k in w]
    if kind != "huber":
        d = [_settled(d_k, x) for d_k in d]
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
    return jnp.where(_has_next(u.shape, axis), jnp.roll(u, -1, axis) - u, 0)


def backward_difference(p: jax.Array, axis: int) -> jax.Array:
    """`p[i] - p[i - 1]` along `axis`, with 0 in place of p[-1] and of the last p."""
    p = jnp.where(_has_next(p.shape, axis), p, 0)
    return p - jnp.roll(p, 1, axis)


def _settled(d: jax.Array, u: jax.Array) -> jax.Array:
    """`d`, and 0 where two neighbours of `u` are equal up to rounding.

    A compiler may compute `u` again for each use of `sign(d)`, and round it otherwise each time:
    where neighbours tie, as they do wherever a net's features are dead, one use then sees a tie and
    another does not, and a gradient that should vanish is as large as the weight.
    """
    return jnp.where(jnp.abs(d) <= 8 * jnp.finfo(d.dtype).eps * jnp.abs(u), 0, d)


def _has_next(shape: tuple[int, ...], axis: int) -> jax.Array:
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
    scale = jnp.where(zero, 1, m)
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


def _check_axes(shape: tuple[int, ...], axes: Sequence[int]) -> None:
    if not axes or max(axes) >= 0 or len(set(axes)) != len(axes):
        raise ValueError(f"axes must be distinct and counted from the end; got {tuple(axes)}")
    if len(shape) < -min(axes):
        raise ValueError(f"need at least {-min(axes)} axes, such as [..., H, W, C]; got {shape}")
