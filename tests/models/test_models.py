from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tvjax.models.layers import BatchNorm, Upsample, max_pool
from tvjax.models.unet import UNet


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def same_value_and_derivatives(ours, theirs, *args):
    """Values, both pullbacks and a second derivative along a line agree."""
    cotangent = random(ours(*args).shape, 9)

    @partial(jax.jit, static_argnums=0)
    def all_of(layer, *args):
        def pullback(*a):
            return jax.vjp(layer, *a)[1](cotangent)

        line = tuple(jnp.cos(a) for a in args)
        return layer(*args), pullback(*args), jax.jvp(pullback, args, line)[1]

    found = all_of(ours, *args), all_of(theirs, *args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), *found)


def test_upsample_is_flax_conv_transpose(x64):
    x = random((2, 4, 3, 5))
    flax = nn.ConvTranspose(6, (2, 2), (2, 2), param_dtype=jnp.float64)
    params = flax.init(jax.random.key(0), x)["params"]
    ours = Upsample(6)
    same_value_and_derivatives(
        lambda x, k, b: ours.apply({"params": {"kernel": k, "bias": b}}, x),
        lambda x, k, b: flax.apply({"params": {"kernel": k, "bias": b}}, x),
        x,
        params["kernel"],
        random(6),
    )


def test_max_pool_is_flax_max_pool_away_from_ties(x64):
    x = random((2, 4, 6, 3))
    same_value_and_derivatives(max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)


def test_max_pool_shares_the_gradient_at_ties():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0, 0].set(-1.0)
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_allclose(gradient[0, :, :, 0], [[0, 1 / 3], [1 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_flax_batch_norm(x64, train):
    x = random((3, 4, 5, 2)) + 1.0
    flax = nn.BatchNorm(momentum=0.9, use_running_average=not train, param_dtype=jnp.float64)
    ours = BatchNorm(momentum=0.9)

    def apply(layer, scale, bias, mean, x, **kwargs):
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": mean, "var": 2 + mean},
        }
        y, new = layer.apply(variables, x, mutable=["batch_stats"], **kwargs)
        # The running statistics are outputs too: over several steps derivatives pass through them.
        return jnp.concatenate([y.ravel(), *new["batch_stats"].values()])

    same_value_and_derivatives(
        lambda *a: apply(ours, *a, train=train), lambda *a: apply(flax, *a),
        random(2), random(2, 1), random(2, 2), x,
    )  # fmt: skip


def test_batch_norm_over_devices_is_that_of_the_whole_batch(x64):
    x = random((8, 3, 3, 2))
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=True)

    def apply(layer, x):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    whole, stats = apply(layer, x)
    parts, part_stats = jax.vmap(lambda x: apply(BatchNorm(axis_name="d"), x), axis_name="d")(
        x.reshape(4, 2, 3, 3, 2)
    )
    np.testing.assert_allclose(parts.reshape(x.shape), whole, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3], b, atol=1e-12), part_stats, stats)


def batch_norm(x, *, scale=1.0, bias=0.0, axis_name=None):
    """What this scale and bias give in training: the output, and the batch's mean and variance."""
    c, dtype = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
    variables = {
        "params": {"scale": jnp.full(c, scale, dtype), "bias": jnp.full(c, bias, dtype)},
        "batch_stats": {"mean": jnp.zeros(c, dtype), "var": jnp.zeros(c, dtype)},
    }
    layer = BatchNorm(momentum=0.0, axis_name=axis_name)
    y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]


