"""Fixed-point heavy ball runs backwards to the last bit."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax import hypergrad
from tvjax.hypergrad.contrib.fixed_point import HeavyBall, times, to_fixed, to_float


def gradient(w):
    return {"w": jnp.sin(3 * w["w"]) + 0.1 * w["w"]}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [Fraction(9, 10), Fraction(99, 100), Fraction(1, 2)])
def test_a_thousand_steps_and_back_lose_no_bit(dtype, momentum):
    with jax.enable_x64(dtype == "float64"):
        ball, steps = HeavyBall(0.02, momentum), 1000
        rng = np.random.default_rng(0)
        params, velocity = ({"w": jnp.asarray(rng.normal(size=50), dtype)} for _ in range(2))
        start = ball.start(params, velocity, steps)
        words = jnp.asarray(ball.words(steps))

        def advance(fixed, word):
            return ball.advance(fixed, gradient(jax.tree.map(to_float, fixed.position)), word), None

        def retreat(fixed, word):
            position = jax.tree.map(to_float, ball.position_before(fixed))
            return ball.retreat(fixed, gradient(position), word), None

        end, _ = jax.jit(lambda x: jax.lax.scan(advance, x, words))(start)
        back, _ = jax.jit(lambda x: jax.lax.scan(retreat, x, words, reverse=True))(end)
        # Each number has two words, of which one may come back by chance.
        assert (end.position["w"] != start.position["w"]).any(axis=0).all()
        jax.tree.map(np.testing.assert_array_equal, back, start)


def test_the_buffer_holds_the_bits_that_the_momentum_loses():
    # 1000 steps of 9/10 lose 152 bits; each word gives up at most one push's worth of its 32.
    assert HeavyBall(0.1, Fraction(9, 10)).words(1000)[-1] + 1 in (5, 6, 7)
    assert HeavyBall(0.1, Fraction(1, 2)).words(33)[-1] + 1 == 2


@pytest.mark.parametrize("factor", [Fraction(9, 10), Fraction(10, 9), Fraction(1, 3)])
def test_times_is_the_product_up_to_its_remainder_and_has_an_inverse(factor):
    x = jnp.asarray([[-12345, -1, 0, 7, 99999], [0, 1, 65535, 77, 4096]], jnp.int32)
    buffer = jnp.full((2, 5), 17, jnp.uint32)
    product, kept = times(x, factor, buffer, 1)
    whole, parts = np.asarray(product, float)
    expected = (np.asarray(x[0], float) + np.asarray(x[1], float) / 2**16) * float(factor)
    np.testing.assert_allclose(
        whole + parts / 2**16, expected, rtol=0, atol=(factor.numerator + 1) / 2**16
    )
    assert (parts >= 0).all() and (parts < 2**16).all()
    again, restored = times(product, 1 / factor, kept, 1)
    np.testing.assert_array_equal(again, x)
    np.testing.assert_array_equal(restored, buffer)


def test_floats_survive_fixed_point():
    x = jnp.asarray([1.5, -0.25, 1e-3, -1e-5, 100.0], jnp.float32)
    np.testing.assert_allclose(to_float(to_fixed(x)), x, rtol=2e-7, atol=2.0**-41)


def test_momentum_near_1_rounds_no_more_than_float32():
    """A product with 99/100 brings in a random number below 99, of units that float32 has not."""
    ball, steps = HeavyBall(0.01, Fraction(99, 100)), 500
    start = {"w": jnp.asarray(np.random.default_rng(0).normal(size=20) / 10, jnp.float32)}

    def advance(fixed, word):
        at = jax.tree.map(to_float, fixed.position)
        return ball.advance(fixed, {"w": at["w"] + at["w"] ** 3}, word), None

    fixed = ball.start(start, jax.tree.map(jnp.zeros_like, start), steps)
    fixed, _ = jax.jit(lambda x: jax.lax.scan(advance, x, jnp.asarray(ball.words(steps))))(fixed)
    w, v = np.asarray(start["w"], float), 0.0
    for _ in range(steps):
        v = 0.99 * v + w + w**3
        w = w - 0.01 * v
    np.testing.assert_allclose(to_float(fixed.position["w"]), w, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size, fits", [(80.0, True), (130.0, False), (1e12, False)])
@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_what_does_not_fit_is_nan_and_not_another_number(what, size, fits):
    def inner(w, a, batch):
        slope = size if what == "gradient" else 0.0
        return slope * jnp.sum(w) + a * jnp.sum(w**2) / 200

    problem = hypergrad.Bilevel(
        inner, lambda w, a, b: jnp.sum(w) / 2, optax.sgd(1e-3, momentum=0.5)
    )
    state = problem.init(jnp.asarray([1.0, size if what == "parameter" else 2.0]))
    batches = [None, None]
    reversible, reverse = (
        jax.jit(lambda a, e=e: e(problem, state, a, batches, None))(1.0)
        for e in (hypergrad.reversible(2, 1e-3, 0.5), hypergrad.reverse(2))
    )
    if fits and what == "parameter":
        np.testing.assert_allclose(reversible.gradient, reverse.gradient, rtol=1e-4)
    found = jax.tree.leaves((reversible.gradient, reversible.outer_loss, reversible.state))
    assert all(bool(jnp.isnan(x).all()) != fits for x in found)
