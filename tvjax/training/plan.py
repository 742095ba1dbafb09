"""When and how lambda is learned."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

from tvjax import hypergrad
from tvjax.errors import UserError
from tvjax.hypergrad import Estimator
from tvjax.training import learned


class HyperPlan(NamedTuple):
    """When and how lambda is learned."""

    estimator: Estimator | None
    """What estimates the hypergradient; None: lambda stays as it is."""
    optimizer: optax.GradientTransformation
    warmup: int
    every: int
    batch_size: int
    statistics: str
    guard: str = "none"
    held: bool = False
    """Whether it has ended, and lambda stays as it is; see `tvjax.training.guard`."""

    def is_due(self, step: int) -> bool:
        """Whether lambda is updated in the step (or the K steps) after `step` steps."""
        return self.updates(step + 1) > self.updates(step)

    def updates(self, step: int) -> int:
        """How many updates of lambda the first `step` steps begin."""
        if self.estimator is None or self.held:
            return 0
        return -(-max(0, step - self.warmup) // max(self.every, self.estimator.steps))


def make_hyper_plan(
    inner_optimizer: Mapping[str, Any],
    *,
    method: str,
    steps: int,
    decay: float,
    solver: Mapping[str, Any],
    learning_rate: float,
    warmup: int,
    every: int,
    significance: float,
    block: int,
    batch_size: int,
    statistics: str,
    guard: str,
    learn: Sequence[str],
    rates: Mapping[str, float],
) -> HyperPlan:
    """The plan of this method.

    The arguments are `inner_optimizer`, those of `state.make_optimizer`, which the formulas read,
    and the fields of `config.hypergrad`.

    Raises:
      UserError: naming the field that cannot be so with others.
    """
    is_adam = inner_optimizer["name"] in ("adam", "adamw")
    if method == "forward_online" and every != 1:
        raise UserError(
            f"hypergrad.every={every} must be 1 with forward_online: its tangent rides through "
            f"every step"
        )
    if method != "forward_online" and decay != 1:
        raise UserError(
            f"hypergrad.decay={decay} is of forward_online, and hypergrad.method={method!r}; leave "
            "it at 1"
        )
    if method == "preconditioned" and not is_adam:
        raise UserError(
            f"hypergrad.method='preconditioned' takes Adam's running scale, which "
            f"optimizer.name={inner_optimizer['name']!r} has not; use sgd_formula"
        )
    if method == "f2sa" and (warmup != 0 or every > steps):
        raise UserError(
            f"hypergrad.method='f2sa' needs hypergrad.warmup=0 (not {warmup}) and hypergrad.every "
            f"of at most hypergrad.steps={steps} (not {every}): its second training moves in "
            "updates only, and would fall behind the first"
        )
    estimator = _estimator(method, steps, decay, solver, inner_optimizer)
    is_of_one_step = estimator is not None and estimator.through_steps and estimator.steps == 1
    if is_adam and warmup == 0 and is_of_one_step:
        raise UserError(
            f"hypergrad.warmup=0 must be at least 1 with hypergrad.method={method!r}: the first "
            f"step of {inner_optimizer['name']} has a derivative of all but zero"
        )
    optimizer = learned.make_optimizer(
        learn, learning_rate, rates, significance=significance, block=block
    )
    return HyperPlan(estimator, optimizer, warmup, every, batch_size, statistics, guard)


def _estimator(
    method: str,
    steps: int,
    decay: float,
    solver: Mapping[str, Any],
    inner_optimizer: Mapping[str, Any],
) -> Estimator | None:
    rate = inner_optimizer["learning_rate"]
    scale, damping, terms = (solver[name] for name in ("scale", "damping", "terms"))
    scaling = hypergrad.adam_scaling(b2=inner_optimizer["b2"], eps=inner_optimizer["eps"])
    methods: dict[str, Callable[[], Estimator | None]] = {
        "none": lambda: None,
        "exact": hypergrad.exact,
        "sgd_formula": lambda: hypergrad.sgd_formula(rate),
        "paper": lambda: hypergrad.paper(rate),
        "preconditioned": lambda: hypergrad.preconditioned(rate, scaling=scaling),
        "darts": lambda: hypergrad.darts(rate),
        "reverse": lambda: hypergrad.reverse(steps),
        "forward": lambda: hypergrad.forward(steps),
        "forward_online": lambda: hypergrad.forward_online(decay=decay),
        "training_loss": hypergrad.training_loss,
        "soba": lambda: hypergrad.soba(scale, damping=damping),
        "amigo": lambda: hypergrad.amigo(terms, scale, damping=damping, steps=steps),
        "stocbio": lambda: hypergrad.stocbio(terms, scale, damping=damping, steps=steps),
        "f2sa": lambda: hypergrad.f2sa(solver["sigma"], steps=steps),
    }
    return methods[method]()
