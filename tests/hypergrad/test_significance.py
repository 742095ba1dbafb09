import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from tvjax.hypergrad.significance import chance, until_significant


def walk(optimizer, gradients):
    """The updates for a sequence of gradients, and the last state."""
    state, updates = optimizer.init(jnp.zeros(gradients.shape[1:])), []
    update = jax.jit(optimizer.update)
    for g in gradients:
        step, state = update(jnp.asarray(g, jnp.float32), state)
        updates.append(np.asarray(step))
    return np.stack(updates), state


def test_the_chance_is_student_s(x64):
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 100):
        draws = rng.normal(0.5, 1.0, n)
        spread = np.sum((draws - draws.mean()) ** 2)
        expected = stats.ttest_1samp(draws, 0).pvalue
        np.testing.assert_allclose(chance(n, draws.mean(), spread), expected, rtol=1e-9)
    assert chance(1, 1.0, 0.0) == chance(5, 0.0, 0.0) == 1
    assert chance(5, 1.0, 0.0) == 0


@pytest.mark.parametrize("n", [2, 100, 400, 10_000, 1_000_000])
def test_the_chance_is_exact_in_float32_of_many_numbers_too(n):
    for z in (0.1, 0.5, 2.0, 3.0, 5.0):
        found = chance(jnp.float32(n), jnp.float32(z / n**0.5), jnp.float32(n - 1))
        np.testing.assert_allclose(found, 2 * stats.t.sf(z, n - 1), rtol=2e-4)


def test_the_size_of_the_gradients_does_not_matter():
    sizes = np.array([1, 1e-32, 1e-20, 1e20, 1e30])[:, None]
    gradients = np.random.default_rng(0).normal(0.3, 1, (60, 1, 20)) * sizes
    updates, _ = walk(until_significant(optax.sgd(1.0), 2.0), gradients)
    assert updates[:, 0].any()
    for moves in np.moveaxis(updates / sizes, 1, 0):
        np.testing.assert_allclose(moves, updates[:, 0], rtol=1e-4)


def test_waits_for_evidence_and_then_steps_by_the_mean():
    gradients = np.asarray([1.0, -0.5, 0.8, 1.1, 0.9, 1.2, 1.0])
    updates, _ = walk(until_significant(optax.sgd(1.0), 2.0), gradients)
    looks = range(2, len(gradients) + 1)
    p = [stats.ttest_1samp(gradients[:n], 0).pvalue for n in looks]
    first = next(n for n, value in zip(looks, p, strict=True) if value < 2 * stats.norm.sf(2))
    assert not updates[: first - 1].any()
    np.testing.assert_allclose(updates[first - 1], -np.mean(gradients[:first]), rtol=1e-6)


@pytest.mark.parametrize("threshold", [2.0, 3.0])
def test_noise_moves_as_seldom_as_promised_at_every_look(threshold):
    noise = np.random.default_rng(0).normal(size=(12, 20_000))
    updates, _ = walk(until_significant(optax.sgd(1.0), threshold), noise)
    promised, moved = 2 * stats.norm.sf(threshold), updates != 0
    assert not moved[0].any()
    error = np.sqrt(promised / moved.shape[1])
    np.testing.assert_allclose(moved[1].mean(), promised, atol=4 * error)
    assert (moved[1:].mean(axis=1) < promised + 4 * error).all()


def test_noise_moves_runs_as_often_as_its_docstring_says():
    noise = np.random.default_rng(1).normal(size=(200, 2_000))
    for threshold, share in ((2.0, 0.43), (3.0, 0.044)):
        assert f"{100 * share:g} %" in until_significant.__doc__
        updates, _ = walk(until_significant(optax.sgd(1.0), threshold), noise)
        moved = (updates != 0).any(axis=0).mean()
        assert abs(moved - share) < 4 * (share / 2_000) ** 0.5


def test_each_element_has_an_optimiser_of_its_own():
    signal = np.random.default_rng(0).normal([1.0, -1.0, 0.3], 0.5, (60, 3))
    optimizer = until_significant(optax.adam(0.1), 3.0)
    together, _ = walk(optimizer, signal)
    alone = [walk(optimizer, signal[:, i])[0] for i in range(3)]
    np.testing.assert_allclose(together, np.stack(alone, axis=1), rtol=1e-6)
    assert len({int((u != 0).sum()) for u in alone}) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_passed_on(bad):
    updates, _ = walk(until_significant(optax.sgd(1.0), 2.0), np.asarray([1.0, -0.5, bad, 1.0]))
    assert not updates[:2].any() and not np.isfinite(updates[2])


def test_trees_and_parameters_reach_the_optimiser():
    params = {"a": jnp.ones((2, 2)), "b": jnp.asarray(2.0)}
    optimizer = until_significant(optax.adamw(0.1, weight_decay=0.5), 1.0)
    state = optimizer.init(params)
    gradient = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        updates, state = optimizer.update(gradient, state, params)
    expected = jax.tree.map(lambda p: -0.1 * (1 + 0.5 * p), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, expected)


def test_threshold_is_checked():
    with pytest.raises(ValueError, match="-1"):
        until_significant(optax.sgd(1.0), -1.0)
