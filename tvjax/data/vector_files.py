"""Polygons with attributes from GeoJSON, GeoPackage and Shapefile, whichever the content is.

Files may come from anybody, and GDAL would take a text for an address, a database's view for a
table, and more. So GeoJSON is read as JSON, a GeoPackage by SQLite, read-only and from tables
alone, and pyogrio gets nothing but what begins like a Shapefile.
"""

import contextlib
import json
import mmap
import os
import re
import sqlite3
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from tvjax import interruption
from tvjax.data import local
from tvjax.errors import UserError, escaped, require, short, some

NEEDS_GEO = "needs rasterio, shapely and pyogrio: pip install 'tvjax[geo]'"

MOST_BYTES = 1 << 31
"""Size of a file: in memory it takes several times as many. A country's roofs have some 2^30."""

MOST_POINTS = 1 << 18
"""Points of one polygon: each tile that it touches looks at all of them."""

MOST_OPERATIONS = 5_000
"""Millions of SQLite's operations, a minute or two: 100 million polygons."""

LISTED = 8
"""Attributes, values or layers that a message lists."""

PACKAGE = b"SQLite format 3\0"
"""How a GeoPackage begins."""

ENVELOPES = (0, 32, 48, 48, 64)
"""Bytes of the box before a GeoPackage's geometry, by its kind."""

Row = tuple[Any, dict[str, Any], Any]
"""A name for messages, attributes, and a geometry: a shapely object, WKB, a GeoJSON dict, None."""


class Layer(NamedTuple):
    """Polygons of a file, in its coordinates."""

    polygons: np.ndarray
    """Shapely polygons without parts and heights: object `[N]`; outlines may cross themselves."""
    tree: Any
    """`shapely.STRtree` of them."""
    crs: Any
    """`rasterio.crs.CRS`."""


class Wanted(NamedTuple):
    """Which rows of a file count."""

    where: Mapping[str, frozenset[str] | None] = {}
    """The values that an attribute may have; None: any but none."""
    layer: str | None = None
    """Name of the layer of a GeoPackage; None: the only one."""
    flag: str = "labels"
    """What names the file, for messages."""


def parse_where(conditions: Sequence[str]) -> dict[str, frozenset[str] | None]:
    """Reads "building=yes" (this value) and "building" (any value), each as often as need be.

    Raises:
      UserError: an attribute's name is missing, or it is given with and without a value.
    """
    found: dict[str, frozenset[str] | None] = {}
    for condition in conditions:
        name, has_value, value = condition.partition("=")
        before = found.get(name, frozenset())
        if not name or (name in found and (before is None) == bool(has_value)):
            raise UserError(f"--where={condition}: give ATTRIBUTE=VALUE, or ATTRIBUTE for any")
        found[name] = before | {value} if has_value and before is not None else None
    return found


def read(file: Path, wanted: Wanted) -> Layer:
    """Reads the polygons of a file.

    Raises:
      UserError: it cannot be read, has no polygon that is wanted, or none at all, or no coordinate
        system, or a package is missing.
    """
    require("rasterio", f"--{wanted.flag}={file}: {NEEDS_GEO}")
    shapely = require("shapely", f"--{wanted.flag}={file}: {NEEDS_GEO}")
    local.check_regular(file, MOST_BYTES, "cut it up by place")
    with open(file, "rb") as opened:
        begin = opened.read(16)
    if wanted.layer is not None and begin != PACKAGE:
        raise UserError(f"--layer={wanted.layer}: {file} is no GeoPackage, and has no layers")
    with contextlib.ExitStack() as stack:
        if begin == PACKAGE:
            database = stack.enter_context(_open_package(file))
            layer = _layer(file, database, wanted)
            crs = _package_crs(file, database, layer)
            rows = _package_rows(file, database, layer, wanted)
        elif begin[:4] == b"\x00\x00\x27\x0a":
            rows, crs = _read_shapefile(file, wanted)
        else:
            content = _read_json(file)
            rows, crs = _json_rows(file, content), _json_crs(file, content)
        polygons = _polygons(file, rows, wanted)
    return Layer(polygons, shapely.STRtree(polygons), crs)


