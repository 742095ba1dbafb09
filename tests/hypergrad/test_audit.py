"""The audit's numbers against the same numbers computed by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from tvjax import hypergrad

RATE = 0.1


def reversed_sign(estimator):
    """The estimator with the other sign."""

    def estimate(*args):
        found = estimator.estimate(*args)
        return found._replace(gradient=jax.tree.map(jnp.negative, found.gradient))

    return estimator._replace(estimate=estimate)


def mse(w, hyper, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def inner(w, hyper, batch):
    return mse(w, hyper, batch) + jnp.sum(hyper["b"] * w**2)


@pytest.fixture
def setting(x64):
    rng = np.random.default_rng(0)
    batches = [
        (jnp.asarray(rng.normal(size=(6, 2))), jnp.asarray(rng.normal(size=6))) for _ in range(8)
    ]
    problem = hypergrad.Bilevel(inner, mse, optax.sgd(RATE))
    return problem, problem.init(jnp.ones(2)), {"b": jnp.asarray([0.1, 0.2])}, batches


def test_records_hold_value_error_spread_and_cost(setting):
    problem, state, hyper, batches = setting
    draws = [([batches[i]], batches[i + 4]) for i in range(4)]
    estimators = {
        "exact": hypergrad.exact(),
        "opposite": reversed_sign(hypergrad.sgd_formula(RATE)),
        "two steps": hypergrad.forward(2, loop=hypergrad.SCANNED),
    }
    records = hypergrad.audit(
        problem, estimators, state, hyper, batches[:1], batches[4],
        reference=hypergrad.exact(mode="reverse"), draws=draws, step=7,
    )  # fmt: skip
    assert [(r.estimator, r.element) for r in records[:3]] == [
        ("exact", "['b'][0]"), ("exact", "['b'][1]"), ("opposite", "['b'][0]"),
    ]  # fmt: skip

    truth = hypergrad.exact()(problem, state, hyper, batches[:1], batches[4]).gradient["b"]
    values = np.asarray(
        [hypergrad.exact()(problem, state, hyper, *draw).gradient["b"] for draw in draws]
    )
    for i in (0, 1):
        exact, opposite = records[i], records[2 + i]
        np.testing.assert_allclose([exact.value, exact.reference], truth[i], rtol=1e-12)
        assert exact.sign_agrees and exact.relative_error < 1e-12 and exact.step == 7
        np.testing.assert_allclose(opposite.relative_error, 2, rtol=1e-10)
        assert opposite.sign_agrees is False
        np.testing.assert_allclose(exact.mean, values[:, i].mean(), rtol=1e-12)
        error = values[:, i].std(ddof=1) / 2
        np.testing.assert_allclose(exact.standard_error, error, rtol=1e-12)
        confidence = scipy.stats.t.cdf(abs(exact.mean) / error, df=len(draws) - 1)
        np.testing.assert_allclose(exact.sign_confidence, confidence, rtol=1e-9)
        assert exact.seconds > 0 and exact.flops > 0 and exact.bytes > 0
        assert records[4 + i].flops is None  # XLA would count the body of its loop once


def test_records_and_table_are_ready_to_write(setting):
    problem, state, hyper, batches = setting
    nothing = hypergrad.Estimator(
        lambda *args: hypergrad.Estimate(
            jax.tree.map(lambda h: h * jnp.nan, args[2]), jnp.zeros(()), args[1], (None, None)
        )
    )
    records = hypergrad.audit(
        problem, {"nan": nothing, "exact": hypergrad.exact()}, state, hyper, batches[:1],
        batches[1], reference={"b": np.asarray([1.0, 0.0])},
    )  # fmt: skip
    assert records[0].value is None and records[0].sign_agrees is None
    assert records[3].relative_error is None  # the reference is 0, the estimate is not
    assert records[3].sign_agrees is False
    assert records[0].mean is None
    assert json.loads(json.dumps([r._asdict() for r in records], allow_nan=False))
    lines = hypergrad.table(records).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert lines[3].startswith("exact ['b'][0]")


def test_an_estimate_of_zero_has_no_sign_and_a_shape_is_compiled_once(setting):
    problem, state, hyper, batches = setting
    traces = []

    def nothing(problem, state, hyper, *rest):
        traces.append(None)
        zeros = jax.tree.map(jnp.zeros_like, hyper)
        return hypergrad.Estimate(zeros, jnp.zeros(()), state, (None, None))

    def audit():
        return hypergrad.audit(
            problem, {"zero": estimator}, state, hyper, batches[:1], batches[4],
            reference={"b": np.asarray([-1.0, 0.0])}, draws=[([b], b) for b in batches[:3]],
        )  # fmt: skip

    estimator = hypergrad.Estimator(nothing)
    first, second = audit()
    assert first.sign_agrees is False and second.sign_agrees is True
    assert first.sign_confidence == 0.5
    audit()
    assert len(traces) == 1


def test_what_estimators_carry_is_used(setting):
    problem, state, hyper, batches = setting
    online = hypergrad.forward_online()
    first = online(problem, state, hyper, batches[:1], batches[4])
    second = online(problem, first.state, hyper, batches[1:2], batches[4], first.carry)
    records = hypergrad.audit(
        problem, {"online": online}, first.state, hyper, batches[1:2], batches[4],
        carries={"online": first.carry}, reference=second.gradient,
    )  # fmt: skip
    assert max(r.relative_error for r in records) < 1e-12


def test_audit_refuses_devices_and_warns_at_the_first_step_of_adam(setting):
    problem, _, hyper, batches = setting
    args = hyper, batches[:1], batches[1]
    with pytest.raises(ValueError, match="one device"):
        hypergrad.audit(problem._replace(axis_name="d"), {}, problem.init(jnp.ones(2)), *args)
    problem = problem._replace(optimizer=hypergrad.adam(0.1))
    with pytest.warns(UserWarning, match="first step"):
        hypergrad.audit(problem, {}, problem.init(jnp.ones(2)), *args)


def scalar_example(noise: float):
    """Early in training one step sees another sign than the run; see `hypergrad.exact`."""

    def inner(y, x, b):
        return (y - b) ** 2 / 2 + x * y**2 / 2

    problem = hypergrad.Bilevel(inner, lambda y, x, c: (y - c) ** 2 / 2, optax.sgd(0.1))
    rng = np.random.default_rng(0)
    draws = [([jnp.asarray(2.0)], jnp.asarray(1 + noise * z)) for z in rng.normal(size=6)]
    return (problem, problem.init(jnp.asarray(0.5)), jnp.asarray(0.0)), draws


def test_a_reference_of_another_horizon_calls_no_sign_wrong_that_it_does_not_know(x64):
    start, draws = scalar_example(noise=30.0)
    (problem, state, hyper), batches = start, ([jnp.asarray(2.0)], jnp.asarray(1.0))
    estimators = {
        "exact": hypergrad.exact(), "formula": hypergrad.sgd_formula(0.1),
        "opposite": reversed_sign(hypergrad.sgd_formula(0.1)), "run": hypergrad.reverse(100),
        "cg": hypergrad.cg(5), "online": hypergrad.forward_online(),
    }  # fmt: skip

    def audit(reference, draws=(), **options):
        records = hypergrad.audit(
            problem, estimators, state, hyper, *batches, reference=reference, draws=draws,
            repeats=1, **options,
        )  # fmt: skip
        lines = hypergrad.table(records).splitlines()[1:]
        return [r.sign_agrees for r in records], lines, records

    run = hypergrad.forward(100, loop=hypergrad.SCANNED)
    signs, lines, records = audit(run, draws)
    assert signs == [None, None, None, True, None, None]
    assert "WRONG" not in "".join(lines) and " ? " in lines[0]
    assert "1 step vs 100 steps" in lines[0] and "optimum vs 100 steps" in lines[4]
    assert "whole run vs 100 steps" in lines[5] and " vs " not in lines[3]
    values = [float(run(*start, batches[0] * 100, outer).gradient) for _, outer in draws]
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    np.testing.assert_allclose(records[0].reference_error, error, rtol=1e-10)
    assert audit(run)[0][0] is None  # nothing is known of its spread
    # Of little noise the reference is known, and the exact step has the other sign all the same.
    signs, lines, _ = audit(run, scalar_example(noise=0.1)[1])
    assert signs == [False, False, True, True, False, False] and "WRONG" in lines[0]
    # On the same batches estimators of one horizon differ by error alone, however noisy both are.
    signs, lines, _ = audit(hypergrad.exact(mode="reverse"), draws)
    assert signs[:3] == [True, True, False] and "WRONG" in lines[2] and " vs " not in lines[0]
    # Numbers are known as well as they are said to be.
    assert audit(-2.0)[0][0] is False
    assert audit(-2.0, reference_error=0.5)[0][0] is False
    signs, lines, _ = audit(-2.0, reference_error=1.5, reference_horizon="optimum")
    assert signs == [None] * 6 and "1 step vs optimum" in lines[0]


def test_a_reference_among_the_estimators_has_its_carry(setting):
    problem, state, hyper, batches = setting
    online = hypergrad.forward_online()
    first = online(problem, state, hyper, batches[:1], batches[4])
    records = hypergrad.audit(
        problem, {"online": online, "exact": hypergrad.exact()}, first.state, hyper, batches[1:2],
        batches[4], carries={"online": first.carry}, reference=online,
    )  # fmt: skip
    assert [r.relative_error for r in records[:2]] == [0, 0]
    assert min(r.relative_error for r in records[2:]) > 0.01


def test_a_reference_and_carries_are_those_of_the_problem(x64):
    def loss(w, hyper, x):
        return jnp.sum((w - x) ** 2) * jnp.exp(hyper["a"]) + jnp.vdot(hyper["b"], jnp.cos(w))

    problem = hypergrad.Bilevel(loss, lambda w, _, x: jnp.sum(w * x), optax.sgd(0.1))
    hyper = {"a": jnp.float64(0.0), "b": jnp.ones((2,))}
    state, x = problem.init(jnp.asarray([0.5, 1.0]), hyper=hyper), jnp.asarray([1.0, 2.0])

    def audited(**options):
        estimators = {"exact": hypergrad.exact()}
        return hypergrad.audit(problem, estimators, state, hyper, [x], x, repeats=1, **options)

    one = np.ones(2)
    for reference in ({"zz": 5.0, "b": one}, [one, 30.0], {"a": 1.0, "b": np.ones(3)}, np.ones(3)):
        with pytest.raises(ValueError, match="reference must be like hyper, "):
            audited(reference=reference)
        with pytest.raises(ValueError, match="reference_error must be like hyper, "):
            audited(reference={"a": 1.0, "b": one}, reference_error=reference)
    with pytest.raises(ValueError, match="reference_error must be a number, finite and at least 0"):
        audited(reference={"a": 1.0, "b": one}, reference_error={"a": 1.0, "b": -one})
    with pytest.raises(ValueError, match="carries must have the names of estimators, and 'typo'"):
        audited(carries={"typo": ()})
