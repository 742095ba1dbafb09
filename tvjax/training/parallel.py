"""Devices and processes: the only file that knows of them (but for `cluster`, which joins them).

A step is written for one device's share of the batch, against an optional axis name. Here it is
mapped over the devices and compiled. The state goes in and comes out as one ordinary (replicated)
pytree. A process holds its own rows of each batch; `shard` makes the global batch of them.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tvjax.errors import UserError
from tvjax.types import PyTree

AXIS = "devices"

# Cuts the time of a convolution's weight gradient to a fifth. Given to each jit, never in
# XLA_FLAGS: an unknown flag there aborts the process.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}

# Most of what is compiled before the first step is the drawing of parameters. It takes a sixth of
# the time at LLVM's first level, to the same bits.
_DRAWING = {"xla_backend_optimization_level": "1"}

_WHOLE, _SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def compile_drawing(draw: Callable) -> Callable:
    """`draw`, compiled for one device: a function whose work is to draw random numbers."""
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(draw, compiler_options=_DRAWING if on_cpu else None)


class Layout(NamedTuple):
    """The devices of a run, and how a step is mapped over them."""

    map: str
    """`"pmap"` or `"jit"` (over NamedSharding); on one device both are plain `jit`."""
    devices: tuple[Any, ...]
    """The devices of all processes; those of one process are neighbours."""

    @property
    def axis_name(self) -> str | None:
        """The axis that steps are to be written against."""
        return AXIS if self.map == "pmap" and len(self.devices) > 1 else None

    @property
    def processes(self) -> int:
        """How many processes share the run."""
        return len({device.process_index for device in self.devices})

    @property
    def share(self) -> dict[str, int]:
        """Which rows of a batch this process holds, as `tvjax.data.pipeline` wants it said."""
        if self.processes == 1:
            return {"process_index": 0, "process_count": 1}
        return {"process_index": jax.process_index(), "process_count": self.processes}

    def compile(self, step: Callable, *, donate: bool = False) -> Callable:
        """`step(state, resident, batch...)` over all devices.

        The first two arguments are the same on every device, as `replicate` lays them out; the
        others are split on their first axis, as `shard` does. Outputs are the same everywhere.
        With `donate` the state's memory is reused.
        """
        donated = (0,) if donate else ()
        if len(self.devices) == 1:
            options = _CPU_OPTIONS if self.devices[0].platform == "cpu" else None
            return jax.jit(step, donate_argnums=donated, compiler_options=options)
        mapped = self._over_shardings if self.map == "jit" else self._over_axis
        compiled: dict[int, Callable] = {}

        def call(state, resident, *batch):
            if len(batch) not in compiled:
                compiled[len(batch)] = mapped(step, len(batch), donated)
            out = compiled[len(batch)](state, resident, *batch)
            # Fake devices deadlock where more than 32 steps are under way (jax 0.10, 0.11).
            return jax.block_until_ready(out) if self.devices[0].platform == "cpu" else out

        return call

    def replicate(self, tree: PyTree) -> PyTree:
        """Puts arrays, the same in every process, on every device."""
        if len(self.devices) == 1:
            return jax.device_put(tree, self.devices[0])
        whole = self._sharding(_WHOLE)
        if self.processes == 1:
            return jax.device_put(tree, whole)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)), tree
        )

    def shard(self, batch: PyTree) -> PyTree:
        """Spreads a batch over the devices: each process gives its own rows. Returns at once."""
        if len(self.devices) == 1:
            return jax.device_put(batch, self.devices[0])
        split, here = self._sharding(_SPLIT), len(self.devices) // self.processes

        def place(x):
            x = np.asarray(x)
            # What is mapped over an axis has that axis: [devices, B / devices, ...].
            x = x.reshape(here, -1, *x.shape[1:]) if self.axis_name else x
            return jax.make_array_from_process_local_data(split, x)

        return jax.tree.map(place, batch)

    def gather(self, tree: PyTree) -> PyTree:
        """Within a step: each device's share of a batch -> the whole of it, on every device."""
        if self.axis_name is None:
            return tree
        return jax.tree.map(lambda x: lax.all_gather(x, AXIS, tiled=True), tree)

    def local(self, tree: PyTree) -> PyTree:
        """A replicated pytree on one device of this process, for a computation of its own."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def check_batch(self, field: str, size: int) -> None:
        """Refuses a batch that the devices cannot share equally.

        Raises:
          UserError: naming the config's field.
        """
        count = len(self.devices)
        if size % count:
            fewer = max(n for n in range(1, count) if size % n == 0)
            alone = f", or parallel.devices={fewer}" if self.processes == 1 else ""
            raise UserError(
                f"{field}={size} cannot be shared equally by {count} devices; choose a multiple "
                f"in a new run{alone}"
            )

    def _over_axis(self, step: Callable, batches: int, donated: tuple[int, ...]) -> Callable:
        if self.processes == 1:
            axes = (None, None) + (0,) * batches
            return jax.pmap(
                step, AXIS, in_axes=axes, out_axes=None,
                devices=self.devices, donate_argnums=donated,
            )  # fmt: skip

        # What pmap itself is, written out: between processes pmap takes and gives arrays of one
        # process, which it copies at each step, and of which orbax can save nothing.
        def on_one_device(state, resident, *batch):
            return step(state, resident, *jax.tree.map(lambda x: x[0], batch))

        specs = (_WHOLE, _WHOLE) + (_SPLIT,) * batches
        mapped = jax.shard_map(
            on_one_device, mesh=self._mesh(), in_specs=specs, out_specs=_WHOLE, check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donated)

    def _over_shardings(self, step: Callable, batches: int, donated: tuple[int, ...]) -> Callable:
        whole, split = self._sharding(_WHOLE), self._sharding(_SPLIT)
        return jax.jit(
            step,
            in_shardings=(whole, whole) + (split,) * batches,
            out_shardings=whole,
            donate_argnums=donated,
        )

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self._mesh(), spec)

    def _mesh(self) -> Mesh:
        return Mesh(np.asarray(self.devices), (AXIS,))


def make_layout(*, map: str, devices: int | None = None) -> Layout:
    """The layout over the devices of all processes; the arguments are those of `config.parallel`.

    Raises:
      UserError: for devices that there are not.
    """
    # Neighbours in a batch are neighbours in a process: each reads its own rows and no others.
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if jax.process_count() > 1:
        if devices not in (None, len(found)):
            raise UserError(
                f"parallel.devices={devices}: {jax.process_count()} processes use all their "
                f"{len(found)} devices; leave it out"
            )
        if len(found) != jax.local_device_count() * jax.process_count():
            raise UserError(
                f"process {jax.process_index()} has {jax.local_device_count()} of {len(found)} "
                f"devices: each of the {jax.process_count()} processes must have as many"
            )
    elif devices is not None and devices > len(found):
        raise UserError(f"parallel.devices={devices}: there are 1 to {len(found)} to choose from")
    return Layout(map, tuple(found[:devices]))


def ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, each made before the one in front of it is used: no device is ever idle."""
    items = iter(items)
    upcoming = next(items, None)
    while upcoming is not None:
        item, upcoming = upcoming, next(items, None)
        yield item


def is_first() -> bool:
    """Whether this process is the one that writes logs, figures and the summary."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


def say(text: str) -> None:
    """A line on stderr, from the first process."""
    if is_first():
        print(text, file=sys.stderr)


def wait_for_all(what: str) -> None:
    """Waits until every process has come to the same place."""
    if not is_alone():
        multihost_utils.sync_global_devices(what)


def as_the_first(value: int) -> int:
    """The first process's value, in every process."""
    return value if is_alone() else int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def in_all(value: bool) -> bool:
    """Whether it is so in every process."""
    return value if is_alone() else bool(multihost_utils.process_allgather(np.asarray(value)).all())


def agree(digest: str) -> bool:
    """Whether every process has the same hexadecimal digest, as far as its first digits tell."""
    number = int(digest[:7], 16)  # as much as fits into what processes exchange
    return in_all(number == as_the_first(number))


def preempted(call: int) -> bool:
    """Whether SIGTERM came to any process: true in all of them at the same `call`, a number."""
    return multihost_utils.reached_preemption_sync_point(call)
