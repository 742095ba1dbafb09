"""GDAL's virtual rasters: which of them name nothing but local pictures and TIFFs.

A virtual raster is a text that names the files that it is made of. GDAL would open whatever stands
there with any of its drivers, addresses in the network too.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from tvjax.data import local
from tvjax.errors import UserError, short

SUFFIX = ".vrt"
MOST_BYTES = 1 << 26
"""Size of a virtual raster; a mosaic of 60,000 files has half of it."""

TAGS = frozenset(
    """VRTDataset SRS GeoTransform Metadata MDI VRTRasterBand NoDataValue ColorInterp ColorTable
    Entry Description Offset Scale UnitType SimpleSource ComplexSource SourceFilename SourceBand
    SourceProperties SrcRect DstRect NODATA ScaleOffset ScaleRatio LUT UseMaskBand MaskBand
    HideNoDataValue BlockXSize BlockYSize OverviewList""".split()
)
"""Elements that name no file but a source's."""
ATTRIBUTES = frozenset(
    """rasterXSize rasterYSize RasterXSize RasterYSize BlockXSize BlockYSize blockXSize blockYSize
    DataType dataType band relativeToVRT relativetoVRT shared xOff yOff xSize ySize key domain
    resampling dataAxisToSRSAxisMapping coordinateEpoch c1 c2 c3 c4""".split()
)
"""Attributes that change no kind and name no file: GDAL takes any for an element within."""


def is_named(path: str | Path) -> bool:
    """Whether a file says by the end of its name that it is a virtual raster."""
    return str(path).lower().endswith(SUFFIX)


def sources(path: Path) -> Iterator[Path]:
    """The files that a virtual raster is made of.

    Raises:
      UserError: it is no virtual raster, too large, or of another kind than a mosaic of files.
    """
    local.check_regular(path, MOST_BYTES, "split it")
    try:
        content = path.read_bytes()
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: is no virtual raster ({error})") from error
    if b"<!" in content:  # which other readers of XML may read otherwise
        raise UserError(f"{path}: has comments or declarations; convert it to a TIFF")
    if root.tag != "VRTDataset":
        raise UserError(f"{path}: is no virtual raster (it begins with {short(root.tag)})")
    for element in root.iter():
        if element.tag not in TAGS or not ATTRIBUTES.issuperset(element.attrib):
            others = [f"{k}={v}" for k, v in element.attrib.items() if k not in ATTRIBUTES]
            kind = element.tag if element.tag not in TAGS else others[0]
            raise UserError(
                f"{path}: has {short(kind)}; of virtual rasters those are read that join files "
                "(gdalbuildvrt); convert it to a TIFF"
            )
        if element.tag == "MDI" and "OVERVIEW" in element.attrib.get("key", "").upper():
            raise UserError(f"{path}: names overviews; convert it to a TIFF")
        if element.tag == "SourceFilename":
            yield _source(path, element)


def _source(path: Path, element: ElementTree.Element) -> Path:
    name = (element.text or "").strip()
    relative = {key.lower(): value for key, value in element.attrib.items()}.get("relativetovrt")
    source = path.absolute().parent / name if relative == "1" else Path(name).absolute()
    if len(element) or relative not in (None, "0", "1"):
        raise UserError(f"{path}: is no virtual raster (a name that is none)")
    if local.wrong_name(name) or name.startswith("/vsi") or ":" in name or "<" in name:
        raise UserError(f"{path}: names {short(name)}, which is no local file")
    try:
        local.check_regular(source)
    except UserError as error:
        raise UserError(f"{path}: names what is no file: {error}") from error
    return source
