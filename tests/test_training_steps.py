"""The real training step, with the real net, in float64 against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax import hypergrad
from tvjax.models.heads import SIGMOID
from tvjax.models.unet import UNet
from tvjax.training import state as states
from tvjax.training import steps
from tvjax.types import Batch

RATE = 0.05
IMAGE = jnp.zeros((1, 8, 8, 3))
pytestmark = pytest.mark.usefixtures("quick_compile")
OPTIMIZERS = {
    "adam": hypergrad.adam(1e-3),
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
}


def batch(seed, n=2, size=8):
    rng = np.random.default_rng(seed)
    mask = (rng.random((n, size, size, 1)) < 0.4).astype(np.uint8)
    image = 60 * mask + rng.integers(0, 190, (n, size, size, 3))
    return Batch(jnp.asarray(image, jnp.float64) / 255, jnp.asarray(mask))


def setting(
    optimizer, *, hyper=-5.0, place="loss", statistics="batch", axis_name=None, reduction="sum"
):
    net = UNet(width=2, depth=1, axis_name=axis_name)
    regularizer = steps.Regularizer(place, "anisotropic", reduction, "log")
    problem = steps.make_problem(
        net, SIGMOID, optimizer, regularizer, statistics=statistics, axis_name=axis_name
    )
    init = jax.jit(lambda: UNet(width=2, depth=1).init(jax.random.key(0), IMAGE, train=False))
    variables = init()
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
    hyper = jnp.asarray(hyper, jnp.float64)
    model_state = steps.model_state_of(variables["batch_stats"], regularizer.weight(hyper))
    state = states.create(
        problem, variables["params"], model_state, hyper, hypergrad.exact(), optax.sgd(1.0)
    )
    return problem, regularizer, state


def advanced(problem, regularizer, state, n):
    step = jax.jit(steps.plain_step(problem, regularizer))
    for i in range(n):
        state, _ = step(state, [batch(i)])
    return state


@pytest.mark.parametrize(
    "name, statistics", [("adam", "batch"), ("adam", "running"), ("sgd", "batch")]
)
def test_exact_hypergradient_of_the_training_step_is_the_finite_difference(x64, name, statistics):
    problem, regularizer, state = setting(OPTIMIZERS[name], statistics=statistics)
    state = advanced(problem, regularizer, state, 2)
    step = jax.jit(steps.bilevel_step(problem, regularizer, hypergrad.exact(), optax.sgd(1.0)))

    def outer_loss(hyper):
        return step(state._replace(hyper=hyper), [batch(10)], batch(20))[1]["outer_loss"]

    h = 1e-4
    # The fourth-order difference: the second-order one's own error would hide ours.
    near, far = (outer_loss(state.hyper + k * h) - outer_loss(state.hyper - k * h) for k in (1, 2))
    difference = (8 * near - far) / (12 * h)
    new, metrics = step(state, [batch(10)], batch(20))
    np.testing.assert_allclose(metrics["hypergradient"], difference, rtol=1e-6)
    assert metrics["hypergradient"] != 0
    np.testing.assert_allclose(new.hyper, state.hyper - metrics["hypergradient"], rtol=1e-12)


def test_formulas_agree_with_the_exact_derivative_as_theory_says(x64):
    for name, formula_is_exact in (("momentum", True), ("adam", False)):
        problem, regularizer, state = setting(OPTIMIZERS[name])
        state = advanced(problem, regularizer, state, 2)
        gradient = {
            method: jax.jit(steps.bilevel_step(problem, regularizer, estimator, optax.sgd(1.0)))(
                state, [batch(10)], batch(20)
            )[1]["hypergradient"]
            for method, estimator in {
                "exact": hypergrad.exact(),
                "reverse": hypergrad.exact(mode="reverse"),
                "sgd_formula": hypergrad.sgd_formula(RATE),
                "paper": hypergrad.paper(RATE),
            }.items()
        }
        np.testing.assert_allclose(gradient["reverse"], gradient["exact"], rtol=1e-10)
        if formula_is_exact:
            np.testing.assert_allclose(gradient["sgd_formula"], gradient["exact"], rtol=1e-10)
        else:
            assert abs(gradient["sgd_formula"] / gradient["exact"] - 1) > 0.1
        assert abs(gradient["paper"] / gradient["exact"] - 1) > 1e-3


@pytest.mark.parametrize("method", ["plain", "exact", "sgd_formula", "paper"])
def test_four_devices_are_one(x64, method):
    """vmap with an axis name stands for devices: the losses are local, the means explicit."""
    estimator = {
        "plain": None,
        "exact": hypergrad.exact(),
        "sgd_formula": hypergrad.sgd_formula(RATE),
        "paper": hypergrad.paper(RATE),
    }[method]

    def run(axis_name):
        problem, regularizer, _ = setting(OPTIMIZERS["adam"], axis_name=axis_name)
        plain = steps.plain_step(problem, regularizer)
        if estimator is None:
            return lambda s, t, v: plain(plain(s, [t])[0], [t])
        bilevel = steps.bilevel_step(problem, regularizer, estimator, optax.sgd(1.0))
        return lambda s, t, v: bilevel(plain(s, [t])[0], [t], v)

    state = setting(OPTIMIZERS["adam"])[2]
    train, val = batch(1, 8), batch(2, 8)
    whole = jax.jit(run(None))(state, train, val)
    shards = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), (train, val))
    parts = jax.jit(jax.vmap(lambda t, v: run("devices")(state, t, v), axis_name="devices"))(
        *shards
    )
    for i in (0, 3):
        part = jax.tree.map(lambda x, i=i: x[i], parts)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), part, whole
        )


@pytest.mark.parametrize("reduction", ["sum", "image", "pixel"])
def test_weight_a_pixel(x64, reduction):
    problem, regularizer, state = setting(optax.sgd(0.1), reduction=reduction)
    _, metrics = jax.jit(steps.plain_step(problem, regularizer))(state, [batch(0)])
    lam = float(metrics["lambda"])
    # Mean TV a pixel, by the definition of the summed one.
    summed = setting(optax.sgd(0.1), reduction="sum")
    tv = jax.jit(steps.plain_step(*summed[:2]))(summed[2], [batch(0)])[1]["tv"] / (2 * 8 * 8)
    weight = regularizer.pixel_weight(lam, (2, 8, 8))
    np.testing.assert_allclose(metrics["loss"], metrics["bce"] + weight * tv, rtol=1e-12)


def test_plain_training_does_not_depend_on_lambda_unless_tv_is_in_the_loss(x64):
    trajectories = []
    for hyper in (-3.0, -8.0):
        problem, regularizer, state = setting(OPTIMIZERS["adam"], hyper=hyper, place="none")
        trajectories.append(advanced(problem, regularizer, state, 2).inner.params)
    jax.tree.map(np.testing.assert_array_equal, *trajectories)


def test_evaluation_counts_no_padding():
    net = UNet(width=2, depth=1)
    regularizer = steps.Regularizer("none", "anisotropic", "sum", "log")
    problem = steps.make_problem(net, SIGMOID, optax.sgd(0.1), regularizer)
    variables = jax.jit(lambda: net.init(jax.random.key(0), IMAGE, train=False))()
    state = states.create(
        problem, variables["params"],
        steps.model_state_of(variables["batch_stats"], jnp.zeros(())),
        jnp.zeros(()), None, optax.sgd(1.0),
    )  # fmt: skip
    evaluate = jax.jit(steps.evaluation_step(net, SIGMOID, regularizer))
    data = jax.tree.map(lambda x: x.astype(jnp.float32), batch(0, 3))
    whole = evaluate(state, data, jnp.ones(3))
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[-1:]]), data)
    again = evaluate(state, padded, jnp.asarray([1.0, 1.0, 1.0, 0.0]))
    assert whole["images"] == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, whole)


def test_linear_parametrization_stays_at_zero_or_above(x64):
    regularizer = steps.Regularizer("loss", "anisotropic", "sum", "linear")
    problem = steps.make_problem(UNet(width=2, depth=1), SIGMOID, optax.sgd(0.1), regularizer)
    _, _, state = setting(optax.sgd(0.1), hyper=1e-9)
    step = jax.jit(steps.bilevel_step(problem, regularizer, hypergrad.exact(), optax.sgd(1.0)))
    state, metrics = step(state, [batch(0)], batch(1))
    assert state.hyper >= 0
    assert metrics["lambda"] == 1e-9
