"""The real training step, with the real net, in float64 against finite differences."""

from functools import partial

import devices
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import initial

from tvjax import hypergrad
from tvjax.hypergrad import SCANNED
from tvjax.models.heads import SIGMOID, make_head
from tvjax.models.unet import UNet
from tvjax.training import evaluation, steps
from tvjax.training import state as states
from tvjax.types import Batch

RATE = 0.05
OPTIMIZERS = {
    "adam": hypergrad.adam(1e-3),
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
}


def batch(seed, n=2, size=8):
    rng = np.random.default_rng(seed)
    mask = (rng.random((n, size, size, 1)) < 0.4).astype(np.uint8)
    image = 60 * mask + rng.integers(0, 190, (n, size, size, 3))
    return Batch(jnp.asarray(image / 255, jax.dtypes.canonicalize_dtype(float)), jnp.asarray(mask))


def setting(
    optimizer, *, hyper=-5.0, place="loss", statistics="batch", axis_name=None, reduction="sum"
):
    net = UNet(width=2, depth=1, axis_name=axis_name)
    regularizer = steps.Regularizer(place, "anisotropic", reduction, "log")
    problem = steps.make_problem(
        net, SIGMOID, optimizer, regularizer, statistics=statistics, axis_name=axis_name
    )
    variables = initial(UNet(width=2, depth=1), jnp.float64)
    hyper = jnp.asarray(hyper, jnp.float64)
    model_state = {"batch_stats": variables["batch_stats"]}
    state = states.create(
        problem, variables["params"], model_state, hyper, hypergrad.exact(), optax.sgd(1.0)
    )
    return problem, regularizer, state


# One program a problem, for compiling is what takes the time here.
ESTIMATORS = {
    "exact": hypergrad.exact(),
    "sgd_formula": hypergrad.sgd_formula(RATE),
    "paper": hypergrad.paper(RATE),
}


@pytest.mark.parametrize(
    "name, statistics",
    [
        ("adam", "batch"),
        pytest.param("momentum", "batch", marks=pytest.mark.slow),
        pytest.param("adam", "running", marks=pytest.mark.slow),
        pytest.param("sgd", "batch", marks=pytest.mark.slow),
    ],
)
def test_hypergradients_of_the_training_step(x64, name, statistics):
    """Exact = finite difference; the formulas differ from it just where theory says.

    At step 2 and at step 50, in a net with a dead unit, whose gradients are exactly zero.
    """
    problem, _, state = setting(OPTIMIZERS[name], statistics=statistics)
    biases = state.inner.params["BatchNorm_0"]["bias"].at[0].set(-100.0)
    params = dict(state.inner.params)
    params["BatchNorm_0"] = params["BatchNorm_0"] | {"bias": biases}
    inner = state.inner._replace(params=params)

    @jax.jit
    def estimates(inner, hyper, train):
        return {k: e(problem, inner, hyper, [train], batch(20)) for k, e in ESTIMATORS.items()}

    for i in range(51):
        if i in (2, 50):
            found = estimates(inner, state.hyper, batch(100))
            exact = found["exact"].gradient
            h = 1e-4
            # The fourth-order difference: the second-order one's own error would hide ours.
            near, far = (
                estimates(inner, state.hyper + k * h, batch(100))["exact"].outer_loss
                - estimates(inner, state.hyper - k * h, batch(100))["exact"].outer_loss
                for k in (1, 2)
            )
            np.testing.assert_allclose(exact, (8 * near - far) / (12 * h), rtol=1e-6)
            assert exact != 0
            if name == "adam":
                assert abs(found["sgd_formula"].gradient / exact - 1) > 0.1
            else:
                np.testing.assert_allclose(found["sgd_formula"].gradient, exact, rtol=1e-10)
            assert abs(found["paper"].gradient / exact - 1) > 1e-3
        inner = estimates(inner, state.hyper, batch(i))["exact"].state


def test_the_formula_is_the_hypergradient_of_gradient_descent(x64):
    """The problem is the training step's own, with BatchNorm and a net that compiles quickly."""
    net = devices.Pixels(1, 2, 1, 0.9, "float64", None)
    regularizer = steps.Regularizer("loss", "anisotropic", "sum", "log")
    problem = steps.make_problem(net, SIGMOID, optax.sgd(RATE, momentum=0.9), regularizer)
    variables = initial(net, jnp.float64)
    params = variables["params"]
    alpha = jnp.asarray(-3.0)
    state = problem.init(params, {"batch_stats": variables["batch_stats"]})
    exact, formula = jax.jit(
        lambda s, a: [
            e(problem, s, a, [batch(1)], batch(2)).gradient
            for e in (hypergrad.exact(), hypergrad.sgd_formula(RATE))
        ]
    )(state, alpha)
    np.testing.assert_allclose(formula, exact, rtol=1e-10)
    assert exact != 0


