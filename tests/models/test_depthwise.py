"""Depthwise convolutions: the values and derivatives of XLA's grouped ones, of any order."""

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from tvjax.models import depthwise

FORMS = [(8, 7, 3, 1), (8, 7, 3, 2), (9, 8, 5, 2), (5, 6, 5, 1), (2, 1, 5, 2), (4, 4, 1, 1)]


def grouped(x, kernel, stride):
    return lax.conv_general_dilated(
        x, kernel[:, :, None], (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
    )  # fmt: skip


def draw(h, w, k, stride, channels=3):
    rng = np.random.default_rng(h * k)
    shapes = (2, h, w, channels), (k, k, channels), (2, -(-h // stride), -(-w // stride), channels)
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_of_first_and_second_order_are_those_of_a_grouped_convolution(x64, form):
    stride = form[-1]
    x, kernel, g = draw(*form)
    dx, dk, dg = (jnp.cos(3 * a) for a in (x, kernel, g))

    def slopes(convolve, x, kernel, g):
        y, pull = jax.vjp(lambda x, k: convolve(x, k, stride), x, kernel)
        return y, *pull(jnp.sin(y) * g)

    def curvature(convolve):
        loss = lambda x, k: jnp.sin(convolve(x, k, stride) * g).sum()  # noqa: E731
        return jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), (dx, dk))

    def twice(convolve):
        """Reverse over reverse."""
        found = lambda *args: sum((a * a).sum() for a in slopes(convolve, *args))  # noqa: E731
        return jax.grad(found, (0, 1, 2))(x, kernel, g)

    for of in (
        lambda c: jax.jvp(partial(slopes, c), (x, kernel, g), (dx, dk, dg)), curvature, twice
    ):  # fmt: skip
        ours, theirs = jax.jit(of, static_argnums=0)(depthwise.convolve), of(grouped)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_any_axis_may_be_mapped(x64, stride):
    x, kernel, g = draw(6, 5, 3, stride)

    def slopes(x, kernel, g):
        return jax.vjp(lambda x, k: depthwise.convolve(x, k, stride), x, kernel)[1](g)

    for axes in itertools.product([None, 0, -1], [None, 0, 1], [None, 0]):
        if axes == (None, None, None):
            continue
        many = [
            a if axis is None else jnp.stack([a, 2 * a, a - 1], axis)
            for a, axis in zip((x, kernel, g), axes, strict=True)
        ]
        found = jax.vmap(slopes, axes)(*many)
        for n in range(3):
            one = [
                a if axis is None else jnp.take(a, n, axis)
                for a, axis in zip(many, axes, strict=True)
            ]
            for a, b in zip(found, slopes(*one), strict=True):
                np.testing.assert_allclose(a[n], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_sums_by_a_loop_are_the_sums(form):
    size, stride = form[2:]
    x, _, g = (a.astype(jnp.float32) for a in draw(*form))
    before = tuple(depthwise.same_padding(side, size, stride)[0] for side in form[:2])
    made = depthwise.Form(size, form[:2], g.shape[1:3], before, stride)
    one, other = (f(x, g, form=made) for f in (depthwise._sums, depthwise._sums_on_cpu))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 3, 5), (3, 3, 1, 3)])
def test_kernels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"kernel must be \[k, k, 3\] for x \(1, 4, 4, 3\); got"):
        depthwise.convolve(jnp.zeros((1, 4, 4, 3)), jnp.zeros(shape), 1)


def check_shards():
    """One part of the batch on each device: the derivatives that a grouped convolution has."""
    mesh = Mesh(np.asarray(jax.devices()), ("b",))
    x, kernel, _ = draw(6, 5, 3, 2)
    images, whole = PartitionSpec("b"), PartitionSpec()

    def derivatives(convolve):
        def loss(kernel, x):
            return lax.psum(jnp.sin(convolve(x, kernel, 2)).sum(), "b")

        slopes = jax.grad(loss, (0, 1))

        def found(kernel, x):
            pushed = jax.jvp(slopes, (kernel, x), (jnp.cos(kernel), jnp.cos(x)))[1]
            twice = jax.grad(lambda kernel: (slopes(kernel, x)[0] ** 2).sum())(kernel)
            return loss(kernel, x), slopes(kernel, x), pushed, twice

        places = whole, (whole, images), (whole, images), whole
        return jax.jit(jax.shard_map(found, mesh=mesh, in_specs=(whole, images), out_specs=places))(
            kernel, x
        )

    ours, theirs = derivatives(depthwise.convolve), derivatives(grouped)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def test_arrays_may_vary_along_other_axes_of_shard_map(x64):
    check_shards()


@pytest.mark.slow
def test_two_devices_are_one():
    here = Path(__file__).parent
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1", "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}",
    }  # fmt: skip
    code = "import jax, test_depthwise as t; assert jax.device_count() == 2; t.check_shards()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
