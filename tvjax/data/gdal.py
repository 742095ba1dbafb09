"""Files that GDAL opens (rasterio, the extra `geo`), read in windows, and their place on a map.

GDAL knows some 150 formats, of which many name other files, and addresses in the network, that it
would open too. Here a file is opened as what it begins like, a TIFF, PNG or JPEG, and if its name
ends in .vrt as a virtual raster of local ones (see `vrt`); files beside it that name others are
refused.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvjax import files
from tvjax.data import local, orientation, pillow, vrt
from tvjax.data.orientation import Read
from tvjax.data.reading import MOST_BANDS, Reading
from tvjax.errors import UserError, some

CACHE_MEGABYTES = 64
"""Memory for decoded blocks; by its own choice GDAL would take a share of the machine."""

OPTIONS = {
    "GDAL_CACHEMAX": CACHE_MEGABYTES,
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # a folder of 60,000 files is not listed for each
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{none}",  # should an address get past the checks
}
"""Settings of GDAL."""

DRIVERS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", **dict.fromkeys(pillow.TIFF, "GTiff")}
"""GDAL's names of what it may open, by how the files begin."""

BESIDE = (".ovr", ".OVR", ".msk", ".MSK")
"""Ends of files beside an image that GDAL opens too, by any driver: overviews and masks."""

MOST_BESIDE = 1 << 24
"""Bytes of a description beside an image (.aux.xml), which GDAL holds in memory."""

MOST_BLOCK = 1 << 28
"""Bytes of a block of pixels, which GDAL decodes at once."""

LISTED = 12
"""Names of bands that a message lists."""

COLORS = ("red", "green", "blue")


class Layout(NamedTuple):
    """What the numbers in a file mean."""

    bands: tuple[int, ...]
    """Numbers of the bands that are red, green and blue, or of the one that is grey."""
    dtype: str
    """Type of the bands: uint8 or uint16."""
    table: np.ndarray | None
    """Uint8 `[256, C]`, colours of numbers: C = 4 with alpha, of a palette; 1 of fewer bits than 8,
    and where 0 is white; None: numbers are colours."""
    takes_alpha: bool
    """Whether a band that the file names alpha was chosen as a colour."""
    alpha: int | None
    """Number of the band that is alpha; None: there is none, or it was chosen."""


@contextlib.contextmanager
def opening(path: Path) -> Iterator[Any]:
    """The file as rasterio opens it; None without rasterio, and of a picture that GDAL lacks.

    Raises:
      UserError: it is no picture and cannot be opened.
    """
    try:
        import rasterio
        from rasterio.errors import (
            NodataShadowWarning,
            NotGeoreferencedWarning,
            RasterioIOError,
        )
    except ImportError:
        yield None
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        warnings.simplefilter("ignore", NodataShadowWarning)
        stack.enter_context(rasterio.Env(**OPTIONS))
        dataset, driver = None, _driver(path)
        if driver is None and pillow.read_header(path) is None:
            raise UserError(
                f"{path}: cannot be decoded, it may be truncated or no image (it begins like no "
                "picture and no TIFF)"
            )
        if driver is not None:
            files.check_name(path.absolute())
            check_beside(path)
        with pillow.decoding(path):
            try:
                if driver is not None:
                    dataset = stack.enter_context(rasterio.open(path.absolute(), driver=driver))
            except RasterioIOError:
                if pillow.read_header(path) is None:
                    raise
            if dataset is not None:
                _check_dataset(path, dataset)
        yield dataset


def check_beside(path: Path) -> None:
    """Refuses files beside an image by which it could name any other, or an address.

    Raises:
      UserError: there is one.
    """
    for end in BESIDE:
        file = Path(f"{path}{end}")
        if file.exists() and pillow.read_beginning(file)[:4] not in pillow.TIFF:
            raise UserError(f"{file}: is no TIFF, and would be read as a part of {path}; remove it")
    for file in filter(Path.exists, _places_beside(path)):
        local.check_regular(file)
    file = Path(f"{path}.aux.xml")
    if file.exists():
        local.check_regular(file, MOST_BESIDE, f"they are read with {path}: remove it")


def beside(path: Path) -> list[Path]:
    """The files beside an image that are read with it: its place on a map, masks, overviews."""
    named = [Path(f"{path}{end}") for end in (".aux.xml", *BESIDE)]
    return [file for file in (*_places_beside(path), *named) if file.exists()]


def _places_beside(path: Path) -> Iterator[Path]:
    """Files, there or not, that may say where an image lies on a map."""
    kind = path.suffix[1:].lower()
    for end in (kind[:1] + kind[-1:] + "w", kind + "w", "wld", "tab"):
        yield from (path.with_suffix("." + end), path.with_suffix("." + end.upper()))


