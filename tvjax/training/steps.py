"""The training steps: pure functions `(state, batches) -> (state, metrics)`.

Plain and bilevel training differ in these functions and in what a batch holds, nowhere else. Each
is written once for one device's share of the batch; with an axis name, means over devices stand
where they must (see `tvjax.hypergrad.problem`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from tvjax.hypergrad import Bilevel, Estimator
from tvjax.models.heads import Head, Loss
from tvjax.scoring import metrics
from tvjax.training import average, learned
from tvjax.training.accumulate import in_parts
from tvjax.training.augment import Augment, to_float
from tvjax.training.state import TrainState
from tvjax.tv.rof import denoise_tv
from tvjax.tv.variation import total_variation
from tvjax.types import Batch, PyTree


class Regularizer(NamedTuple):
    """Where total variation enters, and how its weight lambda is read from `state.hyper`."""

    place: str
    """`"loss"` (LU-Net, eq. 9), `"head"` (RU-Net, eq. 7) or `"none"` (U-Net)."""
    kind: str
    """The kind of TV, as in `total_variation`."""
    reduction: str
    """`"sum"` of TV over pixels and batch, `"image"` (mean of images) or `"pixel"` (of pixels)."""
    parametrization: str
    """`"log"`: hyper is alpha = log lambda (the paper's note 7); `"linear"`: lambda itself, kept
    at 0 or above by projection after each update."""

    start: Any = None
    """What stands for lambda where it is not learned, but something else is."""

    def lam(self, hyper: PyTree) -> jax.Array:
        """Lambda."""
        found = learned.part(hyper, "lambda")
        found = self.start if found is None else found
        return jnp.exp(found) if self.parametrization == "log" else found

    def project(self, hyper: PyTree) -> PyTree:
        """The nearest admissible value after an update."""
        found = learned.part(hyper, "lambda")
        if self.parametrization == "log" or found is None:
            return hyper
        found = jnp.maximum(found, 0)
        return hyper | {"lambda": found} if isinstance(hyper, dict) else found

    def pixel_weight(self, lam: float, batch: tuple[int, ...], loss: str = "bce") -> float | None:
        """The weight of one pixel's TV against one pixel's loss (both as means).

        `"sum"` makes it grow with the batch: lambda * B * H * W for `batch = (B, H, W)`. None where
        TV is not in the loss, or this is no mean over pixels, as dice is none.
        """
        if self.place != "loss" or loss not in ("bce", "focal"):
            return None
        b, h, w = batch[:3]
        return lam * {"sum": b * h * w, "image": h * w, "pixel": 1}[self.reduction]


def cross_entropy(head: Head, logits: jax.Array, lam: jax.Array, mask: jax.Array) -> jax.Array:
    """The head's own loss, the paper's."""
    return head.cross_entropy(logits, lam, mask)


def make_problem(
    net: nn.Module,
    head: Head,
    optimizer: optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation],
    regularizer: Regularizer,
    *,
    loss_at: Callable[[PyTree], Loss] = lambda hyper: cross_entropy,
    validation_loss: Loss = cross_entropy,
    statistics: str = "batch",
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Bilevel:
    """Segmentation as a bilevel problem (eqs 15 to 17).

        inner: loss + lambda TV of the training batch     outer: validation loss of the validation
        batch

    Args:
      net: `net.apply(variables, images, train=...)` -> logits; may hold `batch_stats`.
      head: function of logits to probabilities and loss.
      optimizer: optimiser of the inner problem, or a function `hyper -> optimiser`.
      regularizer: where TV enters.
      loss_at: loss of the inner problem, its mean over images, as a function of `hyper`, by which
        its mixture may be learned; the paper's is the cross-entropy.
      validation_loss: loss of the outer problem.
      statistics: BatchNorm's in the outer loss: `"batch"` or `"running"`. The two give different
        hypergradients. In one step the running ones come from theta(t) and carry no derivative.
      accumulate: parts in which the inner loss takes its batch, see `in_parts`.
      axis_name: the axis over which the batch is spread, if any.
    """

    def apply(params, model_state, batch, train):
        variables = {"params": params, "batch_stats": model_state["batch_stats"]}
        # BatchNorm also writes its running statistics when only its batch's are wanted.
        logits, new = net.apply(
            variables, to_float(batch.image), train=train, mutable=["batch_stats"]
        )
        return logits, new.get("batch_stats", {})

    def inner_loss(params, hyper, batch: Batch, model_state):
        lam = regularizer.lam(hyper)
        logits, batch_stats = apply(params, model_state, batch, True)
        each = loss_at(hyper)(head, logits, lam, batch.mask)
        fit = jnp.mean(learned.weighted(hyper, each, batch))
        # Logged whatever the loss is, so that runs can be compared.
        mask = of_objects(batch)
        bce = lax.stop_gradient(jnp.mean(head.cross_entropy(logits, lam, mask)))
        tv, weighted = variation(head, regularizer, logits, lam, axis_name, accumulate)
        total = fit + weighted if regularizer.place == "loss" else fit
        aux = {"loss": total, "bce": bce, "tv": tv} | iou_and_counts(head, logits, lam, mask)
        return total, ({"batch_stats": batch_stats}, aux)

    def outer_loss(params, hyper, batch: Batch, model_state):
        logits, _ = apply(params, model_state, batch, statistics == "batch")
        lam = regularizer.lam(hyper)
        fit = jnp.mean(validation_loss(head, logits, lam, batch.mask))
        return fit, iou_and_counts(head, logits, lam, of_objects(batch))

    inner = in_parts(inner_loss, accumulate)
    return Bilevel(inner, outer_loss, optimizer, stateful=True, axis_name=axis_name)


def of_objects(batch: Batch) -> Any:
    """The mask of a batch without contact, if it holds that, `[B, H, W, 1]`."""
    return batch.mask if batch.mask.shape[-1] == 1 else batch.mask[..., :1]


def variation(
    head: Head,
    regularizer: Regularizer,
    logits: jax.Array,
    lam: jax.Array,
    axis_name: str | None,
    parts: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """TV of a batch's probabilities, and lambda TV; see `reduce_tv`."""
    batch, *size, _ = logits.shape  # of the masks too

    def reduced(probabilities, weights=None):
        tv = total_variation(probabilities, kind=regularizer.kind, weights=weights)
        return reduce_tv(tv, regularizer.reduction, size[0] * size[1], axis_name, parts)

    tv = reduced(head.probabilities(logits, lam))
    if not lam.ndim:
        return tv, lam * tv
    weights = to_pixels(lam, (batch, *size))
    # The mean of the classes: equal weights are then one lambda, which weighs one of two.
    return tv, reduced(head.classes(logits, lam), weights) / head.channels


def iou_and_counts(
    head: Head, logits: jax.Array, lam: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """What the log of the steps says of a batch, whose derivatives nobody asks for."""
    probabilities = lax.stop_gradient(head.probabilities(logits, lam))
    counts = metrics.counts(probabilities, mask)
    return {
        "iou": jnp.mean(counts.iou),
        # Their means over images, devices and steps pool the pixels of all.
        "intersection": jnp.mean(counts.true_positive),
        "union": jnp.mean(counts.union),
    }


def reported(outer_loss: Callable) -> Callable:
    """An outer loss that is only looked at: `hyper` has no derivative in it."""
    return lambda params, hyper, *rest: outer_loss(params, lax.stop_gradient(hyper), *rest)


def to_pixels(lam: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Weights `[n, n, C]` -> `[1, H, W, C]`, constant on n x n blocks as equal as can be."""
    for axis, size in enumerate(shape[1:3]):
        block = jnp.arange(size) * lam.shape[axis] // size
        lam = jnp.take(lam, block, axis=axis)
    return lam[None]


def reduce_tv(
    tv: jax.Array, reduction: str, pixels: int, axis_name: str | None, parts: int = 1
) -> jax.Array:
    """TV per image `[B]` -> a local value whose mean over devices (and parts) is the global one."""
    if reduction == "sum":
        devices = 1 if axis_name is None else lax.axis_size(axis_name)
        return parts * devices * jnp.sum(tv)
    return jnp.mean(tv) / (pixels if reduction == "pixel" else 1)


def plain_step(
    problem: Bilevel, regularizer: Regularizer, augment: Augment | None = None
) -> Callable:
    """`(state, [inner batch]) -> (state, metrics)`: one step at the present lambda."""

    def step(state: TrainState, inner_batches):
        inner_batches = _augmented(augment, state.step, inner_batches)
        inner, aux = problem.inner_step(state.inner, state.hyper, inner_batches[0])
        state = state._replace(step=state.step + 1, inner=inner)
        values = learned.values(state.hyper)
        return state, aux | {"lambda": regularizer.lam(state.hyper)} | values

    return step


def bilevel_step(
    problem: Bilevel,
    regularizer: Regularizer,
    estimator: Estimator,
    hyper_optimizer: optax.GradientTransformation,
    augment: Augment | None = None,
) -> Callable:
    """`(state, inner batches, outer batch) -> (state, metrics)`: Algorithm 1.

    First the parameters, then lambda by the hypergradient at the new ones. Validation batches are
    never augmented.
    """

    def step(state: TrainState, inner_batches, outer_batch):
        inner_batches = _augmented(augment, state.step, inner_batches)
        estimate = estimator(
            problem, state.inner, state.hyper, inner_batches, outer_batch, state.carry
        )
        updates, hyper_opt_state = hyper_optimizer.update(
            estimate.gradient, state.hyper_opt_state, state.hyper
        )
        moved: Any = optax.apply_updates(state.hyper, updates)
        hyper = regularizer.project(moved)
        inner_aux, outer_aux = estimate.aux
        aux = inner_aux | {
            "lambda": regularizer.lam(state.hyper),
            "outer_loss": estimate.outer_loss,
            "outer_iou": outer_aux["iou"],
        }
        aux |= learned.values(state.hyper)
        for name, gradient in learned.by_name(estimate.gradient).items():
            aux["hypergradient" if name == "lambda" else f"hypergradient_{name}"] = gradient
        state = TrainState(
            state.step + estimator.steps, estimate.state, hyper, hyper_opt_state, estimate.carry
        )
        return state, aux

    return step


def _augmented(augment: Augment | None, step: jax.Array, batches: list[Batch]) -> list[Batch]:
    """The batches of this step and the following ones."""
    if augment is None:
        return batches
    return [augment(step + i, batch) for i, batch in enumerate(batches)]


def evaluation_step(
    net: nn.Module, head: Head, regularizer: Regularizer, *, denoise_kind: str = "anisotropic"
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`(state, denoise, batch) -> (masks, bce)`, bool `[B, H, W, 1]` at p > 0.5 and `[B]`.

    With a number for `denoise` the probabilities are TV-denoised by that weight first (eq. 3);
    None leaves them as they are. Uses the running statistics.
    """
    predict = prediction_step(net, head, regularizer)

    def step(state: TrainState, denoise: jax.Array | None, batch: Batch):
        logits, probabilities = predict(state, batch.image)
        if denoise is not None:
            probabilities = denoise_tv(
                probabilities, denoise, kind=denoise_kind, tolerance=1e-3, max_iterations=2000
            ).image
        bce = head.cross_entropy(logits, regularizer.lam(state.hyper), of_objects(batch))
        return probabilities > 0.5, bce

    return step


def prediction_step(net: nn.Module, head: Head, regularizer: Regularizer) -> Callable:
    """`(state, images [B, H, W, 3]) -> (logits, probabilities [B, H, W, 1])`."""

    def step(state: TrainState, images: jax.Array):
        logits: Any = net.apply(average.weights(state), to_float(images), train=False)
        return logits, head.probabilities(logits, regularizer.lam(state.hyper))

    return step
