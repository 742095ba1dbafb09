"""One-step estimators on a small problem, against finite differences of the step itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax import hypergrad


def problem(optimizer):
    """A two-layer net with one dead unit, regularised by two weights; float64."""

    def inner(params, hyper, batch):
        x, y = batch
        h = jax.nn.relu(x @ params["w"])
        penalty = jnp.sum(jnp.sqrt(1e-2 + params["w"] ** 2))
        return (
            jnp.mean((h @ params["v"] - y) ** 2)
            + jnp.exp(hyper["a"]) * penalty
            + jnp.sum(hyper["b"] * params["v"] ** 2)
        )

    def outer(params, hyper, batch):
        x, y = batch
        return jnp.mean((jax.nn.relu(x @ params["w"]) @ params["v"] - y) ** 2)

    return hypergrad.Bilevel(inner, outer, optimizer)


@pytest.fixture
def setting(x64):
    return arrays()


def arrays():
    """Parameters with a dead unit, hyperparameters, two batches; of JAX's default precision."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(5, 3))
    w[:, 1] = 0.0  # a dead unit: only the penalty's own gradient, which is zero there too
    params = {"w": jnp.asarray(w), "v": jnp.asarray(rng.normal(size=3))}
    batches = [
        (jnp.asarray(rng.normal(size=(8, 5))), jnp.asarray(rng.normal(size=8))) for _ in "ab"
    ]
    hyper = {"a": jnp.asarray(-1.0), "b": jnp.asarray([0.1, 0.2, 0.05])}
    return params, hyper, batches


def after(steps, p, params, hyper, batch):
    state = p.init(params)
    for _ in range(steps):
        state, _ = p.inner_step(state, hyper, batch)
    return state


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "heavy_ball": optax.sgd(0.1, momentum=0.9),
    "adam": hypergrad.adam(0.01),
    "adamw": hypergrad.adamw(0.01),
    "clipped_adam": optax.chain(optax.clip_by_global_norm(0.5), hypergrad.adam(0.01)),
}


@pytest.mark.parametrize("mode", ["forward", "reverse", None])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exact_is_the_finite_difference(setting, name, mode):
    params, hyper, (train, val) = setting
    p = problem(OPTIMIZERS[name])
    state = after(3, p, params, hyper, train)
    estimate = jax.jit(lambda s, h: hypergrad.exact(mode=mode)(p, s, h, [train], val))(state, hyper)

    def loss_after(hyper):
        return p.outer_loss(p.inner_step(state, hyper, train)[0].params, hyper, val)

    np.testing.assert_allclose(estimate.outer_loss, loss_after(hyper), rtol=1e-12)
    flat, unravel = jax.flatten_util.ravel_pytree(hyper)
    h = 1e-6
    difference = [
        (loss_after(unravel(flat + h * e)) - loss_after(unravel(flat - h * e))) / (2 * h)
        for e in np.eye(flat.size)
    ]
    gradient = jax.flatten_util.ravel_pytree(estimate.gradient)[0]
    scale = np.max(np.abs(difference))
    np.testing.assert_allclose(gradient, difference, rtol=0, atol=1e-6 * scale)
    jax.tree.map(np.testing.assert_allclose, estimate.state, p.inner_step(state, hyper, train)[0])


@pytest.mark.parametrize("name", ["sgd", "heavy_ball"])
def test_formula_is_exact_for_gradient_descent_and_the_printed_one_is_not(setting, name):
    params, hyper, (train, val) = setting
    p = problem(OPTIMIZERS[name])
    state = after(3, p, params, hyper, train)
    exact = hypergrad.exact()(p, state, hyper, [train], val).gradient
    formula = hypergrad.sgd_formula(0.1)(p, state, hyper, [train], val).gradient
    printed = hypergrad.paper(0.1)(p, state, hyper, [train], val).gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), formula, exact)
    assert abs(printed["a"] / exact["a"] - 1) > 0.01


def test_formula_takes_a_schedule(setting):
    params, hyper, (train, val) = setting
    schedule = optax.linear_schedule(0.2, 0.05, 4)
    p = problem(optax.sgd(schedule))
    state = after(2, p, params, hyper, train)
    exact = hypergrad.exact()(p, state, hyper, [train], val).gradient
    formula = hypergrad.sgd_formula(schedule)(p, state, hyper, [train], val).gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), formula, exact)


def test_formula_is_not_the_gradient_under_adam(setting):
    params, hyper, (train, val) = setting
    p = problem(OPTIMIZERS["adam"])
    state = after(3, p, params, hyper, train)
    exact = hypergrad.exact()(p, state, hyper, [train], val).gradient["a"]
    formula = hypergrad.sgd_formula(0.01)(p, state, hyper, [train], val).gradient["a"]
    assert abs(formula / exact - 1) > 0.5


