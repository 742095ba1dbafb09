"""One l2 weight per feature of a logistic regression, on scikit-learn's breast cancer data.

    g(w, x) = mean over training rows of log(1 + e^(-t <a, w>)) + sum_j e^(x_j) w_j^2 / 2
    f(w)    = mean over validation rows of log(1 + e^(-t <a, w>))

30 features, standardised; thirds of the 569 rows to train, to validate and to test. x stays within
[-5, 1]: beyond it a weight is nothing, or stiffer than the data. h is not convex; its least value
is the best of L-BFGS from several starts, by the exact gradient.
"""

import jax.numpy as jnp
import numpy as np
from jax.nn import softplus

from experiments.bilevel.known import Known, by_newton, least
from experiments.problems.setting import load_sklearn

BOX = -5.0, 1.0


def make(seed: int) -> Known:
    x, t = load_sklearn("breast_cancer")
    t, third = 2.0 * t - 1, len(t) // 3
    order = np.random.default_rng(seed).permutation(len(t))
    train, validation, (rows, labels) = (
        (jnp.asarray(x[i]), jnp.asarray(t[i]))
        for i in (order[:third], order[third : 2 * third], order[2 * third :])
    )
    start, features = -2 * jnp.ones(x.shape[1]), x.shape[1]
    values = by_newton(
        lambda w, x: _inner(w, x, train), lambda w, x: _outer(w, x, validation),
        jnp.zeros(features),
    )  # fmt: skip
    starts = [np.full(features, level) for level in (-2.0, -4.0)]
    return Known(
        inner_loss=_inner,
        outer_loss=_outer,
        train=train,
        validation=validation,
        params=jnp.zeros(features),
        hyper=start,
        values=values,
        best=least(values, starts, BOX),
        is_optimum=False,
        rates=(0.1, 0.3),
        whole_rates=(0.3,),
        scale=0.3,
        moves=(3.0, 10.0, 30.0, 100.0, 300.0),
        budget=600_000,
        whole_calls=500,
        box=BOX,
        test=lambda w: jnp.mean((rows @ w) * labels <= 0),
    )


def _outer(w, x, batch):
    return jnp.mean(softplus(-batch[1] * (batch[0] @ w)))


def _inner(w, x, batch):
    return _outer(w, x, batch) + jnp.sum(jnp.exp(x) * w**2) / 2
