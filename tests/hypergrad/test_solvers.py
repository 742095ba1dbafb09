"""Solvers that remember from call to call, on quadratics whose optimum numpy knows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax import hypergrad
from tvjax.hypergrad import SCANNED
from tvjax.hypergrad.f2sa import F2SACarry

RATE, SCALE = 0.3, 0.25


@pytest.fixture(autouse=True)
def quick():
    """Compiles in half the time; arrays are tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
A = BASIS @ np.diag([0.5, 1.0, 2.0]) @ BASIS.T
F = np.diag([1.0, 0.5, 2.0])
B, C, T, X0 = (
    0.4 * RNG.normal(size=(3, 2)),
    RNG.normal(size=3),
    RNG.normal(size=3),
    RNG.normal(size=2),
)
SMALL = 0.3


def inner(y, x, _):
    """g = <y, A y> / 2 - <y, B x + c>, least at y* = A^-1 (B x + c)."""
    return y @ A @ y / 2 - y @ (B @ x + C)


def outer(y, x, _):
    """f = <y - t, F (y - t)> / 2 + 0.15 |x - x0|^2, with a direct term."""
    return (y - T) @ F @ (y - T) / 2 + SMALL * jnp.sum((x - X0) ** 2) / 2


PROBLEM = hypergrad.Bilevel(inner, outer, optax.sgd(RATE))


def least(x):
    return np.linalg.solve(A, B @ x + C)


def value(x):
    """h(x) = f(x, y*(x))."""
    return float(outer(least(x), x, None))


def stationary(inverse):
    """The x at which grad_x f + B^T inverse grad_y f = 0 with y = y*(x)."""
    across = B.T @ inverse @ F
    curvature = across @ np.linalg.solve(A, B) + SMALL * np.eye(2)
    return np.linalg.solve(curvature, SMALL * X0 - across @ (np.linalg.solve(A, C) - T))


def pulled(sigma):
    """The x at which the derivative of min_z (f + sigma g) - sigma min g vanishes."""
    both = A + F / sigma
    z, z0 = np.linalg.solve(both, B), np.linalg.solve(both, C + F @ T / sigma)
    y, y0 = np.linalg.solve(A, B), np.linalg.solve(A, C)
    curvature = SMALL * np.eye(2) - sigma * B.T @ (z - y)
    return np.linalg.solve(curvature, SMALL * X0 + sigma * B.T @ (z0 - y0))


OPTIMUM = stationary(np.linalg.inv(A))


def converged(estimator, moves, calls, problem=PROBLEM, y=None, x=None):
    """`x` and `y` after so many calls with the full batch."""
    moves = optax.sgd(moves) if isinstance(moves, float) else moves
    state = problem.init(jnp.zeros(3) if y is None else y)
    x = jnp.zeros(2) if x is None else x
    batches = [None] * estimator.batches

    def call(at, _):
        state, x, opt_state, carry = at
        estimate = estimator(problem, state, x, batches, None, carry)
        updates, opt_state = moves.update(estimate.gradient, opt_state)
        return (estimate.state, x + updates, opt_state, estimate.carry), None

    start = state, x, moves.init(x), estimator.init(problem, state, x)
    at = jax.jit(lambda start: jax.lax.scan(call, start, length=calls)[0])(start)
    return np.asarray(at[1]), np.asarray(at[0].params)


@pytest.mark.parametrize("name, estimator, moves", [
    ("soba", hypergrad.soba(SCALE), 0.05),
    ("ma-soba", hypergrad.soba(SCALE),
     optax.chain(optax.ema(0.9, debias=False), optax.sgd(0.02))),
    ("amigo", hypergrad.amigo(2, SCALE, steps=2, loop=SCANNED), 0.1),
    ("stocbio", hypergrad.stocbio(200, SCALE, steps=2, loop=SCANNED), 0.1),
])  # fmt: skip
def test_what_converges_reaches_the_optimum(x64, name, estimator, moves):
    x, y = converged(estimator, moves, 2000)
    assert value(x) - value(OPTIMUM) <= 1e-3 * value(OPTIMUM)
    np.testing.assert_allclose(x, OPTIMUM, rtol=1e-6)
    np.testing.assert_allclose(y, least(OPTIMUM), rtol=1e-6)


