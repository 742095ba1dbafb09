r"""Masks and polygons of images: `python -m tvjax.predict --workdir=RUN --images=DIR --out=OUT`.

`--images` is a file, a directory or a quoted glob, and may be given more than once: PNG, JPEG, and
with the extra `geo` GeoTIFF and what else GDAL reads, of any size. For `a.tif` it writes

    a_mask.tif         255 where the probability is above --threshold, else 0
    a.geojson          an object a feature, with holes, its score (mean probability) and its pixels
    a_probability.tif  with --probabilities: float32; of a picture a 16-bit PNG, 65535 for 1

of the size of the image, with its georeference; pictures (PNG and JPEG without one) give PNG, and
polygons in pixels from the top left. `results.json` lists all objects as COCO results: image ids
count the images from 1 in the order of their paths, or are those of `--annotations`.

The net knows objects at the size that they had in its training tiles. If those were shrunk from
300 to 100 pixels, images of the same sharpness need `--scale=0.3333`; what is written has the
images' size all the same.

Images are read, and results written, a row of tiles at a time. Files appear when they are
complete. Exit status: 0; 1 if images were skipped, each with a line on stderr; 2 after a mistake in
the flags.
"""

import contextlib
import glob
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from tvjax import polygons, program
from tvjax.errors import UserError
from tvjax.rasters import reader, tiles, writer
from tvjax.rasters.reader import Raster
from tvjax.rasters.resample import Axis, resample_strips

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_IMAGES = flags.DEFINE_multi_string("images", [], "A file, a directory or a glob; repeatable.")
_OUT = flags.DEFINE_string("out", None, "Folder to write into.")
_SCALE = flags.DEFINE_float("scale", 1.0, "Resizes images for the net: pixels of its an image's.")
_THRESHOLD = flags.DEFINE_float("threshold", 0.5, "A pixel is an object's above it.")
_PROBABILITIES = flags.DEFINE_bool("probabilities", False, "Write the probabilities too.")
_DENOISE = flags.DEFINE_float(
    "denoise", None, "Weight of a TV denoising of each tile; default: the run's own; 0: none."
)
_SIMPLIFY = flags.DEFINE_float("simplify", 0.0, "How far, in pixels, polygons may leave the mask.")
_MIN_AREA = flags.DEFINE_integer("min_area", 1, "Pixels of the smallest object that has a polygon.")
_ANNOTATIONS = flags.DEFINE_string("annotations", None, "A COCO file with the images' ids.")
_TILE = flags.DEFINE_integer("tile", 512, "Side of the tiles of large images, a multiple of 32.")
_BATCH = flags.DEFINE_integer("batch", 1, "Tiles of an image that the net takes at once.")

SUFFIXES = (*reader.PLAIN, ".tif", ".tiff")
"""Of the files that are taken from a directory."""


class Options(NamedTuple):
    """What is written, and how."""

    scale: float = 1.0
    threshold: float = 0.5
    probabilities: bool = False
    simplify: float = 0.0
    min_area: int = 1


DEFAULTS = Options()