def files(file: Path) -> list[Path]:
    """A file and those that belong to it, whatever they are: a Shapefile has several."""
    if file.suffix.lower() != ".shp":
        return [file]
    ends = (".shx", ".dbf", ".prj", ".cpg")
    parts = (file.with_suffix(case(end)) for end in ends for case in (str.lower, str.upper))
    return [file, *(part for part in parts if os.path.lexists(part))]


@np.errstate(invalid="ignore")  # of NaN, which are told of
def _polygons(file: Path, rows: Iterator[Row], wanted: Wanted) -> np.ndarray:
    """The parts of the wanted rows that are areas."""
    import shapely

    met = {name: Counter[str]() for name in wanted.where}
    names, found = [], []
    seen: Counter[str] = Counter()
    known: set[str] = set()
    for number, (name, attributes, geometry) in enumerate(rows):
        if number % 1024 == 0:
            interruption.check()
        if len(known) < 256:
            known.update(attributes)
        if not _is_wanted(attributes, wanted.where, met):
            seen["others"] += 1
        elif geometry is None:
            seen["without a geometry"] += 1
        else:
            names.append(name)
            found.append(_geometry(file, name, geometry))
    _check_found(file, len(found), seen, known, met, wanted)
    shapes = shapely.force_2d(np.array(found, object))
    parts, owners = shapely.get_parts(shapes, return_index=True)
    parts, inner = shapely.get_parts(parts, return_index=True)  # of collections
    owners = owners[inner]
    if np.any(shapely.get_type_id(parts) == 7):  # collections in collections
        raise UserError(f"{file}: has collections of collections of geometries; split them up")
    keep = shapely.get_type_id(parts) == 3
    parts, owners = parts[keep], owners[keep]
    left_out = len(found) - len(np.unique(owners)) + seen["without a geometry"]
    if left_out and len(parts):
        words = (
            f"{left_out} of {len(found) + seen.total()} features are no areas, or have no geometry"
        )
        print(f"note: {escaped(str(file))}: {words}: they are left out", file=sys.stderr)
    if not len(parts):
        kinds = Counter(str(kind.geom_type) for kind in found)
        listed = some([f"{count} {kind}" for kind, count in kinds.most_common()], LISTED)
        raise UserError(f"{file}: has no polygons ({listed}); objects are areas, buffer them first")
    return _sound(file, parts, [names[k] for k in owners])


def _sound(file: Path, parts: np.ndarray, names: list[Any]) -> np.ndarray:
    """Polygons that are not empty, if all have finite coordinates and not too many of them.

    An outline that crosses itself stays as it is: to mend one takes time as the square of its
    points, and filled by the even-odd rule it is what mending would make of it.
    """
    import shapely

    counts = shapely.get_num_coordinates(parts)
    # Not by their bounds, which pass over NaN.
    points, owners = shapely.get_coordinates(parts, return_index=True)
    strange = np.isin(np.arange(len(parts)), owners[~np.isfinite(points).all(axis=1)])
    for wrong, words in (
        (counts > MOST_POINTS, f"has more than {MOST_POINTS} points; cut it up"),
        (strange, "has coordinates that are no numbers"),
    ):
        if wrong.any():
            raise UserError(f"{file}: the polygon of {names[int(np.argmax(wrong))]} {words}")
    return parts[~shapely.is_empty(parts)]


def _check_found(
    file: Path,
    number: int,
    seen: Counter[str],
    known: set[str],
    met: dict[str, Counter[str]],
    wanted: Wanted,
) -> None:
    """Refuses a file of which nothing is left, and says what there is."""
    if not number and not seen:
        raise UserError(f"{file}: holds no geometries")
    if not number and not seen["others"]:
        raise UserError(f"{file}: none of its {seen.total()} features has a geometry")
    for name, values in met.items():
        _check_where(file, name, wanted.where[name], values, known)
    if not number:
        raise UserError(f"{file}: no feature meets all conditions of --where at once")


def _check_where(
    file: Path, name: str, given: frozenset[str] | None, values: Counter[str], known: set[str]
) -> None:
    """Refuses an attribute or a value that no feature has: it is mistyped, and its objects would
    be background."""
    if not values and name not in known:
        there = some([short(one) for one in sorted(known)], LISTED)
        raise UserError(f"{file}: has no attribute {short(name)} (--where); there are {there}")
    lacking = [name] if given is None else [f"{name}={value}" for value in given - values.keys()]
    if lacking and (given is not None or not values):
        listed = some([f"{short(v)} ({n})" for v, n in values.most_common()], LISTED)
        raise UserError(
            f"{file}: no feature has {short(' or '.join(sorted(lacking)))} (--where); values of "
            f"{short(name)} are {listed}"
        )


