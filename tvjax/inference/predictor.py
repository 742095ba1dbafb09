"""A trained net as one function from images to probabilities."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from tvjax import arguments
from tvjax.errors import UserError
from tvjax.inference import symmetries
from tvjax.training import restore, rundir
from tvjax.training.net import Net
from tvjax.training.state import TrainState
from tvjax.tv.rof import denoise_tv
from tvjax.types import Config

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that an exported net runs on."""

KNOWN = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that it may be exported for."""

MOST_SIDE, MOST_BATCH = 2**14, 2**16
"""The largest size that a net is exported for: pixels of a side, and number of images."""

MULTIPLE = 32
"""The number that divides the sides which an exported net of any size takes."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)  # hashed by identity, as `jax.jit(predictor)` needs
class Predictor:
    """`predictor(images) -> probabilities`, a pure function that works under `jit` and `vmap`.

    A predictor is also a pytree of its parameters and may itself be an argument of a jitted
    function, which keeps them from being compiled into it as constants.

    Use:
      predictor = tvjax.Predictor.load("runs/lunet_bilevel")
      probabilities = predictor(image)  # [H, W, 3] -> [H, W, 1]

    Any function of this kind will do for a net, as here one that sees roofs where it is red:

    >>> red = Predictor((), None, lambda state, images: (images, images[..., :1]))
    >>> images = jnp.zeros((2, 64, 96, 3)).at[..., 0].set(0.75)
    >>> probabilities = jax.jit(red)(images)
    >>> probabilities.shape, float(probabilities.max())
    ((2, 64, 96, 1), 0.75)
    """

    state: TrainState
    """What prediction reads of it: parameters, running statistics and lambda."""
    denoise: float | None
    """Weight of a TV denoising of the probabilities (eq. 3); None: as the net gives them."""
    step: Callable[..., tuple[jax.Array, jax.Array]] = field(metadata={"static": True})
    """`(state, images) -> (logits, probabilities)`, as in `steps.prediction_step`."""
    denoise_kind: str = field(default="anisotropic", metadata={"static": True})
    augment: bool = field(default=False, metadata={"static": True})
    """Whether probabilities are means over the symmetries of the images' shape: the eight of the
    square, or four flips. Denoising comes after it."""
    channels: int = field(default=1, metadata={"static": True})
    """2: the probability of contact (`data.boundaries`) comes behind that of the object."""

    @classmethod
    def load(
        cls,
        workdir: str | Path,
        *,
        denoise: float | None = None,
        checkpoint: str | int = "newest",
        augment: bool = False,
        contact: bool = False,
    ) -> "Predictor":
        """The net of a run's checkpoint; its data need not be at hand.

        Args:
          workdir: folder of the run.
          denoise: weight of the TV denoising. None: the one that the run chose for this checkpoint
            (U-Net + TV), if it did; 0: no denoising.
          checkpoint: `"newest"`, `"best"` (by validation score), or the step of one that was kept.
          augment: whether to average over symmetries, in eight times the time.
          contact: whether the probability of contact comes too, of runs that learned it.

        Raises:
          UserError: there is no run, no such checkpoint, or `denoise` is not one number of at least
            0 (an array, a boolean or a text is none), or `augment` or `contact` no boolean.
        """
        _check_choices(augment, contact)
        workdir = Path(workdir)
        config, net, state = restore.open_net(workdir, checkpoint)
        ended = config.train.patience > 0 and (workdir / "summary.json").exists()
        if checkpoint == "newest" and not ended and int(state.step) < config.train.steps:
            print(
                f"note: the newest checkpoint of {workdir} is of step {int(state.step)} of "
                f"{config.train.steps}: its training is not finished",
                file=sys.stderr,
            )
        if denoise is None:
            denoise = own_denoising(workdir, config, int(state.step))
        kind = config.denoise.kind
        return cls.of(
            net, state, denoise=denoise, denoise_kind=kind, augment=augment, contact=contact
        )

    @classmethod
    def of(
        cls,
        net: Net,
        state: TrainState,
        *,
        denoise: float | None = None,
        denoise_kind: str = "anisotropic",
        augment: bool = False,
        contact: bool = False,
    ) -> "Predictor":
        """A net with the parameters of a state that lies on one device."""
        _check_choices(augment, contact)
        weight = None if denoise is None else _weight(denoise)
        both = contact and net.head.contact is not None
        step = jax.jit(net.predict_both if both else net.predict)
        return cls(state, weight or None, step, denoise_kind, augment, 1 + both)

    def __repr__(self) -> str:
        """One line; the parameters themselves are in `state`."""
        leaves = jax.tree.leaves(self.state.inner.params) if self.state else []
        number = sum(math.prod(jnp.shape(leaf)) for leaf in leaves)
        augment = ", augment=True" if self.augment else ""
        return f"Predictor({number:,} parameters, denoise={self.denoise}{augment})"

    def __call__(self, images: Any) -> jax.Array:
        """Probabilities of the object.

        Args:
          images: `[..., H, W, 3]`, uint8 in 0..255 or float in [0, 1], of the ground resolution
            that the net was trained on. Other integers are refused, since 1 could mean white or
            nearly black. Traced floats beyond [0, 1] are read as NaN.

        Returns:
          Float32 `[..., H, W, 1]` in [0, 1], or `[..., H, W, 2]`, see `channels`.

        Raises:
          ValueError: images of another shape or type, or not in [0, 1].
        """
        images = _pixels(images)
        batch, shape = images.shape[:-3], images.shape[-3:]
        found = _apply(self, images.reshape(math.prod(batch), *shape))
        return found.reshape(*batch, *shape[:2], self.channels)

    def export(
        self, *, size: int | None, batch: int | None = None, platforms: Sequence[str] = PLATFORMS
    ) -> jax_export.Exported:
        """The net as StableHLO that needs JAX and no tvjax: `.serialize()`, `.call(images)`.

        Args:
          size: height and width of the images, in pixels; None: any multiple of `MULTIPLE`.
          batch: number of the images; None: any.
          platforms: what the program is to run on: "cpu", "cuda", "rocm" or "tpu".

        Returns:
          Of a function from float32 `[batch, H, W, 3]` in [0, 1] to `[batch, H, W, channels]`.

        Raises:
          UserError: the net takes no images of this size, or an argument cannot be so (see
            `check_export`), or it averages over symmetries and no size says how many there are.
        """
        check_export(size=size, batch=batch, platforms=platforms)
        if self.augment and size is None:
            raise UserError("size=None: a net with augment=True needs a size, e.g. size=512")
        if size is not None:
            self.check_size(size)
        number, height, width = jax_export.symbolic_shape(
            f"{batch or 'b'}, {size or f'{MULTIPLE}*h'}, {size or f'{MULTIPLE}*w'}"
        )
        images = jax.ShapeDtypeStruct((number, height, width, 3), jnp.float32)
        function = jax.jit(lambda images: _apply(self, arguments.share("images", images)))
        return jax_export.export(function, platforms=platforms)(images)

    def check_size(self, size: int) -> None:
        """Refuses a side of square images that the net does not take.

        Raises:
          UserError: naming the nearest that it takes.
        """
        if self._takes(size):
            return
        near = range(size // MULTIPLE * MULTIPLE, size + 8 * MULTIPLE, MULTIPLE)
        good = [side for side in near if side and self._takes(side)][:2]
        hint = f"the nearest that it takes: {' and '.join(map(str, good))}" if good else ""
        raise UserError(f"size={size}: the net takes no images of this side; {hint}".rstrip("; "))

    def _takes(self, size: int) -> bool:
        """Whether the net takes square images of this side."""
        try:
            jax.eval_shape(_apply, self, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
        except Exception:  # nets raise whatever their layers do
            return False
        return True


def check_export(*, size: Any, batch: Any, platforms: Any) -> None:
    """Refuses arguments of `Predictor.export` that no net takes.

    Raises:
      UserError: `size` is no integer in 1..`MOST_SIDE` nor None, `batch` none in 1..`MOST_BATCH`
        nor None, or `platforms` are not one or more of `KNOWN`, each once.
    """
    for name, value, most in (("size", size, MOST_SIDE), ("batch", batch, MOST_BATCH)):
        try:
            if value is not None:
                arguments.count(name, value, 1, most)
        except ValueError as error:
            raise UserError(error) from None
    listed = platforms if isinstance(platforms, (list, tuple)) else ()
    known = [name for name in KNOWN if name in listed]
    if not listed or len(known) < len(listed):
        names = ", ".join(KNOWN)
        raise UserError(f"platforms must be one or more of {names}, each once; got {platforms!r}")


def own_denoising(workdir: Path, config: Config, step: int) -> float | None:
    """The weight that a run of U-Net + TV chose on its validation split for a checkpoint.

    It chooses one for its last step alone; of others a note says that there is none.
    """
    if not config.denoise.weights:
        return None
    summary = rundir.read_summary(workdir, config)
    if summary is None or summary["steps"] != step:
        print(
            f"note: no denoising weight was chosen for checkpoint {step} of {workdir}, whose "
            f"probabilities stay as they are; --denoise=WEIGHT denoises them",
            file=sys.stderr,
        )
        return None
    # Earlier versions had no name of its own for it.
    return summary.get("denoise_weight", summary["lambda"])


def _check_choices(augment: Any, contact: Any) -> None:
    """Refuses what is neither True nor False."""
    try:
        arguments.truth("augment", augment)
        arguments.truth("contact", contact)
    except ValueError as error:
        raise UserError(error) from None


def _weight(denoise: Any) -> float:
    """The weight of a denoising as a float."""
    try:
        arguments.number("denoise", denoise)
    except ValueError as error:
        raise UserError(error) from None
    if not 0 <= denoise <= float(jnp.finfo(jnp.float32).max):
        raise UserError(f"denoise={denoise} must be finite and at least 0")
    return float(denoise)


def _pixels(images: Any) -> jax.Array:
    """Images as nets take them: uint8, or at least float32 in [0, 1]."""
    array = arguments.real("images", images)
    if array.ndim < 3 or array.shape[-1] != 3 or 0 in array.shape[-3:]:
        raise ValueError(f"images must be [..., H, W, 3]; got shape {array.shape}")
    if array.dtype == jnp.uint8:
        return array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"images must be uint8 in 0..255 or float in [0, 1]; got {array.dtype}: convert them "
            "by astype('uint8') if white is 255"
        )
    array = arguments.share("images", images)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


@jax.jit
def _apply(predictor: Predictor, images: jax.Array) -> jax.Array:
    def predict(images: jax.Array) -> jax.Array:
        return predictor.step(predictor.state, images)[1]

    probabilities = symmetries.average(predict, images) if predictor.augment else predict(images)
    if predictor.denoise is None:
        return probabilities
    denoised = denoise_tv(
        probabilities[..., :1] if predictor.channels > 1 else probabilities,
        jnp.float32(predictor.denoise),
        kind=predictor.denoise_kind,
        tolerance=1e-3,
        max_iterations=2000,
    ).image
    if predictor.channels == 1:
        return denoised
    return jnp.concatenate([denoised, probabilities[..., 1:]], axis=-1)
