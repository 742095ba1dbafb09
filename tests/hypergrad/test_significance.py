import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from tvjax.hypergrad.significance import PRIOR, log_evidence, until_significant


def walk(optimizer, gradients):
    """The updates for a sequence of gradients, and the last state."""
    state, updates = optimizer.init(jnp.zeros(gradients.shape[1:])), []
    update = jax.jit(optimizer.update)
    for g in gradients:
        step, state = update(jnp.asarray(g, jnp.float32), state)
        updates.append(np.asarray(step))
    return np.stack(updates), state


def moves(optimizer, draw, *, runs, looks):
    """How often each of many runs moved, alone: `draw` makes the gradients from a key."""

    def look(carry, key):
        state, last, count = carry
        gradients = draw(key, last)
        updates, state = jax.vmap(optimizer.update)(gradients, state)
        return (state, gradients, count + jnp.any(updates != 0, axis=1)), None

    zeros = jnp.zeros((runs, 1))
    start = jax.vmap(optimizer.init)(zeros), zeros, jnp.zeros(runs, int)
    (_, _, count), _ = jax.jit(lambda keys: jax.lax.scan(look, start, keys))(
        jax.random.split(jax.random.key(0), looks)
    )
    return np.asarray(count)


def normal(key, last):
    return jax.random.normal(key, last.shape)


def heavy(key, last):
    u = jax.random.uniform(key, last.shape, minval=1e-12)  # Student's t of 2 degrees of freedom
    return (2 * u - 1) / jnp.sqrt(2 * u * (1 - u))


def correlated(key, last):
    return 0.9 * last + math.sqrt(1 - 0.81) * jax.random.normal(key, last.shape)


def level(threshold):
    return 2 * stats.norm.sf(threshold)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_the_evidence_is_one_on_average_where_there_is_no_signal(x64, n):
    def weighed(t):
        mean = t / math.sqrt(n)
        rms = math.sqrt(mean**2 + (n - 1) / n)
        log_m = -(math.log1p(n / PRIOR) + n * math.log1p(-n / (n + PRIOR) * mean**2 / rms**2)) / 2
        np.testing.assert_allclose(log_evidence(n, mean, rms), log_m, rtol=1e-12, atol=1e-12)
        return math.exp(log_m) * stats.t.pdf(t, n - 1)

    tail, _ = integrate.quad(weighed, 0, np.inf, epsabs=1e-9, limit=200)
    np.testing.assert_allclose(2 * tail, 1, rtol=1e-6)


def test_the_evidence_of_many_numbers_is_robbins_boundary_in_float32_too():
    for n in (10_000, 1_000_000):
        for a in (level(2.0), level(3.0)):
            bound = math.sqrt(2 * (n + PRIOR) * math.log(math.sqrt(1 + n / PRIOR) / a)) / n
            found = log_evidence(jnp.float32(n), jnp.float32(bound), jnp.float32(1.0))
            np.testing.assert_allclose(found, -math.log(a), rtol=3e-3)


def test_one_gradient_or_none_but_zeros_is_no_evidence():
    np.testing.assert_allclose(log_evidence(1.0, -3.0, 3.0), 0, atol=1e-6)
    assert log_evidence(50.0, 0.0, 0.0) < 0
    updates, _ = walk(until_significant(optax.sgd(1.0), 2.0), np.zeros((50, 2)))
    assert not updates.any()


@pytest.mark.parametrize(
    ("threshold", "draw", "runs"), [(2.0, normal, 1_500), (3.0, normal, 1_000), (2.0, heavy, 1_000)]
)
def test_noise_moves_runs_of_10_000_looks_as_seldom_as_promised(x64, threshold, draw, runs):
    count = moves(until_significant(optax.sgd(1.0), threshold), draw, runs=runs, looks=10_000)
    moved, promised = (count > 0).mean(), level(threshold)
    assert promised / 10 < moved <= promised
    assert (count > 1).mean() <= promised**2 + 3 * promised / math.sqrt(runs)


def test_blocks_keep_correlated_noise_still(x64):
    optimizer = until_significant(optax.sgd(1.0), 2.0, block=50)
    moved = (moves(optimizer, correlated, runs=500, looks=5_000) > 0).mean()
    assert moved <= level(2.0)


