"""All estimators on the same problems: known answers, each other, and one contract."""

import doctest
import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax import hypergrad
from tvjax.hypergrad import SCANNED, UNROLLED
from tvjax.hypergrad.reverse import step
from tvjax.krylov import conjugate_gradients

RATE, DECAY = 0.1, 0.9


@pytest.fixture(autouse=True)
def quick(request):
    """Compiles in half the time; arrays are tiny. Not where the compiled program is the point."""
    fast = "memory" not in request.node.name
    jax.config.update("jax_disable_most_optimizations", fast)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# Ridge regression, whose hypergradient has a closed form (scikit-learn's diabetes, 221 rows).


def mse(w, a, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def ridge_loss(w, a, batch):
    return mse(w, a, batch) + jnp.exp(a) * jnp.sum(w**2) / 2


class Ridge:
    """Numpy's own answers, for a = log lambda."""

    def __init__(self, a):
        datasets = pytest.importorskip("sklearn.datasets")
        x, y = datasets.load_diabetes(return_X_y=True)
        x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
        order = np.random.default_rng(0).permutation(len(y))
        self.train, self.val = ((x[i], y[i]) for i in (order[:221], order[221:]))
        x, y = self.train
        self.a, self.lam = a, np.exp(a)
        self.hessian = x.T @ x / len(y) + self.lam * np.eye(10)
        self.b = x.T @ y / len(y)
        self.optimum = np.linalg.solve(self.hessian, self.b)
        self.rate = 1 / np.linalg.eigvalsh(self.hessian)[-1]

    def outer_gradient(self, w):
        x, y = self.val
        return x.T @ (x @ w - y) / len(y)

    def along(self, inverse):
        """-lambda <w*, inverse grad L_out(w*)>."""
        return -self.lam * self.optimum @ inverse @ self.outer_gradient(self.optimum)

    def neumann(self, terms):
        m = np.eye(10) - self.rate * self.hessian
        return self.along(self.rate * sum(np.linalg.matrix_power(m, j) for j in range(terms + 1)))

    def nystrom(self, damping):
        return self.along(np.linalg.inv(self.hessian + damping * np.eye(10)))

    def descent(self, steps):
        """The derivative of plain gradient descent from 0, by its recurrence."""
        w, z = np.zeros(10), np.zeros(10)
        for _ in range(steps):
            z = z - self.rate * (self.hessian @ z + self.lam * w)
            w = w - self.rate * (self.hessian @ w - self.b)
        return self.outer_gradient(w) @ z

    def estimate(self, estimator, momentum=None, start="optimum"):
        problem = hypergrad.Bilevel(ridge_loss, mse, optax.sgd(self.rate, momentum=momentum))
        state = problem.init(jnp.asarray(self.optimum if start == "optimum" else np.zeros(10)))
        train, val = jax.tree.map(jnp.asarray, (self.train, self.val))
        # The data is closed over, so that 1000 steps do not mean 1000 copies of it.
        problem = problem._replace(inner_loss=lambda w, a, _: ridge_loss(w, a, train))
        call = jax.jit(
            lambda state, a: estimator(problem, state, a, [None] * estimator.steps, val).gradient
        )
        return float(call(state, jnp.asarray(self.a)))


@pytest.fixture(params=[-3.0, pytest.param(1.0, marks=pytest.mark.slow)], ids=["a=-3", "a=1"])
def ridge(x64, request):
    return Ridge(request.param)


TRUTH = {-3.0: -2.5348277018e-03, 1.0: 5.8750834086e-02}


def test_ridge_is_the_known_number(ridge):
    truth = ridge.along(np.linalg.inv(ridge.hessian))
    np.testing.assert_allclose(truth, TRUTH[ridge.a], rtol=2e-11)


@pytest.mark.parametrize("loop", [UNROLLED, SCANNED], ids=["unrolled", "scanned"])
def test_ridge_conjugate_gradients_are_exact(ridge, loop):
    value = ridge.estimate(hypergrad.cg(10, loop=loop))
    np.testing.assert_allclose(value, TRUTH[ridge.a], rtol=1e-8)


@pytest.mark.parametrize("name", ["reverse", "forward", "reversible"])
def test_ridge_heavy_ball_of_1000_steps_is_exact(ridge, name):
    extra = (ridge.rate, DECAY) if name == "reversible" else ()
    estimator = getattr(hypergrad, name)(1000, *extra, loop=SCANNED)
    value = ridge.estimate(estimator, momentum=DECAY, start="zero")
    np.testing.assert_allclose(value, TRUTH[ridge.a], rtol=1e-10)


def test_ridge_finite_difference_of_1000_steps(ridge):
    estimator = hypergrad.finite_difference(1000, loop=SCANNED)
    value = ridge.estimate(estimator, momentum=DECAY, start="zero")
    np.testing.assert_allclose(value, TRUTH[ridge.a], rtol=1e-8)


@pytest.mark.parametrize("name", ["exact", "sgd_formula", "paper", "darts", "scaled_identity"])
def test_ridge_one_step_sees_one_step_only(ridge, name):
    extra = {"exact": (), "scaled_identity": (ridge.rate,)}.get(name, (ridge.rate,))
    value = ridge.estimate(getattr(hypergrad, name)(*extra))
    # The inverse Hessian is replaced by the learning rate (MATHS: 0.97 wrong at a = -3).
    np.testing.assert_allclose(value, ridge.along(ridge.rate * np.eye(10)), rtol=1e-8)
    if ridge.a == -3:
        np.testing.assert_allclose(abs(value / TRUTH[-3.0] - 1), 0.97, rtol=1e-3)


@pytest.mark.parametrize("terms, error", [(20, 0.156), (500, 2.8e-4)])
def test_ridge_neumann_errs_by_its_truncation(ridge, terms, error):
    value = ridge.estimate(hypergrad.neumann(terms, ridge.rate, loop=SCANNED))
    np.testing.assert_allclose(value, ridge.neumann(terms), rtol=1e-9)
    if ridge.a == -3:
        np.testing.assert_allclose(abs(value / TRUTH[-3.0] - 1), error, rtol=0.01)


@pytest.mark.parametrize("steps, error", [(100, 8.30e-2), (1000, 1.077e-5)])
def test_ridge_gradient_descent_errs_by_its_horizon(ridge, steps, error):
    value = ridge.estimate(hypergrad.forward(steps, loop=SCANNED), start="zero")
    np.testing.assert_allclose(value, ridge.descent(steps), rtol=1e-9)
    if ridge.a == -3:
        np.testing.assert_allclose(abs(value / TRUTH[-3.0] - 1), error, rtol=0.01)


def test_ridge_nystrom_of_full_rank_errs_by_its_damping_and_of_half_rank_by_more(ridge):
    full = ridge.estimate(hypergrad.nystrom(10, 1e-3, loop=SCANNED))
    np.testing.assert_allclose(full, ridge.nystrom(1e-3), rtol=1e-7)
    half = ridge.estimate(hypergrad.nystrom(5, 1e-3, loop=SCANNED))
    assert abs(half / TRUTH[ridge.a] - 1) > 10 * abs(full / TRUTH[ridge.a] - 1)


def test_ridge_online_is_the_whole_run(ridge):
    train, val = jax.tree.map(jnp.asarray, (ridge.train, ridge.val))
    problem = hypergrad.Bilevel(ridge_loss, mse, optax.sgd(ridge.rate, momentum=DECAY))
    estimator, a = hypergrad.forward_online(), jnp.asarray(ridge.a)
    state = problem.init(jnp.zeros(10))

    def step(at, _):
        estimate = estimator(problem, at[0], a, [train], val, at[1])
        return (estimate.state, estimate.carry), estimate.gradient

    start = state, estimator.init(problem, state, a)
    values = jax.jit(lambda start: jax.lax.scan(step, start, length=1000)[1])(start)
    np.testing.assert_allclose(values[-1], TRUTH[ridge.a], rtol=1e-10)
    assert abs(values[0] / TRUTH[ridge.a] - 1) > 0.5


def test_ridge_is_exact_at_another_weight_too(x64):
    value = Ridge(1.0).estimate(hypergrad.forward(1000, loop=SCANNED), momentum=DECAY, start="zero")
    np.testing.assert_allclose(value, TRUTH[1.0], rtol=1e-10)


# Logistic regression: an outer loop in the manner of HOAG finds the known optimum.


def test_logistic_optimum_is_found_in_few_outer_iterations(x64):
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x, y = jnp.asarray((x - x.mean(0)) / x.std(0)), jnp.asarray(2.0 * y - 1)
    order = np.random.default_rng(0).permutation(len(y))
    third = len(y) // 3
    train, val = ((x[i], y[i]) for i in (order[:third], order[third : 2 * third]))

    def outer(w, a, batch):
        return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w)))

    def inner(w, a, _):
        return outer(w, a, train) + jnp.exp(a) * jnp.sum(w**2) / 2

    problem = hypergrad.Bilevel(inner, outer, optax.sgd(0.6, momentum=0.95))
    tolerance = hypergrad.hoag_tolerance(rate=0.3)
    estimator = hypergrad.cg(30, tolerance=tolerance, warm_start=True, steps=500, loop=SCANNED)
    call = jax.jit(lambda s, a, c: estimator(problem, s, a, [None] * 500, val, c))
    state, a = problem.init(jnp.zeros(30)), jnp.asarray(-3.0)
    carry = estimator.init(problem, state, a)
    last_a, last_slope, iterations = None, None, 0
    while iterations < 15 and (last_slope is None or abs(a - last_a) > 1e-4):
        iterations += 1
        estimate = call(state, a, carry)
        slope, state, carry = estimate.gradient, estimate.state, estimate.carry
        rate = 20.0 if last_slope is None else abs((a - last_a) / (slope - last_slope))
        last_a, last_slope = a, slope
        a = a - jnp.clip(rate * slope, -1.5, 1.5)
    print(f"a = {a:.6f} after {iterations} outer iterations")
    assert iterations < 15
    np.testing.assert_allclose(a, -5.7127, atol=1e-3)


