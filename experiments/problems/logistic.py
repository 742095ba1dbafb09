"""L2-regularised logistic regression on scikit-learn's breast cancer data, as in HOAG.

lambda = e^a at a = -4; a third of the rows to train and one to validate. The optimum in a is
-5.7127 (Pedregosa 2016 uses the same kind of problem), so the truth is positive here.
"""

import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import softplus

from experiments.problems.setting import (
    Setting,
    converged_hypergradient,
    estimators,
    halves,
    load_sklearn,
)
from tvjax.hypergrad import Bilevel

MOMENTUM = 0.9


def make(seed: int) -> Setting:
    x, y = load_sklearn("breast_cancer")
    y, third = 2.0 * y - 1, len(y) // 3
    order = np.random.default_rng(0).permutation(len(y))
    train, val = ((x[i], y[i]) for i in (order[:third], order[third : 2 * third]))
    a = jnp.asarray(-4.0)
    # The logistic loss curves by at most 1/4.
    largest = np.linalg.eigvalsh(train[0].T @ train[0] / third)[-1] / 4 + np.exp(-4.0)
    rate = float(1 / largest)
    problem = Bilevel(_inner, _outer, optax.sgd(rate, momentum=MOMENTUM))
    params = jnp.zeros(x.shape[1])
    return Setting(
        problem=problem,
        state=problem.init(params),
        hyper=a,
        inner_batches=[train],
        outer_batch=val,
        draws=halves(train, val, seed, 16, 64),
        estimators=estimators(rate, rate, momentum=MOMENTUM),
        reference=converged_hypergradient(problem, params, a, train, val),
        reference_horizon="optimum",
        reference_name="dense implicit derivative at the inner optimum",
        snapshots=(1, 3, 10, 30, 100, 300, 1000),
    )


def _outer(w, a, batch):
    return jnp.mean(softplus(-batch[1] * (batch[0] @ w)))


def _inner(w, a, batch):
    return _outer(w, a, batch) + jnp.exp(a) * jnp.sum(w**2) / 2
