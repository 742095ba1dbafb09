import functools
import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from traces import jitted

from tvjax.tv.variation import KINDS, div, grad, total_variation

DELTA = 0.05


def loop_variation(x, kind, axes=(-3, -2), weights=None):
    """Total variation by scalar loops, over an array of no leading axes."""
    axes = [x.ndim + axis for axis in axes]
    weights = np.ones(x.shape) if weights is None else np.broadcast_to(weights, x.shape)
    total = 0.0
    for i in itertools.product(*map(range, x.shape)):
        terms = []
        for axis in axes:
            j = tuple(k + (a == axis) for a, k in enumerate(i))
            if j[axis] < x.shape[axis] and min(weights[i], weights[j]) > 0:
                terms.append((min(weights[i], weights[j]), abs(float(x[j]) - float(x[i]))))
        if kind == "anisotropic":
            total += sum(w * d for w, d in terms)
        elif kind == "isotropic":
            total += math.sqrt(sum((w * d) ** 2 for w, d in terms))
        else:
            total += sum(
                w * (d * d / (2 * DELTA) if d <= DELTA else d - DELTA / 2) for w, d in terms
            )
    return total


def tv(x, kind, **options):
    return total_variation(x, kind=kind, delta=DELTA, **options)


def images(*shape, seed=0):
    """Drawn by numpy: each shape of JAX's own random numbers is a program, and slow to compile."""
    return np.asarray(np.random.default_rng(seed).random(shape), jnp.result_type(float))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((5, 4, 3), (-3, -2)),
        ((2, 3, 4, 5, 2), (-3, -2)),
        ((2, 3, 4, 3, 2), (-4, -3, -2)),
        ((3, 6, 5), (-2, -1)),
        ((1, 5, 1), (-3, -2)),
        ((1, 1, 2), (-3, -2)),
    ],
)
def test_agrees_with_scalar_loops(x64, kind, shape, axes):
    x = images(*shape)
    batch = shape[: min(axes)]
    rows = np.asarray(x).reshape(-1, *shape[min(axes) :])
    expected = np.array([loop_variation(row, kind, axes) for row in rows]).reshape(batch)
    got = tv(x, kind, axes=axes)
    assert got.shape == batch
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14)


def test_closed_forms(x64):
    square = jnp.zeros((8, 9, 1)).at[2:5, 3:7].set(2.0)  # 3 x 4, height 2: perimeter 14
    assert tv(square, "anisotropic") == 28
    # At the far corner one pixel holds both differences.
    assert float(tv(square, "isotropic")) == pytest.approx(2 * (12 + math.sqrt(2)), rel=1e-15)
    assert float(tv(square, "huber")) == pytest.approx(28 - 14 * DELTA / 2, rel=1e-15)
    spike = jnp.zeros((5, 5, 1)).at[2, 2].set(1.0)
    assert tv(spike, "anisotropic") == 4
    assert float(tv(spike, "isotropic")) == pytest.approx(2 + math.sqrt(2), rel=1e-15)


def test_adjoint_and_norm(x64):
    u, p = images(3, 6, 5, 2), images(2, 3, 6, 5, 2, seed=1) - 0.5
    assert float(jnp.vdot(grad(u), p) + jnp.vdot(u, div(p))) == pytest.approx(0, abs=1e-13)
    volume, q = images(3, 4, 5, 1), images(3, 3, 4, 5, 1, seed=1) - 0.5
    axes = (-4, -3, -2)
    both = jnp.vdot(grad(volume, axes=axes), q) + jnp.vdot(volume, div(q, axes=axes))
    assert float(both) == pytest.approx(0, abs=1e-13)
    np.testing.assert_allclose(div(p).sum((-3, -2)), 0, atol=1e-13)
    u = jax.lax.fori_loop(0, 200, lambda _, u: -div(grad(u)) / jnp.linalg.norm(u), u)
    u = u / jnp.linalg.norm(u)
    assert 7 < float(jnp.vdot(grad(u), grad(u))) <= 8


