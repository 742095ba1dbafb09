"""Devices and processes: the only file that knows of them.

A step is written for one device's share of the batch, against an optional axis name. Here it is
mapped over the devices and compiled. The state goes in and comes out as one ordinary (replicated)
pytree, and the batch as ordinary arrays whose first axis is the global batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tvjax.errors import UserError
from tvjax.types import PyTree

AXIS = "devices"

# Cuts the time of a convolution's weight gradient to a fifth. Given to each jit, never in
# XLA_FLAGS: an unknown flag there aborts the process.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Layout(NamedTuple):
    """The devices of a run, and how a step is mapped over them."""

    map: str
    """`"pmap"` or `"jit"` (over NamedSharding); on one device both are plain `jit`."""
    devices: tuple[Any, ...]

    @property
    def axis_name(self) -> str | None:
        """The axis that steps are to be written against."""
        return AXIS if self.map == "pmap" and len(self.devices) > 1 else None

    def compile(self, step: Callable, *, donate: bool = False) -> Callable:
        """`step(state, resident, batch...)` over all devices.

        The first two arguments are the same on every device; the rest are split on their first
        axis. Outputs are the same everywhere. With `donate` the state's memory is reused.
        """
        donated = (0,) if donate else ()
        if len(self.devices) == 1:
            options = _CPU_OPTIONS if self.devices[0].platform == "cpu" else None
            return jax.jit(step, donate_argnums=donated, compiler_options=options)
        if self.map == "pmap":
            return self._pmap(step, donated)
        whole, split = self._shardings()
        compiled: dict[int, Callable] = {}

        def call(state, resident, *batch):
            if len(batch) not in compiled:
                compiled[len(batch)] = jax.jit(
                    step,
                    in_shardings=(whole, whole) + (split,) * len(batch),
                    out_shardings=whole,
                    donate_argnums=donated,
                )
            return compiled[len(batch)](state, resident, *batch)

        return call

    def replicate(self, tree: PyTree) -> PyTree:
        """Puts arrays on every device."""
        if len(self.devices) == 1:
            return jax.device_put(tree, self.devices[0])
        return jax.device_put(tree, self._shardings()[0])

    def check_batch(self, field: str, size: int) -> None:
        """Refuses a batch that the devices cannot share equally.

        Raises:
          UserError: naming the config's field.
        """
        if size % len(self.devices):
            raise UserError(
                f"{field}={size} cannot be shared equally by {len(self.devices)} devices; "
                f"choose a multiple"
            )

    def _pmap(self, step: Callable, donated: tuple[int, ...]) -> Callable:
        compiled: dict[int, Callable] = {}
        n = len(self.devices)

        def call(state, resident, *batch):
            if len(batch) not in compiled:
                compiled[len(batch)] = jax.pmap(
                    step,
                    AXIS,
                    in_axes=(None, None) + (0,) * len(batch),
                    out_axes=None,
                    devices=self.devices,
                    donate_argnums=donated,
                )
            shares = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)
            return compiled[len(batch)](state, resident, *shares)

        return call

    def _shardings(self) -> tuple[NamedSharding, NamedSharding]:
        mesh = Mesh(np.asarray(self.devices), (AXIS,))
        return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def make_layout(*, map: str) -> Layout:
    """The layout over all devices that JAX sees.

    Args:
      map: `"pmap"` or `"jit"`.

    Raises:
      UserError: for another name.
    """
    if map not in ("pmap", "jit"):
        raise UserError(f"parallel.map={map!r} is unknown; choose 'pmap' or 'jit'")
    return Layout(map, tuple(jax.devices()))


def take(resident: PyTree, batch: PyTree) -> PyTree:
    """The batch itself, or its rows of the arrays that reside on the device.

    A batch of integers `[B]` is a list of rows; anything else already is the batch.
    """
    if isinstance(batch, jax.Array) and jnp.issubdtype(batch.dtype, jnp.integer):
        return jax.tree.map(lambda x: x[batch], resident)
    return batch