@pytest.mark.slow  # a small net on real devices is in test_training_devices.py
@pytest.mark.parametrize("method", ["exact", "sgd_formula", "paper"])
def test_four_devices_are_one(x64, method):
    """vmap with an axis name stands for devices: the losses are local, the means explicit."""

    def step(axis_name):
        problem, regularizer, _ = setting(OPTIMIZERS["adam"], axis_name=axis_name)
        return steps.bilevel_step(problem, regularizer, ESTIMATORS[method], optax.sgd(1.0))

    state = setting(OPTIMIZERS["adam"])[2]
    # Moments as after some steps: at the first one Adam's derivative is degenerate.
    moments = jax.tree.map(lambda x: 0.01 * jnp.cos(x), state.inner.params)
    adam = optax.ScaleByAdamState(jnp.int32(9), moments, jax.tree.map(jnp.square, moments))
    state = state._replace(inner=state.inner._replace(opt_state=(adam, *state.inner.opt_state[1:])))
    train, val = batch(1, 8), batch(2, 8)
    whole = jax.jit(step(None))(state, [train], val)
    shards = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), (train, val))
    parts = jax.jit(jax.vmap(lambda t, v: step("devices")(state, [t], v), axis_name="devices"))(
        *shards
    )

    def same(part, whole):
        rtol = 1e-8 if whole.dtype == jnp.float64 else 1e-6  # counts of pixels are float32
        np.testing.assert_allclose(part, whole, rtol=rtol, atol=1e-10)

    for i in (0, 3):
        jax.tree.map(same, jax.tree.map(lambda x, i=i: x[i], parts), whole)
    assert whole[1]["hypergradient"] != 0


@pytest.mark.parametrize("reduction", ["sum", "image", "pixel"])
def test_weight_a_pixel(reduction):
    regularizer = steps.Regularizer("loss", "anisotropic", reduction, "log")
    tv = jnp.asarray([3.0, 5.0])  # of two images of 8 x 8
    reduced = steps.reduce_tv(tv, reduction, 64, None)
    weight = regularizer.pixel_weight(0.1, (2, 8, 8))
    np.testing.assert_allclose(0.1 * reduced, weight * jnp.sum(tv) / (2 * 64), rtol=1e-6)


def with_head(head, lam, *, place="loss", statistics="batch"):
    """A net with this head, its problem and state, and alpha for these lambdas."""
    net = UNet(width=2, depth=1, channels=head.channels)
    regularizer = steps.Regularizer(place, "anisotropic", "sum", "log")
    problem = steps.make_problem(
        net, head, hypergrad.adam(1e-3), regularizer, statistics=statistics
    )
    variables = initial(net, jnp.float64)
    model_state = {"batch_stats": variables["batch_stats"]}
    return net, problem, problem.init(variables["params"], model_state), jnp.log(lam)


def test_weights_of_blocks_and_classes_weigh_what_they_say(x64):
    head = make_head(name="softmax", num_iterations=1, kind="anisotropic")
    lam = jnp.arange(1.0, 9.0).reshape(2, 2, 2)  # two by two blocks, two classes
    net, problem, state, alpha = with_head(head, lam)
    data = batch(0)
    loss, (_, aux) = jax.jit(problem.inner)(state.params, alpha, data, state.model_state)
    variables = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
    apply = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))
    logits, _ = apply(variables, data.image)
    p = np.asarray(jax.nn.softmax(logits))
    weights = np.kron(np.asarray(lam), np.ones((4, 4, 1)))
    expected = sum(
        np.sum(np.minimum(np.delete(weights, 0, i), np.delete(weights, -1, i)) * np.abs(d))
        for i, d in ((0, np.diff(p, axis=1)), (1, np.diff(p, axis=2)))
    )
    np.testing.assert_allclose(loss - aux["bce"], expected / 2, rtol=1e-10)  # of two classes
    np.testing.assert_allclose(aux["tv"], np.abs(np.diff(p[..., 1], axis=1)).sum()
                               + np.abs(np.diff(p[..., 1], axis=2)).sum())  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param("sigmoid", marks=pytest.mark.slow), "softmax"])