def test_dead_units_and_zero_parameters_give_a_finite_derivative_at_the_first_step(x64):
    p = hypergrad.Bilevel(
        lambda params, lam, batch: lam * jnp.sum(params),
        lambda params, lam, batch: jnp.sum(params),
        hypergrad.adam(1e-3),
    )
    estimate = hypergrad.exact()(p, p.init(jnp.zeros(2)), jnp.asarray(0.0), [None], None)
    np.testing.assert_allclose(estimate.gradient, -2 * 1e-3 / 1e-8, rtol=1e-6)


def test_the_number_of_inner_batches_is_checked(setting):
    params, hyper, (train, val) = setting
    p = problem(OPTIMIZERS["sgd"])
    with pytest.raises(ValueError, match=r"inner_batches must be a list of 1, .*got 2"):
        hypergrad.exact()(p, p.init(params), hyper, [train, train], val)
    with pytest.raises(ValueError, match="'sideways'"):
        hypergrad.exact(mode="sideways")


@pytest.mark.parametrize("method", ["forward", "reverse", "formula", "paper"])
def test_average_over_devices_is_the_whole_batch(setting, method):
    """vmap with an axis name stands for devices; the means must stand before the nonlinearity."""
    params, hyper, (train, val) = setting
    estimator = {
        "forward": hypergrad.exact(mode="forward"),
        "reverse": hypergrad.exact(mode="reverse"),
        "formula": hypergrad.sgd_formula(0.01),
        "paper": hypergrad.paper(0.01),
    }[method]
    p = problem(OPTIMIZERS["adam"])
    state = after(3, p, params, hyper, train)
    whole = estimator(p, state, hyper, [train], val)
    shards = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), (train, val))
    parts = jax.vmap(
        lambda t, v: estimator(p._replace(axis_name="d"), state, hyper, [t], v), axis_name="d"
    )(*shards)
    for part in (jax.tree.map(lambda x, i=i: x[i], parts) for i in range(4)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), part, whole)


@pytest.mark.slow
def test_float32_keeps_the_digits_that_it_can():
    """Ten steps of Adam come before; the whole run in float32, against the whole run in float64.

    Rounding the data to float32 once, and nothing else, moves these numbers by up to 3e-6; ten
    steps of rounding were seen to give 5e-6 (`exact`) and 1.7e-5 (`forward`).
    """

    def gradients(precise):
        with jax.enable_x64(precise):
            params, hyper, (train, val) = arrays()
            p = problem(OPTIMIZERS["adam"])

            @jax.jit
            def both(params, hyper):
                ten = hypergrad.forward(10, loop=hypergrad.SCANNED)
                whole = ten(p, p.init(params), hyper, [train] * 10, val)
                return hypergrad.exact()(p, whole.state, hyper, [train], val).gradient, (
                    whole.gradient
                )

            found = both(params, hyper)
            return [np.asarray(jax.flatten_util.ravel_pytree(g)[0]) for g in found]

    bounds = {"exact": 1e-5, "forward": 5e-5}
    for name, rough, true in zip(bounds, *map(gradients, (False, True)), strict=True):
        assert (rough.dtype, true.dtype) == (jnp.float32, jnp.float64)
        error = np.max(np.abs(rough - true)) / np.max(np.abs(true))
        print(f"{name}: {error:.1e}")
        assert error < bounds[name]


@pytest.mark.parametrize("y, sign", [(0.5, 1), (2.0, -1)])
def test_one_step_may_point_the_other_way_than_the_run(x64, y, sign):
    """Early in training the exact derivative of the next loss opposes that of the whole run."""
    a, b, c, x, rate = 1.0, 2.0, 1.0, 0.0, 0.1
    problem = hypergrad.Bilevel(
        lambda y, x, _: a / 2 * (y - b) ** 2 + x / 2 * y**2,
        lambda y, x, _: (y - c) ** 2 / 2,
        optax.sgd(rate),
    )
    args = problem, problem.init(jnp.asarray(y)), jnp.asarray(x)
    found = hypergrad.exact()(*args, [0.0], 0.0).gradient
    after = y - rate * (a * (y - b) + x * y)
    assert found == pytest.approx(-rate * (after - c) * y, rel=1e-12)
    assert np.sign(found) == sign
    optimum = a * b / (a + x)
    truth = -(optimum - c) * optimum / (a + x)
    for estimator in (
        hypergrad.reverse(300, loop=hypergrad.SCANNED),
        hypergrad.forward(300, loop=hypergrad.SCANNED),
    ):
        run = estimator(*args, [0.0] * 300, 0.0).gradient
        assert run == pytest.approx(truth, rel=1e-9) and truth == -2
