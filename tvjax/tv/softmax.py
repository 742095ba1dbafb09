"""TV-softmax: class probabilities under a price on their total variation."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from tvjax import arguments
from tvjax.tv import dual, implicit
from tvjax.tv.dual import Field
from tvjax.tv.rof import check_stop, denoise_tv, per_image_weight
from tvjax.tv.variation import norm

STEP = 1 / 4
"""1 / L for the dual: softmax's Jacobian is at most 1/2, and ||D||^2 <= 8."""


def tv_softmax(
    logits: Num[ArrayLike, "..."],
    lam: float | int | Num[ArrayLike, "..."],
    *,
    num_iterations: int | Num[ArrayLike, ""] | None = 1,
    step_size: float | int | Num[ArrayLike, ""] | None = None,
    kind: str = "anisotropic",
    backward: str = "unroll",
    tolerance: float | Num[ArrayLike, ""] = 1e-6,
    max_iterations: int | Num[ArrayLike, ""] = 10_000,
) -> Float[Array, "..."]:
    """Softmax regularised by total variation, for any number of classes.

      A = argmin -<A, o> + <A, log A> + lam TV(A)   over A with sum_c A_c = 1     (eqs. 7, 8)

    With `num_iterations=K`, the layer that K dual steps make, from eta = 0 and A = softmax(o):

      eta <- P(eta + step_size D A),   A <- softmax(o - lam D^T eta),   D the forward differences,

    P the projection on |eta| <= 1 (each difference, or each pixel's vector). The paper's RU-Net is
    K = 1. `num_iterations=None` solves the problem to a duality gap: with two classes and the
    anisotropic kind by ROF, since then A_1 = sigmoid(ROF(o_1 - o_0; 2 lam)), else by FISTA.

    TV sums over classes, so two classes count each edge twice. Each step moves a class's logit by
    at most 4 lam: with two classes **no number of iterations moves a probability by more than
    2 lam**, and at the paper's lam = 1e-6 the layer is a plain softmax to 2e-6.

    Derivatives, in `logits` and `lam`:

      backward="unroll"    of the K steps themselves: exact for this layer, but for K in the tens
                           far from the converged layer's.
      backward="implicit"  of the converged layer, exact (`num_iterations=None` only; there it is
                           also what "unroll" gives, its limit). With two classes and the
                           anisotropic kind by ROF's regions; else by conjugate gradients.
      backward="frozen"    eta held fixed. **Not a gradient** of anything; for comparison only.

    At ties they are finite. At lam = 0 the layer is softmax, and d/dlam the derivative on the right
    of the K-step layer (0 in the converged one where A has ties).

    Args:
      logits: o, `[..., H, W, C]`; computed in float32 if less precise.
      lam: weight >= 0 in the unit of logits, a number, one for each image (broadcasts to `[...]`),
        traced or learned. A traced one that is negative or infinite is read as NaN.
      num_iterations: K >= 0, or None to converge.
      step_size: default 1 / (4 lam), the largest with a proof, and defined at lam = 0 too: the step
        then goes all the way to the bound. Only for K steps.
      kind: "anisotropic" or "isotropic".
      backward: "unroll", "implicit" or "frozen".
      tolerance: absolute duality gap of each image when converging; `1/2 sum_i ||A_i - A*_i||_1^2`
        is at most that.
      max_iterations: iterations of each image at most, when converging.

    Returns:
      Probabilities `[..., H, W, C]`.

    Raises:
      ValueError: logits that are complex, of less than three axes or without a class, a `lam` that
        is negative, not finite, boolean or does not broadcast, an unknown `kind` or `backward`, a
        `num_iterations` that is no integer of at least 0, a `step_size` that is not one positive
        and finite number or is given when converging, `backward="implicit"` with K steps, a
        `tolerance` or `max_iterations` as in `denoise_tv`.

    Cost: a step is one softmax and two stencils; its reverse derivative keeps one field of two
    numbers a value for each of the K steps. Converged, the derivative keeps one, whatever the
    number of iterations, and costs about a solve. The certificate is not returned: where
    `max_iterations` or float32 comes first, the answer is as near as that got; `denoise_tv` of the
    difference of two classes' logits tells its gap.

    Source: Jia, Liu and Tai (2021); Fraccaroli, eqs. 7 and 8. Differs from the paper: K, the step
    and the derivative are stated (it names one iteration and no step).

    >>> spike = jnp.zeros((9, 9, 2)).at[4, 4, 1].set(4.0)
    >>> round(float(tv_softmax(spike, 0.25, num_iterations=None)[4, 4, 1]), 4)  # sigmoid(4 - 8 lam)
    0.8808
    """
    logits = arguments.real("logits", logits)
    arguments.images("logits", logits.shape)
    if not logits.shape[-1]:
        raise ValueError(f"logits must have at least one class; got shape {logits.shape}")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Only differences of classes matter; a common level would cost lam's effect its digits.
    logits -= lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    lam = per_image_weight(lam, logits.shape[:-3], logits.dtype)
    arguments.choice("kind", kind, ("anisotropic", "isotropic"))
    arguments.choice("backward", backward, ("unroll", "implicit", "frozen"))
    if num_iterations is None:
        tolerance, max_iterations = check_stop(tolerance, max_iterations)
        if step_size is not None:
            raise ValueError(f"step_size is for a number of iterations only; got {step_size}")
        return _converged(logits, lam, kind, backward, tolerance, max_iterations)
    num_iterations = arguments.count("num_iterations", num_iterations, 0)
    if step_size is not None:
        step_size = arguments.positive("step_size", step_size)
    if backward == "implicit":
        raise ValueError(
            f'backward="implicit" is for num_iterations=None; got {num_iterations} iterations'
        )
    return _unrolled(logits, lam, num_iterations, step_size, kind, backward)


