"""Every optimiser of optax: its hypergradients are finite differences, or it is refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from tvjax import hypergrad
from tvjax.hypergrad.degenerate import check_slope
from tvjax.hypergrad.pullback import pullback

RATE = 0.05
FLAT = "identically zero and means nothing"
ALONE = "no step with the gradient, its state and the parameters alone: "
SGD, ADAM, WARM_UP = optax.sgd(RATE), hypergrad.adam(RATE), optax.linear_schedule(0.0, RATE, 4)


@pytest.fixture(autouse=True)
def quick():
    """Compiles in half the time; arrays are tiny. Lets optax broadcast as it likes."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


# A curved problem of four or six parameters, another batch in each step.

rng = np.random.default_rng(0)
MATRIX = {"w": rng.normal(size=(2, 2))}
PAIR = MATRIX | {"b": rng.normal(size=2)}
BATCHES = list(rng.normal(size=(5, 2, 2)))


def outer_loss(params, a, batch):
    w, *rest = (params[name] for name in sorted(params, reverse=True))
    return jnp.sum((jnp.tanh(w @ w + batch) - batch) ** 2) + sum(
        jnp.sum((b - w) ** 2) for b in rest
    )


def inner_loss(params, a, batch):
    return outer_loss(params, a, batch) + a * sum(jnp.sum(jnp.cos(3 * x)) for x in params.values())


def problem_of(optimizer):
    return hypergrad.Bilevel(inner_loss, outer_loss, optimizer)


def hypergradients(problem, params):
    """`(L_out after one step and two, estimates of the derivative of each)` as functions of `a`."""
    online = hypergrad.forward_online()
    *before, first, second, outer = map(jnp.asarray, BATCHES)

    def of(a):
        state = problem.init(jax.tree.map(jnp.asarray, params))
        for batch in before:  # past Adam's first step
            state, _ = problem.inner_step(state, 0.3, batch)

        def call(estimator, *batches, state=state, carry=None):
            return estimator(problem, state, a, batches, outer, carry)

        one, two = call(hypergrad.exact(), first), call(hypergrad.forward(2), first, second)
        half = call(online, first)
        return (one.outer_loss, two.outer_loss), {
            "exact forward": (0, one.gradient),
            "exact reverse": (0, call(hypergrad.exact(mode="reverse"), first).gradient),
            "forward": (1, two.gradient),
            "reverse": (1, call(hypergrad.reverse(2), first, second).gradient),
            "online": (1, call(online, second, state=half.state, carry=half.carry).gradient),
        }

    return of


def check_contract(problem, params=MATRIX, width=1e-4):
    program, a = jax.jit(hypergradients(problem, params)), 0.3
    near = [np.asarray(program(a + k * width)[0]) for k in (-2, -1, 1, 2)]
    truth = np.dot([1 / 12, -2 / 3, 2 / 3, -1 / 12], near) / width
    assert (abs(truth) > 1e-5).all(), f"a test of next to nothing: {truth}"
    for name, (which, value) in program(a)[1].items():
        np.testing.assert_allclose(value, truth[which], rtol=1e-6, err_msg=name)


def exported(name):
    module, _, rest = name.rpartition(".")
    return getattr(optax.contrib if module else optax, rest)


# Optimisers that take a learning rate and nothing else.

RATED = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars
    nadam nadamw novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent radam
    rmsprop sgd sm3 yogi contrib.acprop contrib.ademamix contrib.adopt contrib.cocob contrib.dog
    contrib.dowg contrib.galore contrib.madgrad contrib.muon contrib.simplified_ademamix
