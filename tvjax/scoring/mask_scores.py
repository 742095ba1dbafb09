"""Scores of predicted masks against true ones, by numpy: of each image, and of all.

Training and `tvjax.evaluate` both call these. They take images of any size; compiled for each size,
they would not.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from tvjax.scoring.metrics import Counts


def of_images(prediction: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of masks of one size.

    Args:
      prediction: bool `[N, H, W]`.
      truth: bool `[N, H, W]`.

    Returns:
      Float64 `[N]` each: `iou` and `boundary_iou` in [0, 1], 1 of two empty masks; the number of
      4-connected components (`components`, `true_components`) and the anisotropic total variation
      (`tv`, `true_tv`); and the pixels of `metrics.Counts`.

    Raises:
      ValueError: the masks are not bool, or not of one shape.

    Example:
      >>> masks = np.zeros((2, 1, 4, 4), bool)
      >>> masks[0, :, :2], masks[1, :, :3] = True, True
      >>> of_images(*masks)["iou"].round(3)
      array([0.667])
    """
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != bool or mask.ndim != 3:
            raise ValueError(f"{name} must be bool [N, H, W]; got {mask.dtype} {mask.shape}")
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction {prediction.shape} must have the shape of truth {truth.shape}"
        )
    hits = _count(prediction & truth)
    one, two = (boundary(mask, boundary_pixels(*mask.shape[1:])) for mask in (prediction, truth))
    values = {
        "iou": _share(hits, _count(prediction | truth)),
        "boundary_iou": _share(_count(one & two), _count(one | two)),
        "components": components(prediction),
        "true_components": components(truth),
        "tv": _total_variation(prediction),
        "true_tv": _total_variation(truth),
        "true_positive": hits,
        "false_positive": _count(prediction) - hits,
        "false_negative": _count(truth) - hits,
    }
    return {name: value.astype(float) for name, value in values.items()}


def summarise(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Means over images, and pooled scores over all pixels.

    Args:
      sums: over images, of what `of_images` gives and more; `images`, their number;
        `empty_images`, the number of those without an object; `nonempty_iou`, the sum of `iou`
        over the others.

    Returns:
      The means; `pooled_iou` and `pooled_f1`; `nonempty_iou`, the mean over the images that hold
      objects, None of none; `images` and `empty_images` as they are.
    """
    total = dict(sums)
    counts = Counts(*(jnp.asarray(total.pop(name)) for name in Counts._fields))
    images, empty = total.pop("images"), total.pop("empty_images")
    nonempty = total.pop("nonempty_iou")
    return {
        **{name: float(value / images) for name, value in total.items()},
        "pooled_iou": float(counts.iou),
        "pooled_f1": float(counts.f1),
        "nonempty_iou": float(nonempty / (images - empty)) if images > empty else None,
        "images": images,
        "empty_images": empty,
    }


def boundary_pixels(height: int, width: int) -> int:
    """The width of the band inside each outline that boundary IoU counts, its d, in pixels.

    It is 2 % of the image's diagonal, at least 1.
    """
    return max(1, round(0.02 * (height**2 + width**2) ** 0.5))


def boundary(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The pixels that an erosion by a square of `2 pixels + 1` takes away (Cheng et al. 2021).

    IoU of them sees errors of the outline that the IoU of large objects hides; of an object that
    is nowhere wider than `2 pixels` all is boundary, and it says no more than the IoU.

    Args:
      mask: bool `[..., H, W]`; beyond it is outside.
      pixels: see `boundary_pixels`.
    """
    eroded = mask.astype(np.uint8)
    for axis in (-2, -1):
        eroded = ndimage.minimum_filter1d(eroded, 2 * pixels + 1, axis, mode="constant")
    return mask & (eroded == 0)


def components(mask: np.ndarray) -> np.ndarray:
    """The number of 4-connected components of each mask `[N, H, W]`."""
    neighbours = np.zeros((3, 3, 3), bool)
    neighbours[1] = ndimage.generate_binary_structure(2, 1)  # within an image
    labels = ndimage.label(mask, neighbours)[0]  # pyright: ignore
    # Labels rise from image to image.
    last = np.maximum.accumulate(labels.max(axis=(1, 2), initial=0))
    return np.diff(last, prepend=0)


def count_narrow(mask: np.ndarray, pixels: int) -> tuple[int, int]:
    """The number of components of a mask `[H, W]`, and of those that lie in the boundary whole."""
    labels, count = ndimage.label(mask)  # pyright: ignore
    wide = np.unique(labels[mask & ~boundary(mask, pixels)])
    return count, count - len(wide)


def describe_band(pixels: float, objects: float, narrow: float) -> str:
    """The band of a boundary IoU, and a warning where most objects are narrower, in one line."""
    unit = "pixel" if pixels == 1 else "pixels"
    band = f"boundary IoU counts a band of {pixels:.3g} {unit} inside each outline"
    if not 2 * narrow > objects:
        return band
    return (
        f"{band}; warning: the band covers {narrow / objects:.0%} of the objects whole, and tells "
        "no more of them than IoU does"
    )


def _count(mask: np.ndarray) -> np.ndarray:
    return np.count_nonzero(mask, axis=(1, 2))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """1 of nothing: two empty masks agree."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 1)


def _total_variation(mask: np.ndarray) -> np.ndarray:
    return _count(mask[:, 1:] != mask[:, :-1]) + _count(mask[:, :, 1:] != mask[:, :, :-1])