def find_images(patterns: Iterable[str]) -> list[Path]:
    """The files of directories, globs and file names, in order, each once.

    Raises:
      UserError: one of them names nothing, or two files would be written under one name.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
        else:
            inside = [path] if path.exists() else [Path(p) for p in glob.glob(pattern)]
        if not inside:
            raise UserError(f"--images={pattern}: no such image, or none in there")
        found |= dict.fromkeys(sorted(inside))
    stems: dict[str, Path] = {}
    for path in found:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"{other} and {path} would be written under the same name; rename one")
    return list(found)


def predict_images(
    images: Sequence[tuple[int, Path]],
    out: Path,
    net: tiles.Net,
    *,
    options: Options = DEFAULTS,
    tile: int = 512,
    batch: int = 1,
) -> tuple[int, list[str]]:
    """Writes the masks and polygons of images into a folder; see the module's docstring.

    Args:
      images: their ids and files.
      out: the folder, made if need be.
      net: tiles, float32 `[batch, H, W, 3]` -> probabilities `[batch, H, W, 1]`; a `Predictor`.
      options: what is written.
      tile: side of the tiles of images that are larger.
      batch: tiles that the net takes at once.

    Returns:
      The number of objects, and what was wrong with the images that were skipped.

    Raises:
      UserError: the folder cannot be written, or an option needs a package that is missing.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    if options.simplify:
        polygons.require_shapely()
    skipped: list[str] = []
    sizes = {}
    for number, path in images:
        with _skipping(skipped), reader.open_raster(path) as raster:
            small = reader.scaled(raster, options.scale)
            sizes[number, path] = small.height, small.width
    tiling = choose_tiling(set(sizes.values()), net, tile, batch)
    total = sum(tiles.count(height, width, tiling) for height, width in sizes.values())
    with (
        writer.replacing(out / "results.json") as temporary,
        writer.JsonList(temporary) as results,
        tqdm(total=total, desc="predicting", unit="tile", leave=False, delay=3) as bar,
    ):
        for number, path in sizes:
            mark = results.mark()
            try:
                with _skipping(skipped), reader.open_raster(path) as raster:
                    found = predict_raster(raster, out, net, tiling, options, bar.update)
                    for polygon in found:
                        size = raster.height, raster.width
                        results.add(polygons.coco_result(polygon, *size, number))
                    mark = results.mark()
            finally:
                results.back_to(mark)  # of an image that was skipped nothing stays
        objects = len(results)
    return objects, skipped


def predict_raster(
    raster: Raster,
    out: Path,
    net: tiles.Net,
    tiling: tiles.Tiling,
    options: Options,
    progress: Callable[[int], Any],
) -> Iterator[polygons.Polygon]:
    """Yields an image's objects; its files stand in `out` when they have all been taken."""
    kind = "png" if raster.is_plain else "tif"
    with contextlib.ExitStack() as stack:

        def create(name: str, dtype: Any) -> writer.Writer:
            target = out / f"{raster.path.stem}_{name}.{kind}"
            path = stack.enter_context(writer.replacing(target))
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
            for strip in probabilities_of(raster, net, tiling, options.scale, progress):
                strip = strip[..., 0]
                masks.write(np.where(strip > options.threshold, 255, 0).astype(np.uint8))
                if maps is not None:
                    maps.write(np.rint(strip * 65535) if raster.is_plain else strip)
                yield strip

        path = stack.enter_context(writer.replacing(out / f"{raster.path.stem}.geojson"))
        features = stack.enter_context(writer.JsonList(path, *_collection(raster)))
        for polygon in polygons.trace(
            written(), threshold=options.threshold, min_area=options.min_area
        ):
            drawn = polygon
            if options.simplify:
                drawn = polygons.simplify(polygon, options.simplify)
            features.add(polygons.feature(drawn, raster.transform))
            yield polygon


def probabilities_of(
    raster: Raster,
    net: tiles.Net,
    tiling: tiles.Tiling,
    scale: float = 1.0,
    progress: Callable[[int], Any] = lambda tiles: None,
) -> Iterator[np.ndarray]:
    """Probabilities of an image in strips from the top, float32 `[h, width, 1]`."""
    small = reader.scaled(raster, scale)
    strips = tiles.strips(small.read, small.height, small.width, net, tiling, progress)
    rows, columns = Axis(small.height, raster.height), Axis(small.width, raster.width)
    return resample_strips(strips, rows, columns)


