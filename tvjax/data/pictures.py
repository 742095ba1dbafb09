"""Image files as red, green and blue: the one reader of training, evaluation and prediction.

Pillow decodes pictures whole (PNG, JPEG, BMP, WebP, GIF). GDAL reads TIFFs in windows, and PNGs of
more than 64 megapixels or of 16 bits per channel (rasterio, the extra `geo`); see `gdal` on virtual
rasters. Without rasterio Pillow reads plain TIFFs too. Other formats are refused, and so is, before
the work is done, what would take more memory than a file of its size can mean. The rules are the
same everywhere:

- images are upright, as viewers show them: EXIF's and TIFF's orientation counts;
- grey, palettes, fewer bits than 8, and 0 for white become what a viewer shows; colour profiles and
  gammas are ignored;
- bands are red, green and blue by their names, whatever their order, unless they are chosen (see
  `reading`); others stay unread;
- there is no data where alpha is 0 (also in pictures), or where a nodata value or a mask says so;
- what cannot be told, or is no colour, is refused in one line: LAB, floats, several bands without
  names, several pictures in a file, 16 bits without the value of white.
"""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax.data import gdal, orientation, pillow
from tvjax.data.orientation import Read
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.errors import UserError

SUFFIXES = (*pillow.SUFFIXES, ".tif", ".tiff")
"""Endings of the files that are taken from a directory."""

WHOLE = 1 << 26
"""Pixels of the largest PNG that is decoded whole where GDAL could read it in windows."""

MOST = 1 << 29
"""Pixels of the largest image that is decoded whole."""

HOLLOW = 100
"""Pixels of an image decoded whole, of more than `WHOLE`, for each byte of its file: a picture of
something has below 30, and a bomb, which is one colour, hundreds."""

NEEDS_RASTERIO = "which is read by rasterio only; pip install 'tvjax[geo]'"


class Raster(NamedTuple):
    """An open image."""

    path: Path
    height: int
    width: int
    read: Read
    """`(top, bottom, left, right) ->` uint8 `[h, w, 3]`."""
    transform: Any = None
    """`affine.Affine` from (column, row) to map coordinates; None without a georeference."""
    crs: Any = None
    """`rasterio.crs.CRS` or None."""
    valid: Read | None = None
    """`(top, bottom, left, right) ->` bool `[h, w]`, where the file has data; None: everywhere."""
    is_turned: bool = False
    """Whether it is stored otherwise than it is shown."""

    @property
    def is_plain(self) -> bool:
        """Whether it is a picture and no map; its masks are then PNGs."""
        return self.transform is None and self.path.suffix.lower() in pillow.SUFFIXES


@contextlib.contextmanager
def open_raster(path: Path, reading: Reading = AS_NAMED) -> Iterator[Raster]:
    """Opens an image; the rules are those of this module.

    Args:
      path: path of the image.
      reading: which bands count, and the values of 16-bit pixels that become 0 and 255, and so does
        whatever is below and above them. Without these 16-bit images are refused, since their
        brightness cannot be told from the file.

    Raises:
      UserError: it cannot be read, has other pixels, or needs rasterio and there is none.
    """
    header = pillow.read_header(path)
    with gdal.opening(path) as dataset:
        if dataset is None:
            raster = _open_whole(path, header or _plain_tiff(path), reading)
        elif header is None or _is_for_gdal(header):
            raster = _open_windows(path, dataset, header, reading)
        else:
            raster = _open_whole(path, header, reading)
        turned = header.orientation if header else 1
        if dataset is not None:
            with pillow.decoding(path):
                transform, crs = gdal.georeference(path, dataset)
                turned = turned if header else gdal.read_orientation(path, dataset)
            raster = raster._replace(transform=transform, crs=crs)
        yield _upright(raster, turned)


def from_array(image: np.ndarray, valid: np.ndarray | None = None) -> Raster:
    """An image in memory, uint8 `[H, W, 3]`, with bool `[H, W]`, where there is data."""
    has_data = None if valid is None else lambda t, b, x, y: valid[t:b, x:y]
    path, height, width = Path("array.png"), *image.shape[:2]
    return Raster(path, height, width, lambda t, b, x, y: image[t:b, x:y], valid=has_data)


def read_size(path: Path, reading: Reading = AS_NAMED) -> tuple[int, int]:
    """Height and width of an image file, as it is shown; see `open_raster`."""
    with open_raster(path, reading) as raster:
        return raster.height, raster.width


def read_image(path: Path, reading: Reading = AS_NAMED) -> np.ndarray:
    """Decodes an image file, uint8 `[H, W, 3]`; see `open_raster` and `read_whole`."""
    with open_raster(path, reading) as raster:
        return read_whole(raster)[0]