def _unrolled(o, lam, num_iterations, step_size, kind, backward):
    """K steps in terms of c = 1 / step_size = 4 lam, so that nothing divides by lam.

    P(eta + D A / c) = q / max(|q|, c) with q = c eta + D A: at lam = 0 it is the sign of D A, the
    limit as lam -> 0, and its derivative is the limit's.
    """
    lam = lam[..., None, None, None]
    c = (
        lam / STEP
        if step_size is None
        else 1 / jnp.asarray(step_size, o.dtype).reshape((1,) * o.ndim)
    )

    def step(eta: Field, _) -> tuple[Field, None]:
        d = dual.differences(_primal(lam * dual.adjoint(eta), o))
        return _bounded(Field(c * eta.y + d.y, c * eta.x + d.x), c, kind), None

    zero = jnp.zeros_like(o)
    eta, _ = lax.scan(
        step, Field(zero, zero), length=num_iterations, unroll=min(num_iterations, 4) or 1
    )
    if backward == "frozen":
        eta = lax.stop_gradient(eta)
    return _primal(lam * dual.adjoint(eta), o)


def _bounded(q: Field, c: jax.Array, kind: str) -> Field:
    """`q / max(|q|, c)`."""
    # The derivative holds 1 / c^2, which must not overflow; so small a c means lam = 0.
    least = 10 * jnp.sqrt(jnp.finfo(q.y.dtype).tiny)

    def bound(*parts: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.maximum(norm(parts), c), least)

    if kind == "anisotropic":
        return Field(q.y / bound(q.y), q.x / bound(q.x))
    both = bound(q.y, q.x)
    return Field(q.y / both, q.x / both)


def _converged(o, lam, kind, backward, tolerance, max_iterations):
    if o.shape[-1] == 2 and kind == "anisotropic" and backward != "frozen":
        difference = o[..., 1:] - o[..., :1]
        options = {"tolerance": tolerance, "max_iterations": max_iterations}
        z = denoise_tv(difference, 2 * lam, **options).image
        return jax.nn.sigmoid(jnp.concatenate([-z, z], axis=-1))
    shape = o.shape
    o, lam = o.reshape(math.prod(shape[:-3]), *shape[-3:]), lam.reshape(-1)
    v = _fista(
        lax.stop_gradient(o),
        lax.stop_gradient(lam),
        tolerance.astype(o.dtype),
        kind=kind,
        max_iterations=max_iterations,
    )
    if backward == "frozen":
        # eta = v / lam is what is held; the factor lam carries its derivative.
        safe = lax.stop_gradient(jnp.where(lam > 0, lam, 1))
        return _primal(dual.per_image(lam / safe) * dual.adjoint(v), o).reshape(shape)
    return _with_derivative(kind, o, lam, v).reshape(shape)


def _primal(s: jax.Array, o: jax.Array) -> jax.Array:
    return jax.nn.softmax(o - s, axis=-1)


@functools.partial(jax.jit, static_argnames=("kind", "max_iterations"))
def _fista(o, lam, tolerance, *, kind, max_iterations):
    """The bounded field v = lam eta at the optimum."""
    pixels = o.shape[1] * o.shape[2]
    v, certificate = dual.fista(
        _primal, o, lam, step=STEP, kind=kind, rounding=jnp.finfo(o.dtype).eps * lam * pixels,
        tolerance=tolerance, max_iterations=max_iterations,
    )  # fmt: skip
    sound = dual.per_image(certificate.gap < jnp.inf)
    return Field(*(jnp.where(sound, part, jnp.nan) for part in v))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(kind: str, o: jax.Array, lam: jax.Array, v: Field) -> jax.Array:
    """The solution A, as a function of o and lam; v is its dual."""
    del kind, lam
    return _primal(dual.adjoint(v), o)


@_with_derivative.defjvp
def _derivative(kind, primals, tangents):
    o, lam, v = primals
    do, dlam, _ = tangents
    a = _with_derivative(kind, o, lam, v)  # so that second derivatives see A(o, lam)

    def tangent(a, v, lam, do, dlam):
        def response(x):  # softmax's Jacobian, the inverse of the entropy's Hessian
            return a * (x - jnp.sum(a * x, axis=-1, keepdims=True))

        active = implicit.active_set(a, v, lam, kind=kind, step=STEP)
        return implicit.tangent_by_cg(active, do, lam, dlam, kind=kind, response=response)

    return a, jax.vmap(tangent)(a, v, lam, do, dlam)
