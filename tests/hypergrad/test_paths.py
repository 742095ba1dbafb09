"""The three ways of a hyperparameter: inner loss, optimiser's settings, outer loss directly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn import sigmoid, softplus

from tvjax import hypergrad
from tvjax.hypergrad import SCANNED
from tvjax.hypergrad.dependence import reached, shapes
from tvjax.hypergrad.reverse import step

ROWS, STEPS = 200, 3
rng = np.random.default_rng(0)
PARAMS = {"w": rng.normal(size=(4, 3)), "v": rng.normal(size=3)}
BATCHES = [(rng.normal(size=(ROWS, 4)), rng.normal(size=ROWS)) for _ in range(6)]


@pytest.fixture(autouse=True)
def quick():
    """Compiles in half the time; arrays are tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_rank_promotion("allow"):  # stock optax broadcasts its settings
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def errors(params, batch):
    x, y = batch
    return (jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2


def inner_loss(params, hyper, batch):
    weights = softplus(hyper.get("weights", 1.0))
    size = sum(jnp.sum(jnp.sqrt(0.1 + p**2)) for p in params.values())
    return jnp.mean(weights * errors(params, batch)) + jnp.exp(hyper.get("penalty", -3.0)) * size


def outer_loss(params, hyper, batch):
    direct = hyper.get("direct", 0.0)
    return jnp.mean(errors(params, batch)) + jnp.sin(direct) * jnp.sum(params["v"]) + direct**2


# Optimisers as functions of what is learned, with the values at which it is.


def decayed(make):
    """L2 weight decay in the gradient, for optimisers that have none of their own."""
    return lambda h: optax.chain(optax.add_decayed_weights(jnp.exp(h["decay"])), make(0.05))


def layers(h):
    of = {name: hypergrad.adam(jnp.exp(h[name])) for name in PARAMS}
    return optax.partition(of, {name: name for name in PARAMS})


def scheduled(make):
    """A rate that falls by a learned factor per step, to a learned end."""

    def optimizer(h):
        top, fall, end = jnp.exp(h["top"]), sigmoid(h["fall"]), jnp.exp(h["end"])
        return make(lambda count: end + (top - end) * fall**count)

    return optimizer


def everything(h):
    moments = {"b1": sigmoid(h["b1"]), "b2": sigmoid(h["b2"]), "eps": jnp.exp(h["eps"])}
    rate = scheduled(lambda rate: rate)(h)
    return hypergrad.adamw(rate, weight_decay=jnp.exp(h["decay"]), **moments)


RATE, DECAY, MOMENTUM = {"rate": -3.0}, {"decay": -2.0}, {"momentum": 1.5}
MOMENTS = {"b1": 2.0, "b2": 4.0, "eps": -4.0}
SCHEDULE = {"top": -2.0, "fall": 1.0, "end": -5.0}
WEIGHTS = {"weights": rng.normal(size=ROWS)}
CASES = {
    "sgd rate": (lambda h: hypergrad.sgd(jnp.exp(h["rate"])), RATE),
    "sgd decay": (decayed(hypergrad.sgd), DECAY),
    "sgd momentum": (lambda h: hypergrad.sgd(0.05, momentum=sigmoid(h["momentum"])), MOMENTUM),
    "nesterov": (
        lambda h: hypergrad.sgd(0.05, momentum=sigmoid(h["momentum"]), nesterov=True), MOMENTUM
    ),
    "stock sgd": (
        lambda h: optax.sgd(jnp.exp(h["rate"]), momentum=sigmoid(h["momentum"])), RATE | MOMENTUM
    ),
    "adam rate": (lambda h: hypergrad.adam(jnp.exp(h["rate"])), RATE),
    "adam decay": (decayed(hypergrad.adam), DECAY),
    "adam moments": (
        lambda h: hypergrad.adam(
            0.05, b1=sigmoid(h["b1"]), b2=sigmoid(h["b2"]), eps=jnp.exp(h["eps"])
        ),
        MOMENTS,
    ),
    "stock adam": (
        lambda h: optax.adam(jnp.exp(h["rate"]), b1=sigmoid(h["b1"])), RATE | {"b1": 2.0}
    ),
    "adamw": (
        lambda h: hypergrad.adamw(jnp.exp(h["rate"]), weight_decay=jnp.exp(h["decay"])),
        RATE | DECAY,
    ),
    "layers": (layers, {"w": -3.0, "v": -4.0}),
    "schedule": (scheduled(hypergrad.sgd), SCHEDULE),
    "direct": (hypergrad.adam(0.05), {"direct": 0.7}),
    "direct and rate": (lambda h: hypergrad.adam(jnp.exp(h["rate"])), {**RATE, "direct": 0.7}),
    "penalty and decay": (
        lambda h: hypergrad.adamw(0.05, weight_decay=jnp.exp(h["decay"])),
        DECAY | {"penalty": -3.0},
    ),
    "200 weights": (hypergrad.adam(0.05), WEIGHTS),
    "everything": (
        everything, WEIGHTS | MOMENTS | SCHEDULE | DECAY | {"direct": 0.7, "penalty": -3.0}
    ),
}  # fmt: skip


def problem_of(name):
    optimizer, hyper = CASES[name]
    hyper = jax.tree.map(jnp.asarray, hyper)
    problem = hypergrad.Bilevel(inner_loss, outer_loss, optimizer)
    state = problem.init(jax.tree.map(jnp.asarray, PARAMS), hyper=hyper)
    for batch in BATCHES[:2]:  # past Adam's first step
        state, _ = step(problem, state, hyper, batch)
    return problem, state, hyper


def losses(problem, state):
    """`hyper -> L_out after one step and after three`."""

    def of(hyper):
        at, found = state, []
        for batch in BATCHES[2:5]:
            at, _ = problem.inner_step(at, hyper, batch)
            found.append(outer_loss(at.params, hyper, BATCHES[5]))
        return jnp.stack([found[0], found[-1]])

    return of


def estimates(problem, state):
    """`hyper ->` estimates of the derivative of each of `losses`."""
    batches, outer = BATCHES[2:5], BATCHES[5]

    def of(hyper):
        def call(estimator, batches, state=state, carry=None):
            return estimator(problem, state, hyper, batches, outer, carry)

        exact, run = (
            {"forward": call(hypergrad.exact(mode="forward"), batches[:1]),
             "reverse": call(hypergrad.exact(mode="reverse"), batches[:1]),
             "either": call(hypergrad.exact(), batches[:1])},
            {"forward": call(hypergrad.forward(STEPS, loop=SCANNED), batches),
             "reverse": call(hypergrad.reverse(STEPS, loop=SCANNED), batches)},
        )  # fmt: skip
        online = hypergrad.forward_online()

        def advance(at, batch):
            after = call(online, [batch], *at)
            return (after.state, after.carry), after.gradient

        start = state, online.init(problem, state, hyper)
        _, gradients = jax.lax.scan(advance, start, SCANNED.stack(batches))
        exact, run = ({k: e.gradient for k, e in found.items()} for found in (exact, run))
        return [exact, run | {"online": SCANNED.last(gradients)}]

    return of


def close(found, expected):
    size = np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * size)


