"""Ridge regression on scikit-learn's diabetes data: the hypergradient has a closed form.

lambda = e^a at a = -3, both losses half the mean square, half of the rows for each. Truth:
dL_out/da = -lambda <w*, (X^T X / n + lambda I)^-1 grad L_out(w*)> = -2.5348277018e-03.
"""

import jax.numpy as jnp
import numpy as np
import optax

from experiments.problems.setting import Setting, estimators, halves, load_sklearn
from tvjax.hypergrad import Bilevel

MOMENTUM = 0.9


def make(seed: int) -> Setting:
    x, y = load_sklearn("diabetes")
    y = (y - y.mean()) / y.std()
    order = np.random.default_rng(0).permutation(len(y))
    train, val = ((x[i], y[i]) for i in (order[:221], order[221:]))
    a = jnp.asarray(-3.0)
    curvature, reference = _closed_form(train, val, a)
    rate = 1 / float(np.linalg.eigvalsh(curvature)[-1])
    problem = Bilevel(_inner, _outer, optax.sgd(rate, momentum=MOMENTUM))
    return Setting(
        problem=problem,
        state=problem.init(jnp.zeros(x.shape[1])),
        hyper=a,
        inner_batches=[train],
        outer_batch=val,
        draws=halves(train, val, seed, 16, 64),
        estimators=estimators(rate, rate, momentum=MOMENTUM),
        reference=reference,
        reference_horizon="optimum",
        reference_name="closed form at the inner optimum",
        snapshots=(1, 3, 10, 30, 100, 300, 1000),
    )


def _outer(w, a, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def _inner(w, a, batch):
    return _outer(w, a, batch) + jnp.exp(a) * jnp.sum(w**2) / 2


def _closed_form(train, val, a):
    (x, y), lam = train, np.exp(a)
    curvature = x.T @ x / len(y) + lam * np.eye(x.shape[1])
    w = np.linalg.solve(curvature, x.T @ y / len(y))
    gradient = val[0].T @ (val[0] @ w - val[1]) / len(val[1])
    return curvature, -lam * w @ np.linalg.solve(curvature, gradient)
