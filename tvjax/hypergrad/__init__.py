"""Derivatives of an outer loss in hyperparameters of an inner one; knows pytrees, not images.

The weight of an L2 penalty, learned while the model that it regularises is trained:

>>> import jax, jax.numpy as jnp, optax
>>> from tvjax import hypergrad
>>> x = jax.random.normal(jax.random.key(0), (60, 20))
>>> y = x.sum(1) / 4 + jax.random.normal(jax.random.key(1), (60,))
>>> train, validation = (x[:20], y[:20]), (x[20:], y[20:])
>>> def outer_loss(params, alpha, batch):
...     return jnp.mean((batch[0] @ params - batch[1]) ** 2) / 2
>>> def inner_loss(params, alpha, batch):
...     return outer_loss(params, alpha, batch) + jnp.exp(alpha) * jnp.sum(params**2) / 2
>>> problem = hypergrad.Bilevel(inner_loss, outer_loss, hypergrad.adam(0.05))
>>> estimator = hypergrad.forward_online()
>>> @jax.jit
... def step(state, alpha, carry):
...     estimate = estimator(problem, state, alpha, [train], validation, carry)
...     return estimate.state, alpha - 0.05 * estimate.gradient, estimate.carry
>>> state, alpha = problem.init(jnp.zeros(20)), jnp.asarray(-5.0)
>>> carry = estimator.init(problem, state, alpha)
>>> for _ in range(500):
...     state, alpha, carry = step(state, alpha, carry)
>>> loss = outer_loss(state.params, alpha, validation)
>>> print(f"{alpha:.1f} {loss:.2f}")  # 1.66 where alpha stays -5
-1.6 1.02

Every estimator is called so, and `audit` sets them side by side.
"""

from tvjax.hypergrad.adam import adam, adam_scaling, adamw, is_first_adam_step, scale_by_adam
from tvjax.hypergrad.amigo import amigo
from tvjax.hypergrad.audit import Record, audit, table
from tvjax.hypergrad.bome import bome
from tvjax.hypergrad.cg import cg, hoag_tolerance
from tvjax.hypergrad.contrib.reversible import reversible
from tvjax.hypergrad.exact import exact
from tvjax.hypergrad.f2sa import f2sa
from tvjax.hypergrad.finite_difference import finite_difference
from tvjax.hypergrad.formulas import darts, paper, preconditioned, sgd_formula, training_loss
from tvjax.hypergrad.forward import forward, forward_online
from tvjax.hypergrad.implicit import implicit, neumann, nystrom, scaled_identity
from tvjax.hypergrad.loops import SCANNED, UNROLLED, Loop, default_loop
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState
from tvjax.hypergrad.reverse import reverse
from tvjax.hypergrad.sgd import sgd
from tvjax.hypergrad.significance import until_significant
from tvjax.hypergrad.soba import soba
from tvjax.hypergrad.stocbio import stocbio

__all__ = [
    "SCANNED",
    "UNROLLED",
    "Bilevel",
    "Estimate",
    "Estimator",
    "InnerState",
    "Loop",
    "Record",
    "adam",
    "adam_scaling",
    "adamw",
    "amigo",
    "audit",
    "bome",
    "cg",
    "darts",
    "default_loop",
    "exact",
    "f2sa",
    "finite_difference",
    "forward",
    "forward_online",
    "hoag_tolerance",
    "implicit",
    "is_first_adam_step",
    "neumann",
    "nystrom",
    "paper",
    "preconditioned",
    "reverse",
    "reversible",
    "scale_by_adam",
    "scaled_identity",
    "sgd",
    "sgd_formula",
    "soba",
    "stocbio",
    "table",
    "training_loss",
    "until_significant",
]