# A small net with running statistics and a pytree of hyperparameters, for the contract.


def net_inner(params, hyper, batch, model_state):
    x, y = batch
    h = x @ params["w"]
    fit = jnp.mean((jnp.tanh(h) @ params["v"] - y) ** 2)
    penalty = jnp.sum(jnp.exp(hyper["a"]) * jnp.sqrt(0.01 + params["w"] ** 2))
    new = {
        "mean": 0.7 * model_state["mean"] + 0.3 * h.mean(0, keepdims=True),
        "count": model_state["count"] + 1,
        "weight": jnp.sum(hyper["b"]),  # what a head learns of lambda: a direct term
    }
    return fit + penalty + jnp.sum(hyper["b"] * params["v"] ** 2), (new, {"fit": fit})


def net_outer(params, hyper, batch, model_state):
    x, y = batch
    z = jnp.tanh(x @ params["w"] - model_state["mean"]) @ params["v"]
    loss = jnp.mean((z - y) ** 2)
    direct = jnp.sum(jnp.sin(hyper["b"]))
    return loss + 0.1 * model_state["weight"] ** 2 + 0.1 * direct, {"loss": loss}


OPTIMIZERS = {
    "sgd": optax.sgd(RATE),
    "heavy_ball": optax.sgd(RATE, momentum=DECAY),
    "adam": hypergrad.adam(0.05),
}

