"""Learning the one weight of total-variation denoising, with Adam as the inner optimiser.

    inner: 1/2 ||u - f||^2 + e^a TV(u)       outer: 1/2 ||u - clean||^2

TV is the Huber form, whose curvature the implicit estimators need. Under Adam the one-step
formulas for gradient descent are not derivatives of anything: here one sees by how much.

The training begins at u = 0. At u = f the fit's gradient vanishes, and TV's cancels at some pixels:
there Adam's slope is 1/eps, and `reverse` with its rounding errors is off by a factor of 1e34 after
10 steps, where `forward` is right.
"""

import jax.numpy as jnp
import numpy as np

from experiments.problems.setting import Setting, converged_hypergradient, estimators
from tvjax.hypergrad import Bilevel, adam
from tvjax.tv.variation import total_variation

SIZE, NOISE, DELTA, RATE = 16, 0.2, 0.05, 0.01


def make(seed: int) -> Setting:
    rng = np.random.default_rng(seed)
    clean = np.zeros((SIZE, SIZE, 1))
    clean[4:12, 3:10] = 1
    noisy = jnp.asarray(clean + NOISE * rng.normal(size=clean.shape))
    everywhere = jnp.ones(clean.shape)
    clean, a = jnp.asarray(clean), jnp.asarray(-3.0)
    scale = 1 / float(1 + 8 * jnp.exp(a) / DELTA)
    problem = Bilevel(_inner, _outer, adam(RATE))
    outer_batch = clean, everywhere
    masks = [jnp.asarray(2.0 * (rng.random(clean.shape) < 0.5)) for _ in range(16)]
    return Setting(
        problem=problem,
        state=problem.init(jnp.zeros(clean.shape)),
        hyper=a,
        inner_batches=[noisy],
        outer_batch=outer_batch,
        draws=[([noisy], (clean, mask)) for mask in masks],
        estimators=estimators(RATE, scale, momentum=None),
        reference=converged_hypergradient(problem, noisy, a, noisy, outer_batch),
        reference_horizon="optimum",
        reference_name="dense implicit derivative at the inner optimum",
        snapshots=(1, 3, 10, 30, 100, 300, 1000),
    )


def _outer(u, a, batch):
    clean, weight = batch
    return jnp.sum(weight * (u - clean) ** 2) / 2


def _inner(u, a, noisy):
    fit = jnp.sum((u - noisy) ** 2) / 2
    return fit + jnp.exp(a) * jnp.sum(total_variation(u, kind="huber", delta=DELTA))