def test_a_block_is_collected_as_its_mean():
    gradients = np.random.default_rng(0).normal(1.0, 0.5, (120, 1))
    blocks, _ = walk(until_significant(optax.sgd(1.0), 2.0, block=3), gradients)
    each = gradients.reshape(40, 3).mean(axis=1)[:, None]
    means, _ = walk(until_significant(optax.sgd(1.0), 2.0), each)
    assert means.any() and not blocks[np.arange(120) % 3 != 2].any()
    np.testing.assert_allclose(blocks[2::3], means, rtol=1e-5)


@pytest.mark.parametrize("signal", [0.1, 0.5])
def test_moves_have_the_right_sign_however_weak_the_signal_is(x64, signal):
    optimizer = until_significant(optax.sgd(1.0), 2.0)
    gradients = np.random.default_rng(0).normal(signal, 1, (2_000, 200, 1))
    update = jax.vmap(optimizer.update)
    start = jax.vmap(optimizer.init)(jnp.zeros((200, 1)))

    def look(state, g):
        updates, state = update(g, state)
        return state, updates

    _, updates = jax.lax.scan(look, start, jnp.asarray(gradients))
    updates = np.asarray(updates)
    moved, wrong = int((updates != 0).sum()), int((updates > 0).sum())
    assert moved > 200 and wrong <= moved * level(2.0) / 2


def test_the_size_of_the_gradients_does_not_matter():
    sizes = np.array([1, 1e-32, 1e-20, 1e20, 1e30, 1e37])[:, None]
    gradients = np.random.default_rng(0).normal(0.6, 1, (150, 1, 20)) * sizes
    updates, _ = walk(until_significant(optax.sgd(1.0), 2.0), gradients)
    assert updates[:, 0].any()
    for found in np.moveaxis(updates / sizes, 1, 0):
        np.testing.assert_allclose(found, updates[:, 0], rtol=1e-4)


def test_waits_for_evidence_and_then_steps_by_the_mean():
    gradients = np.random.default_rng(0).normal(1.0, 0.5, 60)
    updates, _ = walk(until_significant(optax.sgd(1.0), 2.0), gradients)
    sums, squares = np.cumsum(gradients), np.cumsum(gradients**2)
    n = np.arange(1, 61)
    evidence = (1 + n / PRIOR) ** -0.5 * (1 - sums**2 / squares / (n + PRIOR)) ** (-n / 2)
    first = int(np.argmax(evidence >= 1 / level(2.0)))
    assert 13 <= first < 40 and not updates[:first].any()
    np.testing.assert_allclose(updates[first], -np.mean(gradients[: first + 1]), rtol=1e-6)


def test_each_element_has_an_optimiser_and_a_share_of_the_level_of_its_own():
    signal = np.random.default_rng(0).normal([1.0, -1.0, 0.4], 0.5, (200, 3))
    together, _ = walk(until_significant(optax.adam(0.1), 3.0), signal)
    # A third of the level each.
    alone = until_significant(optax.adam(0.1), float(stats.norm.isf(level(3.0) / 6)))
    each = [walk(alone, signal[:, i])[0] for i in range(3)]
    np.testing.assert_allclose(together, np.stack(each, axis=1), rtol=1e-6)
    assert len({int((u != 0).sum()) for u in each}) > 1


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_passed_on(bad, block):
    gradients = np.asarray([1.0, -0.5, bad, 1.0])
    updates, _ = walk(until_significant(optax.sgd(1.0), 2.0, block=block), gradients)
    seen = 2 if block == 1 else 3  # at the end of its block
    assert not updates[:2].any() and not np.isfinite(updates[seen])


def test_trees_and_parameters_reach_the_optimiser():
    params = {"a": jnp.ones((2, 2)), "b": jnp.asarray(2.0)}
    optimizer = until_significant(optax.adamw(0.1, weight_decay=0.5), 1.0)
    state, gradient = optimizer.init(params), jax.tree.map(jnp.ones_like, params)
    update = jax.jit(optimizer.update)
    for _ in range(60):
        updates, state = update(gradient, state, params)
        if any(map(np.any, jax.tree.leaves(updates))):
            break
    expected = jax.tree.map(lambda p: -0.1 * (1 + 0.5 * p), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, expected)


def test_threshold_and_block_are_checked():
    with pytest.raises(ValueError, match="-1"):
        until_significant(optax.sgd(1.0), -1.0)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        until_significant(optax.sgd(1.0), 2.0, block=0)


def test_no_threshold_is_too_high():
    updates, _ = walk(until_significant(optax.sgd(1.0), 40.0), np.ones((200, 1)))
    assert not updates[:100].any()
