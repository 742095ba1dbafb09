"""The learning rate over the steps, and hypergradients under it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax import hypergrad
from tvjax.hypergrad import Bilevel
from tvjax.training.state import make_optimizer, make_schedule


@pytest.mark.parametrize(
    "options, rates",
    [
        ({"name": "cosine", "warmup": 0, "final": 0.0}, {0: 2, 5: 1, 10: 0, 12: 0}),
        ({"name": "cosine", "warmup": 0, "final": 0.5}, {0: 2, 5: 1.5, 10: 1}),
        ({"name": "linear", "warmup": 0, "final": 0.1}, {0: 2, 5: 1.1, 10: 0.2}),
        ({"name": "constant", "warmup": 4, "final": 0.0}, {0: 0.4, 2: 1.2, 4: 2, 9: 2}),
        ({"name": "linear", "warmup": 4, "final": 0.0}, {0: 0.4, 4: 2, 7: 1, 10: 0}),
    ],
)
def test_rates(options, rates):
    schedule = make_schedule(2.0, steps=10, **options)
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6)


def test_a_constant_rate_is_a_number():
    assert make_schedule(0.1, steps=10, name="constant", warmup=0, final=0.0) == 0.1


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_hypergradient_under_a_schedule_is_exact(x64, name):
    rate = make_schedule(0.1, steps=9, name="cosine", warmup=3, final=0.1)
    optimizer = make_optimizer(
        name=name, learning_rate=rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, momentum=0.9
    )
    problem = Bilevel(
        lambda w, a, x: jnp.sum(jnp.cos(w - x)) + jnp.exp(a) * jnp.sum(w**2),
        lambda w, a, x: jnp.sum((w - x) ** 2),
        optimizer,
    )
    state, x, a = problem.init(jnp.arange(3.0)), jnp.asarray([0.3, -1.0, 2.0]), jnp.asarray(-1.0)
    call = jax.jit(lambda s, a: hypergrad.exact()(problem, s, a, [x], x))
    for _ in range(4):
        state = call(state, a).state
    h = 1e-4
    difference = call(state, a + h).outer_loss - call(state, a - h).outer_loss
    exact = call(state, a).gradient
    np.testing.assert_allclose(exact, difference / (2 * h), rtol=1e-6)
    if name == "sgd":
        formula = hypergrad.sgd_formula(rate)
        plain = problem._replace(optimizer=optax.sgd(rate))
        state = plain.init(state.params)
        a, b = (e(plain, state, a, [x], x).gradient for e in (formula, hypergrad.exact()))
        np.testing.assert_allclose(a, b, rtol=1e-12)
