"""Masks and polygons of image files, written as they are found; the program is `tvjax.predict`."""

import contextlib
import fcntl
import glob
import hashlib
import itertools
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tvjax import files, interruption
from tvjax.data import coco, mosaic, scenes, workspace
from tvjax.data.mosaic import Place, open_place, path_of
from tvjax.data.pictures import Raster
from tvjax.data.reading import AS_NAMED, Reading
from tvjax.data.scaling import scaled
from tvjax.errors import UserError, escaped, require, short
from tvjax.inference import polygons, regularize, separation, shared, tiles, writer
from tvjax.inference.scales import Scales


class Options(NamedTuple):
    """What is written, and how."""

    scales: Scales = Scales()
    """How images are scaled for the net."""
    threshold: float = 0.5
    probabilities: bool = False
    simplify: float = 0.0
    min_area: int = 1
    category: int = 1
    """Category of all objects in the COCO results."""
    reading: Reading = AS_NAMED
    """How images are read."""
    regularize: bool = False
    """Whether polygons get right angles, see `tvjax.inference.regularize`."""

    def draw(self, group: list[polygons.Polygon], aspect: float) -> list[polygons.Polygon]:
        """Outlines as they are written, of objects that share walls, for pixels of an aspect."""
        if self.regularize:
            group = regularize.regularize(group, aspect=aspect)
        return shared.simplify(group, self.simplify) if self.simplify else group


DEFAULTS = Options()

NEEDS_RASTERIO = "its masks are GeoTIFFs, which need rasterio; pip install 'tvjax[geo]'"

MOST_NAME = 255
"""Bytes of a file's name on the usual file systems."""


def find_images(
    patterns: Iterable[str], *, as_map: bool = True, is_tms: bool = False
) -> list[Place]:
    """The images of directories (see `mosaic.images_in`), globs and files, in order, each once.

    Raises:
      UserError: one of them names nothing, or two files would be written under one name: on some
        file systems also where only case, or how accents are written, tells them apart.
    """
    found: dict[Path, Place] = {}
    for pattern in patterns:
        path = Path(pattern)
        if os.path.isdir(path):  # False, too, of names that are too long
            inside = mosaic.images_in(path, as_map=as_map, is_tms=is_tms)
        else:
            inside = [path] if os.path.exists(path) else [Path(p) for p in glob.glob(pattern)]
        if not inside:
            raise UserError(f"--images={pattern}: no such image, or none in there")
        for place in sorted(inside, key=path_of):
            path = path_of(place)
            found.setdefault(path.parent.resolve() / path.name, place)
    stems: dict[str, Path] = {}
    for path in map(path_of, found.values()):
        other = stems.setdefault(_composed(path.stem).casefold(), path)
        if other != path:
            raise UserError(f"{other} and {path} would be written under the same name; rename one")
    return list(found.values())


def number_images(places: Sequence[Place], annotations: str | None) -> list[tuple[int, Place]]:
    """Ids of the images: their positions from 1, or those of a COCO file.

    Of its images of a path's name, the one whose folders are the path's too is meant. Where there
    is one of the name only, and in other folders, it is taken, and a note says so.

    Raises:
      UserError: the file cannot be read, has no image of one of the names, or several that could
        be meant, or one that could mean several of them.
    """
    if annotations is None:
        return list(enumerate(places, 1))
    paths = list(map(path_of, places))
    named: dict[str, list[tuple[int, str]]] = {}
    content = coco.read_json(Path(annotations), ("images",))
    try:
        for record in content["images"]:
            name = record["file_name"]
            if type(record["id"]) is not int or abs(record["id"]) >= 2**63:
                raise ValueError(f"id {short(record['id'])} is no integer of 64 bits")
            named.setdefault(_parts(name)[-1], []).append((record["id"], name))
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        words = f"{annotations}: is no COCO file with images ({error})"
        raise UserError(words) from error
    found = [_record(path, named, annotations) for path in paths]
    owners: dict[int, Path] = {}
    for (number, _), path in zip(found, paths, strict=True):
        other = owners.setdefault(number, path)
        if other != path:
            raise UserError(
                f"{annotations}: image id {number} would be that of {other} and of {path}; predict "
                f"them one by one, or name the images in it by their folders too"
            )
    elsewhere = [
        f"{path} as {name}"
        for (_, name), path in zip(found, paths, strict=True)
        if not _agreement(path, name)[0]
    ]
    if elsewhere:
        _note(
            f"{len(elsewhere)} images are in other folders than {annotations} says, and were found "
            f"by their names alone: {elsewhere[0]}"
        )
    return [(number, place) for (number, _), place in zip(found, places, strict=True)]