class Loaded(NamedTuple):
    """A decoded tile."""

    image: np.ndarray
    """Uint8 `[H, W, 3]`."""
    mask: np.ndarray
    """Bool `[H, W]`: what the labels say is object, also where the image has no data."""
    valid: np.ndarray | None
    """Bool `[H, W]`: where the image has data; None: everywhere."""

    @property
    def objects(self) -> np.ndarray:
        """Bool `[H, W]`: the objects that are to be seen; none where the image has no data."""
        return self.mask if self.valid is None else self.mask & self.valid


def read_whole(raster: Raster) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels of an image, which are those of its windows.

    Returns:
      uint8 `[H, W, 3]`, and bool `[H, W]`, where the file has data; None: everywhere.

    Raises:
      UserError: the image cannot be decoded, or is too large to be a tile.
    """
    if raster.height * raster.width > MOST:
        size = f"{raster.width}x{raster.height}"
        raise UserError(f"{raster.path}: is {size} pixels, too large for a tile; cut it up")
    _check_hollow(raster.path, raster.height, raster.width)
    window = (0, raster.height, 0, raster.width)
    return raster.read(*window), None if raster.valid is None else raster.valid(*window)


def _check_hollow(path: Path, height: int, width: int) -> None:
    """Refuses a picture of too many pixels for its bytes, see `HOLLOW`."""
    pixels, size = height * width, path.stat().st_size
    if pixels > WHOLE and pixels > HOLLOW * size:
        raise UserError(
            f"{path}: is {width}x{height} pixels in {size} bytes, which can be little but one "
            f"colour; images of more than {WHOLE} pixels need a byte for {HOLLOW} of them, cut it "
            "up or convert it to a TIFF"
        )


def _is_for_gdal(header: pillow.Header) -> bool:
    """Whether a picture is for GDAL: only of PNGs it makes the very pixels that Pillow makes."""
    is_large = header.height * header.width > WHOLE
    return header.bits > 8 or (header.format == "PNG" and is_large)


def _plain_tiff(path: Path) -> pillow.Header:
    header = pillow.read_plain_tiff(path)
    if header is None:
        raise UserError(f"{path}: is neither a picture nor a plain TIFF, {NEEDS_RASTERIO}")
    return header


def _open_whole(path: Path, header: pillow.Header, reading: Reading) -> Raster:
    """Decodes the image at the first call."""
    bands = reading.bands
    if bands is not None and max(bands) > 3:
        wanted = ",".join(map(str, bands))
        raise UserError(
            f"{path}: is a picture of three bands at most, and has not --bands={wanted}"
        )
    if header.bits > 8:
        raise UserError(f"{path}: has 16 bits per channel, {NEEDS_RASTERIO}")
    if header.height * header.width > MOST:
        size = f"{header.width}x{header.height}"
        raise UserError(f"{path}: is {size} pixels, too large for a picture; convert it to a TIFF")
    _check_hollow(path, header.height, header.width)
    decoded = cache(lambda: pillow.decode(path, header))

    def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        found = decoded()[0][top:bottom, left:right]
        if bands is None:
            return found
        return np.broadcast_to(found[..., [band - 1 for band in bands]], found.shape)

    def valid(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return np.asarray(decoded()[1])[top:bottom, left:right]

    has_data = valid if header.has_alpha else None
    return Raster(path, header.height, header.width, read, valid=has_data)


def _open_windows(
    path: Path, dataset: Any, header: pillow.Header | None, reading: Reading
) -> Raster:
    if header and not header.is_complete:  # GDAL would read the rest as anything
        raise UserError(f"{path}: cannot be decoded (it is cut off)")
    with pillow.decoding(path):
        layout = gdal.read_layout(path, dataset, reading)
        read = gdal.read_windows(path, dataset, layout, reading)
        valid = gdal.read_valid(path, dataset, layout)
    return Raster(path, dataset.height, dataset.width, read, valid=valid)


def _upright(raster: Raster, turned: int) -> Raster:
    """The image as it is shown."""
    if turned == 1:
        return raster
    if raster.transform is not None:
        raise UserError(
            f"{raster.path}: has both a georeference and orientation {turned}, which contradict "
            "each other; store it upright (gdal_translate drops the orientation)"
        )
    size = raster.height, raster.width
    height, width = orientation.shown_size(turned, *size)
    valid = raster.valid and orientation.shown_windows(turned, *size, raster.valid)
    read = orientation.shown_windows(turned, *size, raster.read)
    return raster._replace(height=height, width=width, read=read, valid=valid, is_turned=True)