def _driver(path: Path) -> str | None:
    """The driver by which GDAL may open a file; None: no driver."""
    begin = pillow.read_beginning(path)
    if not vrt.is_named(path):
        return next((name for magic, name in DRIVERS.items() if begin.startswith(magic)), None)
    for source in vrt.sources(path):
        if vrt.is_named(source) or _driver(source) is None:
            raise UserError(f"{path}: names {source}, which is no TIFF, PNG or JPEG")
        with opening(source):  # by which it is checked
            pass
    return "VRT"


def _check_dataset(path: Path, dataset: Any) -> None:
    """Refuses a file before anything else is asked: most questions make GDAL look for masks."""
    if dataset.tags(ns="OVERVIEWS"):  # the file's name, in capitals or not
        raise UserError(
            f"{path}: names another file as its overviews; remove that (gdal_translate, and the "
            ".aux.xml beside it)"
        )
    if dataset.count > MOST_BANDS:
        raise UserError(
            f"{path}: has {dataset.count} bands, more than {MOST_BANDS}; choose three "
            "(gdal_translate -b)"
        )
    from rasterio.enums import Interleaving

    together = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    rows, columns = map(max, zip(*dataset.block_shapes, strict=True))
    size = rows * columns * together * max(np.dtype(kind).itemsize for kind in dataset.dtypes)
    if size > MOST_BLOCK:
        raise UserError(
            f"{path}: is stored in blocks of {columns}x{rows} pixels, {size >> 20} MiB of which "
            f"each is decoded at once, more than {MOST_BLOCK >> 20}; store it in tiles "
            "(gdal_translate -co TILED=YES)"
        )


def read_layout(path: Path, dataset: Any, reading: Reading) -> Layout:
    """What the numbers in a file mean.

    Raises:
      UserError: they mean nothing that is red, green, blue or grey, or it cannot be told.
    """
    # Once, and first: it raises what GDAL complains of in the metadata, also if it could go on.
    names = [kind.name for kind in dataset.colorinterp]
    if len(dataset.subdatasets) > 1:
        raise UserError(f"{path}: holds {len(dataset.subdatasets)} pictures; save one by itself")
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    space = structure.get("SOURCE_COLOR_SPACE", "RGB")
    if space not in ("RGB", "YCbCr", "CMYK"):
        raise UserError(f"{path}: has pixels of kind {space}; convert it to RGB")
    told = [(text or "").strip().lower() for text in dataset.descriptions]
    bands = _chosen(path, names, reading.bands) if reading.bands else _bands(path, names, told)
    dtypes = [dataset.dtypes[band - 1] for band in bands] if reading.bands else dataset.dtypes
    dtype = next((kind for kind in dtypes if kind != "uint8"), "uint8")
    inverted = structure.get("MINISWHITE") == "YES"
    if dtype == "uint16" and not inverted and names[0] != "palette":
        if reading.white is None:
            raise UserError(
                f"{path}: has 16 bits per channel (uint16), and no file says which value is "
                "white; give it by --white=VALUE to tvjax.data.prepare, and to tvjax.predict if "
                "the run was trained on images of another white"
            )
    elif dtype != "uint8":
        raise UserError(
            f"{path}: has pixels of type {dtype}{' where 0 is white' * inverted}; convert it to 8 "
            "bits per channel (gdal_translate -ot Byte -scale)"
        )
    takes_alpha = any(names[band - 1] == "alpha" for band in bands)
    alpha = names.index("alpha") + 1 if "alpha" in names and not takes_alpha else None
    return Layout(bands, dtype, _table(dataset, names[0], inverted), takes_alpha, alpha)


def read_windows(path: Path, dataset: Any, layout: Layout, reading: Reading) -> Read:
    """Gives windows, uint8 `[h, w, 3]`; see `read_layout`."""
    table = layout.table

    def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        with pillow.decoding(path):
            block = dataset.read(layout.bands, window=((top, bottom), (left, right)))
        if layout.dtype == "uint16":
            block = reading.shrunk(block)
        if table is not None and table.shape[1] == 4:
            return table[block[0], :3]
        block = block if table is None else table[block, 0]
        return np.moveaxis(np.broadcast_to(block, (3, *block.shape[1:])), 0, -1)

    return read