def test_stocbio_errs_by_its_truncation(x64):
    truncated = np.linalg.matrix_power(np.eye(3) - SCALE * A, 4)
    expected = stationary((np.eye(3) - truncated) @ np.linalg.inv(A))
    x, _ = converged(hypergrad.stocbio(3, SCALE, loop=SCANNED), 0.05, 1000)
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    assert value(x) - value(OPTIMUM) > 5e-3 * value(OPTIMUM)


def test_f2sa_errs_by_one_over_sigma_and_converges_as_sigma_grows(x64):
    errors = []
    for sigma in (20.0, 80.0):
        x, y = converged(hypergrad.f2sa(sigma), 0.05, 1000)
        np.testing.assert_allclose(x, pulled(sigma), rtol=1e-6)
        np.testing.assert_allclose(y, least(x), rtol=1e-6)
        errors.append(np.linalg.norm(x - OPTIMUM))
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.2)
    x, _ = converged(hypergrad.f2sa(lambda calls: 1 + calls, steps=3, loop=SCANNED), 0.05, 1000)
    assert np.linalg.norm(x - OPTIMUM) < errors[1] / 5
    assert value(x) - value(OPTIMUM) <= 1e-3 * value(OPTIMUM)


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_bome_errs_by_the_steps_to_its_fixed_point(x64, steps):
    """g = a/2 (y - x)^2, f = (y - 1)^2 / 2 + x^2 / 2: x + (1 - (1 - scale a)^T) (x - 1) = 0.

    Not so many calls that y = x to rounding, which grad q in x is then made of.
    """
    a, scale = 2.0, 0.1
    problem = hypergrad.Bilevel(
        lambda y, x, _: a * (y - x) ** 2 / 2,
        lambda y, x, _: (y - 1) ** 2 / 2 + x**2 / 2,
        optax.sgd(0.3),
    )
    start = jnp.asarray(2.0), jnp.asarray(-1.0)
    estimator = hypergrad.bome(0.1, scale, steps=steps, loop=SCANNED)
    x, y = converged(estimator, 0.3, 200, problem, *start)
    seen = 1 - (1 - scale * a) ** steps
    np.testing.assert_allclose(x, seen / (1 + seen), rtol=1e-5)
    np.testing.assert_allclose(y, x, rtol=1e-5)


def test_bome_in_several_dimensions_errs_by_the_size_of_its_steps(x64):
    errors = []
    for size, calls in ((1e-2, 1500), (1e-3, 15000)):
        problem = PROBLEM._replace(optimizer=optax.sgd(size))
        x, _ = converged(hypergrad.bome(0.5, 0.4, steps=40, loop=SCANNED), size, calls, problem)
        errors.append(value(x) - value(OPTIMUM))
    assert errors[1] < errors[0] / 3
    assert errors[1] < 1e-2 * value(OPTIMUM)


LOOPED = {
    "reverse": hypergrad.reverse(3), "forward": hypergrad.forward(3),
    "finite_difference": hypergrad.finite_difference(3), "cg": hypergrad.cg(3),
    "scaled_identity": hypergrad.scaled_identity(0.1, steps=3),
    "neumann": hypergrad.neumann(3, 0.1), "nystrom": hypergrad.nystrom(2, 0.5),
    "amigo": hypergrad.amigo(3, SCALE), "stocbio": hypergrad.stocbio(3, SCALE),
    "f2sa": hypergrad.f2sa(5.0, steps=3), "bome": hypergrad.bome(0.5, 0.2, steps=3),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPED)
