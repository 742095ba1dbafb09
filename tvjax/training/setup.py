"""The objects of a run, made from its config: each section is the arguments of one function."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from tvjax.errors import UserError
from tvjax.hypergrad import Bilevel
from tvjax.models.encoders.efficientnet import LITES
from tvjax.models.heads import Loss, make_loss
from tvjax.models.unet import ENCODER
from tvjax.training import average, learned, parallel
from tvjax.training.augment import Augment, make_augment
from tvjax.training.net import Net, make_net
from tvjax.training.plan import HyperPlan, make_hyper_plan
from tvjax.training.resident import repeat, take
from tvjax.training.state import TrainState, create, make_optimizer, make_schedule, with_rate
from tvjax.training.steps import bilevel_step, evaluation_step, make_problem, plain_step, reported
from tvjax.types import Batch, Config, PyTree


def check_sizes(config: Config, layout: parallel.Layout, image_shape: tuple[int, int]) -> None:
    """Checks that batches suit the devices, and tiles the net and the map of lambda.

    Of training: a net that was trained predicts on any number of devices, and images of any size.

    Raises:
      UserError: naming the field that cannot be so.
    """
    for section in ("train", "evaluation", *["hypergrad"] * (config.hypergrad.method != "none")):
        layout.check_batch(f"{section}.batch_size", config[section].batch_size)
    devices, parts = len(layout.devices), config.train.accumulate
    if config.train.batch_size % (devices * parts):
        raise UserError(
            f"train.accumulate={parts} must divide train.batch_size={config.train.batch_size}"
            f"{f' on each of {devices} devices' * (devices > 1)}"
        )
    side, size = min(image_shape), "x".join(map(str, image_shape))
    name, depth, blocks = config.model.name, config.model.depth, config.regularizer.blocks
    field, encoder = f"model.depth={depth}", config.model.encoder
    if encoder is not None:
        field, depth = f"model.encoder={encoder!r}", LITES[encoder].depth
    if name in ("unet", "segnet") and 2**depth > side:
        raise UserError(
            f"{field} cannot be with tiles of {size} pixels, which can be halved "
            f"{side.bit_length() - 1} times"
        )
    if blocks > side:
        raise UserError(
            f"regularizer.blocks={blocks} cannot be with tiles of {size} pixels; it must be at "
            f"most {side}"
        )


def _settings_at(config: Config, hyper: PyTree) -> dict[str, Any]:
    """The arguments of `make_optimizer`; `()` stands for what is not learned."""
    rate = learned.value(hyper, "learning_rate", config.optimizer.learning_rate)
    decay = learned.value(hyper, "weight_decay", config.optimizer.weight_decay)
    schedule = make_schedule(rate, steps=config.train.steps, **config.schedule)
    return {**config.optimizer, "learning_rate": schedule, "weight_decay": decay}


def _optimizer_at(config: Config, hyper: PyTree) -> optax.GradientTransformation:
    return with_encoder_rate(config, make_optimizer(**_settings_at(config, hyper)))


def _loss_at(config: Config, hyper: PyTree, of: str = "train") -> Loss:
    fields = {**config.loss, "mix": learned.value(hyper, "loss_mix", config.loss.mix)}
    names = {name: fields.pop(name) for name in ("train", "validation")}
    return make_loss(name=names[of], **fields)


def with_encoder_rate(
    config: Config, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimiser, slower (or faster) in the encoder by `model.encoder_rate`.

    Raises:
      UserError: the hypergradient's method is a formula that takes one rate for all parameters.
    """
    rate, method = config.model.encoder_rate, config.hypergrad.method
    if config.model.encoder is None or rate == 1:
        return optimizer
    if rate and method in ("sgd_formula", "paper", "preconditioned", "darts"):
        raise UserError(
            f"model.encoder_rate={rate} cannot be with hypergrad.method={method!r}, which takes "
            f"one learning rate for all parameters; choose 'exact', or 0 or 1"
        )
    return with_rate(optimizer, ENCODER, rate)


class Functions(NamedTuple):
    """What a config means: pure functions of one device's share, with seed and hyper as data."""

    net: Net
    plan: HyperPlan
    problem: Bilevel
    image_shape: tuple[int, int]
    augment_of: Callable[[Any], Augment | None]
    """What happens to training batches, made from the seed."""
    evaluation: Callable[..., tuple[jax.Array, jax.Array]]
    """The function that `steps.evaluation_step` makes."""

    def create(self, seed: Any, hyper: PyTree) -> TrainState:
        """The state before the first step."""
        bare = self.net.create(seed, hyper, self.image_shape)
        state = create(
            self.problem, bare.inner.params, bare.inner.model_state, hyper,
            self.plan.estimator, self.plan.optimizer,
        )  # fmt: skip
        return state._replace(average=bare.average)

    def plain(
        self, seed: Any, state: TrainState, inner_batches: list[Batch]
    ) -> tuple[TrainState, PyTree]:
        """`(state, metrics)` after one step at the present lambda."""
        step = plain_step(self.problem, self.net.regularizer, self.augment_of(seed))
        after, metrics = step(state, inner_batches)
        return average.move(state, after, self.net.decay), metrics

    def bilevel(
        self, seed: Any, state: TrainState, inner_batches: list[Batch], outer_batch: Batch
    ) -> tuple[TrainState, PyTree]:
        """`(state, metrics)` after an update of lambda and the steps that it takes."""
        plan = self.plan
        assert plan.estimator is not None, "no update of lambda is ever due"
        step = bilevel_step(
            self.problem, self.net.regularizer, plan.estimator, plan.optimizer,
            self.augment_of(seed),
        )  # fmt: skip
        after, metrics = step(state, inner_batches, outer_batch)
        return average.move(state, after, self.net.decay), metrics


