import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tvjax.hypergrad.significance import until_significant


def test_waits_for_evidence_and_then_steps_by_the_mean():
    optimizer = until_significant(optax.sgd(1.0), 2.0)
    state = optimizer.init(jnp.zeros(()))
    gradients = [1.0, -0.5, 0.8, 1.1, 0.9, 1.2]
    updates = []
    for g in gradients:
        update, state = jax.jit(optimizer.update)(jnp.asarray(g), state)
        updates.append(float(update))
    z = [np.mean(gradients[:n]) / (np.std(gradients[:n], ddof=1) / np.sqrt(n)) for n in range(2, 7)]
    first = next(n for n, value in zip(range(2, 7), z, strict=True) if value > 2)
    assert updates[: first - 1] == [0.0] * (first - 1)
    np.testing.assert_allclose(updates[first - 1], -np.mean(gradients[:first]), rtol=1e-6)


def test_elements_wait_on_their_own_and_noise_rarely_moves():
    optimizer = until_significant(optax.sgd(1.0), 3.0)
    rng = np.random.default_rng(0)
    signal = jnp.asarray([1.0, 0.0])
    state, moved = optimizer.init(jnp.zeros(2)), np.zeros(2)
    update = jax.jit(optimizer.update)
    for _ in range(200):
        step, state = update(signal + jnp.asarray(rng.normal(size=2), jnp.float32), state)
        moved += np.asarray(step) != 0
    assert moved[0] > 10 and moved[1] < 4


def test_threshold_is_checked():
    with pytest.raises(ValueError, match="-1"):
        until_significant(optax.sgd(1.0), -1.0)
