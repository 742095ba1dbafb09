"""Where a net with a pretrained encoder begins: its weights, once, and their digest, for good."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.errors import UserError
from tvjax.models.encoders import weights
from tvjax.models.unet import ENCODER
from tvjax.training import average, parallel
from tvjax.training.state import TrainState
from tvjax.types import Config


def pinned(config: Config, stored: dict[str, Any] | None) -> Config:
    """The config with the digest of the encoder's weights; without an encoder, as it is.

    Where the run has begun, `stored` is the content of its `config.json`: its digest is taken, and
    the file of the weights need not be there any more.

    Raises:
      UserError: there are no weights, or others than the config's own digest tells.
    """
    model = config.model
    if model.encoder is None:
        return config
    recorded = (stored or {}).get("model", {}).get("weights_sha256")
    found = recorded or weights.digest(weights.find(model.encoder, model.weights))
    if not parallel.agree("0" if recorded else found):
        raise UserError(f"model.encoder={model.encoder!r}: processes find different weights")
    if model.weights_sha256 not in (None, found):
        raise UserError(
            f"model.weights_sha256={model.weights_sha256} is not that of the weights, {found}"
        )
    config = config.copy_and_resolve_references()
    config.model.weights_sha256 = found
    return config


def put(
    model: Config, state: TrainState, place: Callable[[Any], Any] = jax.device_put
) -> TrainState:
    """The state before the first step, with the encoder's weights; without an encoder, as it is.

    Args:
      model: the config's section.
      state: one net's, or several nets', with an axis in front.
      place: what puts the arrays onto the devices.

    Raises:
      UserError: the weights cannot be read, or are no longer those of `model.weights_sha256`.
    """
    if model.encoder is None:
        return state
    path = weights.find(model.encoder, model.weights)
    if model.weights_sha256 not in (None, weights.digest(path)):
        raise UserError(f"{path} was changed since the run began; begin anew in another folder")
    loaded = weights.load(model.encoder, path)
    params, rest = state.inner.params, state.inner.model_state
    statistics = rest["batch_stats"]

    def filled(old, new):
        return place(jax.tree.map(lambda x, y: jnp.broadcast_to(y, x.shape), old, new))

    params = params | {ENCODER: filled(params[ENCODER], loaded["params"])}
    statistics = statistics | {ENCODER: filled(statistics[ENCODER], loaded["batch_stats"])}
    inner = state.inner._replace(params=params, model_state=rest | {"batch_stats": statistics})
    begun = average.begin(inner, 1.0) if state.average else ()
    return state._replace(inner=inner, average=begun)