def test_where_no_loop_is_given_the_backend_decides_when_it_runs(name, monkeypatch):
    estimator = LOOPED[name]
    state, batches = PROBLEM.init(jnp.zeros(3)), [jnp.zeros(1)] * estimator.batches

    def program():
        call = jax.make_jaxpr(lambda x: estimator(PROBLEM, state, x, batches, None).gradient)
        return str(call(jnp.zeros(2)))

    loops = "scan[", "while["
    assert not any(loop in program() for loop in loops)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert any(loop in program() for loop in loops)


# One call, by the formulas.

SOLVERS = {
    "soba": hypergrad.soba(SCALE),
    "soba_damped": hypergrad.soba(SCALE, damping=0.1),
    "amigo": hypergrad.amigo(2, SCALE, steps=2),
    "stocbio": hypergrad.stocbio(2, SCALE),
    "f2sa": hypergrad.f2sa(5.0, steps=2),
    "bome": hypergrad.bome(0.5, 0.2, steps=2),
}


def noisy_inner(y, x, batch):
    """A matrix and a vector of the batch's own."""
    m, c = batch
    return y @ m @ y / 2 - y @ (B @ x + c)


NOISY = PROBLEM._replace(inner_loss=noisy_inner)
BATCHES = [(A + 0.1 * i * np.eye(3), C + 0.2 * i) for i in range(4)]
Y, X, V = RNG.normal(size=3), RNG.normal(size=2), RNG.normal(size=3)


def called(name, carry=None, problem=NOISY):
    estimator, x = SOLVERS[name], jnp.asarray(X)
    state, batches = problem.init(jnp.asarray(Y)), BATCHES[: estimator.batches]
    return jax.jit(lambda s, x: estimator(problem, s, x, batches, None, carry))(state, x)


def slope(batch, y):
    m, c = batch
    return m @ y - B @ X - c


def pull(y):
    return F @ (y - T)


def direct():
    return SMALL * (X - X0)


@pytest.mark.parametrize("name, damping", [("soba", 0), ("soba_damped", 0.1)])
def test_one_call_of_soba_is_its_formula(x64, name, damping):
    found = called(name, jnp.asarray(V))
    (m, _) = BATCHES[0]
    np.testing.assert_allclose(found.state.params, Y - RATE * slope(BATCHES[0], Y))
    expected = V - SCALE * ((m + damping * np.eye(3)) @ V - pull(Y))
    np.testing.assert_allclose(found.carry, expected, rtol=1e-12)
    np.testing.assert_allclose(found.gradient, direct() + B.T @ V, rtol=1e-12)


@pytest.mark.parametrize("name", ["amigo", "stocbio"])
def test_one_call_of_amigo_and_of_stocbio_is_their_formula(x64, name):
    """Each step has a batch of its own: those on y come first."""
    found = called(name, {"amigo": jnp.asarray(V)}.get(name))
    steps, y = SOLVERS[name].steps, Y
    for batch in BATCHES[:steps]:
        y = y - RATE * slope(batch, y)
    first, second = (np.eye(3) - SCALE * m for m, _ in BATCHES[steps : steps + 2])
    b = SCALE * pull(y)
    v = second @ first @ (V if name == "amigo" else b) + second @ b + b
    np.testing.assert_allclose(found.state.params, y, rtol=1e-12)
    np.testing.assert_allclose(found.gradient, direct() + B.T @ v, rtol=1e-12)
    if name == "amigo":
        np.testing.assert_allclose(found.carry, v, rtol=1e-12)


def test_one_call_of_f2sa_is_its_formula(x64):
    start = NOISY.init(jnp.asarray(V))
    found = called("f2sa", F2SACarry(start, jnp.asarray(3, jnp.int32)))
    y, z = Y, V
    for batch in BATCHES[:2]:
        y, z = y - RATE * slope(batch, y), z - RATE * (slope(batch, z) + pull(z) / 5)
    np.testing.assert_allclose(found.state.params, y, rtol=1e-12)
    np.testing.assert_allclose(found.carry.pulled.params, z, rtol=1e-12)
    assert found.carry.calls == 4
    np.testing.assert_allclose(found.gradient, direct() - 5 * B.T @ (z - y), rtol=1e-12)