def _is_wanted(
    attributes: dict[str, Any],
    where: Mapping[str, frozenset[str] | None],
    met: dict[str, Counter[str]],
) -> bool:
    found = True
    for name, values in where.items():
        text = _text(attributes.get(name))
        is_known = text in met[name] or text in (values or ())
        if text is not None and (len(met[name]) < 1024 or is_known):
            met[name][text] += 1
        found &= text is not None and (values is None or text in values)
    return found


def _text(value: Any) -> str | None:
    """A value as it is written behind `--where=ATTRIBUTE=`; None of no value."""
    if value is None or value != value or value == "":
        return None
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _geometry(file: Path, name: Any, geometry: Any) -> Any:
    import shapely

    try:
        if isinstance(geometry, dict):
            return _shape(geometry)
        return shapely.from_wkb(geometry) if isinstance(geometry, bytes) else geometry
    except Exception as error:  # shapely raises almost anything of malformed ones
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"{file}: {name} has a malformed geometry ({reason})") from error


def _shape(geometry: dict[str, Any]) -> Any:
    """A geometry of GeoJSON; of points of which some alone have a height, without heights."""
    from shapely.geometry import shape

    def flat(x: list[Any]) -> list[Any]:
        return [flat(inner) for inner in x] if isinstance(x[0], list) else x[:2]

    try:
        return shape(geometry)
    except (ValueError, TypeError):
        return shape(geometry | {"coordinates": flat(geometry["coordinates"])})


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: is no GeoJSON, GeoPackage or Shapefile (as JSON: {error})"
        ) from error
    if isinstance(content, dict) and "annotations" in content:
        raise UserError(f"{file}: is a COCO file; give it by --annotations")
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        raise UserError(f"{file}: is no GeoJSON (no object with a 'type')")
    return content


def _json_rows(file: Path, content: dict[str, Any]) -> Iterator[Row]:
    kind = content["type"]
    features = content.get("features") if kind == "FeatureCollection" else [content]
    if not isinstance(features, list):
        raise UserError(f"{file}: is no GeoJSON (its 'features' are no list)")
    for number, feature in enumerate(features, 1):
        if not isinstance(feature, dict):
            raise UserError(f"{file}: feature {number} is no JSON object")
        if feature.get("type") != "Feature":
            yield f"feature {number}", {}, feature
            continue
        attributes, geometry = feature.get("properties"), feature.get("geometry")
        if not isinstance(attributes, (dict, type(None))) or not isinstance(
            geometry, (dict, type(None))
        ):
            raise UserError(f"{file}: feature {number} is malformed (properties or geometry)")
        yield f"feature {number}", attributes or {}, geometry


