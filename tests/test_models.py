from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    logits, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32 and bool(jnp.isfinite(logits).all())
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(new))