ESTIMATORS = {
    "exact_forward": hypergrad.exact(mode="forward"),
    "exact_reverse": hypergrad.exact(mode="reverse"),
    "sgd_formula": hypergrad.sgd_formula(RATE),
    "paper": hypergrad.paper(RATE),
    "preconditioned": hypergrad.preconditioned(RATE),
    "darts": hypergrad.darts(RATE),
    "reverse": hypergrad.reverse(3),
    "reverse_scanned": hypergrad.reverse(3, loop=SCANNED),
    "forward": hypergrad.forward(3),
    "forward_scanned": hypergrad.forward(3, loop=SCANNED),
    "forward_online": hypergrad.forward_online(),
    "reversible": hypergrad.reversible(3, RATE, DECAY),
    "reversible_scanned": hypergrad.reversible(3, RATE, DECAY, loop=SCANNED),
    "scaled_identity": hypergrad.scaled_identity(RATE),
    "neumann": hypergrad.neumann(2, RATE),
    "cg": hypergrad.cg(3, damping=1.0, warm_start=True),
    "cg_scanned": hypergrad.cg(3, damping=1.0, steps=2, loop=SCANNED),
    "nystrom": hypergrad.nystrom(3, 0.5),
    "nystrom_scanned": hypergrad.nystrom(3, 0.5, loop=SCANNED),
    "finite_difference": hypergrad.finite_difference(2),
    "training_loss": hypergrad.training_loss(),
    "soba": hypergrad.soba(RATE, damping=0.5),
    "amigo": hypergrad.amigo(1, RATE, steps=2),
    "amigo_scanned": hypergrad.amigo(1, RATE, steps=2, loop=SCANNED),
    "stocbio": hypergrad.stocbio(2, RATE, loop=SCANNED),
    "f2sa": hypergrad.f2sa(5.0),
    "bome": hypergrad.bome(0.5, RATE),
}
OPTIMIZER_OF = {"preconditioned": "adam"}


