import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax import hypergrad


def run(optimizer, gradients, params):
    state = optimizer.init(params)
    for g in gradients:
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_forward_values_are_optax_bit_for_bit(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        params = {"a": jnp.asarray(rng.normal(size=7), dtype), "b": jnp.asarray([0.0, 1.0], dtype)}
        gradients = [
            jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), dtype), params)
            for _ in range(5)
        ]
        for jit in (False, True):
            call = (lambda f: jax.jit(f)) if jit else (lambda f: f)
            ours = call(lambda g: run(getattr(hypergrad, name)(1e-2), g, params))(gradients)
            theirs = call(lambda g: run(getattr(optax, name)(1e-2), g, params))(gradients)
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("eps_root", [0.0, 1e-6])
def test_derivative_in_every_gradient_is_the_finite_difference(x64, steps, eps_root):
    rng = np.random.default_rng(1)
    gradients = jnp.asarray(rng.normal(size=(steps, 4)))
    direction = jnp.asarray(rng.normal(size=(steps, 4)))
    # A large eps makes the degenerate first step visible to a finite difference.
    optimizer = hypergrad.adam(0.1, eps=1e-2, eps_root=eps_root)

    def end(t):
        return run(optimizer, list(gradients + t * direction), jnp.zeros(4))[0]

    h = 1e-6
    difference = (end(h) - end(-h)) / (2 * h)
    forward = jax.jvp(end, (0.0,), (1.0,))[1]
    reverse = jax.jacrev(end)(0.0)
    np.testing.assert_allclose(forward, difference, rtol=2e-8, atol=1e-9)
    np.testing.assert_allclose(reverse, forward, rtol=1e-12)


def test_dead_unit_has_the_limit_where_stock_optax_has_nan():
    def first_update(optimizer, g):
        return optimizer.update(g, optimizer.init(g))[0].sum()

    g = jnp.zeros(1)
    assert jnp.isnan(jax.grad(lambda g: first_update(optax.adam(1.0), g))(g)).all()
    for t in (1, 3):
        optimizer = hypergrad.adam(1.0, b1=0.9, eps=1e-8)
        state = optimizer.init(g)
        for _ in range(t - 1):
            _, state = optimizer.update(g, state)
        slope = jax.grad(lambda g, o=optimizer, s=state: o.update(g, s)[0].sum())(g)
        np.testing.assert_allclose(slope, -0.1 / (1 - 0.9**t) / 1e-8, rtol=1e-5)


def test_first_step_has_no_cancellation_in_float32():
    # At t = 1 the derivative is eps / (|g| + eps)^2; automatic differentiation loses digits here.
    g = jnp.asarray([1e-7, -3e-8, 1e-3, 0.5], jnp.float32)
    optimizer = hypergrad.adam(1.0)
    _, slope = jax.jvp(
        lambda g: optimizer.update(g, optimizer.init(g))[0], (g,), (jnp.ones_like(g),)
    )
    exact = -1e-8 / (np.abs(np.asarray(g, np.float64)) + 1e-8) ** 2
    np.testing.assert_allclose(slope, exact, rtol=2e-5)