QUICK = {
    "stock sgd",
    "sgd decay",
    "layers",
    "penalty and decay",
    "everything",
}  # which have all there is


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in CASES]
)
def test_exact_and_many_steps_are_central_differences(x64, name):
    problem, state, hyper = problem_of(name)
    program, width = jax.jit(losses(problem, state)), 1e-3
    found = jax.jit(estimates(problem, state))(hyper)
    for found_of in found:
        for gradient in found_of.values():
            jax.tree.map(close, gradient, found_of["forward"])
    for leaf in hyper:  # each by itself, so that none hides behind another
        along = {k: jnp.asarray(rng.normal(size=h.shape)) * (k == leaf) for k, h in hyper.items()}

        moved = [{k: h + t * width * along[k] for k, h in hyper.items()} for t in (-2, -1, 1, 2)]
        truth = np.dot([1, -8, 8, -1], [program(h) for h in moved]) / (12 * width)
        for found_of, expected in zip(found, truth, strict=True):
            assert abs(expected) > 1e-6 or leaf in ("end", "eps"), "a test of next to nothing"
            value = sum(jnp.vdot(found_of["forward"][k], d) for k, d in along.items())
            np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=leaf)


def test_finite_differences_see_all_ways(x64):
    problem, state, hyper = problem_of("direct and rate")
    args = problem, state, hyper, BATCHES[2:4], BATCHES[5]
    near, exact = (
        e(*args).gradient for e in (hypergrad.finite_difference(2), hypergrad.reverse(2))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), near, exact)