@pytest.mark.parametrize("pushed", [True, False])
def test_one_call_of_bome_is_its_formula(x64, pushed):
    sign = 9 if pushed else -9  # whether the outer loss pulls off the inner optimum
    problem = NOISY._replace(outer_loss=lambda *args: sign * outer(*args))
    found = called("bome", problem=problem)
    least = Y
    for batch in BATCHES[:2]:
        least = least - 0.2 * slope(batch, least)
    f = sign * np.concatenate([pull(Y), direct()])
    q = np.concatenate([slope(BATCHES[1], Y), -B.T @ (Y - least)])
    mu = max(0, (0.5 * q @ q - f @ q) / (q @ q))
    along = f + mu * q
    np.testing.assert_allclose(found.gradient, along[3:], rtol=1e-12)
    np.testing.assert_allclose(found.state.params, Y - RATE * along[:3], rtol=1e-12)
    called_at = problem.outer_loss(found.state.params, jnp.asarray(X), None)
    np.testing.assert_allclose(found.outer_loss, called_at, rtol=1e-12)
    assert (mu > 0) == pushed


# The contract.


@pytest.mark.parametrize("name", SOLVERS)
def test_contract_of_solvers(x64, name):
    """jit = no jit, vmap = loop, one compilation, devices = one, and a run resumes."""
    estimator, traces = SOLVERS[name], []

    def counted(*args):
        traces.append(None)
        return noisy_inner(*args)

    problem = NOISY._replace(inner_loss=counted)
    batches = BATCHES[: estimator.batches]
    state, x = problem.init(jnp.asarray(Y)), jnp.asarray(X)
    carry = estimator.init(problem, state, x)

    def call(state, x, carry):
        return estimator(problem, state, x, batches, None, carry)

    jitted = jax.jit(call)
    first = jitted(state, x, carry)
    once = len(traces)
    second = jitted(first.state, x - 0.1 * first.gradient, first.carry)
    assert len(traces) == once
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
    jax.tree.map(close, call(state, x, carry), first)

    saved = jax.tree.map(np.asarray, (first.state, x - 0.1 * first.gradient, first.carry))
    again = jitted(*jax.tree.map(jnp.asarray, saved))
    jax.tree.map(np.testing.assert_array_equal, again, second)

    xs = jnp.stack([x, 2 * x])
    several = jax.jit(jax.vmap(call, in_axes=(None, 0, None)))(state, xs, carry)
    for i in range(2):
        alone = jitted(state, xs[i], carry)
        jax.tree.map(close, jax.tree.map(lambda leaf, i=i: leaf[i], several), alone)

    # Two devices hold batches whose means are those of one; both losses are linear in them.
    def pulled(y, x, w):
        return outer(y, x, None) + w @ y + w[:2] @ x

    def over(problem, batches, w):
        return estimator(problem, first.state, x, batches, w, first.carry)

    problem = NOISY._replace(outer_loss=pulled)
    apart, w = jax.tree.map(lambda b: np.stack([1.5 * b, 0.5 * b]), batches), np.stack([Y, V])
    devices = functools.partial(over, problem._replace(axis_name="d"))
    every = jax.jit(jax.vmap(devices, axis_name="d", out_axes=None))(apart, w)
    jax.tree.map(close, every, jax.jit(functools.partial(over, problem))(batches, w.mean(0)))


@pytest.mark.parametrize("name", SOLVERS)
def test_settings_of_the_optimizer_are_refused(name):
    learned = PROBLEM._replace(optimizer=lambda x: hypergrad.sgd(jnp.exp(x[0])))
    x = jnp.zeros(2)
    state = learned.init(jnp.zeros(3), hyper=x)
    with pytest.raises(ValueError, match=r"settings depend on hyper, which .* does not see"):
        SOLVERS[name](learned, state, x, [None] * SOLVERS[name].batches, None)