def problem_of(name):
    """The problem as an estimator takes it: the training loss only reports the outer one."""
    problem = setting(OPTIMIZER_OF.get(name, "heavy_ball")).problem
    if name != "training_loss":
        return problem
    return problem._replace(outer_loss=net_reported)


def net_reported(params, hyper, batch, model_state):
    return net_outer(params, jax.lax.stop_gradient(hyper), batch, model_state)


class Setting:
    def __init__(self, optimizer):
        rng = np.random.default_rng(0)
        params = {"w": jnp.asarray(rng.normal(size=(4, 3))), "v": jnp.asarray(rng.normal(size=3))}
        self.hyper = {"a": jnp.asarray(-2.0), "b": jnp.asarray([0.1])}
        self.problem = hypergrad.Bilevel(net_inner, net_outer, OPTIMIZERS[optimizer], True)
        self.batches = [
            (jnp.asarray(rng.normal(size=(8, 4))), jnp.asarray(rng.normal(size=8)))
            for _ in range(4)
        ]
        model_state = {
            "mean": jnp.zeros((1, 3)), "count": jnp.asarray(0), "weight": jnp.asarray(0.0)
        }  # fmt: skip
        state = self.problem.init(params, model_state)
        for batch in self.batches[:2]:  # past Adam's first step
            state = self.step(state, batch)[0]
        self.state, self.outer_batch = state, self.batches[-1]

    def step(self, state, batch):
        return step(self.problem, state, self.hyper, batch)

    def call(self, estimator, *, hyper=None, **changes):
        problem = self.problem._replace(**changes)
        batches = self.batches[: estimator.batches]
        f = jax.jit(lambda s, h: estimator(problem, s, h, batches, self.outer_batch))
        return f(self.state, self.hyper if hyper is None else hyper)


@functools.cache
def setting(optimizer):
    return Setting(optimizer)


def assert_close(actual, expected, rtol, atol=0.0):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("name", ESTIMATORS)
def test_contract(x64, name):
    """One record, one state, one compilation; the host's loop and devices give the same."""
    s, estimator = setting(OPTIMIZER_OF.get(name, "heavy_ball")), ESTIMATORS[name]
    traces = []

    def counted(*args):
        traces.append(None)
        return net_inner(*args)

    problem = problem_of(name)._replace(inner_loss=counted)
    batches = s.batches[: estimator.batches], s.outer_batch
    carry = estimator.init(problem, s.state, s.hyper)
    call = jax.jit(lambda s_, h, b: estimator(problem, s_, h, *b, carry))

    estimate = call(s.state, s.hyper, batches)
    assert isinstance(estimate, hypergrad.Estimate)
    state, aux = s.state, None
    for batch in batches[0][: estimator.steps]:
        state, aux = s.step(state, batch)
    if name == "bome":  # the outer loss moves the parameters too
        state, aux = estimate.state, estimate.aux[0]
    loss, outer_aux = net_outer(state.params, s.hyper, s.outer_batch, state.model_state)
    expected = hypergrad.Estimate(estimate.gradient, loss, state, (aux, outer_aux), estimate.carry)
    assert_close(estimate, expected, 1e-12, 1e-14)
    assert_close(jax.tree.map(jnp.zeros_like, estimate.gradient), _zeros(s.hyper), 0)
    assert_close(jax.tree.map(jnp.zeros_like, estimate.carry), _zeros(carry), 0)

    once = len(traces)
    call(s.state, jax.tree.map(lambda h: h + 0.1, s.hyper), batches)
    assert len(traces) == once

    # A difference of nearly equal losses shows their rounding.
    rtol = 1e-6 if name == "finite_difference" else 1e-9
    if not name.endswith("scanned"):
        host = estimator(problem, s.state, s.hyper, *batches, carry)
        assert_close(host, estimate, rtol, 1e-14)

    if f"{name}_scanned" in ESTIMATORS:
        return  # the twin, whose loop compiles once, stands for both on several devices
    # vmap with an axis name stands for devices; each holds a quarter of every batch.
    shards = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batches)
    local = problem._replace(axis_name="devices")
    parts = jax.jit(
        jax.vmap(lambda b: estimator(local, s.state, s.hyper, *b, carry), axis_name="devices")
    )(shards)
    for i in (0, 3):
        assert_close(jax.tree.map(lambda x, i=i: x[i], parts), estimate, rtol, 1e-14)


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


