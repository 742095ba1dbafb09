"""Which of an image's numbers become red, green and blue, and how: chosen once, for training.

It is kept with the records that are made so, and with runs that are trained on them: prediction
reads images alike.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tvjax.errors import UserError, short

MOST_BANDS = 1 << 10
"""Number of a band, at most; instruments have up to some 500."""


class Reading(NamedTuple):
    """What is chosen. By default bands go by their names, and 16 bits per channel are refused."""

    bands: tuple[int, ...] | None = None
    """Numbers of the bands, from 1, that are red, green and blue, or of one that is grey; None: by
    their names."""
    black: tuple[float, ...] = (0.0,)
    """The value of 16-bit pixels that becomes 0: one, or one per band."""
    white: tuple[float, ...] | None = None
    """The value of 16-bit pixels that becomes 255: one, or one per band; None: it is not known."""

    def shrunk(self, block: np.ndarray) -> np.ndarray:
        """Numbers of 16 bits `[C, h, w]` as uint8: `255 (x - black) / (white - black)`, rounded."""
        if self.white is None:
            return block
        black, white = (np.array(x).reshape(-1, 1, 1) for x in (self.black, self.white))
        found = (block - black) * (255 / (white - black))
        return np.rint(np.clip(found, 0, 255)).astype(np.uint8)

    def as_json(self) -> dict[str, Any] | None:
        """The form in which it is kept; None of the default."""
        if self == AS_NAMED:
            return None
        return {name: value and list(value) for name, value in self._asdict().items()}


AS_NAMED = Reading()


def parse(
    bands: str | None = None, black: Sequence[float] = (), white: Sequence[float] = ()
) -> Reading:
    """A reading by what flags say.

    Args:
      bands: such as "4,3,2" or "1".
      black: one value, or one per band.
      white: one value, or one per band.

    Raises:
      UserError: they cannot be so, or contradict each other.
    """
    chosen = None
    if bands is not None:
        if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4}){0,2}", bands):
            raise UserError(f"--bands={bands}: give three numbers such as 4,3,2, or one")
        chosen = tuple(map(int, bands.split(",")))
        if len(chosen) == 2 or not all(0 < band <= MOST_BANDS for band in chosen):
            raise UserError(f"--bands={bands}: give three numbers from 1 on, or one")
    found = Reading(chosen, tuple(map(float, black)) or (0.0,), tuple(map(float, white)) or None)
    _check(found)
    return found


def of_json(content: Any, where: object) -> Reading:
    """What `as_json` gave.

    Raises:
      UserError: it is damaged; `where` says what holds it.
    """
    if content is None:
        return AS_NAMED
    try:
        parts = [content[name] for name in Reading._fields]
        bands, black, white = (part if part is None else tuple(part) for part in parts)
        found = Reading(bands, black or (0.0,), white)
        kinds = {type(band) for band in bands or ()}
        numbers = {type(x) for x in (*found.black, *(white or ()))}
        if len(bands or (1,)) not in (1, 3) or kinds - {int} or numbers - {int, float}:
            raise ValueError(short(content))
        _check(found)
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{where}: its reading of images is damaged ({error})") from error
    return found


def _check(reading: Reading) -> None:
    number = len(reading.bands or (1, 2, 3))
    for name, values in (("black", reading.black), ("white", reading.white or (1.0,))):
        if len(values) not in (1, number):
            raise UserError(f"--{name} is given {len(values)} times; give it once, or {number}")
        if not all(math.isfinite(value) for value in values):
            raise UserError(f"--{name}={values[0]}: must be finite")
    if reading.white is None:
        if any(reading.black):
            raise UserError(f"--black={reading.black[0]}: give --white too")
        return
    wrong = [
        (low, high) for low, high in np.broadcast(reading.black, reading.white) if not low < high
    ]
    if wrong:
        low, high = wrong[0]
        need = f"above --black={low:g}" if any(reading.black) else "positive and finite"
        raise UserError(f"--white={high} must be {need}")
