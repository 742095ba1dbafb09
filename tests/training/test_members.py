"""Many trainings in one program are the trainings one by one."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from nets import initial

from tvjax.models.unet import UNet
from tvjax.training import members
from tvjax.types import Batch


def test_a_product_is_the_convolution(x64):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s)) for s in ((2, 5, 7, 3), (3, 3, 3, 4)))
    wanted = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(members.convolve(x, kernel), wanted, atol=1e-12)


def test_a_net_of_products_is_the_net_in_its_own_dtypes(x64):
    net = UNet(width=2, depth=1)
    images = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3)), jnp.float32)
    variables = initial(net, jnp.float64)
    wanted, found = (
        jax.jit(partial(made.apply, train=False))(variables, images)
        for made in (net, members.Products(net))
    )
    assert found.dtype == wanted.dtype == jnp.float64
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_other_layers_are_left_alone():
    class Others(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(2, (5, 5))(x) + nn.Conv(2, (3, 3), kernel_dilation=2)(x)

    x = jnp.ones((1, 4, 4, 3))
    variables = Others().init(jax.random.key(0), x)
    wanted = Others().apply(variables, x)
    np.testing.assert_array_equal(members.Products(Others()).apply(variables, x), wanted)


def test_rows_are_those_of_each_members_run():
    from tvjax.data.pipeline import TrainIndices

    found = members.rows(10, batch_size=4, seeds=[5, 9], positions=[0, 3])
    assert found.shape == (2, 2, 4)
    order = TrainIndices(10, batch_size=4, seed=9)
    np.testing.assert_array_equal(found[1, 1], order[3])
    each = members.rows(10, batch_size=4, seeds=[5, 9], positions=[[0, 1], [3, 2]])
    np.testing.assert_array_equal(each[1, 1], order[2])


@pytest.mark.parametrize("count", [4, 5])
def test_scores_leave_the_padding_out(count):
    tiles = Batch(np.zeros((count, 2, 2, 3), np.uint8), np.ones((count, 2, 2, 1), np.uint8))

    def step(states, batch):  # the first member is right, the second finds nothing
        masks = jnp.stack([batch.mask > 0, batch.mask > 1])
        return masks, states[:, None] * jnp.ones((2, len(batch.mask)))

    first, second = members.evaluate(step, jnp.array([1.0, 3.0]), tiles, batch_size=4)
    assert first["images"] == second["images"] == count
    assert (first["iou"], second["iou"]) == (1, 0)
    assert first["pooled_iou"] == 1 and second["bce"] == 3
