"""Many trainings in one program: the steps of one training, mapped over an axis of members.

A member is a state with a seed and a first hyperparameter of its own. Its batches and its first
parameters are those of a run with that seed, so that its numbers are that run's but for rounding.
On a GPU one program takes many members through many steps; on a CPU, where vmapped convolutions
are slow, runs one by one are faster.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax

from tvjax.data import pipeline
from tvjax.scoring.mask_scores import summarise
from tvjax.training import parallel
from tvjax.training.evaluation import add_up, image_scores, sums
from tvjax.types import Batch, PyTree


class Products(NamedTuple):
    """A net whose 3x3 and 1x1 convolutions are matrix products, with its own `init` and `apply`.

    Mapped over members a convolution is one with groups, a product is a batch of products, which
    an accelerator takes at full speed. Values are the net's own but for rounding.
    """

    net: nn.Module

    def init(self, *arguments, **options) -> Any:
        """What the net's own does."""
        return self.net.init(*arguments, **options)

    def apply(self, *arguments, **options) -> Any:
        """What the net's own does."""
        with nn.intercept_methods(_as_product):
            return self.net.apply(*arguments, **options)


def _as_product(call, arguments, options, context):
    layer = context.module
    if not isinstance(layer, nn.Conv) or not _is_plain(layer):
        return call(*arguments, **options)
    kernel = layer.get_variable("params", "kernel")
    bias = layer.get_variable("params", "bias") if layer.use_bias else None
    x, kernel, bias = promote_dtype(arguments[0], kernel, bias, dtype=layer.dtype)
    y = convolve(x, kernel, precision=layer.precision)
    return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def _is_plain(layer: nn.Conv) -> bool:
    """Whether it is a 3x3 or 1x1 convolution with padding of zeros and nothing special."""
    special = layer.feature_group_count, layer.kernel_dilation, layer.input_dilation, layer.strides
    plain = layer.padding == "SAME" and layer.mask is None and all(x in (1, None) for x in special)
    size: Any = layer.kernel_size
    return plain and tuple(size) in ((1, 1), (3, 3))


def convolve(x: jax.Array, kernel: jax.Array, *, precision: Any = None) -> jax.Array:
    """`[B, H, W, C]`, `[n, n, C, F]` -> `[B, H, W, F]`: a zero-padded convolution as one product.

    The n x n neighbours of each pixel, n odd, are laid side by side, `[B, H, W, n n C]`.
    """
    _, h, w, c = x.shape
    n = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (n // 2, n // 2), (n // 2, n // 2), (0, 0)))
    shifted = [padded[:, i : i + h, j : j + w] for i in range(n) for j in range(n)]
    return jnp.dot(
        jnp.concatenate(shifted, axis=-1), kernel.reshape(n * n * c, -1), precision=precision
    )


def rows(length: int, *, batch_size: int, seeds: Sequence[int], positions: Any) -> np.ndarray:
    """int32 `[N, M, B]`: the tiles of each member's batches at positions `[N]` or `[N, M]`."""
    orders = [pipeline.TrainIndices(length, batch_size=batch_size, seed=s) for s in seeds]
    positions = np.broadcast_to(np.asarray(positions).T, (len(seeds), len(positions))).T
    return np.stack(
        [np.stack([order[t] for order, t in zip(orders, at, strict=True)]) for at in positions]
    ).astype(np.int32)


def scan(step: Callable[..., tuple[PyTree, PyTree]]) -> Callable[..., tuple[PyTree, PyTree]]:
    """`step(states, tiles, slot) -> (states, metrics)` along slots whose leaves are `[N, ...]`."""

    def scanned(states, tiles, slots):
        return lax.scan(lambda states, slot: step(states, tiles, slot), states, slots)

    return scanned


def evaluate(
    step: Callable[..., tuple[jax.Array, jax.Array]],
    states: PyTree,
    tiles: Batch,
    *,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Scores of each member on a split, as `evaluation.evaluate` has them.

    `step(states, batch) -> (masks, bce)` of all members gives bool `[M, B, H, W, 1]` and `[M, B]`.
    """
    batches = padded_batches(tiles, batch_size)
    found = ((*step(states, batch), batch.mask, valid) for batch, valid in batches)
    parts = [
        [sums(image_scores(m, truth, b, valid)) for m, b in zip(masks, bce, strict=True)]
        for masks, bce, truth, valid in map(jax.device_get, parallel.ahead(found))
    ]
    return [summarise(add_up(own)) for own in zip(*parts, strict=True)]


def padded_batches(tiles: Batch, batch_size: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches in order, and bool `[B]`, False on the padding of the last."""
    for at, valid in pipeline.eval_indices(len(tiles.image), batch_size):
        yield Batch(jnp.asarray(tiles.image[at]), jnp.asarray(tiles.mask[at])), valid