# Against each other.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_forward_is_reverse_and_both_are_the_finite_difference(x64, optimizer):
    s = setting(optimizer)
    # One in either loop, so that the two loops are compared too.
    forward = s.call(hypergrad.forward(3, loop=SCANNED)).gradient
    assert_close(forward, s.call(hypergrad.reverse(3)).gradient, 1e-10)
    difference = s.call(hypergrad.finite_difference(3, loop=SCANNED)).gradient
    assert_close(forward, difference, 1e-6)
    if optimizer == "heavy_ball":
        assert_close(s.call(ESTIMATORS["reversible_scanned"]).gradient, forward, 1e-10)


@pytest.mark.parametrize("optimizer", [pytest.param("heavy_ball", marks=pytest.mark.slow), "adam"])
def test_one_step_of_every_exact_method_is_the_exact_step(x64, optimizer):
    s = setting(optimizer)
    exact = s.call(hypergrad.exact()).gradient
    for estimator in (hypergrad.forward(1), hypergrad.reverse(1), hypergrad.forward_online()):
        assert_close(s.call(estimator).gradient, exact, 1e-10)
    # Two widths and Richardson's extrapolation leave an error of order h^4.
    coarse, fine = (s.call(hypergrad.finite_difference(width=h)).gradient for h in (2e-3, 1e-3))
    extrapolated = jax.tree.map(lambda c, f: (4 * f - c) / 3, coarse, fine)
    assert_close(extrapolated, exact, 1e-8)


@pytest.mark.slow
def test_a_weight_map_has_one_derivative_whichever_way(x64):
    s = setting("adam")
    hyper = {"a": jnp.asarray([[-2.0], [-1.0], [-3.0], [-2.5]]), "b": s.hyper["b"]}  # not few
    values = [
        s.call(e, hyper=hyper).gradient
        for e in (
            hypergrad.forward(2, loop=SCANNED),
            hypergrad.reverse(2, loop=SCANNED),
            hypergrad.finite_difference(2, loop=SCANNED),
        )
    ]
    assert_close(values[0], values[1], 1e-10)
    assert_close(values[0], values[2], 1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "heavy_ball"])
def test_the_formula_and_its_finite_difference_are_exact_for_gradient_descent(x64, optimizer):
    # Where running statistics carry no derivative, as in one step, and with the direct term.
    s = setting(optimizer)
    exact = s.call(hypergrad.exact()).gradient
    assert_close(s.call(hypergrad.sgd_formula(RATE)).gradient, exact, 1e-10)
    assert_close(s.call(hypergrad.darts(RATE, radius=1e-4)).gradient, exact, 1e-6)
    wrong = s.call(hypergrad.paper(RATE)).gradient
    assert abs(wrong["a"] / exact["a"] - 1) > 1e-2


def test_preconditioned_is_its_formula_and_not_the_gradient(x64):
    s = setting("adam")
    value = s.call(hypergrad.preconditioned(0.05)).gradient
    new, _ = s.problem.inner_step(s.state, s.hyper, s.batches[0])
    q = s.problem.outer_gradient(new, s.hyper, s.outer_batch)[1]
    nu = new.opt_state[0].nu
    cross = jax.jacobian(lambda h: s.problem.inner_gradient(s.state, h, s.batches[0])[0])(s.hyper)
    expected = -0.05 * sum(
        jnp.sum(q[k] / (jnp.sqrt(nu[k] / (1 - 0.999**3)) + 1e-8) * cross[k]["a"]) for k in q
    )
    np.testing.assert_allclose(value["a"], expected, rtol=1e-10)
    assert abs(value["a"] / s.call(hypergrad.exact()).gradient["a"] - 1) > 0.5


# What rides from call to call.


