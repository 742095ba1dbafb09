"""Hypergradients by the implicit function theorem, at an optimum of the inner problem.

    H = dL_out/dhyper - <A^{-1} grad L_out, d/dhyper grad L_in>
    A = d^2 L_in/dtheta^2 + damping I

The first term is the direct one, of an outer loss that takes `hyper` itself. The formulas below
leave it out.

The estimators differ in how they apply A^{-1}, always by products with A alone: each product is
the tangent of the inner gradient and costs 6F, after 3F for the linearisation they share. Beyond
them an estimate costs `steps` plain steps, the outer gradient 3F, and 5F for the product with
d/dhyper (1F forward, 2F pullback, 2F tangent). Curvature is that of the last inner batch. The
memory of a linearisation is that of a plain step.

All of them prefer an inner problem that is solved: away from its optimum H answers another
question. Nothing here depends on the optimiser, nor on the path it took: an optimiser whose
settings depend on `hyper` is refused. An optimum does not depend on a learning rate or a momentum,
and 0 would be no news of them; on a decoupled weight decay it does, unseen here: put that into the
inner loss. A net's Hessian is
indefinite: there they need `damping` above the most negative eigenvalue, which biases H towards
zero, and many a published result is that bias.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from tvjax.hypergrad.checks import arrays, check_least, check_not_negative, check_positive
from tvjax.hypergrad.formulas import response
from tvjax.hypergrad.loops import Loop, chosen
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.hypergrad.reverse import inner_run
from tvjax.types import PyTree


def scaled_identity(scale: float, *, steps: int = 1, loop: Loop | None = None) -> Estimator:
    """A^{-1} taken as `scale` I.

        H = -scale <grad L_out, d/dhyper grad L_in>

    Equation 26 of the paper at the new parameters, with any number in the learning rate's place.

    Source: Luketina et al. (2016), arXiv:1511.06727.

    Cost: 8F and `steps` plain steps. Memory: that of a plain step.

    Prefer it where only the sign matters and curvature is out of reach.

    What it cannot do: give the size; nor the sign, where parameters pull against each other; nor
    speak of an inner problem that is not solved.

    Args:
      scale: stands for A^{-1}; 1 / the largest eigenvalue is the first term of `neumann`.
      steps: inner steps before the estimate, >= 1.
      loop: how to run them; None: what suits the backend.

    Raises:
      ValueError: `scale` is not positive: the sign would be the other one.
    """
    check_positive(scale=scale)

    def solve(product, b, carry):
        return optax.tree.scale(scale, b), carry

    return implicit(solve, steps, chosen(loop))


def neumann(
    terms: int,
    scale: float,
    *,
    damping: float = 0.0,
    steps: int = 1,
    loop: Loop | None = None,
) -> Estimator:
    """A^{-1} as a truncated Neumann series.

        A^{-1} b  ~  scale sum_{j=0}^{terms} (I - scale A)^j b

    The relative error of a component of curvature a is (1 - scale a)^(terms + 1). It equals that
    of `terms + 1` unrolled steps of gradient descent from the optimum, learning rate `scale`.

    Source: Lorraine, Vicol, Duvenaud (2020), arXiv:1911.02590, Algorithm 3.

    Cost: 6F a term, beyond the module's. Memory: that of a plain step.

    Prefer `cg`, which for the same products is nearer, unless A changes between products, as with
    dropout.

    What it cannot do: converge unless 0 < scale < 2 / the largest eigenvalue of A, nor where A is
    indefinite: a net needs damping. Nor speak of an inner problem that is not solved.

    Args:
      terms: products with A, >= 0.
      scale: factor of the series above, > 0.
      damping: added to the diagonal of the Hessian.
      steps: inner steps before the estimate, >= 1.
      loop: how to run the steps and the terms; None: what suits the backend.

    Raises:
      ValueError: for terms below 0, steps below 1, or a scale that is not positive.
    """
    check_least(0, terms=terms)
    check_positive(scale=scale)
    check_not_negative(damping=damping)
    loop = chosen(loop)

    def solve(product, b, carry):
        def term(pair):
            p, total = pair
            p = jax.tree.map(lambda p, a: p - scale * a, p, damped(product, damping)(p))
            return p, jax.tree.map(jnp.add, total, p)

        _, total = loop.scan(lambda c: (term(c), None), (b, b), length=terms)[0]
        return optax.tree.scale(scale, total), carry

    return implicit(solve, steps, loop)


def nystrom(
    rank: int,
    damping: float,
    *,
    seed: int = 0,
    steps: int = 1,
    loop: Loop | None = None,
) -> Estimator:
    """A^{-1} by Woodbury's identity on a random low-rank Hessian.

        d^2 L_in ~ Y C^+ Y^T,  Y = (d^2 L_in) Q,  C = Q^T Y,  Q an orthonormal random p x rank
        A^{-1} b ~ U (L + damping)^{-1} U^T b + (b - U U^T b) / damping,   Y C^+ Y^T = U L U^T

    Source: Hataya and Yamada (2023), arXiv:2302.09726. Differs from the paper: Q is a
    Gaussian range instead of random columns of the identity, so no coordinate is favoured. It is
    drawn anew at each call, from a key that rides in `carry`.

    Cost: 6F for each of `rank`, beyond the module's. Memory: `rank` vectors like the parameters.

    Prefer it where the Hessian has few large eigenvalues: unlike `neumann` no scale needs tuning.

    What it cannot do: do without `damping`, which stands in for all curvature outside the range;
    nor speak of an inner problem that is not solved.

    Args:
      rank: rank of the approximation, >= 1.
      damping: added to the diagonal of the Hessian, > 0.
      seed: seed of the draws.
      steps: inner steps before the estimate, >= 1.
      loop: how to run the steps and the products; None: what suits the backend.

    Raises:
      ValueError: for a rank or steps below 1, or a damping that is not positive.
    """
    check_least(1, rank=rank)
    check_positive(damping=damping)
    loop = chosen(loop)

    def init(problem, state, hyper):
        return jax.random.key_data(jax.random.key(seed))

    def solve(product, b, carry):
        key, new = jax.random.split(jax.random.wrap_key_data(carry))
        flat, unravel = ravel_pytree(b)
        k = min(rank, flat.size)
        q = orthonormal(jax.random.normal(key, (flat.size, k), flat.dtype))

        def column(_, i):
            return None, ravel_pytree(product(unravel(q[:, i])))[0]

        _, rows = loop.scan(column, None, loop.stack(list(np.arange(k))), length=k)
        rows = jnp.stack(rows) if isinstance(rows, list) else rows
        u, values = low_rank(q, rows.T)
        # Projected twice: what rounding leaves of the range in the rest is divided by `damping`.
        inside = _dot(u.T, flat)
        rest = flat - _dot(u, inside)
        more = _dot(u.T, rest)
        rest = rest - _dot(u, more)
        found = _dot(u, (inside + more) / (values + damping)) + rest / damping
        return unravel(found), jax.random.key_data(new)

    return implicit(solve, steps, loop, init)


_dot = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


# Under vmap LAPACK is called once per member: on a CPU two batches of calls that run side by side
# can wait for each other's threads for ever (jaxlib 0.10.2).


@jax.custom_batching.sequential_vmap
def orthonormal(x: jax.Array) -> jax.Array:
    """Orthonormal columns with the range of those of `x`."""
    return jnp.linalg.qr(x)[0]


@jax.custom_batching.sequential_vmap
def low_rank(q: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """U and L of `Y C^+ Y^T = U diag(L) U^T`, where C = Q^T Y.

    With C = W diag(c) W^T it is `B diag(sign c) B^T`, B = Y W |c|^(-1/2), and B = U R: no product
    of Y with itself is formed, which would square the condition number. Directions in which c is
    within the rounding of Y are left out.
    """
    core = _dot(q.T, y)
    c, w = jnp.linalg.eigh((core + core.T) / 2)
    noise = jnp.finfo(y.dtype).eps * jnp.sqrt(y.shape[0]) * jnp.linalg.norm(y)
    keep = jnp.abs(c) > noise
    b = _dot(y, w) * jnp.where(keep, lax.rsqrt(jnp.where(keep, jnp.abs(c), 1)), 0)[None]
    z, r = jnp.linalg.qr(b)
    values, v = jnp.linalg.eigh(_dot(r * jnp.sign(c)[None], r.T))
    return _dot(z, v), values


def implicit(
    solve: Callable[..., tuple[PyTree, PyTree]],
    steps: int,
    loop: Loop,
    init: Callable[..., PyTree] = lambda problem, state, hyper: (),
) -> Estimator:
    """The estimator that a solver makes.

    Args:
      solve: `solve(product, b, carry) -> (A^{-1} b, carry)`, where `product(v)` is the Hessian
        times v.
      steps: inner steps before the estimate, >= 1.
      loop: how to run them.
      init: `Estimator.init`, for a solver that remembers.
    """
    check_least(1, steps=steps)

    def estimate(problem, state, hyper, inner_batches, outer_batch, carry):
        new, inner_aux = inner_run(problem, state, hyper, loop.stack(inner_batches), steps, loop)
        (loss, outer_aux), b = problem.outer_gradient(new, hyper, outer_batch)
        batch = inner_batches[-1]
        product = hessian(problem, new, hyper, batch)
        q, carry = solve(product, widened(b), carry)
        h = response(problem, new, new, hyper, batch, outer_batch, q)
        return Estimate(h, loss, new, (inner_aux, outer_aux), carry)

    return Estimator(
        estimate, steps, init, through_steps=False, through_settings=False, horizon="optimum"
    )


def hessian(
    problem: Bilevel, at: InnerState, hyper: PyTree, batch: PyTree
) -> Callable[[PyTree], PyTree]:
    """The product `v -> (d^2 L_in/dtheta^2) v` at a state, on a batch; averaged over devices."""

    def gradient(params):
        return problem.inner_gradient(at._replace(params=params), hyper, batch)[0]

    _, narrow = jax.linearize(gradient, at.params)

    def product(v):
        return widened(narrow(jax.tree.map(lambda v, p: v.astype(p.dtype), v, at.params)))

    return product


def damped(product: Callable[[PyTree], PyTree], damping: float) -> Callable[[PyTree], PyTree]:
    """The product with the Hessian + damping I."""
    if damping == 0:
        return product
    return lambda v: jax.tree.map(lambda a, v: a + damping * v, product(v), v)


def widened(tree: PyTree) -> PyTree:
    """`tree` in float32 where it is in less: half precision cannot solve a system."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), arrays(tree))
