"""The pullback of an optimiser's step, with nothing added by branches that a `where` left out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal

from tvjax.hypergrad.degenerate import take_step
from tvjax.hypergrad.trees import floats, merge
from tvjax.types import PyTree


def step_pullback(
    optimizer: Any, hyper: PyTree, gradient: PyTree, opt_state: PyTree, params: PyTree
):
    """`((params', opt_state'), pullback)` of one step of the optimiser.

    `pullback(dparams', dopt_state')` gives the cotangents of gradient, optimiser state, parameters
    and hyperparameters; those of states are like `floats(opt_state)`.
    """

    def step(gradient, part, params, hyper):
        params, new = take_step(optimizer, hyper, gradient, merge(part, opt_state), params)
        return (params, floats(new)), new

    primals = gradient, floats(opt_state), params, hyper
    (new_params, _), pull, new = pullback(step, *primals)
    return (new_params, new), lambda *cotangents: pull(cotangents)


def pullback(f: Callable[..., Any], *primals: PyTree) -> tuple[Any, Callable[[Any], Any], Any]:
    """`jax.vjp(f, *primals, has_aux=True)` in which a cotangent of zero stays zero.

    `where(ok, safe, bad)` passes the tangent of one branch on and forgets the other, but going
    back it sends zero into the other, and zero times the NaN or over the zero that it holds is NaN
    (in the first steps of `optax.radam`). Here zero times or over anything is zero. An output
    whose own tangent is NaN, since what is singular does reach it, gets a cotangent of NaN.
    """
    value, pull, aux = jax.vjp(f, *primals, has_aux=True)
    reached = jax.jvp(f, primals, optax.tree.zeros_like(primals), has_aux=True)[1]

    def quiet(cotangent):
        cotangent = jax.tree.map(lambda t, c: jnp.where(jnp.isnan(t), t, c), reached, cotangent)
        program, shapes = jax.make_jaxpr(pull, return_shape=True)(cotangent)
        leaves = [(x, True) for x in jax.tree.leaves(cotangent)]
        results = [x for x, _ in _run(program, leaves)]
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return value, quiet, aux


def _run(program: Any, arguments: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
    """The results of a jaxpr; each value goes with whether it is a cotangent or a constant."""
    jaxpr = program.jaxpr
    known = dict(zip(jaxpr.constvars, [(x, False) for x in program.consts], strict=True))
    known |= zip(jaxpr.invars, arguments, strict=True)

    def read(x):
        return (x.val, False) if isinstance(x, Literal) else known[x]

    for eqn in jaxpr.eqns:
        operands = [read(x) for x in eqn.invars]
        known |= zip(eqn.outvars, _evaluate(eqn, operands), strict=True)
    return [read(x) for x in jaxpr.outvars]


def _evaluate(eqn: Any, operands: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
    name = eqn.primitive.name
    if name in ("jit", "pjit"):
        return _run(eqn.params["jaxpr"], operands)
    results = eqn.primitive.bind(*(x for x, _ in operands), **eqn.params)
    results = results if eqn.primitive.multiple_results else [results]
    cotangents = [x for x, is_cotangent in operands if is_cotangent]
    if name in ("mul", "div") and cotangents:
        results = [jnp.where(cotangents[0] == 0, jnp.zeros_like(y), y) for y in results]
    return [(y, bool(cotangents)) for y in results]
