"""Answers of an interior point method, refined until they are good to rounding."""

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def variation(u, kind):
    """TV of a `[H, W]` variable."""
    dy, dx = u[1:] - u[:-1], u[:, 1:] - u[:, :-1]
    if kind == "anisotropic":
        return cvxpy.sum(cvxpy.abs(dy)) + cvxpy.sum(cvxpy.abs(dx))
    inner = [cvxpy.vec(d, order="C") for d in (dy[:, :-1], dx[:-1])]
    corner = cvxpy.sum(cvxpy.abs(dy[:, -1])) + cvxpy.sum(cvxpy.abs(dx[-1]))
    return cvxpy.sum(cvxpy.norm(cvxpy.vstack(inner), 2, axis=0)) + corner


def minimise(cost, constraints=(), *, tolerance):
    """Gives the variables of a cost the values of its minimum."""
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)
    problem = cvxpy.Problem(cvxpy.Minimize(cost), list(constraints))
    problem.solve(solver=cvxpy.CLARABEL, **tight)


def tied_regions(u, kind, threshold):
    """int `[H, W, C]`: one label for each set of pixels whose differences are below `threshold`."""
    index = np.arange(u.size).reshape(u.shape)
    d = [np.diff(u, axis=0, append=u[-1:]), np.diff(u, axis=1, append=u[:, -1:])]
    size = np.abs(d) if kind == "anisotropic" else [np.hypot(*d)] * 2
    pairs = [
        (index[:-1][size[0][:-1] < threshold], index[1:][size[0][:-1] < threshold]),
        (index[:, :-1][size[1][:, :-1] < threshold], index[:, 1:][size[1][:, :-1] < threshold]),
    ]
    a, b = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    graph = coo_matrix((np.ones(a.size), (a, b)), shape=(u.size,) * 2)
    return connected_components(graph, directed=False)[1].reshape(u.shape)


def polish(energy, u, kind, *, threshold=1e-4, sums_to_one=False):
    """Newton's method on the values of the regions where `u`, `[H, W, C]`, is constant.

    With the regions held, total variation is smooth, and the minimiser is found to rounding.
    """
    labels = tied_regions(u, kind, threshold).ravel()
    spread = jax.nn.one_hot(labels, labels.max() + 1, dtype=jnp.float64)
    x = spread.T @ u.ravel() / spread.sum(0)
    constraint = spread.reshape(-1, u.shape[-1], x.size).sum(1) if sums_to_one else spread[:0]
    rows = len(constraint)

    def reduced(x):
        return energy((spread @ x).reshape(u.shape))

    slope, curvature = jax.jit(jax.grad(reduced)), jax.jit(jax.hessian(reduced))
    for _ in range(20):
        matrix = np.block([[curvature(x), constraint.T], [constraint, np.zeros((rows, rows))]])
        right = np.concatenate([-slope(x), (1 if sums_to_one else 0) - constraint @ x])
        x += np.linalg.lstsq(matrix, right, rcond=1e-12)[0][: x.size]
    return np.asarray(spread @ x).reshape(u.shape)