@pytest.mark.parametrize("loop", [hypergrad.UNROLLED, SCANNED], ids=["unrolled", "scanned"])
def test_reversible_learning_learns_its_rate(x64, loop):
    """The direct term and what the inner loss takes come out right beside it."""

    def rate(h):
        return jnp.exp(h["rate"])

    hyper = {"rate": jnp.asarray(-3.0), "penalty": jnp.asarray(-3.0), "direct": jnp.asarray(0.7)}
    problem = hypergrad.Bilevel(
        inner_loss, outer_loss, lambda h: hypergrad.sgd(rate(h), momentum=0.9)
    )
    state = problem.init(jax.tree.map(jnp.asarray, PARAMS), hyper=hyper)
    found, expected = (
        jax.jit(lambda h, e=e: e(problem, state, h, BATCHES[:3], BATCHES[5]).gradient)(hyper)
        for e in (hypergrad.reversible(3, rate, 0.9, loop=loop), hypergrad.reverse(3, loop=loop))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)
    other = hypergrad.reversible(3, lambda h: 2 * rate(h), 0.9)
    with pytest.raises(ValueError, match="this optimiser takes other steps"):
        other(problem, state, hyper, BATCHES[:3], BATCHES[5])


# One contract for optimisers that are functions.


@pytest.mark.parametrize("mode, name", [
    ("forward", "direct and rate"), ("reverse", "direct and rate"), (None, "penalty and decay"),
])  # fmt: skip
def test_devices_vmap_and_one_compilation(x64, mode, name):
    problem, state, hyper = problem_of(name)
    traces, estimator = [], hypergrad.exact(mode=mode)

    def counted(h):
        traces.append(None)
        return CASES[name][0](h)

    problem = problem._replace(optimizer=counted)
    call = jax.jit(lambda h, b, p=problem: estimator(p, state, h, [b[0]], b[1]))
    batches = jax.tree.map(jnp.asarray, (BATCHES[2], BATCHES[5]))
    whole, once = call(hyper, batches), len(traces)
    call(jax.tree.map(lambda h: h + 0.1, hyper), batches)
    assert len(traces) == once

    many = jax.tree.map(lambda h: h + jnp.asarray([0.0, 0.1]), hyper)
    both = jax.jit(jax.vmap(call, in_axes=(0, None)))(many, batches)
    shards = jax.tree.map(lambda x: x.reshape(4, ROWS // 4, *x.shape[1:]), batches)
    local = problem._replace(axis_name="d")
    parts = jax.jit(
        jax.vmap(lambda b: estimator(local, state, hyper, [b[0]], b[1]), axis_name="d")
    )(shards)
    for found in (jax.tree.map(lambda x: x[0], both), jax.tree.map(lambda x: x[3], parts)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, whole)


def test_settings_of_more_digits_do_not_widen_the_state():
    def optimizer(h):
        return hypergrad.adam(h, b1=1 - h)

    params = {"w": jnp.ones(3, jnp.bfloat16)}
    problem = hypergrad.Bilevel(
        lambda p, h, _: jnp.sum(p["w"] ** 2), lambda p, h, _: jnp.sum(p["w"]), optimizer
    )
    hyper = jnp.float32(0.1)
    state = problem.init(params, hyper=hyper)
    after = hypergrad.forward(2, loop=SCANNED)(problem, state, hyper, [0.0, 0.0], 0.0).state
    assert shapes(after) == shapes(state)


# Estimators that do not see a way refuse it.

BLIND = {
    "sgd_formula": hypergrad.sgd_formula(0.1), "paper": hypergrad.paper(0.1),
    "preconditioned": hypergrad.preconditioned(0.1), "darts": hypergrad.darts(0.1),
    "training_loss": hypergrad.training_loss(), "scaled_identity": hypergrad.scaled_identity(0.1),
    "neumann": hypergrad.neumann(2, 0.1), "cg": hypergrad.cg(2),
    "nystrom": hypergrad.nystrom(2, 0.5), "reversible": hypergrad.reversible(2, 0.05, 0.9),
    "soba": hypergrad.soba(0.1), "amigo": hypergrad.amigo(1, 0.1),
    "stocbio": hypergrad.stocbio(1, 0.1), "f2sa": hypergrad.f2sa(5.0),
    "bome": hypergrad.bome(0.5, 0.1),
}  # fmt: skip


def trace(estimator, problem, hyper):
    state = problem.init(jax.tree.map(jnp.asarray, PARAMS), hyper=hyper)
    return jax.eval_shape(
        lambda h: estimator(problem, state, h, BATCHES[: estimator.batches], BATCHES[5]).gradient,
        hyper,
    )


@pytest.mark.parametrize("name", BLIND)
def test_what_does_not_see_the_settings_refuses_them(name):
    hyper = {"penalty": jnp.asarray(-3.0), "rate": jnp.asarray(-3.0)}
    problem = hypergrad.Bilevel(inner_loss, outer_loss, CASES["adam rate"][0])
    with pytest.raises(
        ValueError, match=r"settings depend on hyper, which .* does not see"
    ) as error:
        trace(BLIND[name], problem, hyper)
    assert "\n" not in str(error.value)


def test_a_function_that_does_not_use_hyper_is_taken():
    problem = hypergrad.Bilevel(inner_loss, outer_loss, lambda h: hypergrad.adam(0.1))
    trace(hypergrad.sgd_formula(0.1), problem, {"penalty": jnp.asarray(-3.0)})


def test_the_training_loss_refuses_a_direct_term_unless_it_is_only_reported():
    hyper = {"penalty": jnp.asarray(-3.0), "direct": jnp.asarray(0.7)}
    problem = hypergrad.Bilevel(inner_loss, outer_loss, hypergrad.sgd(0.1))
    with pytest.raises(ValueError, match=r"outer loss depends .*stop_gradient") as error:
        trace(hypergrad.training_loss(), problem, hyper)
    assert "\n" not in str(error.value)
    reported = problem._replace(
        outer_loss=lambda p, h, b: outer_loss(p, jax.lax.stop_gradient(h), b)
    )
    trace(hypergrad.training_loss(), reported, hyper)


@pytest.mark.parametrize("name", ["sgd_formula", "darts"])
def test_the_formulas_add_the_direct_term(x64, name):
    hyper = {"penalty": jnp.asarray(-3.0), "direct": jnp.asarray(0.7)}
    problem = hypergrad.Bilevel(inner_loss, outer_loss, hypergrad.sgd(0.1))
    state = problem.init(jax.tree.map(jnp.asarray, PARAMS))
    estimator = {"sgd_formula": BLIND[name], "darts": hypergrad.darts(0.1, radius=1e-4)}[name]
    found, exact = (
        e(problem, state, hyper, BATCHES[:1], BATCHES[5]).gradient
        for e in (estimator, hypergrad.exact())
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, exact)


@pytest.mark.parametrize("name", ["cg", "neumann", "nystrom"])
def test_the_implicit_estimators_add_the_direct_term(x64, name):
    """y* = x, h = y*^2 / 2 + x^3: dh/dx = x + 3 x^2."""
    problem = hypergrad.Bilevel(
        lambda y, x, _: (y - x) ** 2 / 2, lambda y, x, _: y**2 / 2 + x**3, optax.sgd(1.0)
    )
    estimator = {
        "cg": hypergrad.cg(1), "neumann": hypergrad.neumann(0, 1.0),
        "nystrom": hypergrad.nystrom(1, 1e-9),
    }[name]  # fmt: skip
    x = jnp.asarray(0.5)
    found = estimator(problem, problem.init(jnp.asarray(0.0)), x, [None], None).gradient
    np.testing.assert_allclose(found, x + 3 * x**2, rtol=1e-6)


INJECTED = optax.inject_hyperparams(optax.adam)


def test_a_state_that_holds_hyper_is_refused():
    problem = hypergrad.Bilevel(inner_loss, outer_loss, lambda h: INJECTED(jnp.exp(h["rate"])))
    params, hyper = jax.tree.map(jnp.asarray, PARAMS), {"rate": jnp.asarray(-3.0)}
    with pytest.raises(ValueError, match=r"first state depends on hyper, .*inject_hyper") as error:
        problem.init(params, hyper=hyper)
    assert "\n" not in str(error.value)
    state = hypergrad.InnerState(params, problem.optimizer(hyper).init(params))
    with pytest.raises(ValueError, match="first state depends on hyper"):
        hypergrad.exact()(problem, state, hyper, BATCHES[:1], BATCHES[1])


def test_what_is_no_optimizer_is_refused():
    hyper = {"rate": jnp.asarray(-3.0)}
    for optimizer, message in (
        (0.1, "or a function of hyper that returns one; got a float"),
        (lambda h: h["rate"], "function of hyper that returns one; it returned a "),
        (
            lambda h: hypergrad.adam(float(h["rate"])),
            "asks for the values of hyper, which are trac",
        ),
    ):
        problem = hypergrad.Bilevel(inner_loss, outer_loss, optimizer)
        with pytest.raises(ValueError, match=message) as error:
            problem.init(jax.tree.map(jnp.asarray, PARAMS), hyper=hyper)
        assert "\n" not in str(error.value)
    problem = hypergrad.Bilevel(inner_loss, outer_loss, CASES["adam rate"][0])
    with pytest.raises(ValueError, match=r"function of hyper: call init\(params, hyper=hyper\)"):
        problem.init(jax.tree.map(jnp.asarray, PARAMS))


def test_steps_without_a_slope_have_one_in_their_own_settings(x64):
    def flat(h):
        return optax.sign_sgd(jnp.exp(h["rate"]))

    problem = hypergrad.Bilevel(inner_loss, outer_loss, flat)
    state, hyper = problem.init(jax.tree.map(jnp.asarray, PARAMS), hyper=dict(RATE)), dict(RATE)
    exact, near = (
        e(problem, state, hyper, BATCHES[:1], BATCHES[5]).gradient["rate"]
        for e in (hypergrad.exact(), hypergrad.finite_difference())
    )
    np.testing.assert_allclose(exact, near, rtol=1e-6)
    with pytest.raises(ValueError, match="identically zero and means nothing"):
        trace(hypergrad.exact(), problem, {"rate": jnp.asarray(-3.0), "penalty": jnp.asarray(-3.0)})


# What depends on what.


def test_dependence_is_told_by_tracing():
    def f(x, y):
        cut = jax.lax.stop_gradient(x) * y
        return [x * 0, cut, jnp.sign(x), jnp.where(x > 0, y, 0), jax.jit(jnp.sin)(x + y), y]

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    assert reached(f, shape, shape) == [True, False, False, False, True, False]
    assert reached(lambda x: {"a": 1.0}, shape) == [False]
