"""Image files as arrays."""

from pathlib import Path

import numpy as np
from PIL import Image

from tvjax.errors import UserError

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's names of the 8-bit pixel formats that convert to RGB without loss of range."""


def read_image(file: Path) -> np.ndarray:
    """Decodes a picture.

    Returns:
      uint8 `[H, W, 3]`; grey, palette and RGBA files are converted to RGB, alpha is dropped.

    Raises:
      UserError: the file is truncated, no image, or of 16 bits a channel.
    """
    try:
        with Image.open(file) as image:
            mode = image.mode
            if mode in ("P", "PA"):
                image = image.convert("RGBA")  # Pillow warns when transparency meets RGB directly
            return np.asarray(image.convert("RGB")) if mode in MODES else _refuse(file, mode)
    except UserError:
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        raise _undecodable(file, error) from error


def read_mask(file: Path) -> np.ndarray:
    """Decodes a mask: whatever is not 0 is object.

    Of a palette file the indices count, of a colour file any channel; alpha does not.

    Returns:
      bool `[H, W]`.

    Raises:
      UserError: the file is truncated or no image.
    """
    try:
        with Image.open(file) as image:
            values = np.asarray(image)
            bands = len(image.getbands()) - (image.mode in ("LA", "PA", "RGBA"))
    except Exception as error:
        raise _undecodable(file, error) from error
    return values != 0 if values.ndim == 2 else np.any(values[..., :bands] != 0, axis=-1)


def read_size(file: Path) -> tuple[int, int]:
    """Height and width from the file's header.

    Raises:
      UserError: the file is no image.
    """
    try:
        with Image.open(file) as image:
            return image.height, image.width
    except Exception as error:
        raise _undecodable(file, error) from error


def _undecodable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file}: cannot be decoded, it may be truncated or no image ({error})")


def _refuse(file: Path, mode: str) -> np.ndarray:
    raise UserError(f"{file}: has pixels of kind '{mode}'; convert it to 8 bits a channel")
