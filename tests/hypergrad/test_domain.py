"""Outside the domain every estimator refuses in one line, which names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax import hypergrad
from tvjax.hypergrad import InnerState

ESTIMATORS = {
    "exact": hypergrad.exact(),
    "exact_reverse": hypergrad.exact(mode="reverse"),
    "sgd_formula": hypergrad.sgd_formula(0.1),
    "paper": hypergrad.paper(0.1),
    "preconditioned": hypergrad.preconditioned(0.1, scaling=lambda s: s[0].trace),
    "darts": hypergrad.darts(0.1),
    "reverse": hypergrad.reverse(2),
    "forward": hypergrad.forward(2),
    "forward_online": hypergrad.forward_online(),
    "reversible": hypergrad.reversible(2, 0.1, 0.5),
    "scaled_identity": hypergrad.scaled_identity(0.1),
    "neumann": hypergrad.neumann(2, 0.1),
    "cg": hypergrad.cg(2),
    "nystrom": hypergrad.nystrom(2, 0.5),
    "finite_difference": hypergrad.finite_difference(),
    "training_loss": hypergrad.training_loss(),
    "soba": hypergrad.soba(0.1),
    "amigo": hypergrad.amigo(1, 0.1),
    "stocbio": hypergrad.stocbio(1, 0.1),
    "f2sa": hypergrad.f2sa(5.0),
    "bome": hypergrad.bome(0.5, 0.1),
}


def loss(w, a, batch):
    return jnp.sum(jnp.abs(w["w"] - batch) ** 2)


def inner(w, a, batch):
    return loss(w, a, batch) + jnp.sum(jnp.exp(jnp.asarray(a)) * jnp.abs(w["w"]) ** 2)


PROBLEM = hypergrad.Bilevel(inner, loss, optax.sgd(0.1, momentum=0.5))
FLOATS, COMPLEX = {"w": jnp.ones(3)}, {"w": jnp.ones(3, jnp.complex64)}
BATCH, EMPTY = jnp.zeros(3), jnp.zeros((0, 3))
COMPLEX_STATE = InnerState(COMPLEX, PROBLEM.optimizer.init(COMPLEX))


def losses(f):
    return {
        "inner_loss": PROBLEM._replace(inner_loss=lambda w, a, b: f(inner(w, a, b))),
        "outer_loss": PROBLEM._replace(outer_loss=lambda w, a, b: f(loss(w, a, b))),
    }


def refused(name, estimator):
    """What each case changes of a sound call, and the argument that its error names."""
    steps, of = estimator.batches, losses
    return [
        ({"state": COMPLEX_STATE}, r"params must be real, and params\['w'\] is of complex64"),
        ({"state": InnerState({"w": 1}, ())}, r"params must hold floats, .*int32"),
        ({"state": InnerState({}, ())}, "params must hold at least one number"),
        ({"hyper": jnp.asarray(1j)}, "hyper must be real, and hyper is of complex64"),
        ({"hyper": 2}, "hyper must hold floats, and hyper is of int32"),
        ({"hyper": {"a": jnp.ones(2, bool)}}, r"hyper must hold floats, and hyper\['a'\] is of bo"),
        ({"hyper": ()}, "hyper must hold at least one number"),
        ({"hyper": jnp.zeros(0)}, "hyper must hold at least one number"),
        ({"inner_batches": []}, f"inner_batches must be a list of {steps}, .* got 0"),
        ({"inner_batches": [BATCH] * (steps - 1)}, f"list of {steps}, .* got {steps - 1}"),
        ({"inner_batches": [BATCH] * (steps + 1)}, f"list of {steps}, .* got {steps + 1}"),
        ({"inner_batches": {"x": BATCH}}, f"inner_batches must be a list of {steps}, .* a dict"),
        ({"inner_batches": [EMPTY] * steps}, r"inner_batches\[0\] is empty, of shape \(0, 3\)"),
        ({"outer_batch": {"x": EMPTY}}, r"outer_batch\['x'\] is empty, of shape \(0, 3\)"),
        ({"problem": of(lambda x: x + 0j)["outer_loss"]}, "outer_loss must return a real float"),
        ({"problem": of(lambda x: x[None])["outer_loss"]}, r"outer_loss .* got shape \(1,\)"),
        ({"problem": of(lambda x: (x, {}))["outer_loss"]}, "outer_loss must return a scalar, got"),
        ({"problem": of(jnp.int32)["outer_loss"]}, "outer_loss must return .*, got int32"),
        ({"problem": of(lambda x: x + 0j)["inner_loss"]}, "inner_loss must return a real float"),
        ({"problem": of(lambda x: x[None])["inner_loss"]}, r"inner_loss .* got shape \(1,\)"),
    ]  # fmt: skip


def call(estimator, **changes):
    sound = {
        "problem": PROBLEM,
        "state": PROBLEM.init(FLOATS),
        "hyper": jnp.asarray(-1.0),
        "inner_batches": [BATCH] * estimator.batches,
        "outer_batch": BATCH,
    }
    return estimator(*(sound | changes).values())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_refuses_what_has_no_derivative(name):
    estimator = ESTIMATORS[name]
    for changes, message in refused(name, estimator):
        with pytest.raises(ValueError, match=message) as error:
            jax.eval_shape(lambda changes=changes: call(estimator, **changes))
        assert "\n" not in str(error.value)


def test_the_start_refuses_complex_parameters_and_a_complex_model_state():
    with pytest.raises(ValueError, match="params must be real"):
        PROBLEM.init(COMPLEX)
    with pytest.raises(ValueError, match="model_state must be real"):
        PROBLEM.init(FLOATS, COMPLEX)


@pytest.mark.parametrize("optimizer", ["adam", None, 0.1, "x" * 5000])
def test_what_is_no_optimiser_is_told_in_a_line(optimizer):
    problem, told = PROBLEM._replace(optimizer=optimizer), "optimizer must be an optax optimiser"
    for use in (
        lambda: problem.init(FLOATS),
        lambda: hypergrad.until_significant(optimizer, 3.0),
        *(lambda e=e: call(e, problem=problem) for e in ESTIMATORS.values()),
    ):
        with pytest.raises(ValueError, match=told) as error:
            use()
        assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("name", ESTIMATORS)
def test_python_numbers_are_arrays(name):
    estimator = ESTIMATORS[name]

    def found(number):
        params, trace = {"w": number(0.5)}, {"w": number(0.25)}
        opt_state = optax.tree.set(PROBLEM.optimizer.init(FLOATS), trace=trace)
        state, hyper = InnerState(params, opt_state), number(-1.0)
        carry = estimator.init(PROBLEM, state, hyper)
        batches = [number(0.1)] * estimator.batches
        return estimator(PROBLEM, state, hyper, batches, number(0.2), carry)

    expected = found(lambda x: jnp.asarray(x, jnp.float32))
    for number in (float, np.float32):
        jax.tree.map(np.testing.assert_array_equal, found(number), expected)
    assert expected.gradient.dtype == jnp.float32


def test_audit_refuses_alike():
    def audit(estimators=ESTIMATORS, **changes):
        sound = {"state": PROBLEM.init(FLOATS), "hyper": jnp.asarray(-1.0)}
        sound |= {"inner_batches": [BATCH], "outer_batch": BATCH}
        return hypergrad.audit(PROBLEM, estimators, **sound | changes, repeats=1)

    one = {"exact": hypergrad.exact()}
    for changes, message in [
        ({"state": COMPLEX_STATE}, "params must be real"),
        ({"hyper": jnp.asarray(1)}, "hyper must hold floats"),
        ({"hyper": {}}, "hyper must hold at least one"),
        ({"inner_batches": []}, "inner_batches must be at least one batch"),
        ({"inner_batches": [EMPTY]}, r"inner_batches\[0\] is empty"),
        ({"draws": [([], BATCH)] * 2}, "inner_batches must be at least one batch"),
        ({"reference": jnp.ones(2)}, "reference must be like hyper, of 1 elements; got 2"),
        ({"reference": 1j}, "reference must be real"),
        ({"reference_error": 1.0}, "reference_error and reference_horizon need a reference of num"),
        (
            {"reference": hypergrad.exact(), "reference_horizon": "optimum"},
            "reference_error and reference_horizon need a reference of num",
        ),
        (
            {"reference": 1.0, "reference_error": jnp.ones(2)},
            "reference_error must be like hyper, of 1 elements; got 2",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            audit(one, **changes)
        assert "\n" not in str(error.value)
    (record,) = audit(one, state=InnerState({"w": 0.5}, PROBLEM.init({"w": 0.5}).opt_state))
    assert record.value is not None


@pytest.mark.parametrize("bad", [jnp.ones(2, jnp.complex64), jnp.ones(2, int), jnp.zeros(0), {}])
def test_evidence_is_of_real_floats(bad):
    gate = hypergrad.until_significant(optax.sgd(1.0), 2.0)
    with pytest.raises(ValueError, match=r"params must (be real|hold)"):
        gate.init(bad)
    with pytest.raises(ValueError, match=r"updates must (be real|hold)"):
        gate.update(bad, gate.init(jnp.ones(2)))


def test_evidence_in_half_precision_counts_beyond_256():
    gate = hypergrad.until_significant(optax.sgd(1.0), 3.0)
    zeros = jnp.zeros(1, jnp.bfloat16)

    def step(state, g):
        updates, state = gate.update(g, state)
        return state, updates

    signs = jnp.asarray([[1.0], [-1.0]] * 200, jnp.bfloat16)
    state, updates = jax.lax.scan(step, gate.init(zeros), signs)
    assert updates.dtype == jnp.bfloat16 and not updates.any()
    np.testing.assert_array_equal(state.count, 400)


def test_a_finite_difference_that_rounding_swallows_is_no_number():
    estimate = call(hypergrad.finite_difference(width=1e-5), hyper=jnp.asarray(-1000.0))
    assert jnp.isnan(estimate.gradient)


@pytest.mark.parametrize("make", [hypergrad.finite_difference, lambda: hypergrad.darts(0.1)])
def test_differences_are_not_taken_where_rounding_swallows_them(make):
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    state = InnerState(half, PROBLEM.optimizer.init(half))
    with pytest.raises(ValueError, match=r"params must be of float32 .* params\['w'\] is of bf"):
        call(make(), state=state)
    with pytest.raises(ValueError, match=r"hyper must be of float32 .* of float16"):
        call(make(), hyper=jnp.asarray(-1, jnp.float16))


def test_a_displacement_that_rounding_swallows_gives_no_number():
    far = {"w": jnp.full(3, 1e6)}
    state = InnerState(far, PROBLEM.optimizer.init(far))
    assert jnp.isnan(call(hypergrad.darts(0.1), state=state).gradient)


def test_darts_sees_gradients_whose_square_is_zero():
    tiny = PROBLEM._replace(outer_loss=lambda w, a, b: 1e-25 * loss(w, a, b))
    for estimator in (hypergrad.darts(0.1), hypergrad.sgd_formula(0.1)):
        small, whole = (call(estimator, problem=p).gradient for p in (tiny, PROBLEM))
        np.testing.assert_allclose(small, 1e-25 * whole, rtol=1e-3)


@pytest.mark.parametrize("make", [hypergrad.reverse, hypergrad.forward, hypergrad.cg])
def test_numbers_of_steps_are_integers(make):
    with pytest.raises(ValueError, match=r"(steps|iterations) must be an integer, got 1\.5"):
        make(1.5)


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: hypergrad.adam(-0.1),
            "learning_rate must be a number, finite and at",
        ),
        (lambda: hypergrad.adam(float("nan")), "learning_rate must be .* got nan"),
        (lambda: hypergrad.adam("x"), "learning_rate must be .* got 'x'"),
        (
            lambda: hypergrad.adam(0.1, b1=1.0),
            "b1 must be a number, below 1 and at least 0",
        ),
        (lambda: hypergrad.adamw(0.1, b2=np.float32(1.5)), "b2 must be"),
        (lambda: hypergrad.adamw(0.1, eps=-1e-8), "eps must be"),
        (lambda: hypergrad.adamw(0.1, weight_decay=jnp.array(-1.0)), "weight_decay must be"),
        (lambda: hypergrad.sgd(np.inf), "learning_rate must be"),
        (lambda: hypergrad.sgd(1e39), "learning_rate must be a number, finite .*; got 1e\\+39"),
        (lambda: hypergrad.finite_difference(width=1e-40), "width must be in .1.18e-38, 3.4e.38"),
        (lambda: hypergrad.soba(scale=1e39), "scale must be in .*, got 1e\\+39"),
        (lambda: hypergrad.sgd(0.1, momentum=1.0), "momentum must be"),
        (lambda: hypergrad.sgd(0.1, nesterov="no"), "nesterov must be True or False; got 'no'"),
        (lambda: hypergrad.cg(3, warm_start=None), "warm_start must be True or False; got None"),
        (lambda: PROBLEM._replace(stateful="no").init(jnp.ones(2)), "stateful must be True or"),
        (lambda: hypergrad.forward(True), "steps must be an integer, got True"),
    ],
)
def test_settings_of_optimisers_that_cannot_be_are_named(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_settings_that_are_traced_or_schedules_pass():
    def step(rate):
        optimizer = hypergrad.adamw(rate, weight_decay=rate, b1=rate)
        return optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))[0].sum()

    assert jnp.isfinite(jax.jit(jax.grad(step))(0.1))
    hypergrad.adam(lambda count: -1.0), hypergrad.sgd(0.0, momentum=None)