@pytest.mark.parametrize("ratio", [0, 1, 5, 30, 100])
@pytest.mark.parametrize("rows", [160_000, 65_537, 31, 2])  # 65,537 is prime
def test_batch_norm_keeps_its_digits(rows, ratio):
    x = np.random.default_rng(0).normal(ratio, 1, (rows, 4)).astype(np.float32)
    wide = x.astype(np.float64)
    mean, var = wide.mean(axis=0), wide.var(axis=0)
    y, found_mean, found_var = jax.jit(batch_norm)(x)
    np.testing.assert_allclose(found_mean, mean, rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(found_var, var, rtol=1e-6)
    exact = (wide - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y, exact, rtol=1e-6, atol=3e-7 * (1 + ratio))


@pytest.mark.parametrize("level", [0.1, 1e4 / 3, 1e9 / 7])
def test_a_constant_channel_becomes_its_bias(level):
    y, mean, var = jax.jit(partial(batch_norm, bias=0.25))(jnp.full((3, 50, 41, 2), level))
    np.testing.assert_array_equal(y, np.full(y.shape, 0.25))
    np.testing.assert_array_equal(mean, np.full(2, level, np.float32))
    np.testing.assert_array_equal(var, [0, 0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_rounds_a_narrow_dtype_once(dtype, train):
    x = jnp.asarray(random((40, 50, 3)) + 30, dtype)
    layer = BatchNorm()
    wide = np.asarray(x, np.float64)
    mean, var = wide.mean(axis=(0, 1)), wide.var(axis=(0, 1))
    params = {"scale": jnp.full(3, 1.7), "bias": jnp.full(3, 0.3)}
    stats = {"mean": jnp.asarray(mean, jnp.float32), "var": jnp.asarray(var, jnp.float32)}
    y, _ = layer.apply(
        {"params": params, "batch_stats": stats}, x, train=train, mutable=["batch_stats"]
    )
    assert y.dtype == x.dtype
    exact = 1.7 * (wide - mean) / np.sqrt(var + 1e-5) + 0.3
    rounding = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=1.01 * rounding, atol=1e-5)


def test_batch_norm_over_devices_keeps_its_digits():
    """Each device's tiles are of a brightness of their own; the variance is of them all."""
    x = np.random.default_rng(0).normal(100, 1, (4, 6000, 2)) + np.arange(4)[:, None, None]
    x = x.astype(np.float32)
    wide = x.astype(np.float64).reshape(-1, 2)
    mapped = jax.vmap(partial(batch_norm, axis_name="d"), axis_name="d")
    y, mean, var = jax.jit(mapped)(x)
    np.testing.assert_allclose(mean, np.tile(wide.mean(axis=0), (4, 1)), rtol=2e-7)
    np.testing.assert_allclose(var, np.tile(wide.var(axis=0), (4, 1)), rtol=1e-6)
    exact = (wide - wide.mean(axis=0)) / np.sqrt(wide.var(axis=0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 2), exact, atol=3e-5)


def test_derivatives_of_batch_norm_over_devices_are_finite_differences(x64):
    mapped = jax.vmap(partial(batch_norm, scale=1.3, axis_name="d"), axis_name="d")
    x = random((2, 35, 2)) + 3  # more rows than one product sums
    check_grads(jax.jit(mapped), (x,), order=2, atol=1e-5, rtol=1e-5)


def test_batch_norm_of_nothing_is_refused():
    with pytest.raises(ValueError, match="empty batch"):
        batch_norm(jnp.zeros((0, 4, 4, 2)))


@pytest.mark.parametrize("channels, width, count", [(1, 64, 1_864_129), (2, 64, 1_864_194)])
def test_parameter_count_of_the_paper(channels, width, count):
    variables = jax.eval_shape(
        lambda: UNet(channels=channels, width=width).init(
            jax.random.key(0), jnp.zeros((1, 100, 100, 3)), train=False
        )
    )
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (5, 3)])
def test_unet_takes_any_size(size):
    def logits(x):
        return net.apply(net.init(jax.random.key(0), x, train=False), x, train=False)

    net = UNet(width=2)
    assert jax.eval_shape(logits, jnp.zeros((2, *size, 3))).shape == (2, *size, 1)


def test_unet_depth_and_bfloat16():
    net = UNet(width=2, depth=3, dtype="bfloat16")
    x = jnp.full((1, 16, 16, 3), 0.5)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, train=False))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes))
    variables = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)  # drawing takes longer
    apply = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))
    logits, new = apply(variables, x)
    assert logits.dtype == jnp.float32 and bool(jnp.isfinite(logits).all())
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(new))