def declared_sizes(annotations: str | None) -> dict[int, tuple[int, int]]:
    """Height and width of the images of a COCO file by their ids, as far as it declares them."""
    if annotations is None:
        return {}
    images = coco.read_json(Path(annotations), ("images",))["images"]
    found = {x["id"]: (x.get("height"), x.get("width")) for x in images}
    return {k: size for k, size in found.items() if all(type(x) is int and x > 0 for x in size)}


def _record(
    path: Path, named: dict[str, list[tuple[int, str]]], annotations: str
) -> tuple[int, str]:
    """Id and name of the image of a COCO file that agrees best with a path."""
    candidates = named.get(_parts(path)[-1], [])
    if not candidates:
        raise UserError(f"{path}: {annotations} has no image of this name")
    most = max(_agreement(path, name) for _, name in candidates)
    best = [(number, name) for number, name in candidates if _agreement(path, name) == most]
    if len(best) > 1:
        (one, first), (two, second) = best[:2]
        raise UserError(
            f"{path}: {annotations} names it twice, as image ids {one} ({first}) and {two} "
            f"({second}); leave one out, or name the images in it by their folders too"
        )
    return best[0]


def _agreement(path: Path, name: str) -> tuple[bool, int]:
    """Whether a path ends in a name, folders and all; and in how many of its parts."""
    parts = _parts(name)
    pairs = zip(reversed(_parts(path.absolute())), reversed(parts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return shared == len(parts), shared


def _parts(path: str | Path) -> tuple[str, ...]:
    return Path(_composed(os.path.normpath(path))).parts


def _composed(name: str) -> str:
    """The name with its accents written in one way (macOS has another than others)."""
    return unicodedata.normalize("NFC", name)


RECORD = "predicted.jsonl"
"""The file in a folder of results that lists what was written there, and of which image."""

RESULTS = "results.json"
ENDINGS = ".geojson", "_mask.png", "_mask.tif", "_probability.png", "_probability.tif"
"""What follows an image's stem in the names of its files."""


def check_replaced(out: Path, places: Iterable[Place]) -> None:
    """Refuses to replace what is of something else, or to leave results out of `results.json`.

    Raises:
      UserError: a file that would be written is there, and no earlier call of `predict_images`
        wrote it of the same image, or it was changed since; or earlier calls predicted other
        images, whose objects `results.json` would lose.
    """
    names, own = _names(places), _read_record(out)
    there = [name for name in (*names, *own) if os.path.lexists(out / name)]
    for name in there:
        if name not in own:
            raise UserError(
                f"--out={out} holds {name}, which is of something else ({RECORD} does not list "
                "it) and would be replaced; name another folder"
            )
        image, digest = own[name]
        if name not in names or image != names[name]:
            raise UserError(
                f"--out={out} holds results of other images ({name}, of {image}), which would be "
                "lost; predict them together, or name another folder"
            )
        if digest not in (None, _digest(out / name)):
            raise UserError(
                f"--out={out} holds {name}, which was changed since it was written and would be "
                "replaced; move it away, or name another folder"
            )


def _names(places: Iterable[Place]) -> dict[str, str]:
    """All files that may be written, and the path of the image of each."""
    paths = [path_of(place) for place in places]
    found = {path.stem + end: os.path.realpath(path) for path in paths for end in ENDINGS}
    return {RESULTS: "", **found}


Known = dict[str, tuple[str | None, str | None]]
"""Path of the image and digest, by the name of a file; no digest: it is being written."""


def _read_record(out: Path) -> Known:
    """The files that are listed: of lines of one file the last counts."""
    try:
        with open(out / RECORD, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.endswith("\n")]  # else cut off
        found = {str(of["file"]): (of["image"], of["sha256"]) for of in lines}
        return {name: of for name, of in found.items() if of[0] is not None}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{out / RECORD} cannot be read; name another --out") from error


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None of anything else."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Record:
    """The list of what was written into a folder, to which each file is added when it is whole."""

    def __init__(self, out: Path):
        self._out, self._before = out, _read_record(out)
        there = {name: of for name, of in self._before.items() if os.path.lexists(out / name)}
        files.write_text(out / RECORD, "".join(map(_line, there, there.values())))

    @contextlib.contextmanager
    def writing(self, names: Mapping[str, str]) -> Iterator[None]:
        """Lists files, by the paths of their images, before they are written and when they are
        whole; after an error as before, perhaps as none of ours."""
        self._add({name: (image, None) for name, image in names.items()})
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk, of which the error under way tells
                self._add({name: self._before.get(name, (None, None)) for name in names})
            raise
        there = [name for name in names if os.path.lexists(self._out / name)]
        self._add({name: (names[name], _digest(self._out / name)) for name in there})

    def older(self, images: Iterable[Path]) -> list[str]:
        """The files of earlier calls that are there still, of these images."""
        paths = {os.path.realpath(image) for image in images}
        there = (name for name, (image, _) in self._before.items() if image in paths)
        return sorted(name for name in there if os.path.lexists(self._out / name))

    def remove(self, names: Iterable[str]) -> None:
        """Removes files of earlier calls, if they are as those left them."""
        for name in names:
            _, digest = self._before.get(name, ("", None))
            if digest is not None and digest == _digest(self._out / name):
                (self._out / name).unlink()

    def _add(self, listed: Known) -> None:
        with open(self._out / RECORD, "a", encoding="utf-8") as file:
            file.writelines(map(_line, listed, listed.values()))


def _line(name: str, of: tuple[str | None, str | None]) -> str:
    return json.dumps({"file": name, "image": of[0], "sha256": of[1]}) + "\n"


@contextlib.contextmanager
def _recorded(out: Path, places: Sequence[Place]) -> Iterator[Record]:
    """Keeps others out, and the list of what is written."""
    with contextlib.ExitStack() as held:
        # Of the folder itself: nothing is left there, and the system drops it with the process.
        folder = os.open(out, os.O_RDONLY)
        held.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--out={out} is in use by another prediction; wait for it") from error
        except OSError:
            pass  # a file system without locks
        check_replaced(out, places)
        record = Record(out)
        try:
            with record.writing({RESULTS: ""}):
                yield record
        finally:
            with contextlib.suppress(OSError):
                if not any(os.path.lexists(out / name) for name in _read_record(out)):
                    (out / RECORD).unlink()


def _of_raster(raster: Raster, place: Place, options: Options) -> tuple[dict[str, str], list[str]]:
    """The files that are written of an image, and others that earlier calls may have written."""
    kind = "png" if raster.is_plain else "tif"
    now = [".geojson", f"_mask.{kind}"] + [f"_probability.{kind}"] * options.probabilities
    stem, image = raster.path.stem, os.path.realpath(path_of(place))
    return {stem + end: image for end in now}, [stem + end for end in ENDINGS if end not in now]


def predict_images(
    images: Sequence[tuple[int, Place]],
    out: Path,
    net: tiles.Net,
    *,
    options: Options = DEFAULTS,
    tile: int | None = None,
    batch: int = 1,
    whole: tuple[int, int] | None = None,
    declared: Mapping[int, tuple[int, int]] | None = None,
) -> tuple[int, list[str]]:
    """Writes the masks and polygons of images into a folder; see `tvjax.predict`.

    Args:
      images: ids of the images, and their files or mosaics.
      out: the folder, made if need be. What is not complete lies in a hidden folder therein, which
        is removed at the end, or, after a kill, by the next that writes there.
      net: tiles, float32 `[batch, H, W, 3]` -> probabilities `[batch, H, W, 1]`; a `Predictor`. Of
        one with contact (see `tiles.Net`), objects that touch are parted.
      options: what is written.
      tile: side of the tiles of images that are larger; None: see `tiles.choose_tiling`.
      batch: tiles that the net takes at once.
      whole: size of the tiles that the net was trained on, see `tiles.choose_tiling`.
      declared: height and width of images by their ids, as `declared_sizes` has them; images of
        another size are skipped.

    Returns:
      The number of objects, and what was wrong with the images that were skipped.

    Raises:
      UserError: the folder cannot be written, or holds other results (see `check_replaced`), or an
        option needs a package that is missing.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, out = Path(folder, "a.png"), Path(folder, "out")
    ...     Image.new("RGB", (64, 64), "red").save(path)
    ...     done = predict_images([(1, path)], out, lambda images: images[..., :1])  # red is roof
    ...     print(done, sorted(file.name for file in out.iterdir()))
    (1, []) ['a.geojson', 'a_mask.png', 'predicted.jsonl', 'results.json']
    """
    files.check_folder("out", out)
    if options.simplify or options.regularize:
        polygons.require_shapely()
    skipped: list[str] = []
    if getattr(net, "channels", 1) > 1:
        separation.require_skimage()
    tiling, sizes = _plan(images, net, options, (tile, batch, whole), declared or {}, skipped)
    total = sum(tiles.count(height, width, tiling) for _, (height, width) in sizes)
    objects, missing = 0, {path_of(place) for _, place in images}
    with (
        workspace.beside(out / RESULTS) as work,
        files.writing("out", out),
        _recorded(out, [place for _, place in images]) as record,
        files.replacing(out / RESULTS, work) as temporary,
        writer.JsonList(temporary) as results,
        tqdm(total=total, desc="predicting", unit="tile", leave=False, delay=3) as bar,
    ):
        for (number, place), _ in sizes:
            interruption.check()
            mark = results.mark()
            try:
                with (
                    _skipping(path_of(place), skipped),
                    open_place(place, options.reading) as raster,
                ):
                    names, older = _of_raster(raster, place, options)
                    with record.writing(names):
                        found = predict_raster(raster, out, work, net, tiling, options, bar.update)
                        objects += _collect(found, raster, results, number, options.category)
                    record.remove(older)
                    mark = results.mark()
                    missing.remove(path_of(place))
            finally:
                results.back_to(mark)  # of an image that was skipped nothing stays
        stale = record.older(missing)
    if stale:
        _note(
            f"{len(stale)} files of an earlier call stay ({stale[0]}): their images were skipped "
            f"now, and {RESULTS} has none of their objects"
        )
    return objects, skipped


def _plan(
    images: Sequence[tuple[int, Place]],
    net: tiles.Net,
    options: Options,
    how: tuple[Any, ...],
    declared: Mapping[int, tuple[int, int]],
    skipped: list[str],
) -> tuple[tiles.Tiling, list[tuple[tuple[int, Place], tuple[int, int]]]]:
    """The tiling, and the images that can be predicted, with their sizes as the net sees them."""
    sizes, written, by_map = [], [], []
    for image in images:
        interruption.check()
        path = path_of(image[1])
        with _skipping(path, skipped), open_place(image[1], options.reading) as raster:
            _check_name(path)
            scenes.check_latitude(raster)
            height, width = declared.get(image[0], (raster.height, raster.width))
            if (raster.height, raster.width) != (height, width):
                raise UserError(
                    f"{path}: is {raster.width}x{raster.height} pixels, but --annotations declare "
                    f"{width}x{height} for image id {image[0]}; give the images that they are of"
                )
            small = scaled(raster, options.scales.of(raster))
            if not raster.is_plain:
                require("rasterio", f"{path}: {NEEDS_RASTERIO}")
            sizes.append((image, (small.height, small.width)))
            written.append((raster.height, raster.width))
            by_map.append(options.scales.by_map(raster))
    tiling = tiles.choose_tiling({size for _, size in sizes}, net, *how)
    for words in options.scales.describe(by_map):
        _note(words)
    kept = []
    for (image, size), full in zip(sizes, written, strict=True):
        path = path_of(image[1])
        with _skipping(path, skipped):
            tiles.check_size(path, size, tiling)
            tiles.check_size(path, full, tiling)
            kept.append((image, size))
    return tiling, kept


def _collect(
    found: Generator[polygons.Polygon, None, None],
    raster: Raster,
    results: writer.JsonList,
    number: int,
    category: int,
) -> int:
    """Adds an image's objects to the COCO results; returns their number."""
    is_coded = raster.height * raster.width <= polygons.MOST_CODED
    if not is_coded:
        _note(f"{raster.path}: is too large for COCO's codes, results.json lacks it")
    count = 0
    with contextlib.closing(found):  # at once where this loop is left: it then closes its files
        for polygon in found:
            count += 1
            if is_coded:
                size = raster.height, raster.width
                results.add(polygons.coco_result(polygon, *size, number, category))
    return count


def predict_raster(
    raster: Raster,
    out: Path,
    work: Path,
    net: tiles.Net,
    tiling: tiles.Tiling,
    options: Options,
    progress: Callable[[int], Any],
) -> Generator[polygons.Polygon, None, None]:
    """Yields an image's objects; its files stand in `out` when they have all been taken.

    Until then they grow in the folder `work`.
    """
    kind = "png" if raster.is_plain else "tif"
    with contextlib.ExitStack() as stack:

        def create(name: str, dtype: Any) -> writer.Png | writer.GeoTiff:
            target = out / f"{raster.path.stem}_{name}.{kind}"
            path = stack.enter_context(files.replacing(target, work))
            size = raster.height, raster.width
            if raster.is_plain:
                return stack.enter_context(writer.Png(path, *size, dtype))
            return stack.enter_context(
                writer.GeoTiff(path, *size, dtype, raster.transform, raster.crs)
            )

        masks = create("mask", np.uint8)
        maps = None
        if options.probabilities:
            maps = create("probability", np.uint16 if raster.is_plain else np.float32)

        def written() -> Iterator[np.ndarray]:
            without: list[int] = []
            scale = options.scales.of(raster)
            for strip in tiles.probabilities(raster, net, tiling, scale, progress, without.append):
                values = strip[..., 0]
                masks.write(np.where(values > options.threshold, 255, 0).astype(np.uint8))
                if maps is not None:
                    maps.write(np.rint(values * 65535) if raster.is_plain else values)
                yield strip
            _note_no_data(raster.path, sum(without) / (raster.height * raster.width))

        path = stack.enter_context(files.replacing(out / f"{raster.path.stem}.geojson", work))
        features = stack.enter_context(writer.JsonList(path, *_collection(raster)))
        aspect = scenes.aspect(raster)
        for group in separation.groups(
            written(), threshold=options.threshold, min_area=options.min_area
        ):
            for polygon, drawn in zip(group, options.draw(group, aspect), strict=True):
                features.add(polygons.feature(drawn, raster.transform))
                yield polygon


def _check_name(path: Path) -> None:
    """Refuses names that could not be those of what is written for an image."""
    longest = len(os.fsencode(f"{path.stem}_probability.png"))
    if longest > MOST_NAME:
        raise UserError(
            f"{path}: its name is too long for those of its masks, by {longest - MOST_NAME} bytes; "
            f"rename it"
        )


@contextlib.contextmanager
def _skipping(path: Path, skipped: list[str]) -> Iterator[None]:
    """Reports a bad image and goes on. Reading raises no `OSError`, writing does: it goes through,
    since no other image would fare better."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # whatever it was, it must not cost the other images
        reason = str(error)
        if not isinstance(error, UserError):
            reason = f"{path}: {type(error).__name__}: {reason.partition(chr(10))[0]}"
        tqdm.write(f"skipped: {escaped(reason)}", file=sys.stderr)
        skipped.append(reason)


def _note(words: str) -> None:
    tqdm.write(f"note: {escaped(words)}", file=sys.stderr)


def _note_no_data(path: Path, share: float) -> None:
    if share > 0.5:
        _note(
            f"{path}: {share:.1%} of it has no data (alpha is 0, or its nodata value or mask says "
            "so), where no objects are sought; if another band was taken for alpha, near infrared "
            "for instance, name it otherwise (rio edit-info --colorinterp=red,green,blue,undefined)"
        )


def _collection(raster: Raster) -> tuple[str, str]:
    """The beginning and the end of a GeoJSON file in the image's coordinates."""
    authority = raster.crs.to_authority() if raster.crs else None
    name = None
    if raster.transform is not None and not raster.crs:
        _note(
            f"{raster.path}: has a georeference without a coordinate system; polygons are in its "
            "coordinates, and no program can place them (mend by rio edit-info --crs=EPSG:N FILE)"
        )
    if raster.crs and authority is None:
        _note(
            f"{raster.path}: its coordinate system has no code; polygons are in its coordinates, "
            f"but do not name it"
        )
    elif authority == ("EPSG", "4326"):
        name = "urn:ogc:def:crs:OGC:1.3:CRS84"  # longitude first, as GeoJSON has it
    elif authority:
        name = f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"
    crs = {"type": "name", "properties": {"name": name}}
    member = f' "crs": {json.dumps(crs)},' if name else ""
    return f'{{"type": "FeatureCollection",{member} "features": [', "]}"
