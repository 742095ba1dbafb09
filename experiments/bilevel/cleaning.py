"""Data cleaning: one weight per training sample, half of whose labels are wrong.

    g(W, x) = mean over training rows of s(x_i) cross-entropy(W a_i, t_i) + C |W|^2 / 2
    f(W)    = mean over validation rows of cross-entropy(W a, t)

s is the logistic function, C = 0.01. scikit-learn's digits: 400 rows to train, each label replaced
with probability 1/2 by one of the nine others, 200 clean ones to validate and 1,197 to test; the
first 16 principal components of their pixels and a constant. Source: Franceschi et al. (2017),
arXiv:1703.01785, section 5.1. h is not convex: its least value is what L-BFGS finds by the exact
gradient. With two weights per validation sample it lies where the validation set is fitted, and the
test error tells another story.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bilevel.known import Known, by_newton, least
from experiments.problems.setting import raw_sklearn

TRAIN, VALIDATION, COMPONENTS, CLASSES, C = 400, 200, 16, 10, 0.01
BOX = -10.0, 10.0


def make(seed: int) -> Known:
    rng = np.random.default_rng(seed)
    rows, labels = _digits()
    order = rng.permutation(len(rows))
    is_wrong = rng.random(TRAIN) < 0.5
    given = labels[order[:TRAIN]]
    given = np.where(is_wrong, (given + rng.integers(1, CLASSES, TRAIN)) % CLASSES, given)
    own, clean, test = np.split(order, [TRAIN, TRAIN + VALIDATION])
    train = {"a": rows[own], "t": given, "row": np.arange(TRAIN)}
    validation, tested = ({"a": rows[i], "t": labels[i]} for i in (clean, test))
    train, validation, tested = jax.tree.map(jnp.asarray, (train, validation, tested))
    params, hyper = jnp.zeros(rows.shape[1] * CLASSES), jnp.zeros(TRAIN)
    values = by_newton(
        lambda w, x: _inner(w, x, train), lambda w, x: _outer(w, x, validation), params,
        lambda w, x: _hessian(w, x, train),
    )  # fmt: skip

    def error(w):
        return jnp.mean(jnp.argmax(_logits(w, tested), -1) != tested["t"])

    return Known(
        inner_loss=_inner,
        outer_loss=_outer,
        train=train,
        validation=validation,
        params=params,
        hyper=hyper,
        values=values,
        best=least(values, [np.zeros(TRAIN)], BOX),
        is_optimum=False,
        rates=(0.3, 1.0),
        whole_rates=(1.0,),
        scale=0.5,
        moves=(100.0, 300.0, 1000.0, 3000.0, 10000.0),
        budget=40_000,
        whole_calls=200,
        box=BOX,
        test=error,
    )


def _digits():
    x, t = raw_sklearn("digits")
    x = (x - x.mean(0)) / 16
    x = x @ np.linalg.svd(x, full_matrices=False)[2][:COMPONENTS].T
    return np.concatenate([x, np.ones((len(x), 1))], axis=1), t


def _logits(w, batch):
    return batch["a"] @ w.reshape(-1, CLASSES)


def _outer(w, x, batch):
    each = optax.softmax_cross_entropy_with_integer_labels(_logits(w, batch), batch["t"])
    return jnp.mean(each)


def _inner(w, x, batch):
    each = optax.softmax_cross_entropy_with_integer_labels(_logits(w, batch), batch["t"])
    return jnp.mean(jax.nn.sigmoid(x[batch["row"]]) * each) + C * jnp.sum(w**2) / 2


def _hessian(w, x, batch):
    """Sum over rows of s (diag p - p p^T) (x) a a^T: a tenth of the work of differentiation."""
    p, a = jax.nn.softmax(_logits(w, batch)), batch["a"]
    s = jax.nn.sigmoid(x) / len(a)
    weights = s[:, None, None] * (
        p[:, :, None] * jnp.eye(CLASSES)[None] - p[:, :, None] * p[:, None]
    )
    found = jnp.einsum("nd,nkl,ne->dkel", a, weights, a, optimize="optimal")
    return found.reshape(w.size, w.size) + C * jnp.eye(w.size)
