"""What an audit over a training needs to know about a problem."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tvjax import hypergrad
from tvjax.hypergrad import Bilevel, Estimator, InnerState
from tvjax.types import PyTree


class Setting(NamedTuple):
    """A problem, the training along which it is audited, and the estimators."""

    problem: Bilevel
    state: InnerState
    hyper: PyTree
    inner_batches: Sequence[PyTree]
    """Batches of the training, one per step, begun again at their end."""
    outer_batch: PyTree
    draws: Sequence[tuple[Sequence[PyTree], PyTree]]
    """Mini-batches `(inner_batches, outer_batch)` for the spread of the estimates."""
    estimators: Mapping[str, Estimator]
    reference: PyTree | Estimator
    reference_horizon: str | None
    """Horizon of a reference of numbers, as in `hypergrad.audit`."""
    reference_name: str
    snapshots: Sequence[int]
    """The inner steps after which the estimators are audited."""


def estimators(rate: float, scale: float, *, momentum: float | None, damping: float = 0.0):
    """The estimators for one hyperparameter and small problems.

    Args:
      rate: the optimiser's learning rate.
      scale: 1 / the largest curvature of the inner loss.
      momentum: momentum of heavy ball; None where the optimiser is Adam.
      damping: damping of CG.
    """
    if momentum is None:
        own = {"preconditioned": hypergrad.preconditioned(rate)}
    else:
        own = {"reversible_10": hypergrad.reversible(10, rate, momentum)}
    return {
        "exact": hypergrad.exact(),
        "sgd_formula": hypergrad.sgd_formula(rate),
        "paper": hypergrad.paper(rate),
        "darts": hypergrad.darts(rate),
        **own,
        "reverse_10": hypergrad.reverse(10),
        "forward_10": hypergrad.forward(10),
        "forward_online": hypergrad.forward_online(),
        "scaled_identity": hypergrad.scaled_identity(scale),
        "neumann_20": hypergrad.neumann(20, scale),
        "cg_10": hypergrad.cg(10, damping=damping),
        "nystrom_5": hypergrad.nystrom(5, 0.1 / scale),
        "finite_difference_10": hypergrad.finite_difference(10),
    }


def converged_hypergradient(
    problem: Bilevel, params: PyTree, hyper: PyTree, batch: PyTree, outer_batch: PyTree
) -> PyTree:
    """d_hyper L_out - d2_{hyper, theta} L_in (d2_theta L_in)^-1 grad L_out at the inner optimum.

    For small strictly convex problems: Newton's method with step halving, and a dense Hessian.

    Raises:
      RuntimeError: if Newton's method does not reach a gradient of 1e-11.
    """
    flat, unravel = ravel_pytree(params)

    def gradient(flat, hyper) -> Any:
        return jax.grad(lambda w: problem.inner_loss(unravel(w), hyper, batch))(flat)

    hessian = jax.jit(jax.jacfwd(gradient))
    slope = jax.jit(gradient)
    for _ in range(100):
        g = slope(flat, hyper)
        norm = jnp.linalg.norm(g)
        if norm < 1e-11:
            break
        direction, t = jnp.linalg.solve(hessian(flat, hyper), g), 1.0
        # Halved where a full step would jump over kinks of the second derivative.
        while jnp.linalg.norm(slope(flat - t * direction, hyper)) > (1 - t / 4) * norm and t > 1e-3:
            t /= 2
        flat = flat - t * direction
    else:
        raise RuntimeError(f"Newton's method stopped at a gradient of {norm:.1e}")

    def outer(flat, hyper):
        return problem.outer_loss(unravel(flat), hyper, outer_batch)

    q = jnp.linalg.solve(hessian(flat, hyper), jax.grad(outer)(flat, hyper))
    return jax.grad(lambda h: outer(flat, h) - jnp.vdot(gradient(flat, h), q))(hyper)


def halves(x: Any, y: Any, seed: int, count: int, size: int) -> list:
    """`count` pairs of mini-batches of `size` rows out of each of two sets `(x, y)`."""
    rng = np.random.default_rng(seed)

    def rows(data):
        chosen = rng.choice(len(data[0]), size, replace=False)
        return data[0][chosen], data[1][chosen]

    return [([rows(x)], rows(y)) for _ in range(count)]


def load_sklearn(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A data set bundled with scikit-learn, its columns standardised.

    Raises:
      ImportError: without scikit-learn.
    """
    x, y = raw_sklearn(name)
    return (x - x.mean(0)) / x.std(0), y


def raw_sklearn(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A data set bundled with scikit-learn, as it is.

    Raises:
      ImportError: without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "this problem's data comes with scikit-learn: pip install 'tvjax[bench]'"
        ) from error
    return getattr(datasets, f"load_{name}")(return_X_y=True)