def choose_tiling(
    sizes: set[tuple[int, int]], net: tiles.Net, tile: int = 512, batch: int = 1
) -> tiles.Tiling:
    """One tiling for images of these sizes, so that the net is compiled once.

    Images of one size that is no larger than a tile are taken whole, as in training.
    """
    least = 4 * tiles.ALIGNMENT
    if tile < least or tile % tiles.ALIGNMENT:
        raise UserError(f"--tile={tile} must be a multiple of {tiles.ALIGNMENT}, at least {least}")
    if batch < 1:
        raise UserError(f"--batch={batch} must be at least 1")
    height, width = (max((size[axis] for size in sizes), default=1) for axis in (0, 1))
    if max(height, width) > tile:
        reach = tiles.measure_reach(net, (batch, tile, tile, 3))
        return tiles.make_tiling(tile, reach, batch=batch)
    if len(sizes) > 1:
        height, width = (-(-side // tiles.ALIGNMENT) * tiles.ALIGNMENT for side in (height, width))
    return tiles.Tiling((height, width), 0, 0, batch)


@contextlib.contextmanager
def _skipping(skipped: list[str]) -> Iterator[None]:
    """Reports a bad image and goes on."""
    try:
        yield
    except (UserError, OSError) as error:
        tqdm.write(f"skipped: {error}", file=sys.stderr)
        skipped.append(str(error))


def _collection(raster: Raster) -> tuple[str, str]:
    """The beginning and the end of a GeoJSON file in the image's coordinates."""
    authority = raster.crs.to_authority() if raster.crs else None
    name = None
    if raster.crs and authority is None:
        tqdm.write(
            f"note: {raster.path}: its coordinate system has no code; polygons are in its "
            f"coordinates, but do not name it",
            file=sys.stderr,
        )
    elif authority == ("EPSG", "4326"):
        name = "urn:ogc:def:crs:OGC:1.3:CRS84"  # longitude first, as GeoJSON has it
    elif authority:
        name = f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"
    crs = {"type": "name", "properties": {"name": name}}
    member = f' "crs": {json.dumps(crs)},' if name else ""
    return f'{{"type": "FeatureCollection",{member} "features": [', "]}"


def _numbered(paths: list[Path], annotations: str | None) -> list[tuple[int, Path]]:
    """Ids of the images: their positions from 1, or those of a COCO file."""
    if annotations is None:
        return list(enumerate(paths, 1))
    try:
        records = json.loads(Path(annotations).read_bytes())["images"]
        ids = {Path(record["file_name"]).name: int(record["id"]) for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{annotations}: is no COCO file with images ({error})") from error
    for path in paths:
        if path.name not in ids:
            raise UserError(f"{path}: {annotations} has no image of this name")
    return [(ids[path.name], path) for path in paths]


def main(argv: list[str]) -> None:
    """Predicts and prints what was found."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; all are flags, and a glob needs quotes")
    workdir, out = _WORKDIR.value, _OUT.value
    if not (workdir and out and _IMAGES.value):
        raise UserError("--workdir, --images and --out are needed, see --help")
    if not _SCALE.value > 0:
        raise UserError(f"--scale={_SCALE.value} must be positive")
    for flag in (_THRESHOLD, _DENOISE, _SIMPLIFY):
        if (flag.value or 0) < 0:
            raise UserError(f"--{flag.name}={flag.value} must not be negative")
    logging.set_verbosity(logging.WARNING)
    paths = find_images(_IMAGES.value)
    if any(path.parent.resolve() == Path(out).resolve() for path in paths):
        raise UserError(f"--out={out} holds images; masks there would be taken for images")
    from tvjax.predictor import Predictor  # loads jax, flax and orbax: after the flags are right

    net = Predictor.load(workdir, denoise=_DENOISE.value)
    options = Options(
        _SCALE.value, _THRESHOLD.value, _PROBABILITIES.value, _SIMPLIFY.value, _MIN_AREA.value
    )
    try:
        objects, skipped = predict_images(
            _numbered(paths, _ANNOTATIONS.value), Path(out), net,
            options=options, tile=_TILE.value, batch=_BATCH.value,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("\ninterrupted: complete images stay, run the same command again", file=sys.stderr)
        sys.exit(130)
    done = len(paths) - len(skipped)
    print(json.dumps({"images": done, "skipped": len(skipped), "objects": objects, "out": out}))
    sys.exit(1 if skipped else 0)


if __name__ == "__main__":
    program.run(main)
