"""Objects that touch, parted by a watershed from their cores, strip by strip.

A net that was trained with `data.boundaries` gives two probabilities: of the object, and of contact
(see `tvjax.data.touching`). A core is a basin of contact's probability within the object's pixels:
a 4-connected valley out of which every path to a deeper one climbs by `DEPTH` at least. From the
cores objects are flooded in the order of that probability, so that neighbours meet on its ridge:
each pixel of the mask falls to one object, none is lost, and holes stay.

What becomes of a 4-connected piece of the mask depends on its own pixels alone. They are held until
it is complete, so that the answer does not depend on how the image is cut into strips; memory is
one strip and the pieces that are still open.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from tvjax.errors import require
from tvjax.inference import polygons
from tvjax.inference.polygons import Polygon

DEPTH = 0.15
"""How deep a basin of the probability of contact is that is a core. Walls that are hard to see have
probabilities far below 0.5, and yet are ridges; `experiments.terraces` has what was measured."""

_CROSS = ndimage.generate_binary_structure(2, 1)

MOST = 1 << 22
"""Pixels of the box around a piece that is parted, which takes some 50 bytes for each; a larger one
stays one object."""


class _Pixels(NamedTuple):
    """Pixels of open objects, `[N]` each."""

    label: np.ndarray
    y: np.ndarray
    x: np.ndarray
    values: np.ndarray
    """Float32 `[N, 2]`: probabilities of object and contact."""


def require_skimage() -> Any:
    """The package scikit-image, or a `UserError` where there is none."""
    words = "a run with data.boundaries=True parts objects by scikit-image"
    return require("skimage", f"{words}; pip install 'tvjax[boundaries]'")


def trace(
    strips: Iterable[np.ndarray], *, threshold: float = 0.5, min_area: int = 1
) -> Iterator[Polygon]:
    """The objects of an image that comes as strips of probabilities, those that touch parted.

    Args:
      strips: `[h, W, 2]` from the top, in [0, 1]: of object and contact; or `[h, W, 1]` of the
        object alone: then objects are those of `polygons.trace`.
      threshold: a pixel belongs to an object above it, not at it.
      min_area: objects of fewer pixels are left out.

    Yields:
      Objects, those that end first first.

    Raises:
      UserError: scikit-image is needed, and missing.

    Example:
      >>> strip = np.zeros((6, 12, 2))  # two roofs side by side, and the wall that they share
      >>> strip[1:5, 1:11, 0], strip[1:5, 5:7, 1] = 1, 1
      >>> [(found.shell[0].tolist(), found.area) for found in trace([strip])]
      [([1, 1], 20), ([6, 1], 20)]
    """
    for group in groups(strips, threshold=threshold, min_area=min_area):
        yield from group


def groups(
    strips: Iterable[np.ndarray], *, threshold: float = 0.5, min_area: int = 1
) -> Iterator[list[Polygon]]:
    """The same, with the objects together that share walls: the parts of a piece of the mask."""
    return _Separator(threshold, min_area).run(strips)


class _Separator(polygons.Tracer):
    """Holds the pixels of open objects besides their corners."""

    def __init__(self, threshold: float, min_area: int):
        super().__init__(threshold, min_area)
        nothing = np.empty(0, np.int64)
        self._held.append(_Pixels(nothing, nothing, nothing, np.empty((0, 2), np.float32)))

    def _probabilities(self, strip: np.ndarray) -> np.ndarray:
        return strip[..., 0]

    def _find(self, labels: np.ndarray, strip: np.ndarray) -> list[Any]:
        found = super()._find(labels, strip)
        rows = labels[1:] if strip.shape[-1] > 1 else labels[:0]
        y, x = np.nonzero(rows)
        values = strip[y, x].astype(np.float32).reshape(-1, 2)
        return [*found, _Pixels(rows[y, x], y + self._y, x, values)]

    def _polygons(self, closed: list[Any], sums: np.ndarray) -> Iterator[list[Polygon]]:
        corners, pixels = self._held
        if len(pixels.label):
            self._held[1] = polygons.of(pixels, ~self._is_large(corners))
        order = np.argsort(closed[1].label, kind="stable")
        labels = closed[1].label[order]
        for label, whole in self._whole(closed[0], sums):
            start, stop = np.searchsorted(labels, [label, label + 1])
            own = closed[1]._make(field[order[start:stop]] for field in closed[1])
            is_large = np.prod(np.ptp(whole.shell, axis=0)) > MOST
            parts = None if is_large or start == stop else _part(own)
            if parts is None:
                yield [whole]
            else:
                yield list(self._trace(parts, own))

    def _is_large(self, corners: Any) -> np.ndarray:
        """Whether the boxes around open objects, which all reach the last row, are too large."""
        number = self._sums.shape[1] + 1
        top, left = np.full((2, number), np.iinfo(int).max)
        right = np.zeros(number, int)
        np.minimum.at(top, corners.label, corners.y)
        np.minimum.at(left, corners.label, corners.x)
        np.maximum.at(right, corners.label, corners.x)
        return (self._y - top) * (right - left) > MOST

    def _trace(self, parts: np.ndarray, own: _Pixels) -> Iterator[Polygon]:
        corner = np.array([own.x.min(), own.y.min()])
        values = np.zeros(parts.shape)
        values[own.y - corner[1], own.x - corner[0]] = own.values[:, 0]
        for number, box in enumerate(ndimage.find_objects(parts), 1):
            part = np.where(parts[box] == number, values[box], 0)
            moved = corner + np.array([box[1].start, box[0].start])
            options = {"threshold": self._threshold, "min_area": self._min_area}
            for found in polygons.trace([part], **options):
                holes = tuple(hole + moved for hole in found.holes)
                yield found._replace(shell=found.shell + moved, holes=holes)


def _part(own: _Pixels) -> np.ndarray | None:
    """Numbers from 1 of the objects in the box around a piece, int `[h, w]`, 0 beyond it; None: it
    is one object."""
    if np.ptp(own.values[:, 1]) < DEPTH:
        return None
    skimage = require_skimage()
    y, x = own.y - own.y.min(), own.x - own.x.min()
    contact = np.ones((y.max() + 1, x.max() + 1), np.float32)
    contact[y, x] = own.values[:, 1]
    mask = np.zeros(contact.shape, bool)
    mask[y, x] = True
    # Raised by the depth and let down again, shallower basins are level with their outlets. (That
    # is scikit-image's h_minima, but for basins with several deepest points, which it would part.)
    raised = contact + np.float32(DEPTH)
    filled = skimage.morphology.reconstruction(raised, contact, "erosion", footprint=_CROSS)
    cores = skimage.morphology.local_minima(filled, connectivity=1) & mask
    markers, number = ndimage.label(cores)  # pyright: ignore
    if number < 2:
        return None
    return skimage.segmentation.watershed(contact, markers, mask=mask)
