"""Whether masks look as if they meant what they say, over a whole set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvjax.data import mask_files, masks
from tvjax.data.origins import Tile
from tvjax.errors import UserError

MANY = 0.7
"""Share of the pixels that are object, from which on it is worth a note."""

HIDDEN = 0.01
"""Share of the labelled pixels where images have no data, from which on it is worth a note."""

FULL, DARK = 0.5, 8
"""Share of white pixels, and the mean, 0 to 255, from which on images are worth a note."""

SOME = 0.1
"""Share of the tiles that are so, from which on it is worth one where the others are not."""


def check(
    tiles: Sequence[Tile], shrunk: np.ndarray, annotations: Path, hidden: float = 0.0
) -> list[str]:
    """Looks at all masks at once.

    Args:
      tiles: tiles that have been loaded; at least one.
      shrunk: 0 or 1, `[N, h, w]`, as they are trained on.
      annotations: the COCO file or the folder of masks.
      hidden: share of the labelled pixels where the images have no data.

    Returns:
      What is worth a note: one line each.

    Raises:
      UserError: all pixels are background, or all are object: there is nothing to learn.
    """
    share = float(np.mean([mask.mean() for mask in shrunk]))
    values = _values(tiles)
    if hidden == 1:
        values = (
            "; all that the labels mark lies where the images have no data (alpha 0, a nodata "
            "value or a mask there): save the images without it"
        )
    if share in (0, 1):
        what = "object" if share else "background"
        why = values or (
            "; the annotations cover their images"
            if share
            else "; there are no annotations, or their regions are too small for this size"
        )
        height, width = shrunk.shape[1:]
        raise UserError(
            f"{annotations}: all pixels of its {len(tiles)} tiles are {what} at {width}x{height} "
            f"pixels, so that there is nothing to learn{why}"
        )
    notes = []
    if hidden >= HIDDEN:
        notes.append(
            f"{annotations}: {hidden:.1%} of the pixels that are labelled as object have no data "
            "in the images (alpha 0, a nodata value or a mask there), and are background"
        )
    if share > MANY:
        notes.append(
            f"{annotations}: {share:.1%} of all pixels are object{values}; if that is background, "
            "objects and background have changed places"
        )
    if isinstance(tiles[0], masks.Tile):
        notes += _check_values(tiles[0], annotations, values)
        notes += _note_others(tiles[0], annotations, len(tiles))
    return notes


def check_brightness(images: np.ndarray, white: Sequence[float]) -> list[str]:
    """Looks at images some of which have 16 bits per channel: at most one note.

    Args:
      images: uint8 `[N, h, w, 3]`, as they are trained on.
      white: the value that was chosen as their white, or one per band.
    """
    full = np.array([np.mean(image.min(axis=-1) == 255) for image in images])
    means = np.array([image.mean() for image in images])
    given = " ".join(f"--white={value:g}" for value in white)
    bright, dark = np.mean(full > FULL), np.mean(means < DARK)
    words, wrong = "", "small"
    if np.mean(full) > FULL:
        words = f"{np.mean(full):.0%} of all pixels are white"
    elif np.mean(means) < DARK:
        words, wrong = f"images are nearly black ({np.mean(means):.1f} of 255 in the mean)", "large"
    elif bright > SOME:  # the others may be of 8 bits, for which white does not count
        words = f"{bright:.0%} of the tiles are white"
    elif dark > SOME:
        words, wrong = f"{dark:.0%} of the tiles are nearly black", "large"
    return [f"{words}: is {given} too {wrong}, or --black?"] if words else []


def _check_values(tile: masks.Tile, annotations: Path, values: str) -> list[str]:
    """Refuses masks that are of two values each, but in which other values mean object."""
    _check_palettes(tile, annotations)
    met, named = mask_files.values_of(tile.met), {mask_files.name(value) for value in tile.objects}
    if tile.objects:
        lacking = ", ".join(str(value) for value in named if value not in met)
        return [f"{annotations}: no mask has {lacking}{values}"] if lacking else []
    found = met - mask_files.BACKGROUND
    what = f"{annotations}: its masks name objects by several values"
    if len(found) > 1 and not found <= mask_files.FULL:
        raise UserError(f"{what}, and no rule says which of them are objects{values}")
    return [f"{what}, which are all taken{values}"] if len(found) > 1 else []


def _note_others(tile: masks.Tile, annotations: Path, tiles: int) -> list[str]:
    """Tells of masks that may name objects by another value than the chosen ones."""
    others = mask_files.others(tile.met)
    if len(others) < SOME * tiles or not others:
        return []
    chosen = ", ".join(str(mask_files.name(value)) for value in tile.objects)
    return [
        f"{annotations}: {len(others)} of {tiles} masks hold none of the chosen values ({chosen}), "
        f"but other ones, such as {others[0].file}: {others[0].values}; these masks are all "
        "background: if another value means object in them, give it by --object too"
    ]


def _check_palettes(tile: masks.Tile, annotations: Path) -> None:
    """Refuses indices that mean one thing in some masks and another in others."""
    found = mask_files.two_colors(tile.met)
    if found is not None:
        index, colors = found
        raise UserError(
            f"{annotations}: the masks have different palettes: index {index} is {colors[0]} in "
            f'some and {colors[1]} in others; say which colours are objects by --object="#RRGGBB"'
        )


def _values(tiles: Sequence[Tile]) -> str:
    """The values of masks and what to do about them; nothing of other labels."""
    first = tiles[0]
    if not isinstance(first, masks.Tile):
        return ""
    words = f"; the masks' values are {mask_files.describe(first.met)}"
    if any(mask_files.has_alpha(tile.mask) for tile in tiles if isinstance(tile, masks.Tile)):
        words += ", and alpha, which does not count"
    return words + (
        '; write masks of 0 and 255, or say which are objects by --object=VALUE or "#RRGGBB"'
    )
