"""Implicit estimators in float32 on hundreds of random problems at once, against float64."""

import importlib
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from tvjax import hypergrad
from tvjax.hypergrad import SCANNED
from tvjax.krylov import conjugate_gradients

P = 24
implicit = importlib.import_module("tvjax.hypergrad.implicit")  # the name is its function's too


dot = partial(jnp.matmul, precision="highest")


def inner(w, a, batch):
    matrix, along, _ = batch
    return dot(w, dot(matrix, w)) / 2 + a * jnp.sum(along * w)


PROBLEM = hypergrad.Bilevel(inner, lambda w, a, b: jnp.sum(b[2] * w), optax.sgd(0.0))


def problems(eigenvalues, n=250, size=1.0):
    """Matrices, directions of the hyperparameter, outer gradients; all exact in float32."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(n, P, P)))
    a = (q * eigenvalues) @ q.transpose(0, 2, 1)
    along, outer = rng.normal(size=(2, n, P))
    a = (a + a.transpose(0, 2, 1)) / 2
    return [np.float32(x) for x in (a, along, size * outer)]


def hypergradients(estimator, data):
    """`(H, carry)` of each problem."""

    def one(batch):
        state = PROBLEM.init(jnp.zeros(P))
        found = estimator(PROBLEM, state, jnp.asarray(0.0), [batch], batch)
        return found.gradient, found.carry

    return jax.jit(jax.vmap(one))(data)


def truths(data, damping=0.0):
    a, along, outer = (x.astype(float) for x in data)
    solution = np.linalg.solve(a + damping * np.eye(P), outer[..., None])[..., 0]
    return -np.sum(along * solution, 1)


def errors(found, truth):
    """Relative to the typical size, since some truths are near 0."""
    return np.abs(np.asarray(found, float) - truth) / np.sqrt(np.mean(truth**2))


@pytest.mark.parametrize("condition", [3, 10, 100, 1e4, 1e6])
def test_iterating_on_after_convergence_changes_nothing(condition):
    data = problems(np.logspace(0, -np.log10(condition), P))
    found, carry = hypergradients(hypergrad.cg(3000, loop=SCANNED), data)
    # What one rounding of the matrix does to the answer, some times over.
    assert errors(found, truths(data)).max() < 3e-6 * condition**0.8
    assert carry.residual.max() < 3e-7 * condition


@pytest.mark.parametrize("size", [1e-6, 1e-30, 1e30])
def test_the_answer_is_linear_in_the_outer_gradient_whatever_its_size(size):
    data = problems(np.logspace(0, -1, P), size=size)
    found, _ = hypergradients(hypergrad.cg(1000, loop=SCANNED), data)
    assert errors(found, truths(data)).max() < 3e-5


def test_more_iterations_never_make_it_worse():
    matrix, _, b = map(jnp.asarray, problems(np.logspace(0, -3, P)))
    truth = np.linalg.solve(matrix.astype(float), np.asarray(b, float)[..., None])[..., 0]

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    def solve(matrix, b, n):
        return conjugate_gradients(partial(dot, matrix), b, iterations=n).q

    distances = [
        np.linalg.norm(solve(matrix, b, n) - truth, axis=1) / np.linalg.norm(truth, axis=1)
        for n in (5, 15, 50, 150, 500, 5000)
    ]
    assert all((more <= 1.01 * few + 1e-4).all() for few, more in itertools.pairwise(distances))
    assert distances[-1].max() < 1e-4


def test_a_system_that_is_not_solved_says_so():
    data = problems(np.logspace(0, -4, P))
    few, many = (
        hypergradients(hypergrad.cg(n, tolerance=1e-2, loop=SCANNED), data)[1] for n in (5, 500)
    )
    assert (few.residual > 1e-2).all() and (many.residual <= 1.1e-2).all()
    # A singular matrix and an outer gradient outside its range: no solution, and no number.
    found, carry = hypergradients(
        hypergrad.cg(1000, loop=SCANNED), problems(np.r_[np.logspace(0, -1, P - 8), np.zeros(8)])
    )
    assert np.isnan(found).all() and (carry.residual > 1).all()


@pytest.mark.parametrize("where", ["matrix", "outer"])
def test_a_nan_is_passed_on_and_not_read_as_0(where):
    matrix, along, outer = (x[0] for x in problems(np.ones(P), n=1))
    (matrix if where == "matrix" else outer)[...] = np.nan
    for estimator in (
        hypergrad.cg(3, loop=SCANNED),
        hypergrad.neumann(3, 0.5, loop=SCANNED),
        hypergrad.nystrom(3, 0.1, loop=SCANNED),
    ):
        found, _ = hypergradients(estimator, [x[None] for x in (matrix, along, outer)])
        assert np.isnan(found).all()


@pytest.mark.parametrize("lowest, highest", [(-1, 0), (-2, 1)])
@pytest.mark.parametrize("damping", [0.1, 0.01])
def test_nystrom_of_full_rank_is_the_damped_inverse(lowest, highest, damping):
    data = problems(np.logspace(lowest, highest, P))
    found, _ = hypergradients(hypergrad.nystrom(P, damping, loop=SCANNED), data)
    assert errors(found, truths(data, damping)).max() < 1e-3


def test_nystrom_never_calls_lapack_on_a_batch():
    """Such programs stood still for ever on two cores, one of some hundred runs."""

    def calls(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for inner in jaxprs_in_params(eqn.params):
                yield from calls(inner)

    nystrom = hypergrad.nystrom(3, 0.1, loop=SCANNED)

    def one(batch, key):
        state = PROBLEM.init(jnp.zeros(P))
        return nystrom(PROBLEM, state, jnp.asarray(0.0), [batch], batch, key).gradient

    keys = np.arange(10, dtype=np.uint32).reshape(5, 2)
    jaxpr = jax.make_jaxpr(jax.vmap(one))(problems(np.ones(P), n=5), keys).jaxpr
    shapes = [e.invars[0].aval.ndim for e in calls(jaxpr) if e.primitive.name in ("eigh", "qr")]
    assert shapes == [2, 2, 2, 2]


@pytest.mark.parametrize("rank", [3, 10, P])
def test_the_sketch_in_float32_is_that_in_float64(rank):
    """The matrix may be indefinite too, or of low rank."""
    rng, low_rank = np.random.default_rng(0), jax.jit(implicit.low_rank)
    for eigenvalues in (
        np.logspace(-2, 1, P),
        np.r_[-np.logspace(-3, -2, 6), np.logspace(-2, 1, P - 6)],
        np.r_[np.logspace(-1, 1, 5), np.zeros(P - 5)],
    ):
        for matrix in problems(eigenvalues, n=5)[0]:
            q = np.linalg.qr(rng.normal(size=(P, rank)))[0].astype(np.float32)
            u, values = map(np.asarray, low_rank(q, matrix @ q))
            y = matrix.astype(float) @ q
            expected = y @ np.linalg.pinv(q.T @ y, rcond=1e-6) @ y.T
            bound = 1e-3 * np.linalg.norm(matrix, 2)
            np.testing.assert_allclose((u * values) @ u.T, expected, atol=bound)


def test_neumann_sums_its_series_to_rounding():
    data = problems(np.logspace(0, -2, P))
    found, _ = hypergradients(hypergrad.neumann(5000, 1.0, loop=SCANNED), data)
    assert errors(found, truths(data)).max() < 1e-4


def test_half_precision_parameters_are_solved_in_float32():
    matrix = np.float32([1, 0.5, 0.25, 2])

    def loss(w, a, _):
        return jnp.sum(matrix * w.astype(jnp.float32) ** 2) / 2 + a * jnp.sum(w.astype(jnp.float32))

    problem = hypergrad.Bilevel(loss, lambda w, a, _: jnp.sum(w), optax.sgd(0.0))
    state = problem.init(jnp.zeros(4, jnp.bfloat16))
    for estimator in (hypergrad.cg(8, warm_start=True), hypergrad.nystrom(4, 1e-4)):
        estimator = estimator._replace(estimate=jax.jit(estimator.estimate, static_argnums=0))
        found = estimator(problem, state, jnp.asarray(0.0), [None], None)
        np.testing.assert_allclose(found.gradient, -np.sum(1 / matrix), rtol=1e-2)


def products(jaxpr):
    """Every product in a program and in those that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inside in jaxprs_in_params(equation.params):
            yield from products(inside)


