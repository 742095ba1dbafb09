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


# Settings that are arrays, as `optax.inject_hyperparams` makes them.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_injected_settings_give_the_values_of_optax_bit_for_bit(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        params = jnp.asarray(rng.normal(size=7), dtype)
        gradients = [jnp.asarray(rng.normal(size=7), dtype) for _ in range(4)]
        rate = optax.linear_schedule(0.0, 0.1, 3)
        ours, theirs = (
            run(optax.inject_hyperparams(f)(rate, b1=0.8, eps_root=1e-9), gradients, params)
            for f in (getattr(hypergrad, name), getattr(optax, name))
        )
        np.testing.assert_array_equal(ours[0], theirs[0])
        jax.tree.map(np.testing.assert_array_equal, ours[1].inner_state, theirs[1].inner_state)


@pytest.mark.parametrize("setting", ["b1", "b2", "eps", "eps_root"])
def test_derivative_in_a_setting_is_the_finite_difference(x64, setting):
    gradients = list(jnp.asarray(np.random.default_rng(1).normal(size=(3, 4))))
    settings = {"b1": 0.9, "b2": 0.99, "eps": 0.1, "eps_root": 0.01}

    def end(t):
        optimizer = hypergrad.adam(0.1, **(settings | {setting: settings[setting] + t}))
        return run(optimizer, gradients, jnp.zeros(4))[0]

    h, zero = 1e-5, jnp.asarray(0.0)
    difference = (end(zero + h) - end(zero - h)) / (2 * h)
    np.testing.assert_allclose(jax.jvp(end, (zero,), (zero + 1,))[1], difference, rtol=1e-7)
    np.testing.assert_allclose(jax.jacrev(end)(zero), difference, rtol=1e-7)


@pytest.mark.parametrize("setting", ["b1", "b2", "eps", "eps_root"])
@pytest.mark.parametrize("steps", [1, 2, 3, 30])
def test_derivative_in_a_setting_in_float32_is_that_in_float64(x64, setting, steps):
    """Automatic differentiation is off by 2 % in b2 at the second step; at the first all is 0."""
    gradients = np.random.default_rng(0).normal(size=(steps, 5))
    value = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 1e-10}[setting]

    def slope(dtype):
        def last(x):
            optimizer = hypergrad.adam(1.0, **{setting: x})
            state = optimizer.init(jnp.zeros(5, dtype))
            for g in jnp.asarray(gradients, dtype):
                updates, state = optimizer.update(g, state)
            return updates

        at = jnp.float32(value).astype(dtype)
        return jax.jvp(last, (at,), (jnp.ones_like(at),))[1]

    single, double = slope(jnp.float32), slope(jnp.float64)
    np.testing.assert_allclose(single, double, atol=5e-4 * abs(double).max(), rtol=0)
    assert single.dtype == jnp.float32


# Sizes whose squares overflow, or are 0.


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e-12, 1e15, 1e18, 1e20, 1e30, 1e37])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_derivative_in_float32_is_that_in_float64_at_any_size(x64, size, count):
    optimizer = hypergrad.scale_by_adam()
    v = np.float32(size) ** 2 / 2 if count and 1e-18 < size < 1e18 else 0.0

    def slopes(dtype):
        def direction(g, m, v):
            state = optax.ScaleByAdamState(jnp.asarray(count), m, v)
            return optimizer.update(g, state)[0]

        at = [jnp.asarray(x, dtype) for x in (-0.3 * size, 0.7 * size * (count > 0), v)]
        along = [jnp.asarray(x, dtype) for x in (0.4 * size, 0.2 * size, 0.1 * v)]
        forward = jax.jvp(direction, at, along)[1]
        return [forward, *jax.grad(direction, argnums=(0, 1))(*at)]

    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(slopes("float32"), slopes("float64"), rtol=1e-4, atol=4 * tiny)


def test_a_second_moment_that_overflowed_stays_without_a_derivative():
    def end(g):
        return run(hypergrad.adam(0.1), [g, g / 1e20, g / 1e20], jnp.zeros(1))[0][0]

    g = jnp.asarray([3e20])
    assert jnp.isinf(run(hypergrad.adam(0.1), [g], jnp.zeros(1))[1][0].nu).all()
    for slope in (jax.jvp(end, (g,), (g,))[1], jax.grad(end)(g)[0]):
        assert abs(slope) < 1e-6  # the sign of g, in the first step; nothing after it


def test_complex_gradients_are_refused_when_differentiated():
    optimizer, g = hypergrad.adam(0.1), jnp.asarray([1.0 + 2.0j])
    with pytest.raises(ValueError, match="real gradients only, got complex64"):
        jax.jvp(lambda g: optimizer.update(g, optimizer.init(g))[0], (g,), (g,))