def make_functions(
    config: Config,
    image_shape: tuple[int, int],
    *,
    axis_name: str | None = None,
    net_of: Callable[[Any], Any] = lambda module: module,
    tiles: int | None = None,
) -> Functions:
    """Builds the functions of a config, for tiles of this height and width.

    The other arguments are those of `make_net`.

    Raises:
      UserError: naming the field that cannot be so.
    """
    learned.check(config)
    _check_place(config)
    net = make_net(config, axis_name=axis_name, net_of=net_of, tiles=tiles)
    module, head, regularizer = net.module, net.head, net.regularizer
    optimizer = partial(_optimizer_at, config)
    plan = make_hyper_plan(_settings_at(config, ()), **config.hypergrad)
    is_fixed = learned.names(config) == ("lambda",)
    problem = make_problem(
        module, head, optimizer(()) if is_fixed else optimizer, regularizer,
        loss_at=partial(_loss_at, config), validation_loss=_loss_at(config, (), "validation"),
        statistics=plan.statistics, accumulate=config.train.accumulate, axis_name=axis_name,
    )  # fmt: skip
    if plan.estimator is not None and not plan.estimator.through_outer:
        problem = problem._replace(outer_loss=reported(problem.outer_loss))

    def augment_of(seed):
        return make_augment(
            seed=seed, image_shape=image_shape, axis_name=axis_name, **config.augmentation
        )

    augment_of(config.seed)  # refuses a field that cannot be so
    evaluation = evaluation_step(module, head, regularizer, denoise_kind=config.denoise.kind)
    return Functions(net, plan, problem, image_shape, augment_of, evaluation)


def _check_place(config: Config) -> None:
    """Checks that the head that takes lambda is there if TV acts there, and else is not.

    Raises:
      UserError: it is not so.
    """
    place, head = config.regularizer.place, config.model.head
    if place == "head" and head != "tv_softmax":
        raise UserError(
            f"regularizer.place='head' needs model.head='tv_softmax', not {head!r}: TV acts nowhere"
        )
    if place != "head" and head == "tv_softmax":
        raise UserError(
            f"model.head='tv_softmax' needs regularizer.place='head', not {place!r}: lambda is of "
            "the head then"
        )


class Setup(NamedTuple):
    """Everything that a run calls; all functions are compiled over the layout's devices."""

    layout: parallel.Layout
    resident: bool
    """Whether the tiles live on the devices, and batches are rows of them."""
    most: int
    """Steps (or updates of lambda) that one call takes; more than 1 as in `resident.repeat`."""
    net: Net
    plan: HyperPlan
    problem: Bilevel
    create: Callable[[], TrainState]
    plain: Callable[..., tuple[TrainState, PyTree]]
    """`(state, resident, [train])`."""
    bilevel: Callable[..., tuple[TrainState, PyTree]]
    """`(state, resident, [train], val)`."""
    evaluate: Callable[..., PyTree]
    """`(state, denoise, batch, valid) -> (masks, truth, bce, valid)` of the global batch, as in
    `steps.evaluation_step`."""
    predict: Callable[..., tuple[jax.Array, jax.Array]]
    """`(state, images) -> (logits, probabilities)`, on one device."""


def make_setup(config: Config, image_shape: tuple[int, int], *, tiles: int | None = None) -> Setup:
    """Builds a run's functions from its config; the arguments are those of `make_functions`.

    Raises:
      UserError: naming the field that cannot be so.
    """
    layout = parallel.make_layout(**config.parallel)
    on_device, most = _residence(config, layout)
    pure = make_functions(config, image_shape, axis_name=layout.axis_name, tiles=tiles)
    seed = config.seed

    def plain(state, tiles, inner_batches):
        return pure.plain(seed, state, [take(tiles[0], b) for b in inner_batches])

    def bilevel(state, tiles, inner_batches, outer_batch):
        inner_batches = [take(tiles[0], b) for b in inner_batches]
        return pure.bilevel(seed, state, inner_batches, take(tiles[1], outer_batch))

    def evaluate(state, denoise, batch, valid):
        masks, bce = pure.evaluation(state, denoise, Batch(*batch))
        return layout.gather((masks, batch[1], bce, valid))

    if most > 1:
        plain, bilevel = repeat(plain), repeat(bilevel)
    predict = jax.jit(pure.net.predict)
    create = parallel.compile_drawing(lambda: pure.create(seed, pure.net.hyper))
    return Setup(
        layout=layout,
        resident=on_device,
        most=most,
        net=pure.net,
        plan=pure.plan,
        problem=pure.problem,
        create=lambda: layout.replicate(create()),
        plain=layout.compile(plain, donate=True),
        bilevel=layout.compile(bilevel, donate=True),
        evaluate=layout.compile(evaluate),
        predict=lambda state, images: predict(layout.local(state), images),
    )


def _residence(config: Config, layout: parallel.Layout) -> tuple[bool, int]:
    """Whether the tiles live on the devices, and how many steps one call takes."""
    # Of several processes, each reads only its own rows of each batch.
    on_device = config.data.resident and layout.processes == 1
    several = 16 if on_device and layout.devices[0].platform == "gpu" else 1
    most = several if config.train.steps_per_dispatch is None else config.train.steps_per_dispatch
    if most > 1 and not on_device:
        raise UserError(
            f"train.steps_per_dispatch={most} must be 1, or more with data.resident=True in one "
            f"process"
        )
    return on_device, most