def test_online_resumes_bit_for_bit_and_its_carry_is_arrays_of_floats(x64):
    s, estimator = setting("adam"), hypergrad.forward_online()
    call = jax.jit(
        lambda at, batch: estimator(s.problem, at[0], s.hyper, [batch], s.outer_batch, at[1])
    )

    def run(at, batches):
        for batch in batches:
            estimate = call(at, batch)
            at = estimate.state, estimate.carry
        return at, estimate.gradient

    start = s.state, estimator.init(s.problem, s.state, s.hyper)
    at, gradient = run(start, s.batches[:3])
    half, _ = run(start, s.batches[:1])
    saved = jax.tree.map(np.asarray, half)
    assert all(x.dtype == np.float64 for x in jax.tree.leaves(saved[1]))
    again, same = run(jax.tree.map(jnp.asarray, saved), s.batches[1:3])
    jax.tree.map(np.testing.assert_array_equal, (again, same), (at, gradient))
    assert_close(gradient, s.call(hypergrad.forward(3)).gradient, 1e-10)


def test_warm_start_goes_on_from_the_last_solution(ridge):
    train, val = jax.tree.map(jnp.asarray, (ridge.train, ridge.val))
    problem = hypergrad.Bilevel(ridge_loss, mse, optax.sgd(ridge.rate))
    state, a = problem.init(jnp.asarray(ridge.optimum)), jnp.asarray(ridge.a)
    estimator = hypergrad.cg(3, warm_start=True, loop=SCANNED)
    errors, carry = [], estimator.init(problem, state, a)
    for _ in range(3):
        estimate = estimator(problem, state, a, [train], val, carry)
        carry = estimate.carry
        errors.append(abs(float(estimate.gradient) / TRUTH[ridge.a] - 1))
    assert errors[2] < 0.2 * errors[0]
    assert carry.calls == 3


@pytest.mark.parametrize("loop", [UNROLLED, SCANNED], ids=["unrolled", "scanned"])
def test_cg_stops_at_its_tolerance_and_at_negative_curvature(x64, loop):
    a, b = jnp.asarray([1.0, 2.0, 4.0]), jnp.ones(3)

    def solve(a, tolerance, iterations):
        return conjugate_gradients(
            lambda v: a * v, b, tolerance=tolerance, iterations=iterations, repeat=loop.repeat
        )

    rough, exact = solve(a, 0.5, 10), solve(a, 0.0, 3)
    np.testing.assert_allclose(exact.q, 1 / a, rtol=1e-12)
    residual = jnp.linalg.norm(a * rough.q - b) / jnp.linalg.norm(b)
    np.testing.assert_allclose(rough.residual, residual, rtol=1e-12)
    assert 1e-3 < residual <= 0.5
    for flat in (-a, 0 * a):
        stopped = solve(flat, 0.0, 3)
        np.testing.assert_array_equal(stopped.q, 0 * b)
        assert stopped.residual == 1


def test_nystrom_draws_anew_at_each_call(x64):
    s, estimator = setting("heavy_ball"), hypergrad.nystrom(1, 0.5)
    call = jax.jit(
        lambda carry: estimator(s.problem, s.state, s.hyper, s.batches[:1], s.outer_batch, carry)
    )
    first = call(estimator.init(s.problem, s.state, s.hyper))
    second = call(first.carry)
    assert first.gradient["a"] != second.gradient["a"]


# Memory: what each method promises.


def wide_bytes(estimator):
    """Temporary bytes of an estimate for a loss with wide activations and few parameters."""

    def loss(params, a, batch):
        return jnp.mean((jnp.tanh(batch @ params["w"]).sum(1) - 1) ** 2)

    problem = hypergrad.Bilevel(
        lambda params, a, batch: loss(params, a, batch) + a * jnp.sum(params["w"] ** 2),
        loss,
        optax.sgd(RATE, momentum=DECAY),
    )
    state = problem.init({"w": jnp.ones((8, 32))})
    batch = jnp.ones((1024, 8))
    inner = problem.inner_loss
    problem = problem._replace(inner_loss=lambda params, a, _: inner(params, a, batch))
    f = jax.jit(lambda s, a: estimator(problem, s, a, [None] * estimator.steps, batch).gradient)
    return f.lower(state, jnp.asarray(0.1)).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_forward_does_not_depend_on_the_horizon():
    few, many = (wide_bytes(hypergrad.forward(k, loop=SCANNED)) for k in (10, 1000))
    assert many < 1.01 * few + 1024