@pytest.mark.parametrize(
    "estimator",
    [
        hypergrad.cg(2, damping=0.1, warm_start=True),
        hypergrad.neumann(2, 0.5),
        hypergrad.nystrom(3, 0.1),
        hypergrad.scaled_identity(0.5),
        hypergrad.sgd_formula(0.5),
        hypergrad.darts(0.5),
        hypergrad.reverse(2),
        hypergrad.forward(2),
        hypergrad.reversible(2, 0.5, 0.5),
        hypergrad.finite_difference(2),
        hypergrad.soba(0.5, damping=0.1),
        hypergrad.amigo(1, 0.5),
        hypergrad.stocbio(1, 0.5),
        hypergrad.f2sa(5.0),
        hypergrad.bome(0.5, 0.5),
    ],
)
def test_no_product_of_an_estimator_is_left_to_fast_units(estimator):
    """The losses here are elementwise: each product is the estimator's own."""

    def loss(w, a, batch, mean):
        return jnp.sum(jnp.exp(a).sum() * w**2 - w * batch), (mean + 0.1 * w, None)

    def outer(w, a, batch, mean):
        return jnp.sum((w - batch) ** 2 + mean**2), None

    problem = hypergrad.Bilevel(loss, outer, optax.sgd(0.5, momentum=0.5), True)
    state = problem.init(jnp.ones(4), jnp.ones(4))
    batch = jnp.ones(4)
    call = jax.make_jaxpr(
        lambda s, a: estimator(problem, s, a, [batch] * estimator.batches, batch).gradient
    )
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert all(
        dot.params["precision"] == highest for dot in products(call(state, jnp.zeros(6)).jaxpr)
    )