def test_equal_weights_are_one_lambda(name):
    head = make_head(name=name, num_iterations=1, kind="anisotropic")
    logits = np.random.default_rng(0).normal(size=(2, 8, 8, head.channels)).astype(np.float32)

    class Net:  # whose logits are given
        def apply(self, variables, images, train, mutable):
            return logits, {}

    regularizer = steps.Regularizer("loss", "anisotropic", "sum", "linear")
    problem = steps.make_problem(Net(), head, optax.sgd(0.1), regularizer)
    loss = jax.jit(lambda lam: problem.inner({}, lam, batch(0), {"batch_stats": {}})[0])
    scalar = loss(jnp.float32(0.1))
    for shape in {(2, 2, 1), (2, 2, head.channels)}:
        np.testing.assert_allclose(loss(jnp.full(shape, 0.1)), scalar, rtol=1e-5)


@pytest.mark.slow
def test_the_hypergradient_of_many_weights_is_exact(x64):
    head = make_head(name="softmax", num_iterations=1, kind="anisotropic")
    lam = 0.01 * jnp.arange(1.0, 9.0).reshape(2, 2, 2)
    _, problem, state, alpha = with_head(head, lam)
    along = jnp.cos(jnp.arange(8.0)).reshape(2, 2, 2)
    gradient, difference = after_two_steps(hypergrad.exact(), problem, state, alpha, along)
    np.testing.assert_allclose(jnp.vdot(gradient, along), difference, rtol=1e-6)


def after_two_steps(estimator, problem, state, alpha, along=1.0):
    """The estimate after two steps of training, and the fourth-order finite difference."""
    k, h = estimator.steps, 1e-4
    estimate = jax.jit(
        lambda s, a, i: estimator(problem, s, a, [batch(i + n) for n in range(k)], batch(20)),
        static_argnums=2,
    )
    step = jax.jit(problem.inner_step)
    for i in range(2):
        state, _ = step(state, alpha, batch(i))
    near, far = (
        estimate(state, alpha + n * h * along, 10).outer_loss
        - estimate(state, alpha - n * h * along, 10).outer_loss
        for n in (1, 2)
    )
    return estimate(state, alpha, 10).gradient, (8 * near - far) / (12 * h)


@pytest.mark.slow
def test_the_hypergradient_of_a_tv_softmax_head_is_exact_with_its_direct_term(x64):
    head = make_head(name="tv_softmax", num_iterations=1, kind="anisotropic")
    _, problem, state, alpha = with_head(head, jnp.asarray(0.01), place="head")
    gradient, difference = after_two_steps(hypergrad.exact(), problem, state, alpha)
    np.testing.assert_allclose(gradient, difference, rtol=1e-9)
    cut = problem._replace(  # the outer loss at the lambda before the step: no direct term
        outer_loss=lambda params, alpha, data, model_state: problem.outer_loss(
            params, jax.lax.stop_gradient(alpha), data, model_state
        )
    )
    indirect, _ = after_two_steps(hypergrad.exact(), cut, state, alpha)
    assert abs(indirect / gradient - 1) > 0.1


@pytest.mark.slow
def test_three_steps_of_the_net_have_one_derivative_whichever_way(x64):
    """Adam's moments and BatchNorm's running statistics count: the outer loss reads them."""
    _, problem, state, alpha = with_head(SIGMOID, jnp.asarray(1e-3), statistics="running")
    forward, difference = after_two_steps(hypergrad.forward(3, loop=SCANNED), problem, state, alpha)
    reverse, _ = after_two_steps(hypergrad.reverse(3, loop=SCANNED), problem, state, alpha)
    np.testing.assert_allclose(forward, reverse, rtol=1e-12)
    np.testing.assert_allclose(forward, difference, rtol=1e-7)


def test_linear_parametrization_stays_at_zero_or_above():
    regularizer = steps.Regularizer("loss", "anisotropic", "sum", "linear")
    assert regularizer.project(jnp.asarray(-1.0)) == 0
    assert regularizer.lam(regularizer.project(jnp.asarray(2.0))) == 2


def test_evaluation_counts_no_padding():
    net = UNet(width=2, depth=1)
    regularizer = steps.Regularizer("none", "anisotropic", "sum", "log")
    problem = steps.make_problem(net, SIGMOID, optax.sgd(0.1), regularizer)
    variables = initial(net, jnp.float32)
    state = states.create(
        problem, variables["params"],
        {"batch_stats": variables["batch_stats"]},
        jnp.zeros(()), None, optax.sgd(1.0),
    )  # fmt: skip
    evaluate = jax.jit(steps.evaluation_step(net, SIGMOID, regularizer))
    data = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch(0, 3))
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[-1:]]), data)

    def sums(data, valid):
        masks, bce = jax.device_get(evaluate(state, None, data))
        scores = evaluation.image_scores(masks, np.asarray(data.mask), bce, np.array(valid))
        return evaluation.sums(scores)

    whole, again = sums(data, [True] * 3), sums(padded, [True] * 3 + [False])
    assert whole["images"] == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, whole)
