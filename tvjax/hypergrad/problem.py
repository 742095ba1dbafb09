"""The bilevel problem, and the one signature that all hypergradient estimators share.

    minimise over hyper   L_out(theta*(hyper), hyper)
                          where theta*(hyper) = argmin over theta of L_in(theta, hyper)

and theta* stands for what some steps of an optimiser reach. `hyper` may act in three ways: in the
inner loss, in the optimiser's settings, and in the outer loss directly.

An estimator is a value. All are called alike and return the same record:

    estimate = estimator(problem, state, hyper, inner_batches, outer_batch, carry)

It takes `estimator.steps` steps of the inner optimiser, one per inner batch, and returns the state
they lead to together with dL_out/dhyper there (`bome` alone moves the parameters by the outer loss
as well). The `estimator.further` inner batches that some want for curvature come after those of the
steps. An estimator that does not see one of the ways in which `hyper` acts refuses a problem that
has it. Nothing here knows images or nets: parameters and hyperparameters are any pytrees, the
optimiser is any optax optimiser of gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax import lax

from tvjax.hypergrad.checks import (
    arrays,
    check_batches,
    check_floats,
    check_loss,
    check_real,
    check_truth,
)
from tvjax.hypergrad.degenerate import first_state, take_step
from tvjax.hypergrad.paths import check_paths, check_start
from tvjax.hypergrad.trees import floats, merge
from tvjax.types import PyTree


class InnerState(NamedTuple):
    """What one inner step reads and writes."""

    params: PyTree
    opt_state: PyTree
    model_state: PyTree = ()
    """What the loss itself updates, such as the running statistics of BatchNorm."""


class Bilevel(NamedTuple):
    """A bilevel problem.

    `inner_loss(params, hyper, batch) -> loss` and `outer_loss(params, hyper, batch) -> loss`, both
    real scalars; `params` and `hyper` are pytrees of real floats. With `stateful=True` the losses
    also take and return what else a training step needs:
    `inner_loss(params, hyper, batch, model_state) -> (loss, (model_state, aux))` and
    `outer_loss(params, hyper, batch, model_state) -> (loss, aux)`, where `aux` is any pytree of
    metrics.

    The optimiser is one of optax's, or a function `hyper -> optimiser` where its settings are
    learned: `lambda h: hypergrad.adamw(jnp.exp(h["rate"]), weight_decay=jnp.exp(h["decay"]))`. The
    function is called while a step is traced, and must not ask for values. What it makes reads its
    settings at each step; one that keeps them in its state (`optax.inject_hyperparams`) would go on
    with those of the start, and is refused. `hypergrad.adam`, `adamw` and `sgd` have derivatives in
    their settings that are finite; rates per layer are `optax.partition` of them, and a schedule is
    any function of the step count.

    With `axis_name` both losses are those of one device's share of the batch, and everything is
    averaged over the axis where it must be: gradients before the optimiser's nonlinearity, and
    the hypergradient after the inner product with a step that is already global.

    The optimiser's update is given the gradient, its state and the parameters, and nothing else:
    one that asks for the loss (`optax.lbfgs`, `optax.polyak_sgd`) is refused by the estimators,
    and so is one whose derivative is identically zero (`optax.lion`, `optax.sign_sgd`), by those
    that differentiate through its steps. All others of optax and its contrib are tested.

    Make it once, outside the loop: its functions are hashed, and compiled steps belong to these
    very functions. A problem made anew at each call is compiled anew at each call, and a callable
    that cannot be hashed is refused by `jax.jit`.
    """

    inner_loss: Callable[..., Any]
    outer_loss: Callable[..., Any]
    optimizer: optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]
    stateful: bool = False
    axis_name: str | None = None

    def init(
        self, params: PyTree, model_state: PyTree = (), hyper: PyTree | None = None
    ) -> InnerState:
        """The state before the first step.

        Args:
          params: theta.
          model_state: what a stateful loss reads first.
          hyper: needed where the optimiser is a function of it.

        Raises:
          ValueError: for parameters that are not real floats, a `stateful` that is no boolean, or
            a model state that is complex; with the optimiser's reason, if it has no state for such
            parameters; and for an optimiser whose first state depends on `hyper`.
        """
        check_truth(stateful=self.stateful)
        check_floats(params=params)
        check_real(model_state=model_state)
        params, model_state, hyper = arrays((params, model_state, hyper))
        if hyper is not None:
            check_start(self.optimizer, hyper, params)
        return InnerState(params, first_state(self.optimizer, params, hyper), model_state)

    def inner(self, params: PyTree, hyper: PyTree, batch: PyTree, model_state: PyTree):
        """`inner_loss` in the stateful form, whichever form it was given in."""
        if self.stateful:
            loss, rest = self.inner_loss(params, hyper, batch, model_state)
        else:
            loss, rest = self.inner_loss(params, hyper, batch), (model_state, None)
        check_loss("inner_loss", loss)
        return loss, rest

    def outer(self, params: PyTree, hyper: PyTree, batch: PyTree, model_state: PyTree):
        """`outer_loss` in the stateful form, whichever form it was given in."""
        if self.stateful:
            loss, aux = self.outer_loss(params, hyper, batch, model_state)
        else:
            loss, aux = self.outer_loss(params, hyper, batch), None
        check_loss("outer_loss", loss)
        return loss, aux

    def mean(self, tree: PyTree) -> PyTree:
        """The mean over the devices of the axis; `tree` itself without one.

        Leaves that are not floats, such as counts and keys, are each device's own, unchanged.
        """
        if self.axis_name is None:
            return tree
        return merge(lax.pmean(floats(tree), self.axis_name), tree)

    def inner_gradient(self, state: InnerState, hyper: PyTree, batch: PyTree):
        """`(grad_theta L_in, (model_state, aux))`, averaged over devices."""
        return self.mean(
            jax.grad(self.inner, has_aux=True)(state.params, hyper, batch, state.model_state)
        )

    def inner_step(self, state: InnerState, hyper: PyTree, batch: PyTree):
        """One step of the optimiser: `(state, aux)`. Differentiable in `state` and `hyper`."""
        gradient, (model_state, aux) = self.inner_gradient(state, hyper, batch)
        params, opt_state = take_step(
            self.optimizer, hyper, gradient, state.opt_state, state.params
        )
        return InnerState(params, opt_state, model_state), aux

    def outer_at(self, state: InnerState, hyper: PyTree, batch: PyTree):
        """`(L_out, aux)` at a state, averaged over devices."""
        return self.mean(self.outer(state.params, hyper, batch, state.model_state))

    def outer_gradient(self, state: InnerState, hyper: PyTree, batch: PyTree):
        """`((L_out, aux), grad_theta L_out)`, averaged over devices."""
        derivative = jax.value_and_grad(self.outer, has_aux=True)
        return self.mean(derivative(state.params, hyper, batch, state.model_state))


class Estimate(NamedTuple):
    """What every estimator returns."""

    gradient: PyTree
    """dL_out/dhyper at the new state; the structure of `hyper`."""
    outer_loss: jax.Array
    """L_out at the new state."""
    state: InnerState
    """The state after the inner steps."""
    aux: PyTree
    """`(inner aux of the last step, outer aux)`; None where the losses give none."""
    carry: PyTree = ()
    """What the estimator itself remembers until its next call."""


class Estimator(NamedTuple):
    """A way of estimating dL_out/dhyper, as a value.

    `estimate(problem, state, hyper, inner_batches, outer_batch, carry) -> Estimate` is pure and
    runs under `jit`, `pmap` and `vmap`.
    """

    estimate: Callable[..., Estimate]
    steps: int = 1
    """How many inner steps one call makes, each on an inner batch of its own."""
    init: Callable[[Bilevel, InnerState, PyTree], PyTree] = lambda problem, state, hyper: ()
    """The first `carry`: a pytree of arrays, saved and restored with the rest of a run."""
    through_steps: bool = True
    """Whether it differentiates through the optimiser's step, which must then have a slope."""
    through_settings: bool = True
    """Whether it differentiates through the optimiser's settings, where they depend on `hyper`."""
    through_outer: bool = True
    """Whether it adds the derivative of an outer loss that depends on `hyper` directly."""
    further: int = 0
    """How many inner batches it takes beyond those of its steps, for curvature alone."""
    horizon: str = ""
    """What the derivative sees of the training: "whole run" or "optimum"; empty: its `steps`."""

    @property
    def batches(self) -> int:
        """How many inner batches one call takes."""
        return self.steps + self.further

    @property
    def sees(self) -> str:
        """The horizon in words, such as "1 step"; estimators of one horizon have one truth."""
        return self.horizon or f"{self.steps} step" + "s" * (self.steps > 1)

    def __call__(
        self,
        problem: Bilevel,
        state: InnerState,
        hyper: PyTree,
        inner_batches: Sequence[PyTree],
        outer_batch: PyTree,
        carry: PyTree = None,
    ) -> Estimate:
        """Calls `estimate`, with the first carry where none is given.

        Raises:
          ValueError: if the number of inner batches is not `batches`, an array of a batch is empty,
            `hyper` or the parameters hold other numbers than real floats or none, the rest of
            the state is complex, or a loss is no real scalar; for an optimiser that asks for the
            loss's value (`optax.lbfgs`, `optax.polyak_sgd`); where the estimator differentiates
            through its steps, for one whose derivative is identically zero (Lion, sign-SGD,
            Rprop); and where `hyper` acts in a way that the estimator does not see.
        """
        check_truth(stateful=problem.stateful)
        check_floats(params=state.params, hyper=hyper)
        check_real(state=state, carry=carry)
        check_batches(inner_batches, self.batches, outer_batch)
        state, hyper = arrays((state, hyper))
        check_paths(self, problem, state, hyper, inner_batches[0], outer_batch)
        if carry is None:
            carry = self.init(problem, state, hyper)
        return self.estimate(problem, state, hyper, inner_batches, outer_batch, carry)
