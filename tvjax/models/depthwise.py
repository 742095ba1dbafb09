"""A convolution of each channel by itself, with derivatives that are as quick as itself.

As shifted products: grouped convolutions, and most of all their weight gradients, are slow on a
CPU. Differentiated by JAX, each of the k^2 slices becomes a padding whose elements ask whether they
are inside: 50 times the time of the convolution. So it is a primitive, which is linear in the image
and in the kernel, and what is transposed is again a convolution of this kind, or the gradient of a
kernel, the other primitive here. They are closed: derivatives of any order take the two of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from tvjax.types import Dimension


class Form(NamedTuple):
    """How an image `[H, W]` becomes another, `[h, w]`."""

    size: int
    """The kernel's side, k."""
    outer: tuple[Dimension, ...]
    """H, W."""
    inner: tuple[Dimension, ...]
    """h, w."""
    before: tuple[Dimension, ...]
    """Zeros in front of a column, and of a row; negative: so many pixels are left out."""
    stride: int = 1
    """Pixels of the image from one kernel to the next."""
    spacing: int = 1
    """Pixels that each pixel of the image is made to, by zeros behind it."""
    is_differentiated: bool = False
    """Whether a derivative follows or this is one."""

    @property
    def transposed(self) -> "Form":
        """The form of the transposed convolution, whose kernel is turned by half a turn."""
        before = tuple(self.size - 1 - at for at in self.before)
        return self._replace(
            outer=self.inner, inner=self.outer, before=before,
            stride=self.spacing, spacing=self.stride,
        )  # fmt: skip

    def pad(self, x: jax.Array) -> jax.Array:
        """The image with the zeros that a kernel meets."""
        sides = []
        for full, count, before in zip(self.outer, self.inner, self.before, strict=True):
            spread = (full - 1) * self.spacing + 1
            after = (count - 1) * self.stride + self.size - spread - before
            sides.append((before, after, self.spacing - 1))
        return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *sides, (0, 0, 0)])

    def part(self, padded: jax.Array, i: int, j: int) -> jax.Array:
        """What the kernel's element i, j meets, `[B, h, w, C]`."""
        rows, columns = (
            slice(at, at + (count - 1) * self.stride + 1, self.stride)
            for at, count in zip((i, j), self.inner, strict=True)
        )
        return padded[:, rows, columns]


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`[B, H, W, C]` and `[k, k, C]` -> `[B, H/s, W/s, C]`, rounded up, with zeros outside.

    The values of `lax.conv_general_dilated` with padding "SAME" and C groups.

    Raises:
      ValueError: for a kernel of another shape.
    """
    k, sides = len(kernel), x.shape[1:3]
    if kernel.shape != (k, k, x.shape[-1]):
        raise ValueError(
            f"kernel must be [k, k, {x.shape[-1]}] for x {x.shape}; got {kernel.shape}"
        )
    before = tuple(same_padding(side, k, stride)[0] for side in sides)
    form = Form(k, sides, tuple(-(-side // stride) for side in sides), before, stride)
    return _convolution.bind(*_vary_alike(x, kernel.astype(x.dtype)), form=form)


def same_padding(side: Dimension, size: int, stride: int) -> tuple[Dimension, Dimension]:
    """Zeros before and after a side, by which TensorFlow's "SAME" gives ceil(side / stride).

    At a stride of 2 there is one more after than before, where PyTorch's nets have as many.
    """
    total = max(0, (-(-side // stride) - 1) * stride + size - side)
    return total // 2, total - total // 2


def _vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """The same arrays: in `shard_map`, each varies along all axes along which one of them does.

    JAX does so for primitives of its own alone. What is transposed takes the sum over these axes.
    """
    axes = [jax.typeof(x).mat.varying for x in arrays]
    missing = [tuple(sorted(frozenset().union(*axes) - own)) for own in axes]
    return [lax.pcast(x, m, to="varying") for x, m in zip(arrays, missing, strict=True)]


def _products(x: jax.Array, kernel: jax.Array, *, form: Form) -> jax.Array:
    return _products_of(form.pad(x), kernel, form)


def _products_on_cpu(x: jax.Array, kernel: jax.Array, *, form: Form) -> jax.Array:
    """The same, and in training by a loop over images: its inputs stand in memory.

    Else XLA's CPU compiler makes them anew, by BatchNorm and ReLU, for each of the k^2 products.
    """
    if not form.is_differentiated:
        return _products(x, kernel, form=form)
    return lax.map(lambda image: _products_of(image[None], kernel, form)[0], form.pad(x))


def _products_of(padded: jax.Array, kernel: jax.Array, form: Form) -> jax.Array:
    y = jnp.zeros((), padded.dtype)
    for i, j in np.ndindex(form.size, form.size):
        y = y + form.part(padded, i, j) * kernel[i, j][None, None, None]
    return y


def _sums(x: jax.Array, g: jax.Array, *, form: Form) -> jax.Array:
    """The gradient of `sum(g * y)` in the kernel, `[k, k, C]`."""
    padded, k = form.pad(x), form.size
    sums = [(form.part(padded, i, j) * g).sum((0, 1, 2)) for i, j in np.ndindex(k, k)]
    return jnp.stack(sums).reshape(k, k, -1)


def _sums_on_cpu(x: jax.Array, g: jax.Array, *, form: Form) -> jax.Array:
    """The same by a loop over images, which on a CPU takes a quarter of the time."""
    k = form.size

    def add(rows: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[()]]:
        padded, one = pair
        parts = [form.part(padded[None], i, j)[0] * one for i, j in np.ndindex(k, k)]
        return rows + jnp.stack([part.sum(0) for part in parts]), ()

    rows = jnp.zeros((k * k, *g.shape[2:]), x.dtype)
    rows, _ = lax.scan(add, rows, (form.pad(x), g))
    return rows.sum(1).reshape(k, k, -1)


def _image_of(g: jax.Array, kernel: jax.Array, form: Form) -> jax.Array:
    """The gradient of `sum(g * y)` in the image."""
    return _convolution.bind(g, kernel[::-1, ::-1], form=form.transposed)


def _as_channels(primitive: Primitive, args: Any, axes: Any, **params: Any) -> tuple[Any, int]:
    """The batching rule: an axis of `vmap` makes more channels."""
    (n,) = {x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None}

    def folded(x: jax.Array, axis: int | None) -> jax.Array:
        x, axis = (jnp.broadcast_to(x, (n, *x.shape)), 0) if axis is None else (x, axis)
        x = jnp.moveaxis(x, axis, -2)
        return x.reshape(*x.shape[:-2], -1)

    y = primitive.bind(*map(folded, args, axes), **params)
    return y.reshape(*y.shape[:-1], n, -1), y.ndim - 1


def _define(name: str, make: Callable[..., jax.Array], shape: Callable[..., Any]) -> Primitive:
    """A primitive of two arrays, which is linear in each."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(make, static_argnames="form"))
    primitive.def_abstract_eval(lambda x, y, *, form: x.update(shape=shape(x, form)))
    batching.primitive_batchers[primitive] = partial(_as_channels, primitive)
    mlir.register_lowering(primitive, _lowering(make))
    return primitive


