"""The stochastic quadratic: both levels are means over samples whose Hessians have rank one.

    g(y, x) = mean over i of <a_i, y>^2/2 + <b_i, x>^2/2 + <p_i, x> <q_i, y> + <c_i, y> + <d_i, x>

and f likewise, with samples of its own: 32,768 of g and 1,024 of f; y has 100 numbers, x 10. Means
of the Hessians have eigenvalues from 0.1 to 1 (log-spaced, up to the sampling), means of the cross
terms a norm of about 0.1.

Source: the quadratic of benchopt/benchmark_bilevel, its data set `quadratic` (Dagreou, Ablin,
Vaiter, Moreau 2022, arXiv:2201.13409). Differs from it: linear terms have a mean, a random unit
vector, where theirs have none and the optimum is that of sampling noise; and the outer Hessian in x
has no eigenvalue of 0. Both begin at y = 0, x = -2.
"""

import jax.numpy as jnp
import numpy as np

from experiments.bilevel.known import Known

INNER, OUTER, DIM_Y, DIM_X = 32_768, 1_024, 100, 10
LEAST, MOST, CROSS = 0.1, 1.0, 0.1


def make(seed: int) -> Known:
    rng = np.random.default_rng(seed)
    train, validation = _samples(rng, INNER), _samples(rng, OUTER)
    g, f = _means(train), _means(validation)

    def optimum(x):
        """y*(x), for each row of x."""
        return -np.linalg.solve(g["yy"], g["y"][:, None] + g["xy"].T @ np.atleast_2d(x).T).T

    def values(xs):
        xs = np.asarray(xs)
        ys = optimum(xs)
        v = np.linalg.solve(g["yy"], (ys @ f["yy"] + xs @ f["xy"] + f["y"]).T).T
        h = (
            np.sum(ys @ f["yy"] * ys, -1) / 2 + np.sum(xs @ f["xx"] * xs, -1) / 2
            + np.sum(xs @ f["xy"] * ys, -1) + ys @ f["y"] + xs @ f["x"]
        )  # fmt: skip
        return h, xs @ f["xx"] + ys @ f["xy"].T + f["x"] - v @ g["xy"].T

    def stationary(inverse):
        def direction(x):
            y = optimum(x)[0]
            v = inverse @ (f["yy"] @ y + f["xy"].T @ x + f["y"])
            return f["xx"] @ x + f["xy"] @ y + f["x"] - g["xy"] @ v

        return _root(direction)

    def pulled(sigma):
        def direction(x):
            y = optimum(x)[0]
            slope = g["y"] + g["xy"].T @ x + (f["y"] + f["xy"].T @ x) / sigma
            z = -np.linalg.solve(g["yy"] + f["yy"] / sigma, slope)
            return f["xx"] @ x + f["xy"] @ z + f["x"] + sigma * g["xy"] @ (z - y)

        return _root(direction)

    return Known(
        inner_loss=_loss,
        outer_loss=_loss,
        train=train,
        validation=validation,
        params=jnp.zeros(DIM_Y),
        hyper=-2 * jnp.ones(DIM_X),
        values=values,
        best=stationary(np.linalg.inv(g["yy"])),
        is_optimum=True,
        rates=(0.03, 0.1, 0.3),
        whole_rates=(1.0,),
        scale=0.3,
        moves=(0.01, 0.03, 0.1, 0.3, 1.0),
        budget=60_000,
        whole_calls=150,
        stationary=lambda inverse_of: stationary(inverse_of(g["yy"])),
        pulled=pulled,
    )


def _samples(rng: np.random.Generator, n: int) -> dict[str, jnp.ndarray]:
    def correlated(dim):
        u = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        scale = np.sqrt(np.geomspace(LEAST, MOST, dim))
        return rng.normal(size=(n, dim)) @ (u * scale) @ u.T

    def linear(dim):
        mean = rng.normal(size=dim)
        return rng.normal(size=(n, dim)) + mean / np.linalg.norm(mean)

    both = rng.normal(size=(n, DIM_Y))
    u, v = (np.linalg.qr(rng.normal(size=(dim, dim)))[0] for dim in (DIM_X, DIM_Y))
    singular = np.geomspace(LEAST * CROSS, CROSS, DIM_X)
    found = {
        "a": correlated(DIM_Y), "b": correlated(DIM_X), "c": linear(DIM_Y), "d": linear(DIM_X),
        "p": both[:, :DIM_X] @ (u * singular).T, "q": both @ v.T,
    }  # fmt: skip
    return {name: jnp.asarray(x) for name, x in found.items()}


def _loss(y, x, s):
    of_y = (s["a"] @ y) ** 2 / 2 + s["c"] @ y
    of_x = (s["b"] @ x) ** 2 / 2 + s["d"] @ x
    return jnp.mean(of_y + of_x + (s["p"] @ x) * (s["q"] @ y))


def _means(s: dict) -> dict[str, np.ndarray]:
    n = len(s["a"])
    a, b, c, d, p, q = (np.asarray(s[k]) for k in "abcdpq")
    return {
        "yy": a.T @ a / n, "xx": b.T @ b / n, "xy": p.T @ q / n, "y": c.mean(0), "x": d.mean(0),
    }  # fmt: skip


def _root(direction) -> np.ndarray:
    """The zero of an affine map of R^DIM_X."""
    at_zero = direction(np.zeros(DIM_X))
    matrix = np.stack([direction(e) - at_zero for e in np.eye(DIM_X)], axis=1)
    return np.linalg.solve(matrix, -at_zero)