def test_a_batch_is_wanted_for_each_step_and_each_term():
    estimator = SOLVERS["amigo"]
    assert estimator.batches == 4
    with pytest.raises(ValueError, match=r"must be a list of 4, the `batches` .* got 2"):
        estimator(PROBLEM, PROBLEM.init(jnp.zeros(3)), jnp.zeros(2), [None] * 2, None)


@pytest.mark.parametrize("make, options, message", [
    (hypergrad.soba, {"scale": 0}, "scale must be positive, got 0"),
    (hypergrad.soba, {"scale": np.inf}, "scale must be finite, got inf"),
    (hypergrad.neumann, {"terms": 2, "scale": np.inf}, "scale must be finite, got inf"),
    (hypergrad.soba, {"scale": 1, "damping": -3}, "damping must be a number, finite"),
    (hypergrad.amigo, {"terms": 1, "scale": 1, "damping": -1}, "damping must be a number, finite"),
    (hypergrad.neumann, {"terms": 1, "scale": 1, "damping": -1}, "damping must be a number, fin"),
    (hypergrad.cg, {"iterations": 1, "damping": -5}, "damping must be a number, finite and at"),
    (hypergrad.cg, {"iterations": 1, "tolerance": -1}, "tolerance must be a number, finite and"),
    (hypergrad.forward_online, {"decay": np.float32(2)}, "decay must be between 0 and 1; got 2"),
    (hypergrad.forward_online, {"decay": jnp.asarray(-1.0)}, "decay must be between 0 and 1"),
    (hypergrad.amigo, {"terms": 0, "scale": 1}, "terms must be at least 1, got 0"),
    (hypergrad.stocbio, {"terms": 2, "scale": -1}, "scale must be positive, got -1"),
    (hypergrad.amigo, {"terms": 2, "scale": 1, "steps": 0}, "steps must be at least 1, got 0"),
    (hypergrad.f2sa, {"sigma": 0}, "sigma must be positive, got 0"),
    (hypergrad.f2sa, {"sigma": 1, "steps": 1.5}, r"steps must be an integer, got 1\.5"),
    (hypergrad.bome, {"eta": 0, "scale": 1}, "eta must be positive, got 0"),
    (hypergrad.bome, {"eta": 1, "scale": 0}, "scale must be positive, got 0"),
    (hypergrad.scaled_identity, {"scale": -1.0}, "scale must be positive, got -1"),
    (hypergrad.adam_scaling, {"b2": 2.0}, r"b2 must be a number, below 1 .* got 2\.0"),
    (hypergrad.adam_scaling, {"eps": -1.0}, "eps must be a number, finite"),
    (hypergrad.hoag_tolerance, {"first": -1.0}, "first must be a number, finite"),
    (hypergrad.hoag_tolerance, {"rate": 2}, "rate must be a number, below 1"),
    (hypergrad.cg, {"iterations": 5, "loop": "x"}, "loop must be one of"),
])  # fmt: skip
def test_arguments_that_cannot_be_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bome_at_the_inner_optimum_is_the_outer_gradient():
    problem = hypergrad.Bilevel(lambda y, x, _: (y - x) ** 2 / 2, lambda y, x, _: y + x, PROBLEM[2])
    x = jnp.asarray(0.5)
    estimator = hypergrad.bome(0.5, 0.5)
    found = jax.jit(lambda x: estimator(problem, problem.init(x), x, [None], None))(x)
    assert found.gradient == 1 and found.state.params == x - jnp.float32(RATE)


def test_parameters_in_half_precision_are_solved_in_float32():
    state = PROBLEM.init(jnp.zeros(3, jnp.bfloat16))
    carry = hypergrad.soba(SCALE).init(PROBLEM, state, jnp.zeros(2))
    assert carry.dtype == jnp.float32
