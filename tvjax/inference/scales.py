"""The scale at which a net sees an image: chosen, or such that its pixels are the run's metres."""

from collections.abc import Sequence
from typing import NamedTuple

from tvjax.data import scenes, sharpness
from tvjax.data.pictures import Raster
from tvjax.data.scaling import LEAST_SCALE
from tvjax.errors import UserError

NEAR = 0.05
"""Share by which an image's metres per pixel may differ from the tiles' where it is taken as it is:
nets do not mind, and resizing would only blur it."""

MOST_ENLARGED = 4.0
"""How many times an image may be enlarged to the resolution of the run's tiles: one that is coarser
still would show the net nothing that it knows."""


class Scales(NamedTuple):
    """How images are scaled for a net."""

    scale: float = 1.0
    """The net's pixels per pixel of an image, by side, where the resolution does not give it."""
    resolution: float | None = None
    """Metres per pixel of the run's tiles, to which images on a map are scaled; None: none are."""
    shrunk: Sequence[float] | None = None
    """Scales of the run's tiles, see `tvjax.data.sharpness`, where no scale was chosen."""

    def by_map(self, raster: Raster) -> bool:
        """Whether the image's place on a map gives its scale."""
        return self.resolution is not None and raster.transform is not None and bool(raster.crs)

    def of(self, raster: Raster) -> float:
        """The net's pixels per pixel of an image.

        Raises:
          UserError: the image lies nowhere on the earth, or is far too coarse or too fine.
        """
        if self.resolution is None or not self.by_map(raster):
            return self.scale
        try:
            scale = scenes.scale(raster, self.resolution)
        except UserError as error:
            raise UserError(f"{error}; --scale=1 takes images as they are") from error
        if not LEAST_SCALE <= scale <= MOST_ENLARGED:
            raise UserError(
                f"{raster.path}: has {scale * self.resolution:.3g} metres per pixel, and the run's "
                f"tiles have {self.resolution:.3g}: too {'fine' if scale < 1 else 'coarse'} to be "
                "scaled to theirs; --scale=S scales all images by S, --scale=1 takes them as they "
                "are"
            )
        return 1.0 if abs(scale - 1) < NEAR else scale

    def describe(self, by_map: Sequence[bool]) -> list[str]:
        """What to tell of images that may be of another scale than the run's tiles.

        Args:
          by_map: `Scales.by_map` of each.
        """
        number, words = by_map.count(False), []
        if number and self.resolution is not None:
            words.append(
                f"{number} image{'s have' if number > 1 else ' has'} no place on a map: taken at "
                f"--scale={self.scale:g}, and not at the {self.resolution:g} metres per pixel of "
                "the run's tiles"
            )
        if number and self.shrunk is not None:
            words.append(sharpness.advise(self.shrunk))
        return words