@pytest.mark.parametrize("kind", KINDS)
def test_identities(x64, kind):
    x = images(2, 7, 6, 2)
    value = tv(x, kind)
    same = {"rtol": 1e-12}
    np.testing.assert_allclose(tv(x + 3.0, kind), value, **same)
    np.testing.assert_allclose(tv(x.swapaxes(-3, -2), kind), value, **same)
    np.testing.assert_allclose(tv(-x, kind), value, **same)
    if kind != "huber":
        np.testing.assert_allclose(tv(-2.5 * x, kind), 2.5 * value, **same)
    if kind != "isotropic":  # a flip pairs its forward differences anew
        np.testing.assert_allclose(tv(x[:, ::-1, ::-1], kind), value, **same)
    pairs = 2 * (6 * 6 + 7 * 5)
    gap = total_variation(x) - total_variation(x, kind="huber", delta=DELTA)
    assert (gap >= 0).all() and (gap <= pairs * DELTA / 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_agree_with_central_differences(x64, kind):
    x, w = images(2, 5, 4, 2), 0.1 + images(5, 4, 1, seed=2)

    @jax.jit
    def f(x, w):
        return tv(x, kind, weights=w).sum()

    check_grads(f, (x, w), 1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-6)
    if kind != "anisotropic":
        curve = jax.jit(jax.grad(lambda x: f(x, w)))
        check_grads(curve, (x,), 1, atol=1e-5, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_subgradient_at_ties_is_zero_and_everything_finite(kind):
    def f(x):
        return tv(x, kind)

    @jax.jit
    def everything(x, v):
        return (
            jax.grad(f)(x),
            jax.jvp(f, (x,), (v,))[1],
            jax.jacfwd(f)(x),
            jax.hessian(f)(x),
            jax.jvp(jax.grad(f), (x,), (v,))[1],
            jax.vmap(jax.grad(f))(jnp.stack([x, x])),
        )

    flat = jnp.full((3, 3, 1), 0.7)
    np.testing.assert_array_equal(jax.grad(f)(flat), 0)
    steps = jnp.array([[0.0, 0.0, 1.0]] * 3)[..., None]  # ties in x and in y
    expected = jnp.array([[0.0, -1.0, 1.0]] * 3)[..., None]
    np.testing.assert_allclose(jax.grad(f)(steps), expected, rtol=1e-6)
    for x in (flat, steps, jnp.zeros((3, 3, 1)), images(3, 3, 1).round()):
        v = jnp.ones_like(x)
        for value in everything(x, v):
            assert jnp.isfinite(value).all()


@pytest.mark.parametrize("kind", ["anisotropic", "isotropic"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ties_of_a_net_are_ties_in_a_compiled_gradient_too(x64, kind, dtype):
    """Where features are dead, neighbours tie; XLA computes them anew, and otherwise, for each use.

    Without care the compiled gradient is off by 19 here; eagerly every value is computed once.
    """
    rng = np.random.default_rng(0)
    features = jnp.maximum(jnp.asarray(rng.normal(size=(2, 8, 8, 2)) - 0.8, dtype), 0)
    kernel = jnp.asarray(rng.normal(size=(2, 2)), dtype)
    bias = jnp.asarray([0.3, -0.1], dtype)

    def probabilities(bias):
        return jax.nn.softmax(features @ kernel + bias.reshape(1, 1, 1, 2))

    def loss(bias):
        return total_variation(probabilities(bias), kind=kind).sum()

    compiled = jax.jit(jax.grad(loss))(bias)
    np.testing.assert_allclose(compiled, jax.grad(loss)(bias), rtol=1e-4)
    if kind == "anisotropic":
        p, slope = probabilities(bias), jax.jacfwd(probabilities)(bias)
        expected = np.zeros(2)
        for axis in (1, 2):
            d = np.diff(p, axis=axis)
            sign = np.where(np.abs(d) > 1e-6, np.sign(d), 0)
            change = np.diff(np.asarray(slope), axis=axis)
            expected += np.sum(sign[..., None] * change, axis=(0, 1, 2, 3))
        np.testing.assert_allclose(compiled, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["softplus", "normalised"])
def test_forward_and_reverse_mode_see_the_same_ties(name):
    """Signs of `x[i + 1] - x[i]`, as compilers fuse it, put these off by 15 and by 1e6."""
    rng = np.random.default_rng(1)
    features = jnp.maximum(jnp.asarray(rng.normal(size=(2, 32, 30, 2)) - 1.0, jnp.float32), 0)
    features = jnp.round(2 * features) / 2
    kernel = jnp.asarray(rng.normal(size=(2, 2)), jnp.float32)

    def probabilities(bias):
        if name == "softplus":
            return jax.nn.softplus(features @ kernel + bias) * bias
        mean = features.mean((0, 1, 2), keepdims=True)
        variance = jnp.square(features - mean).mean((0, 1, 2), keepdims=True)
        hidden = (features - mean) * jax.lax.rsqrt(variance + 1e-5) * bias
        hidden = jax.nn.relu(hidden + (kernel[0] - 1).reshape(1, 1, 1, 2))
        return jax.nn.softmax(hidden @ kernel + bias)

    def loss(bias):
        return total_variation(probabilities(bias.reshape(1, 1, 1, 2))).sum()

    bias = jnp.asarray([0.3, -0.1], jnp.float32)
    forward, reverse = jax.jit(jax.jacfwd(loss))(bias), jax.jit(jax.grad(loss))(bias)
    np.testing.assert_allclose(reverse, forward, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("level", [0, 1e3, 1e5])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_the_definition_at_any_level(x64, kind, level):
    x = (level + 1e-3 * np.random.default_rng(0).normal(size=(16, 15, 1))).astype(np.float32)
    expected, slope = jax.value_and_grad(lambda x: tv(x, kind))(jnp.asarray(x, jnp.float64))
    for f in (lambda x: tv(x, kind), jax.jit(lambda x: tv(x, kind))):
        value, found = jax.value_and_grad(f)(jnp.asarray(x))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(found, slope, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype, level",
    [("uint8", 254), ("int8", -128), ("uint16", 60_000), ("int32", 2**25), ("int32", 2**31 - 2),
     ("uint32", 2**32 - 2), ("float32", 2.0**20)],
)  # fmt: skip
def test_a_checkerboard_of_numbers_is_12_at_any_level(kind, dtype, level):
    board = np.arange(16).reshape(4, 4, 1) % 2
    x = (board + level).astype(dtype)
    np.testing.assert_allclose(tv(x, kind), tv(board.astype(np.float32), kind), rtol=1e-6)
    assert total_variation(x) == 12
    np.testing.assert_array_equal(grad(x)[1, :, 0], np.diff(board, axis=1)[:, 0])
    np.testing.assert_array_equal(div(np.stack([x, x])), div(np.stack([x, x]).astype(float)))


def test_the_widest_range_of_integers():
    ends = np.array([[[-(2**31)], [2**31 - 1]]], np.int32)
    assert total_variation(ends) == 2.0**32
    assert total_variation(ends[:, ::-1]) == 2.0**32
    with pytest.raises(ValueError, match="x has int64 values that int32 cannot hold"):
        total_variation(ends + np.int64(2**40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_an_infinite_pixel_is_infinite_variation(kind, place):
    for bad in (jnp.inf, -jnp.inf):
        x = jnp.zeros((4, 4, 1)).at[place].set(bad)
        assert tv(x, kind) == jnp.inf
        assert jax.jit(lambda x: tv(x, kind))(x) == jnp.inf
    assert jnp.isnan(tv(jnp.zeros((4, 4, 1)).at[place].set(jnp.nan), kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (2, 8, 8, 0), (2, 0, 8, 1)])
def test_nothing_varies_by_0(kind, shape):
    np.testing.assert_array_equal(tv(jnp.zeros(shape), kind), jnp.zeros(shape[:1]))


def test_traced_arguments_that_cannot_be_so_are_nan():
    x, w = images(4, 4, 1), jnp.ones((4, 4, 1)).at[1, 1].set(-1)
    assert jnp.isnan(jax.jit(lambda w: total_variation(x, weights=w))(w))
    huber = jax.jit(lambda delta: total_variation(x, kind="huber", delta=delta))
    assert jnp.isnan(huber(0.0)) and jnp.isnan(huber(-1.0)) and not jnp.isnan(huber(0.1))


def test_curvature():
    x = images(4, 4, 1)
    hessian = jax.jit(jax.hessian(total_variation))(x)
    np.testing.assert_array_equal(hessian, 0)
    huber = functools.partial(total_variation, kind="huber", delta=1.0)
    assert jnp.abs(jax.jit(jax.hessian(huber))(x)).max() > 1


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_isotropic_neither_overflows_nor_underflows(scale):
    x = images(4, 4, 1)
    value, slope = jax.jit(jax.value_and_grad(lambda x: tv(x, "isotropic")))(scale * x)
    np.testing.assert_allclose(value / scale, tv(x, "isotropic"), rtol=1e-5)
    np.testing.assert_allclose(slope, jax.grad(lambda x: tv(x, "isotropic"))(x), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights(x64, kind):
    x, w = images(5, 6, 2), images(5, 6, 1, seed=3)
    expected = loop_variation(np.asarray(x), kind, weights=np.asarray(w))
    assert float(tv(x, kind, weights=w)) == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(tv(x, kind, weights=2.0 * w), 2 * tv(x, kind, weights=w))
    mask = jnp.zeros((5, 6, 1), bool).at[1:4, 2:6].set(True)
    hidden = jnp.where(mask, x, jnp.nan)
    value, slope = jax.value_and_grad(lambda x: tv(x, kind, weights=mask))(hidden)
    assert float(value) == pytest.approx(float(tv(x[1:4, 2:6], kind)), rel=1e-13)
    expected = jax.grad(lambda x: tv(x, kind))(x[1:4, 2:6])
    np.testing.assert_allclose(slope[1:4, 2:6], expected, atol=1e-13)
    assert not jnp.where(mask, 0, slope).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_accumulates_in_float32(dtype):
    x = images(100, 100, 1).astype(dtype)
    got = total_variation(x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, total_variation(x.astype(jnp.float32)), rtol=1e-6)
    assert jax.grad(total_variation)(x).dtype == dtype


def test_integers_and_booleans():
    mask = jnp.zeros((4, 4, 1), bool).at[1:3, 1:3].set(True)
    assert total_variation(mask) == 8
    assert total_variation(mask.astype(jnp.uint8) * 255) == 8 * 255


@pytest.mark.parametrize("kind", KINDS)
def test_jit_vmap_and_one_compilation(kind):
    x = images(3, 5, 4, 1)
    f, traces = jitted(lambda x: tv(x, kind))
    np.testing.assert_allclose(f(x), tv(x, kind), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(f)(x), f(x), rtol=1e-6)
    f(x + 1)
    assert traces == [[x.shape], [x.shape[1:]]]


def test_errors_name_the_value():
    x = jnp.zeros((4, 4, 1))
    with pytest.raises(ValueError, match="'tv2'"):
        total_variation(x, kind="tv2")
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        total_variation(x[..., 0])
    with pytest.raises(ValueError, match=r"-0\.5"):
        total_variation(x, kind="huber", delta=-0.5)
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        total_variation(x, weights=jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        total_variation(x, axes=(0, 1))
    for f in (total_variation, grad, div):
        for axes in ((-3.0, -2.0), -3, None, (), (-2, -2), ("a",), (-3, None), np.array([-3.5])):
            with pytest.raises(ValueError, match="axes must be distinct integers counted from the"):
                inspect.unwrap(f)(x, axes=axes)
    assert inspect.unwrap(total_variation)(x, axes=np.array([-3, -2])) == 0
    for name, call in (
        ("x", lambda: total_variation(x * 1j)),
        ("u", lambda: grad(x * 1j)),
        ("p", lambda: div(jnp.stack([x, x]) * 1j)),
        ("weights", lambda: total_variation(x, weights=x * 1j)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be real; got complex64"):
            call()
    for delta in (np.float32(0), jnp.float32(-0.5), np.inf, jnp.nan):
        with pytest.raises(ValueError, match=f"delta must be positive and finite; got {delta}"):
            total_variation(x, kind="huber", delta=delta)
    for weights in (x - 1, np.asarray(x) + np.nan):
        with pytest.raises(ValueError, match="weights must be finite and at least 0; got"):
            total_variation(x, weights=weights)
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 1\)"):
        div(jnp.zeros((3, 4, 4, 1)))
