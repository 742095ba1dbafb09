"""The objects of a run, made from its config: each section is the arguments of one function."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tvjax import hypergrad
from tvjax.errors import UserError
from tvjax.fields import TINY
from tvjax.hypergrad import Bilevel, Estimator
from tvjax.models import make_model
from tvjax.models.heads import Loss, make_loss
from tvjax.training import parallel, resident, state, steps
from tvjax.training.augment import make_augment
from tvjax.training.steps import Regularizer
from tvjax.types import Batch, Config, PyTree


class HyperPlan(NamedTuple):
    """When and how lambda is learned."""

    estimator: Estimator | None
    """What estimates the hypergradient; None: lambda stays as it is."""
    optimizer: optax.GradientTransformation
    warmup: int
    every: int
    batch_size: int
    statistics: str

    def is_due(self, step: int) -> bool:
        """Whether lambda is updated in the step (or the K steps) after `step` steps."""
        return self.updates(step + 1) > self.updates(step)

    def updates(self, step: int) -> int:
        """How many updates of lambda the first `step` steps begin."""
        if self.estimator is None:
            return 0
        return -(-max(0, step - self.warmup) // max(self.every, self.estimator.steps))


def make_hyper_plan(
    inner_optimizer: Mapping[str, Any],
    *,
    method: str,
    steps: int,
    learning_rate: float,
    warmup: int,
    every: int,
    significance: float,
    batch_size: int,
    statistics: str,
) -> HyperPlan:
    """The plan of this method.

    Args:
      inner_optimizer: the arguments of `state.make_optimizer`, which the formulas read.
      method: see `configs/base.py`.
      steps: K of `"reverse"` and `"forward"`.
      learning_rate: learning rate of Adam on alpha (or on lambda).
      warmup: steps before the first update. Adam's first step is degenerate: its derivative is
        all but zero, so an update through it alone is refused.
      every: steps from one update to the next; at least K.
      significance: `threshold` of `hypergrad.until_significant`; 0 moves lambda by each one.
      batch_size: images in a validation batch.
      statistics: statistics of BatchNorm in the outer loss, `"batch"` or `"running"`.

    Raises:
      UserError: naming the field that cannot be so with others.
    """
    rate, is_adam = inner_optimizer["learning_rate"], inner_optimizer["name"] in ("adam", "adamw")
    scaling = hypergrad.adam_scaling(b2=inner_optimizer["b2"], eps=inner_optimizer["eps"])
    methods: dict[str, Callable[[], Estimator | None]] = {
        "none": lambda: None,
        "exact": hypergrad.exact,
        "sgd_formula": lambda: hypergrad.sgd_formula(rate),
        "paper": lambda: hypergrad.paper(rate),
        "preconditioned": lambda: hypergrad.preconditioned(rate, scaling=scaling),
        "darts": lambda: hypergrad.darts(rate),
        "reverse": lambda: hypergrad.reverse(steps, loop=hypergrad.default_loop()),
        "forward": lambda: hypergrad.forward(steps, loop=hypergrad.default_loop()),
        "forward_online": hypergrad.forward_online,
        "training_loss": hypergrad.training_loss,
    }
    if method == "forward_online" and every != 1:
        raise UserError(
            f"hypergrad.every={every} must be 1 with forward_online: its tangent rides through "
            f"every step"
        )
    if method == "preconditioned" and not is_adam:
        raise UserError(
            f"hypergrad.method='preconditioned' takes Adam's running scale, which "
            f"optimizer.name={inner_optimizer['name']!r} has not; use sgd_formula"
        )
    estimator = methods[method]()
    if is_adam and warmup == 0 and estimator is not None:
        if estimator.through_steps and estimator.steps == 1:
            raise UserError(
                f"hypergrad.warmup=0 must be at least 1 with hypergrad.method={method!r}: the "
                f"first step of {inner_optimizer['name']} has a derivative of all but zero"
            )
    optimizer = optax.adam(learning_rate)
    if significance:
        optimizer = hypergrad.until_significant(optimizer, significance)
    return HyperPlan(estimator, optimizer, warmup, every, batch_size, statistics)


def make_regularizer(
    channels: int, *, weight: float, blocks: int, per_class: bool, **fields: str
) -> tuple[Regularizer, jax.Array]:
    """The regulariser and the first value of what is learned.

    Args:
      channels: the classes that the head tells apart.
      weight: lambda at the start.
      blocks: 1 for one lambda, n for a map of n x n of them, each the weight of a block of the
        tile (only with `place="loss"`).
      per_class: one lambda for the probabilities of each class (only with `place="loss"` and a
        softmax head); with two classes, whose variations are equal, only their mean matters.
      **fields: `place`, `kind`, `reduction` and `parametrization`, as in `Regularizer`.

    Raises:
      UserError: naming the field that cannot be so with others.
    """
    regularizer = Regularizer(**fields)
    log = fields["parametrization"] == "log"
    if log and weight < TINY and fields["place"] != "none":
        raise UserError(
            f"regularizer.weight={weight} must be positive (at least {TINY:.3g}) with "
            f"regularizer.parametrization='log'"
        )
    if blocks > 1 and fields["place"] != "loss":
        raise UserError(
            f"regularizer.blocks={blocks} must be 1, or more with regularizer.place='loss'"
        )
    if per_class and (fields["place"] != "loss" or channels == 1):
        raise UserError(
            "regularizer.per_class=True needs regularizer.place='loss' and model.head='softmax'"
        )
    # One lambda is a scalar; several are [blocks, blocks, classes], as `steps.to_pixels` has them.
    many = blocks > 1 or per_class
    shape = (blocks, blocks, channels if per_class else 1) if many else ()
    if fields["place"] == "none":
        return regularizer, jnp.asarray(-jnp.inf if log else 0.0, jnp.float32)
    return regularizer, jnp.full(shape, jnp.log(weight) if log else weight, jnp.float32)


def check_sizes(config: Config, layout: parallel.Layout, image_shape: tuple[int, int]) -> None:
    """Checks that batches suit the devices, and tiles the net and the map of lambda.

    Of training: a net that was trained predicts on any number of devices, and images of any size.

    Raises:
      UserError: naming the field that cannot be so.
    """
    for section in ("train", "evaluation", *["hypergrad"] * (config.hypergrad.method != "none")):
        layout.check_batch(f"{section}.batch_size", config[section].batch_size)
    side, size = min(image_shape), "x".join(map(str, image_shape))
    name, depth, blocks = config.model.name, config.model.depth, config.regularizer.blocks
    if name in ("unet", "segnet") and 2**depth > side:
        raise UserError(
            f"model.depth={depth} cannot be with tiles of {size} pixels, which can be halved "
            f"{side.bit_length() - 1} times"
        )
    if blocks > side:
        raise UserError(
            f"regularizer.blocks={blocks} cannot be with tiles of {size} pixels; it must be at "
            f"most {side}"
        )


def make_losses(*, train: str, validation: str, **parameters: Any) -> tuple[Loss, Loss]:
    """The losses of the inner and of the outer problem.

    Args:
      train: name of the first, see `make_loss`.
      validation: name of the second.
      **parameters: `dice_smoothing`, `focal_gamma` and `focal_alpha`, as in `make_loss`.
    """
    return make_loss(name=train, **parameters), make_loss(name=validation, **parameters)


class Functions(NamedTuple):
    """What a config means: pure functions of one device's share, with seed and hyper as data."""

    regularizer: Regularizer
    plan: HyperPlan
    problem: Bilevel
    hyper: jax.Array
    """The config's first value of what is learned."""
    create: Callable[[Any, jax.Array], state.TrainState]
    """`(seed, hyper) -> state` before the first step."""
    plain: Callable[..., tuple[state.TrainState, PyTree]]
    """`(seed, state, [train]) -> (state, metrics)`."""
    bilevel: Callable[..., tuple[state.TrainState, PyTree]]
    """`(seed, state, [train], val) -> (state, metrics)`."""
    evaluation: Callable[..., PyTree]
    """The function that `steps.evaluation_step` makes."""
    scores: Callable[..., dict[str, jax.Array]]
    """The function that `steps.scores_step` makes."""
    prediction: Callable[..., tuple[jax.Array, jax.Array]]
    """The function that `steps.prediction_step` makes."""