def read_valid(path: Path, dataset: Any, layout: Layout) -> Read | None:
    """Gives windows, bool `[h, w]`, of where the file has data; None: everywhere.

    It has none where its nodata value, alpha 0 or its mask says so. Alpha that was chosen as a
    band is none.
    """
    from rasterio.enums import MaskFlags

    if layout.takes_alpha or (layout.alpha and dataset.nodata is not None):
        return _read_known(path, dataset, layout)
    alpha = None if layout.table is None or layout.table.shape[1] < 4 else layout.table[:, 3]
    opaque = alpha is None or bool(np.all(alpha > 0))
    if opaque and all(MaskFlags.all_valid in flags for flags in dataset.mask_flag_enums):
        return None

    def valid(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        window = ((top, bottom), (left, right))
        with pillow.decoding(path):
            if alpha is not None:  # which GDAL does not count, nor needs
                found = dataset.read_masks(layout.bands[0], window=window) > 0
                return found & (alpha[dataset.read(layout.bands[0], window=window)] > 0)
            return dataset.dataset_mask(window=window) > 0

    return valid


def _read_known(path: Path, dataset: Any, layout: Layout) -> Read | None:
    """Where any of the colours is not the file's nodata value, and alpha is not 0.

    GDAL knows alpha or a nodata value, and not both.
    """
    nothing, alpha = dataset.nodata, layout.alpha
    if nothing is None:
        return None

    def valid(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        window = ((top, bottom), (left, right))
        with pillow.decoding(path):
            found = np.any(dataset.read(layout.bands, window=window) != nothing, axis=0)
            return found if alpha is None else found & (dataset.read(alpha, window=window) > 0)

    return valid


def read_orientation(path: Path, dataset: Any) -> int:
    """The orientation of a TIFF, which GDAL does not heed; 1 of other files."""
    tags = pillow.tiff_tags(path) if dataset.driver == "GTiff" else None
    number = 1 if tags is None else tags.get(orientation.TAG, 1)
    if number not in orientation.TURNS:
        return 1
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    space = structure.get("SOURCE_COLOR_SPACE")
    if space and "JPEG" not in structure.get("COMPRESSION", ""):  # GDAL heeds half of it there
        raise UserError(f"{path}: is {space} with orientation {number}; convert it to RGB")
    return number


def georeference(path: Path, dataset: Any) -> tuple[Any, Any]:
    """The transform to the map, and the map's CRS, which without a transform means nothing."""
    if not dataset.transform.is_identity:
        if not (np.isfinite(dataset.transform).all() and dataset.transform.determinant):
            raise UserError(f"{path}: its georeference is no map; remove it")
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
    if not (0 < pixel < np.inf and error <= pixel):
        raise UserError(
            f"{path}: no affine map goes through its ground control points (it misses one by "
            f"{error:.3g}, a pixel is {pixel:.3g}); rectify it first (gdalwarp)"
        )
    return transform, crs


def _chosen(path: Path, names: list[str], bands: tuple[int, ...]) -> tuple[int, ...]:
    """The bands that were chosen, if the file has them."""
    if names[0] == "palette":
        raise UserError(f"{path}: has a palette and no bands of which --bands could choose")
    if max(bands) > len(names):
        wanted = ",".join(map(str, bands))
        raise UserError(
            f"{path}: has {len(names)} bands ({some(names, LISTED)}), and not --bands={wanted}"
        )
    found = tuple(names[band - 1] for band in bands)
    if sorted(found) == sorted(COLORS) and found != COLORS:
        _note_order(bands, found)
    return bands


@functools.cache  # once, not for each file
def _note_order(bands: tuple[int, ...], names: tuple[str, ...]) -> None:
    """Tells that other bands were chosen for the colours than files name so."""
    wanted, said = ",".join(map(str, bands)), ", ".join(names)
    print(
        f"note: bands {wanted} are taken for red, green and blue, as was asked for in prepare, and "
        f"files name them {said}",
        file=sys.stderr,
    )


def _bands(path: Path, names: list[str], told: list[str]) -> tuple[int, ...]:
    """Numbers of the bands that are red, green and blue, or of the one that is grey.

    Bands that the file names otherwise stay unread. Three without names are taken in their order.
    What a file tells of its bands in words only makes the advice of the error.
    """
    plain = [k for k, name in enumerate(names, 1) if name != "alpha"]
    if all(name in names for name in COLORS):
        return tuple(names.index(name) + 1 for name in COLORS)
    if len(plain) == 1:
        return (plain[0],)
    if len(names) == 3 and all(name in ("gray", "undefined") for name in names):
        return 1, 2, 3
    known = [str(told.index(name) + 1) for name in COLORS if name in told]
    chosen = ",".join(known if len(known) == 3 else "123")
    raise UserError(
        f"{path}: has {len(names)} bands ({some(names, LISTED)}), of which none, or not "
        f"all, have the colour interpretation red, green and blue; choose three by "
        f"--bands={chosen} of prepare, or set it (rio edit-info --colorinterp=NAMES FILE)"
    )


def _table(dataset: Any, name: str, inverted: bool) -> np.ndarray | None:
    """The table of colours, see `Layout.table`."""
    if name == "palette":
        table = np.zeros((256, 4), np.uint8)
        for index, color in dataset.colormap(1).items():
            table[index] = color
        return table
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))
    if bits >= 8 and not inverted:
        return None
    most = 2 ** min(bits, 8) - 1
    levels = np.rint(np.minimum(np.arange(256), most) * (255 / most))
    return (255 - levels if inverted else levels).astype(np.uint8)[:, None]