def _lowering(make: Callable[..., jax.Array]) -> Callable[..., Any]:
    """How a primitive is compiled: on each device by itself.

    So its arrays vary along no axis of `shard_map` in there, and a loop may begin with zeros.
    """
    rule = mlir.lower_fun(make, multiple_results=False)

    def lower(ctx: mlir.LoweringRuleContext, *args: Any, **params: Any) -> Any:
        arrays: Any = ctx.avals_in
        plain = [ShapedArray(x.shape, x.dtype) for x in arrays]
        return rule(ctx.replace(avals_in=plain), *args, **params)

    return lower


def _differentiate(primitive: Primitive, first: Callable[..., Any], second: Callable) -> None:
    """Sets the derivative of a primitive, and what is transposed in its first and second array."""
    ad.defbilinear(primitive, first, second)
    linear = ad.primitive_jvps[primitive]
    ad.primitive_jvps[primitive] = lambda primals, tangents, *, form: linear(
        primals, tangents, form=form._replace(is_differentiated=True)
    )


_convolution = _define(
    "depthwise_convolution", _products, lambda x, form: (x.shape[0], *form.inner, x.shape[-1])
)
_kernel_gradient = _define(
    "depthwise_kernel_gradient", _sums, lambda x, form: (form.size, form.size, x.shape[-1])
)
mlir.register_lowering(_convolution, _lowering(_products_on_cpu), platform="cpu")
mlir.register_lowering(_kernel_gradient, _lowering(_sums_on_cpu), platform="cpu")
_differentiate(
    _convolution,
    lambda g, x, kernel, form: _image_of(g, kernel, form),
    lambda g, x, kernel, form: _kernel_gradient.bind(x, g, form=form),
)
_differentiate(
    _kernel_gradient,
    lambda g, x, y, form: _image_of(y, g, form),
    lambda g, x, y, form: _convolution.bind(x, g, form=form),
)