def make_functions(
    config: Config,
    image_shape: tuple[int, int],
    *,
    axis_name: str | None = None,
    net_of: Callable[[Any], Any] = lambda net: net,
) -> Functions:
    """Builds the functions of a config.

    Args:
      config: a config with the fields of `configs/base.py`.
      image_shape: height and width of the tiles, for the initial parameters.
      axis_name: the axis over which batches are spread, if any.
      net_of: function of the config's net to what is trained in its stead, with the same `init` and
        `apply`.

    Raises:
      UserError: naming the field that cannot be so.
    """
    net, head = make_model(axis_name=axis_name, **config.model)
    net = net_of(net)
    regularizer, hyper = make_regularizer(head.channels, **config.regularizer)
    rate = state.make_schedule(
        config.optimizer.learning_rate, steps=config.train.steps, **config.schedule
    )
    optimizer: dict[str, Any] = {**config.optimizer, "learning_rate": rate}
    plan = make_hyper_plan(optimizer, **config.hypergrad)
    if plan.estimator is not None and regularizer.place == "none":
        raise UserError(
            f"hypergrad.method={config.hypergrad.method!r} has no lambda to learn with "
            f"regularizer.place='none'; choose 'loss' or 'head'"
        )
    loss, validation_loss = make_losses(**config.loss)
    problem = steps.make_problem(
        net,
        head,
        state.make_optimizer(**optimizer),
        regularizer,
        loss=loss,
        validation_loss=validation_loss,
        statistics=plan.statistics,
        axis_name=axis_name,
    )
    if plan.estimator is not None and not plan.estimator.through_outer:
        problem = problem._replace(outer_loss=steps.reported(problem.outer_loss))

    def create(seed, hyper) -> state.TrainState:
        variables = net.init(jax.random.key(seed), jnp.zeros((1, *image_shape, 3)), train=False)
        return state.create(
            problem,
            variables["params"],
            {"batch_stats": variables.get("batch_stats", {})},
            hyper,
            plan.estimator,
            plan.optimizer,
        )

    def augment_of(seed):
        return make_augment(
            seed=seed, image_shape=image_shape, axis_name=axis_name, **config.augmentation
        )

    augment_of(config.seed)  # refuses a field that cannot be so

    def plain(seed, state, inner_batches):
        return steps.plain_step(problem, regularizer, augment_of(seed))(state, inner_batches)

    def bilevel(seed, state, inner_batches, outer_batch):
        assert plan.estimator is not None, "no update of lambda is ever due"
        step = steps.bilevel_step(
            problem, regularizer, plan.estimator, plan.optimizer, augment_of(seed)
        )
        return step(state, inner_batches, outer_batch)

    kind = config.denoise.kind
    return Functions(
        regularizer, plan, problem, hyper, create, plain, bilevel,
        steps.evaluation_step(net, head, regularizer, denoise_kind=kind, axis_name=axis_name),
        steps.scores_step(net, head, regularizer, denoise_kind=kind),
        steps.prediction_step(net, head, regularizer),
    )  # fmt: skip