@pytest.mark.parametrize("loop", [UNROLLED, SCANNED], ids=["unrolled", "scanned"])
def test_memory_of_reverse_grows_by_a_state_a_step_and_not_by_activations(loop):
    few, many = (wide_bytes(hypergrad.reverse(k, loop=loop)) for k in (4, 12))
    state, activations = 2 * 8 * 32 * 4, 1024 * 32 * 4
    assert (many - few) / 8 < 3 * state < activations / 10


def test_memory_of_reversible_grows_by_the_bits_of_its_buffer():
    few, many = (wide_bytes(hypergrad.reversible(k, RATE, DECAY, loop=SCANNED)) for k in (10, 1000))
    words = 990 * np.log2(1 / DECAY) / 32
    assert many - few < 4 * words * 8 * 32 * 4


# Adam's first step.


def test_the_first_step_of_adam_is_recognised():
    optimizer = optax.chain(optax.clip(1.0), hypergrad.adam(1e-3))
    params = jnp.ones(2)
    state = optimizer.init(params)
    assert hypergrad.is_first_adam_step(state)
    assert not hypergrad.is_first_adam_step(optimizer.update(params, state, params)[1])
    assert not hypergrad.is_first_adam_step(optax.sgd(0.1).init(params))
    assert jax.jit(hypergrad.is_first_adam_step)(state)


# Arguments, and the examples in docstrings.


def test_wrong_arguments_are_named(x64):
    for make in (hypergrad.reverse, hypergrad.forward, hypergrad.finite_difference):
        with pytest.raises(ValueError, match="got 0"):
            make(0)
    for name, options in (
        ("nystrom", {"rank": 3, "damping": -1}), ("nystrom", {"rank": 0, "damping": 1}),
        ("neumann", {"terms": -1, "scale": 1}), ("neumann", {"terms": 1, "scale": 0}),
        ("cg", {"iterations": 0}), ("finite_difference", {"width": -1}),
        ("darts", {"learning_rate": 1, "radius": 0}),
        ("reversible", {"steps": 1, "learning_rate": 0, "momentum": 0.5}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be (positive|at least \d), got (0|-1)"):
            getattr(hypergrad, name)(**options)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        hypergrad.reversible(3, 0.1, 1.5)
    s = setting("sgd")
    with pytest.raises(ValueError, match="scaling"):
        s.call(hypergrad.preconditioned(0.1))
    with pytest.raises(ValueError, match="other steps"):
        s.call(hypergrad.reversible(3, 2 * RATE, DECAY), optimizer=OPTIMIZERS["heavy_ball"])


def test_examples_in_docstrings():
    for module in pkgutil.iter_modules(hypergrad.__path__, "tvjax.hypergrad."):
        assert doctest.testmod(importlib.import_module(module.name)).failed == 0
    assert doctest.testmod(hypergrad).failed == 0


def test_online_with_a_decay_forgets(x64):
    def run(estimator, steps=4):
        def outer(w, lam, batch):
            return (w - batch) ** 2 / 2

        def inner(w, lam, batch):
            return (w - batch) ** 2 / 2 + lam * w**2 / 2

        problem = hypergrad.Bilevel(inner, outer, optax.sgd(0.5))
        state, lam, carry, found = problem.init(jnp.array(1.0)), jnp.array(0.2), None, []
        for _ in range(steps):
            estimate = estimator(problem, state, lam, [0.3], 1.0, carry)
            state, carry = estimate.state, estimate.carry
            found.append(float(estimate.gradient))
        return found

    np.testing.assert_allclose(run(hypergrad.forward_online(decay=0)), run(hypergrad.exact()))
    w, z, wanted = 1.0, 0.0, []
    for _ in range(4):  # w' = w - 0.5 (w - 0.3 + 0.2 w), Z' = 0.9 (1 - 0.6) Z - 0.5 w
        w, z = w - 0.5 * (1.2 * w - 0.3), 0.9 * 0.4 * z - 0.5 * w
        wanted.append((w - 1) * z)
    np.testing.assert_allclose(run(hypergrad.forward_online(decay=0.9)), wanted)
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        hypergrad.forward_online(decay=1.1)