""".split()
SLOW = {"contrib.galore", "contrib.muon", "contrib.mechanize", "contrib.dadapt_adamw", "adamaxw"}

# Those that take more; None where the default is enough.

GIVEN = {
    "contrib.dadapt_adamw": lambda f: f(estim_lr0=0.05),
    "contrib.dog": lambda f: f(1.0, ("learning_rate", 0.05)),
    "contrib.mechanize": lambda f: f(SGD, s_init=0.1),
    "contrib.prodigy": lambda f: f(estim_lr0=0.05),
    "contrib.sam": lambda f: f(SGD, SGD),
    "contrib.schedule_free": lambda f: f(SGD, RATE),
    "contrib.schedule_free_adamw": lambda f: f(),
    "contrib.schedule_free_sgd": lambda f: f(RATE),
    "lars": lambda f: f(RATE, trust_coefficient=1.0),
    "noisy_sgd": lambda f: f(RATE, eta=0.01, key=0),
    # Wrappers.
    "MultiSteps": lambda f: f(SGD, 3),
    "apply_if_finite": lambda f: f(ADAM, 3),
    "chain": lambda f: f(optax.clip_by_global_norm(1.0), ADAM),
    "inject_hyperparams": lambda f: f(hypergrad.adamw)(learning_rate=WARM_UP),
    "masked": lambda f: f(ADAM, {"w": True, "b": False}),
    "partition": lambda f: f({"a": ADAM, "b": SGD}, {"w": "a", "b": "b"}),
}
PAIRED = {"masked", "partition", "multi_transform", "freeze", "selective_transform", "contrib.muon"}

# Parts of optimisers, tried with a rate after them: those above are made of them.

PARTS = {
    "adaptive_grad_clip": lambda f: f(0.5),
    "add_decayed_weights": lambda f: f(0.1),
    "add_noise": lambda f: f(0.1, 0.5, jax.random.key(0)),
    "apply_every": lambda f: f(3),
    "clip": lambda f: f(0.3),
    "clip_by_block_rms": lambda f: f(0.3),
    "clip_by_global_norm": lambda f: f(0.3),
    "conditionally_mask": lambda f: f(ADAM, lambda step: step >= 1),
    "conditionally_transform": lambda f: f(ADAM, lambda step: step >= 3),
    "contrib.scale_by_galore": lambda f: f(1),
    "contrib.scale_by_muon": lambda f: f(
        weight_dimension_numbers={"w": optax.contrib.MuonDimensionNumbers()}
    ),
    "contrib.scale_by_madgrad": lambda f: f(RATE),
    "contrib.split_real_and_imaginary": lambda f: f(ADAM),
    "ema": lambda f: f(0.9),
    "flatten": lambda f: f(ADAM),
    "freeze": lambda f: f({"w": False, "b": True}),
    "inject_stateful_hyperparams": lambda f: f(hypergrad.adam)(RATE),
    "measure_with_ema": lambda f: f(lambda updates: updates, 0.9),
    "monitor": lambda f: f({"norm": optax.global_norm}),
    "multi_transform": lambda f: f({"a": ADAM, "b": SGD}, {"w": "a", "b": "b"}),
    "named_chain": lambda f: f(("clip", optax.clip(0.3)), ("adam", ADAM)),
    "scale": lambda f: f(0.5),
    "scale_by_distance_over_gradients": lambda f: f(reps_rel=0.1),
    "scale_by_learning_rate": lambda f: f(RATE),
    "scale_by_schedule": lambda f: f(WARM_UP),
    "selective_transform": lambda f: f(ADAM, freeze_mask={"w": False, "b": True}),
    "snapshot": lambda f: f("norm", optax.global_norm),
    "stateless": lambda f: f(lambda updates, params: jax.tree.map(jnp.sinh, updates)),
    "stateless_with_tree_map": lambda f: f(lambda update, param: update * param),
    "trace": lambda f: f(0.9),
    "with_extra_args_support": lambda f: f(ADAM),
} | dict.fromkeys(
    """
    centralize identity keep_params_nonnegative normalize_by_update_norm scale_by_adadelta
    scale_by_adam scale_by_adamax scale_by_adan scale_by_amsgrad scale_by_belief
    scale_by_factored_rms scale_by_lbfgs scale_by_novograd
    scale_by_optimistic_gradient scale_by_param_block_norm scale_by_param_block_rms scale_by_radam
    scale_by_rms scale_by_rss scale_by_sm3 scale_by_stddev scale_by_trust_ratio scale_by_yogi
    zero_nans contrib.normalize contrib.scale_by_acprop contrib.scale_by_ademamix
    contrib.scale_by_adopt contrib.scale_by_cocob contrib.scale_by_simplified_ademamix
    """.split(),
    lambda f: f(),
)

# Refused, each with what the message must say.

REFUSED = {
    "lion": (lambda f: f(RATE), FLAT),
    "rprop": (lambda f: f(RATE), FLAT),
    "scale_by_lion": (lambda f: f(), FLAT),
    "scale_by_rprop": (lambda f: f(RATE), FLAT),
    "scale_by_sign": (lambda f: f(), FLAT),
    "set_to_zero": (lambda f: f(), FLAT),
    "sign_sgd": (lambda f: f(RATE), FLAT),
    "signum": (lambda f: f(RATE), FLAT),
    "lbfgs": (lambda f: f(), f"{ALONE}.* missing 3 .*'value_fn'"),
    "scale_by_backtracking_linesearch": (lambda f: f(5), f"{ALONE}.* missing 3 .*'value_fn'"),
    "scale_by_zoom_linesearch": (lambda f: f(5), f"{ALONE}.* missing 3 .*'value_fn'"),
    "polyak_sgd": (lambda f: f(), f"{ALONE}.* missing 1 .*'value'"),
    "scale_by_polyak": (lambda f: f(), f"{ALONE}.* missing 1 .*'value'"),
    "contrib.momo": (lambda f: f(), f"{ALONE}.* missing 1 .*'value'"),
    "contrib.momo_adam": (lambda f: f(), f"{ALONE}.* missing 1 .*'value'"),
    "contrib.reduce_on_plateau": (lambda f: f(), f"{ALONE}.* missing 1 .*'value'"),
    "contrib.sophia": (lambda f: f(RATE), f"{ALONE}obj_fn must be provided"),
    "contrib.hutchinson_estimator_diag_hessian": (lambda f: f(), f"{ALONE}obj_fn must"),
    "contrib.dpsgd": (lambda f: f(RATE, 1.0, 0.1, 0), "gradient per example"),
    "contrib.differentially_private_aggregate": (
        lambda f: f(1.0, 0.1, key=0), "gradient per example"
    ),
    "lookahead": (lambda f: f(SGD, 3, 0.5), f"{ALONE}.*has no attribute 'fast'"),
}  # fmt: skip
NO_OPTIMIZERS = set(
    """
    apply_updates global_norm incremental_update init_empty_state matrix_inverse_pth_root
    multi_normal nnls per_example_global_norm_clip per_example_layer_norm_clip periodic_update
    power_iteration safe_increment safe_int32_increment safe_norm safe_root_mean_squares
    scale_gradient skip_large_updates skip_not_finite value_and_grad_from_state
    contrib.schedule_free_eval_params
    """.split()
)
OTHER_MODULES = "losses schedules tree_utils projections second_order microbatching".split()


def is_candidate(f):
    parts = getattr(f, "__module__", "").split(".")
    if not callable(f) or parts[0] != "optax" or parts[1] in OTHER_MODULES:
        return False
    return hasattr(f, "update") and not issubclass(f, tuple) if inspect.isclass(f) else True


def test_no_optimizer_of_optax_is_forgotten():
    found = {
        prefix + name
        for prefix, module in (("", optax), ("contrib.", optax.contrib))
        for name, f in vars(module).items()
        if not name.startswith("_") and is_candidate(f)
    }
    known = {*RATED, *GIVEN, *PARTS, *REFUSED, *NO_OPTIMIZERS}
    assert found <= known, f"new in optax, neither tried nor refused: {found - known}"


def names():
    for name in sorted({*RATED, *GIVEN, *PARTS}):
        slow = name in SLOW or name in PARTS
        yield pytest.param(name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("name", list(names()))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hypergradients_through_it_are_finite_differences(x64, name):
    make = GIVEN.get(name) or PARTS.get(name) or (lambda f: f(RATE))
    optimizer = make(exported(name))
    if name in PARTS:
        optimizer = optax.chain(optimizer, optax.scale(-RATE))
    check_contract(problem_of(optimizer), PAIR if name in PAIRED else MATRIX)


@pytest.mark.parametrize("name", list(REFUSED))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_refused_before_there_is_a_number(x64, name):
    make, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as error:
        problem, params = problem_of(make(exported(name))), jax.tree.map(jnp.asarray, MATRIX)
        call = hypergrad.exact()
        jax.eval_shape(
            lambda a: call(problem, problem.init(params), a, BATCHES[:1], BATCHES[1]), 0.3
        )
    assert "\n" not in str(error.value)


# Flat or not is a matter of the update's form, not of how long nothing happens.


def delayed(steps):
    """Gradient descent along the gradient of some steps ago."""

    def init(params):
        return [jax.tree.map(jnp.zeros_like, params)] * steps

    def update(updates, state, params=None):
        return jax.tree.map(lambda x: -RATE * x, state[0]), [*state[1:], updates]

    return optax.GradientTransformation(init, update)


ADAM_OF_OPTAX = optax.adam(RATE)
LATE = optax.join_schedules([optax.constant_schedule(0.0), optax.constant_schedule(RATE)], [10])
SLOPED = {
    "adafactor": optax.adafactor(RATE),
    "delayed": delayed(12),
    "every_100": optax.apply_every(100),
    "late": optax.sgd(LATE),
    "masked_late": optax.conditionally_mask(SGD, lambda step, **_: jnp.asarray(step) > 20),
    "multi_steps": optax.MultiSteps(SGD, 16),
    "partly_lion": optax.partition({"a": optax.lion(RATE), "b": SGD}, {"w": "a", "b": "b"}),
    "warm_up": optax.sgd(optax.linear_schedule(0.0, 1.0, 100)),
}
SIGNS = optax.stateless(lambda g, _: jax.tree.map(lambda x: jnp.where(x > 0, -RATE, RATE), g))
LION = optax.lion(RATE, weight_decay=0.1)
LEVEL = {
    "chained": optax.chain(optax.clip_by_global_norm(1.0), LION),
    "finite": optax.apply_if_finite(LION, 3),
    "frozen": optax.chain(SGD, optax.freeze({"w": True, "b": True})),
    "injected": optax.inject_hyperparams(optax.lion)(RATE),
    "multi_steps": optax.MultiSteps(LION, 16),
    "parted": optax.partition({"a": LION, "b": optax.sign_sgd(RATE)}, {"w": "a", "b": "b"}),
    "signs": SIGNS,
}


def check(optimizer):
    params = jax.tree.map(jnp.asarray, PAIR)
    check_slope(optimizer, jnp.asarray(0.3), params, optimizer.init(params))


@pytest.mark.parametrize("name", list(SLOPED))
def test_optimizers_with_a_slope_are_taken(x64, name):
    check(SLOPED[name])


@pytest.mark.parametrize("name", list(LEVEL))
def test_optimizers_without_a_slope_are_refused(x64, name):
    with pytest.raises(ValueError, match=FLAT):
        check(LEVEL[name])


def test_implicit_estimators_take_what_has_no_slope(x64):
    problem = hypergrad.Bilevel(
        lambda w, a, _: jnp.sum((w - a) ** 2), lambda w, a, _: jnp.sum(w**3), optax.lion(RATE)
    )
    state = problem.init(jnp.ones(2))
    estimate = hypergrad.cg(2)(problem, state, jnp.asarray(0.3), [None], None)
    np.testing.assert_allclose(estimate.gradient, jnp.sum(3 * estimate.state.params**2), rtol=1e-9)


# Branches that a `where` leaves out.


def guarded(g):
    return jnp.where(g > 0, g**2, g * jnp.sqrt(-jnp.abs(g)) / jnp.where(g > 0, 0.0, 1.0))


def test_a_branch_that_is_left_out_adds_nothing_to_the_pullback(x64):
    g = jnp.asarray([2.0, -2.0])
    _, pull, _ = pullback(lambda g: (guarded(g), None), g)
    assert jnp.isnan(jax.vjp(guarded, g)[1](jnp.ones(2))[0]).all()
    np.testing.assert_array_equal(pull(jnp.ones(2))[0], [4.0, jnp.nan])


def test_what_is_not_known_stays_nan_in_the_pullback(x64):
    # A gradient of exactly zero under stock Adam: NaN forward, and so in reverse.
    problem = hypergrad.Bilevel(
        lambda w, a, _: a * 0 * w.sum(), lambda w, a, _: w.sum(), optax.adam(1)
    )
    state, a = problem.init(jnp.zeros(2)), jnp.asarray(0.3)
    for estimator in (hypergrad.reverse(1), hypergrad.forward(1), hypergrad.exact(mode="reverse")):
        assert jnp.isnan(estimator(problem, state, a, [None], None).gradient)
