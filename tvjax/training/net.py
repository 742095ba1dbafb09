"""A config's net: all that prediction needs, and nothing of training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tvjax.errors import UserError
from tvjax.fields import TINY
from tvjax.hypergrad import InnerState
from tvjax.models import make_model
from tvjax.models.heads import Head
from tvjax.training import average, learned
from tvjax.training.state import TrainState
from tvjax.training.steps import Regularizer, prediction_step
from tvjax.types import Config, PyTree


class Net(NamedTuple):
    """A net, how its logits are read, and what is learned beside its parameters."""

    module: Any
    """Anything with `init` and `apply` as flax's modules have them."""
    head: Head
    regularizer: Regularizer
    hyper: PyTree
    """The config's first value of what is learned."""
    decay: float = 0.0
    """Decay of the weights' moving average; 0: there is none."""

    @property
    def predict(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """The function that `steps.prediction_step` makes."""
        return prediction_step(self.module, self.head, self.regularizer)

    @property
    def predict_both(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """The same with the probabilities of object and contact, `[B, H, W, 2]`."""
        contact, predict = self.head.contact, self.predict
        assert contact is not None

        def step(state: TrainState, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, found = predict(state, images)
            return logits, jnp.concatenate([found, jax.nn.sigmoid(contact(logits))], axis=-1)

        return step

    def create(self, seed: Any, hyper: PyTree, image_shape: tuple[int, int]) -> TrainState:
        """The state before the first step, without what training adds: optimisers and carry."""
        images = jnp.zeros((1, *image_shape, 3))
        variables = self.module.init(jax.random.key(seed), images, train=False)
        model_state = {"batch_stats": variables.get("batch_stats", {})}
        inner = InnerState(variables["params"], (), model_state)
        own = average.begin(inner, self.decay)
        return TrainState(jnp.zeros((), jnp.int32), inner, hyper, (), (), own)


def make_net(
    config: Config,
    *,
    axis_name: str | None = None,
    net_of: Callable[[Any], Any] = lambda module: module,
    tiles: int | None = None,
) -> Net:
    """The net of a config.

    Args:
      config: config of a run.
      axis_name: the axis over which batches are spread, if any.
      net_of: function of the config's module to what is used in its stead, with the same `init`
        and `apply`.
      tiles: number of training tiles, where each has a weight that is learned.

    Raises:
      UserError: naming the field that cannot be so.
    """
    boundaries = config.data.boundaries
    module, head = make_model(axis_name=axis_name, boundaries=boundaries, **config.model)
    regularizer, lam = make_regularizer(head.channels, **config.regularizer)
    hyper = learned.start(config, lam, tiles)
    regularizer = regularizer._replace(start=lam)
    return Net(net_of(module), head, regularizer, hyper, config.train.ema)


def make_regularizer(
    channels: int, *, weight: float, blocks: int, per_class: bool, **fields: str
) -> tuple[Regularizer, jax.Array]:
    """The regulariser and the first value of what is learned, from `config.regularizer`.

    `channels` are the classes that the head tells apart. With `per_class` and two of them, whose
    variations are equal, only the mean of their weights matters.

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