class Setup(NamedTuple):
    """Everything that a run calls; all functions are compiled over the layout's devices."""

    layout: parallel.Layout
    resident: bool
    """Whether the tiles live on the devices, and batches are rows of them."""
    most: int
    """Steps (or updates of lambda) that one call takes; more than 1 as in `resident.repeat`."""
    regularizer: Regularizer
    plan: HyperPlan
    problem: Bilevel
    create: Callable[[], state.TrainState]
    plain: Callable[..., tuple[state.TrainState, PyTree]]
    """`(state, resident, [train])`."""
    bilevel: Callable[..., tuple[state.TrainState, PyTree]]
    """`(state, resident, [train], val)`."""
    evaluate: Callable[..., PyTree]
    """`(state, denoise, batch, weight) -> sums`, as in `steps.evaluation_step`."""
    predict: Callable[..., tuple[jax.Array, jax.Array]]
    """`(state, images) -> (logits, probabilities)`, on one device."""
    prediction: Callable[..., tuple[jax.Array, jax.Array]]
    """The same as a pure function of a state that lies on one device, to be jitted with more."""


def make_setup(config: Config, image_shape: tuple[int, int]) -> Setup:
    """Builds a run's functions from its config.

    Args:
      config: a config with the fields of `configs/base.py`.
      image_shape: height and width of the tiles, for the initial parameters.

    Raises:
      UserError: naming the field that cannot be so.
    """
    layout = parallel.make_layout(**config.parallel)
    # Of several processes, each reads only its own rows of each batch.
    on_device = config.data.resident and layout.processes == 1
    several = 16 if on_device and layout.devices[0].platform == "gpu" else 1
    most = several if config.train.steps_per_dispatch is None else config.train.steps_per_dispatch
    if most > 1 and not on_device:
        raise UserError(
            f"train.steps_per_dispatch={most} must be 1, or more with data.resident=True in one "
            f"process"
        )
    pure, seed = make_functions(config, image_shape, axis_name=layout.axis_name), config.seed

    def plain(state, tiles, inner_batches):
        return pure.plain(seed, state, [resident.take(tiles[0], b) for b in inner_batches])

    def bilevel(state, tiles, inner_batches, outer_batch):
        inner_batches = [resident.take(tiles[0], b) for b in inner_batches]
        return pure.bilevel(seed, state, inner_batches, resident.take(tiles[1], outer_batch))

    if most > 1:
        plain, bilevel = resident.repeat(plain), resident.repeat(bilevel)
    predict = jax.jit(pure.prediction)
    return Setup(
        layout=layout,
        resident=on_device,
        most=most,
        regularizer=pure.regularizer,
        plan=pure.plan,
        problem=pure.problem,
        create=lambda: layout.replicate(jax.jit(lambda: pure.create(seed, pure.hyper))()),
        plain=layout.compile(plain, donate=True),
        bilevel=layout.compile(bilevel, donate=True),
        evaluate=layout.compile(
            lambda state, denoise, batch, weight: pure.evaluation(
                state, denoise, Batch(*batch), weight
            )
        ),
        predict=lambda state, images: predict(layout.local(state), images),
        prediction=predict,
    )
