"""Images of any size, read window by window, with the place on the map that they show.

PNG and JPEG are decoded whole by Pillow, as training tiles are. Larger ones than 64 megapixels, and
all else that GDAL opens, are read in windows by rasterio (the extra `geo`).
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tvjax.data import area, pictures
from tvjax.errors import UserError
from tvjax.rasters.resample import Axis

PLAIN = (".png", ".jpg", ".jpeg")
"""Suffixes that Pillow reads; these images give masks in PNG if they have no georeference."""

CACHE_MEGABYTES = 64
"""Of decoded blocks that GDAL keeps; by its own choice it would take a share of the machine."""


WHOLE = 1 << 26
"""Pixels of the largest PNG or JPEG that is decoded whole, by the reader of the training tiles."""

Read = Callable[[int, int, int, int], np.ndarray]


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
    valid: Callable[[int, int], np.ndarray] | None = None
    """`(top, bottom) ->` bool `[h, width]`, where the file has data; None: everywhere."""

    @property
    def is_plain(self) -> bool:
        """Whether it is a picture and no map."""
        return self.transform is None and self.path.suffix.lower() in PLAIN


@contextlib.contextmanager
def open_raster(path: Path, *, white: float | None = None) -> Iterator[Raster]:
    """Opens an image: grey, palette, RGB, or RGB with more bands, which stay unread.

    Args:
      path: of the image.
      white: the value of 16-bit pixels that becomes 255, and so does whatever is above it; 0 stays
        0. None: 16-bit images are refused, since their brightness cannot be told from the file.

    Raises:
      UserError: it cannot be read, has other pixels, or needs rasterio and there is none.
    """
    try:
        import rasterio
    except ImportError:
        yield _open_whole(path)
        return
    from rasterio.errors import NotGeoreferencedWarning

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES))
        with _reading(path):
            dataset = stack.enter_context(rasterio.open(path))
            raster = _open_windows(path, dataset, white)
        yield raster


def scaled(raster: Raster, scale: float) -> Raster:
    """The image at `scale` times its resolution, resized as training tiles were (by area)."""
    if scale == 1:
        return raster
    rows = Axis.scaled(raster.height, scale)
    columns = Axis.scaled(raster.width, scale)

    def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        block = raster.read(*rows.source(top, bottom), *columns.source(left, right))
        weights = rows.weights(top, bottom), columns.weights(left, right)
        return area.mean(block, *weights, rows.total * columns.total)

    return raster._replace(height=rows.new, width=columns.new, read=read)


def from_array(image: np.ndarray, path: Path = Path("array.png")) -> Raster:
    """An image in memory, uint8 `[H, W, 3]`."""
    height, width = image.shape[:2]
    return Raster(path, height, width, lambda t, b, x, y: image[t:b, x:y])


def _open_whole(path: Path) -> Raster:
    if path.suffix.lower() not in PLAIN:
        raise UserError(
            f"{path}: only PNG and JPEG are read without rasterio; pip install 'tvjax[geo]'"
        )
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return Raster(path, height, width, _whole(path))


def _whole(path: Path) -> Read:
    """Decodes the image at the first call, as training does."""
    decoded: list[np.ndarray] = []

    def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        if not decoded:
            decoded.append(pictures.read_image(path))
        return decoded[0][top:bottom, left:right]

    return read


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Around what reads, and no more: what fails in writing is not the image's fault."""
    from rasterio.errors import RasterioError

    try:
        yield
    except (OSError, RasterioError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason})") from error


def _open_windows(path: Path, dataset: Any, white: float | None) -> Raster:
    kind = next((dtype for dtype in dataset.dtypes if dtype != "uint8"), "uint8")
    if kind != "uint8" and (kind != "uint16" or white is None):
        cure = "convert it to 8 bits a channel (gdal_translate -ot Byte -scale)"
        if kind == "uint16":
            cure = "say which value is white, e.g. --white=10000"
        raise UserError(f"{path}: has pixels of type {kind}; {cure}")
    place = _georeference(path, dataset)
    raster = Raster(path, dataset.height, dataset.width, _whole(path), *place)
    small = raster.height * raster.width <= WHOLE
    if dataset.driver in ("PNG", "JPEG") and small and kind == "uint8":
        return raster
    if dataset.driver == "PNG":
        _check_end(path)
    palette, bands = _palette(dataset), _bands(dataset)

    def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        with _reading(path):
            block = dataset.read(bands, window=((top, bottom), (left, right)))
        if white is not None and block.dtype == np.uint16:
            block = np.rint(np.minimum(block * (255 / white), 255)).astype(np.uint8)
        return palette[block[0]] if palette is not None else np.moveaxis(block, 0, -1)

    def valid(top: int, bottom: int) -> np.ndarray:
        with _reading(path):
            return dataset.dataset_mask(window=((top, bottom), (0, raster.width))) > 0

    from rasterio.enums import MaskFlags

    whole = all(MaskFlags.all_valid in flags for flags in dataset.mask_flag_enums)
    if whole or dataset.driver in ("PNG", "JPEG"):  # whose alpha is dropped at any size
        return raster._replace(read=read)
    return raster._replace(read=read, valid=valid)


def _georeference(path: Path, dataset: Any) -> tuple[Any, Any]:
    """The transform to the map, and the map's CRS, which without a transform means nothing."""
    if not dataset.transform.is_identity:
        return dataset.transform, dataset.crs
    points, crs = dataset.gcps
    if not points:
        return None, None
    from rasterio.transform import from_gcps

    transform = from_gcps(points)  # the affine map that fits them best
    matrix = np.array([[transform.a, transform.d], [transform.b, transform.e]])
    found = np.array([(p.col, p.row) for p in points]) @ matrix + (transform.c, transform.f)
    error = float(np.abs(found - [(p.x, p.y) for p in points]).max())
    pixel = abs(transform.determinant) ** 0.5
    if not 0 < pixel or error > pixel:
        raise UserError(
            f"{path}: no affine map goes through its ground control points (it misses one by "
            f"{error:.3g}, a pixel is {pixel:.3g}); rectify it first (gdalwarp)"
        )
    return transform, crs


def _check_end(path: Path) -> None:
    """Refuses a PNG that was cut off, of which GDAL would read the rest as anything."""
    with open(path, "rb") as file:
        file.seek(-12, 2)
        if file.read()[4:8] != b"IEND":
            raise UserError(f"{path}: cannot be read (it is cut off)")


def _bands(dataset: Any) -> list[int]:
    """Which bands are red, green and blue; the first ones if the file does not say."""
    names = [interpretation.name for interpretation in dataset.colorinterp]
    if all(name in names for name in ("red", "green", "blue")):
        return [names.index(name) + 1 for name in ("red", "green", "blue")]
    return [1, 2, 3] if dataset.count >= 3 else [1, 1, 1]


def _palette(dataset: Any) -> np.ndarray | None:
    """Uint8 `[256, 3]` if the first band holds indices into a palette."""
    if dataset.colorinterp[0].name != "palette":
        return None
    table = np.zeros((256, 3), np.uint8)
    for index, color in dataset.colormap(1).items():
        table[index] = color[:3]
    return table