def _json_crs(file: Path, content: dict[str, Any]) -> Any:
    """Longitude and latitude, unless the file names another, as it could before RFC 7946."""
    named = content.get("crs")
    properties = named.get("properties") if isinstance(named, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    found = re.fullmatch(r"(?:urn:ogc:def:crs:)?EPSG:(?:[0-9.]*:)?([0-9]{1,6})", str(name))
    if named is None or re.fullmatch(r"(?:urn:ogc:def:crs:)?OGC:[0-9.]*:?CRS84", str(name)):
        return _crs(file, "EPSG:4326")
    if not found:
        raise UserError(f"{file}: its crs is {short(name)}, which is none by EPSG's number")
    return _crs(file, f"EPSG:{found[1]}")


def _crs(file: Path, text: str | None) -> Any:
    """A coordinate system by "EPSG:NUMBER" or its text; other names could be addresses."""
    from rasterio import Env
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    number = re.fullmatch(r"EPSG:([0-9]{1,6})", text or "")
    try:
        with Env():  # in which what GDAL complains of is not printed
            return CRS.from_epsg(int(number[1])) if number else CRS.from_wkt(text or "")
    except CRSError as error:
        wrong = "says no coordinate system that is known; save it anew with one"
        wrong = f"its coordinate system {text} is not known" if number else wrong
        raise UserError(f"{file}: {wrong}") from error


def _read_shapefile(file: Path, wanted: Wanted) -> tuple[Iterator[Row], Any]:
    pyogrio = require("pyogrio", f"--{wanted.flag}={file}: {NEEDS_GEO}")
    if file.suffix.lower() != ".shp":
        raise UserError(f"{file}: is a Shapefile; its name must end in .shp")
    for part in files(file):
        local.check_regular(part)
    tables = [part for part in files(file) if part.suffix.lower() == ".shx"]
    if not tables:
        raise UserError(f"{file}: its .shx is missing; copy all files of the name")
    pyogrio.set_gdal_config_options(
        {"GDAL_DISABLE_READDIR_ON_OPEN": True, "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{none}"}
    )
    try:
        for table in tables:
            _check_records(file, table)
        _check_counts(file)
        meta, _, shapes, columns = pyogrio.raw.read(file.absolute(), force_2d=True)
    except UserError:
        raise
    except Exception as error:  # of a broken file pyogrio raises several kinds
        reason = str(error).partition("\n")[0][:160]
        raise UserError(f"{file}: cannot be read as a Shapefile ({reason})") from error
    names = [str(name) for name in meta["fields"]]
    attributes = list(zip(names, columns, strict=True))

    def rows() -> Iterator[Row]:
        for k, shape in enumerate(shapes):
            yield f"feature {k + 1}", {n: _plain(c[k]) for n, c in attributes}, shape

    return rows(), _crs(file, meta["crs"])


def _check_records(file: Path, table: Path) -> None:
    """Refuses a table whose records lie in one another: a small file would be read many times."""
    content = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
    count = max(table.stat().st_size - 100, 0) // 8
    pairs = np.fromfile(table, ">u4", 2 * count, offset=100).reshape(-1, 2).astype(np.int64)
    starts, words = 2 * pairs[:, 0], pairs[:, 1]
    own = starts[starts + 8 <= len(content)]
    said = [content[own + k].astype(np.int64) << 8 * (7 - k) for k in range(4, 8)]
    if max(2 * np.sum(words), 2 * np.sum(said)) > len(content):
        raise UserError(f"{table}: its records overlap in {file.name}; save the layer anew")


def _check_counts(file: Path) -> None:
    """Refuses files of different saves: GDAL would read as many records as the shortest has."""
    met = _walk(file)
    counts = {file: len(met)}
    for part in files(file):
        with open(part, "rb") as opened:
            head = opened.read(100).ljust(100, b"\0")
        size = part.stat().st_size
        if part.suffix.lower() == ".shx":
            (words,) = struct.unpack_from(">I", head, 24)
            counts[part] = max(min(2 * words, size) - 100, 0) // 8
        elif part.suffix.lower() == ".dbf":
            number, begin, each = struct.unpack_from("<IHH", head, 4)
            counts[part] = min(number, max(size - begin, 0) // max(each, 1))
    others = {count for part, count in counts.items() if part != file}
    # A record that was edited may stay in the .shp, beside the new one of its number; or a shorter
    # one is in its place, and what is left there is met as records of any number.
    numbers = np.unique(np.frombuffer(met, np.uint32))
    is_plain = np.array_equal(numbers, np.arange(1, len(numbers) + 1))
    if len(others) > 1 or (is_plain and others not in (set(), {len(met)}, {len(numbers)})):
        listed = ", ".join(f"{part.name} has {count}" for part, count in counts.items())
        raise UserError(
            f"{file}: its files hold different numbers of records ({listed}), so that they are not "
            "of one save; save the layer again as a whole and copy all files, or give a GeoPackage"
        )


def _walk(file: Path) -> "array[int]":
    """The numbers of the records of a .shp, one after the other, as far as they are whole."""
    numbers = array("I")
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as shp:
        read, place = struct.Struct(">II").unpack_from, 100
        end = min(2 * read(shp, 20)[1], len(shp)) if len(shp) >= place else 0
        while place + 8 <= end:
            number, words = read(shp, place)
            place += 8 + 2 * words
            if place <= end:
                numbers.append(number)
            if len(numbers) % (1 << 16) == 0:
                interruption.check()
    return numbers


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@contextlib.contextmanager
def _open_package(file: Path) -> Iterator[sqlite3.Connection]:
    """Opens a GeoPackage as nothing but a file that does not change."""
    journal = Path(f"{file}-wal")
    if journal.is_file() and journal.stat().st_size:
        raise UserError(
            f"{file}: has changes beside it ({journal.name}) that are not in it yet; close the "
            "program that edits it"
        )
    count = 0

    def check() -> int:
        nonlocal count
        count += 1
        return int(count > MOST_OPERATIONS)

    where = f"file:{quote(str(file.absolute()))}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(where, uri=True)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 28)
            database.set_progress_handler(check, 1_000_000)
            database.execute("PRAGMA trusted_schema=OFF")
            database.text_factory = lambda text: text.decode(errors="replace")
            yield database
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a GeoPackage ({error})") from error


def _layer(file: Path, database: sqlite3.Connection, wanted: Wanted) -> str:
    """The layer that is meant, which must be a table."""
    for name in ("gpkg_contents", "gpkg_geometry_columns", "gpkg_spatial_ref_sys"):
        _check_table(file, database, name)
    found = database.execute("SELECT table_name FROM gpkg_contents WHERE data_type='features'")
    names = [str(name) for (name,) in found.fetchmany(1000)]
    listed = some([short(name) for name in names], LISTED)
    if wanted.layer is not None and wanted.layer not in names:
        raise UserError(f"{file}: has no layer --layer={wanted.layer}; there are {listed}")
    if wanted.layer is None and len(names) != 1:
        raise UserError(f"{file}: has the layers {listed}; choose one by --layer=NAME")
    layer = names[0] if wanted.layer is None else wanted.layer
    _check_table(file, database, layer, "layer ")
    return layer


def _check_table(file: Path, database: sqlite3.Connection, name: str, kind: str = "") -> None:
    """Refuses what is computed when it is read, as views are: that may take any time."""
    made = database.execute("SELECT type, sql FROM sqlite_master WHERE name=?", (name,)).fetchone()
    virtual = made and re.match(r"\s*create\s+virtual", str(made[1]), re.IGNORECASE)
    if not made or made[0] != "table" or virtual:
        raise UserError(f"{file}: its {kind}{short(name)} is no table; save it as one")


def _package_crs(file: Path, database: sqlite3.Connection, layer: str) -> Any:
    row = database.execute(
        "SELECT s.organization, s.organization_coordsys_id, s.definition FROM "
        "gpkg_geometry_columns AS g JOIN gpkg_spatial_ref_sys AS s ON g.srs_id = s.srs_id "
        "WHERE g.table_name = ?",
        (layer,),
    ).fetchone()
    if row and str(row[0]).upper() == "EPSG" and type(row[1]) is int and 0 < row[1] < 1_000_000:
        return _crs(file, f"EPSG:{row[1]}")
    return _crs(file, str(row[2]) if row else None)


def _package_rows(
    file: Path, database: sqlite3.Connection, layer: str, wanted: Wanted
) -> Iterator[Row]:
    """Rows with the attributes that are asked for."""
    row = database.execute(
        "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
    ).fetchone()
    info = database.execute(f"PRAGMA table_info({_quoted(layer)})").fetchall()
    columns = [str(one[1]) for one in info]
    if not row or row[0] not in columns:
        raise UserError(f"{file}: its layer {short(layer)} has no column of geometries")
    asked = [name for name in wanted.where if name in columns]
    others = {name: None for name in columns}  # which are there, for messages
    query = f"SELECT {', '.join(map(_quoted, [row[0], *asked]))} FROM {_quoted(layer)}"
    for number, (blob, *values) in enumerate(database.execute(query), 1):
        name = f"row {number}"
        yield name, others | dict(zip(asked, values, strict=True)), _package_wkb(file, name, blob)


def _package_wkb(file: Path, name: str, blob: Any) -> bytes | None:
    if blob is None:
        return None
    kind = blob[3] >> 1 & 7 if isinstance(blob, bytes) and blob[:2] == b"GP" and blob[3:] else 9
    if kind >= len(ENVELOPES):
        raise UserError(f"{file}: {name} has no geometry of a GeoPackage")
    return None if blob[3] & 16 else blob[8 + ENVELOPES[kind] :]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
