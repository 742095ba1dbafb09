"""Watching the validation loss while something is learned.

A hypergradient that does not see the rest of the training may move lambda, or a weight decay, to
where a finished training is worse (`docs/hypergradients.md`). The loss over the whole validation
split shows it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.hypergrad import Estimator
from tvjax.training import learned
from tvjax.training.setup import Setup
from tvjax.training.state import TrainState
from tvjax.types import Config

RISE = 0.1
"""How far, as a part of it, the validation loss is above its lowest before it counts as risen."""
MOVE = 2.0
"""The factor by which something learned moved before a risen loss may be its doing."""
TWICE = 2
"""Evaluations running that must find the loss risen: one may be a whim of a single step."""
SEES = {
    "whole run": "sees the steps so far, none that follow",
    "optimum": "takes the net to be at its inner optimum",
}
"""What an estimator sees of a training, by its horizon; the others see their steps."""


class Watch(NamedTuple):
    """What is remembered from one evaluation to the next; a checkpoint keeps it as JSON."""

    lowest: float | None = None
    step: int = 0
    """Where the loss was lowest."""
    hyper: tuple[Any, ...] = ()
    """The leaves of `hyper` there, as lists of numbers."""
    risen: int = 0
    """Evaluations running that found it risen."""
    said: str = ""
    """The warning that was given; one is enough."""
    held: bool = False
    """Whether what is learned went back to `hyper` and stays there."""


def loss_of(config: Config, scores: dict[str, Any]) -> float:
    """What should fall: cross-entropy where lambda is learned by it, or else 1 - the score."""
    if config.loss.validation == "bce":
        return scores["bce"]
    return 1 - scores[config.evaluation.score]


def look(
    watch: Watch, config: Config, setup: Setup, state: TrainState, scores: dict[str, Any]
) -> Watch:
    """The watch after an evaluation, with the lowest loss so far, or with a warning.

    A warning comes where the loss was more than `RISE` above its lowest at `TWICE` evaluations
    running, while something learned is further than a factor of `MOVE` from where it was then.
    Nothing shows that the one caused the other: a net that overfits does the same. Whether to warn
    or to hold is told by `setup.plan.guard`; `scores` are those of `state` on the validation split.
    """
    plan = setup.plan
    if plan.guard == "none" or plan.estimator is None or watch.held:
        return watch
    loss, step = loss_of(config, scores), int(state.step)
    if watch.lowest is None or loss < watch.lowest:
        leaves = tuple(np.asarray(x).tolist() for x in jax.tree.leaves(state.hyper))
        return watch._replace(lowest=loss, step=step, hyper=leaves, risen=0)
    risen = watch.risen + 1 if loss > (1 + RISE) * watch.lowest else 0
    moves = _moves(config, setup, _there(watch, state.hyper), state.hyper)
    watch = watch._replace(risen=risen)
    if risen < TWICE or not moves:
        return watch
    held, method = plan.guard == "hold", config.hypergrad.method
    advice = (
        f"back to step {watch.step} with what is learned, where it stays"
        if held
        else f"if the training goes wrong, take hypergrad.guard='hold' or a smaller "
        f"{' or '.join(learned.rate_fields(config))}"
    )
    said = (
        f"step {step}: the validation loss is {loss:.3g}, and was {watch.lowest:.3g} at step "
        f"{watch.step}; since then {'; '.join(moves)}. hypergrad.method={method!r} "
        f"{_sight(method, plan.estimator)}, and may mislead; {advice}"
    )
    return watch._replace(said=said, held=held)


def applied(watch: Watch, setup: Setup, state: TrainState) -> tuple[Setup, TrainState]:
    """The run as a watch leaves it: where it holds, no step moves what is learned any more."""
    if not watch.held:
        return setup, state
    setup = setup._replace(plan=setup.plan._replace(held=True))
    return setup, state._replace(hyper=setup.layout.replicate(_there(watch, state.hyper)))


def describe(watch: Watch) -> dict[str, Any]:
    """What a summary says of a run that was warned of."""
    if not watch.said:
        return {}
    return {"guard": {"warning": watch.said, "held": watch.held, "lowest_loss_step": watch.step}}


def _sight(method: str, estimator: Estimator) -> str:
    if method == "training_loss":
        return "does not see the validation loss"
    return SEES.get(estimator.horizon, f"sees {estimator.sees} ahead")


def _there(watch: Watch, hyper: Any) -> Any:
    leaves, form = jax.tree.flatten(hyper)
    pairs = zip(watch.hyper, leaves, strict=True)
    return jax.tree.unflatten(form, [jnp.asarray(old, now.dtype) for old, now in pairs])


def _moves(config: Config, setup: Setup, then: Any, now: Any) -> list[str]:
    """What moved further than a factor of `MOVE`, in words: the element that moved furthest."""

    def values(hyper):
        lam = {"lambda": setup.net.regularizer.lam(hyper)}
        found = {**(lam if "lambda" in learned.names(config) else {}), **learned.values(hyper)}
        return {name: np.ravel(np.asarray(x, np.float64)) for name, x in found.items()}

    old, new, moves = values(then), values(now), []
    for name in old:
        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.nan_to_num(np.abs(np.log(new[name] / old[name])), posinf=np.inf)  # 0 / 0: none
        if far.max() > np.log(MOVE):
            i = int(far.argmax())
            of = " of one tile" if name == "tile_weights" else ""
            moves.append(f"{name}{of} went from {old[name][i]:.3g} to {new[name][i]:.3g}")
    return moves
