r"""Masks and polygons of images: `python -m tvjax.predict --workdir=RUN --images=DIR --out=OUT`.

`--images` is a file, a directory or a quoted glob, and may be given more than once: PNG, JPEG,
BMP, WebP, and with the extra `geo` GeoTIFF, and a virtual raster of local ones that is named by
itself (`a.vrt`), of up to 2^36 pixels (JPEGs are decoded whole). For `a.tif` it writes

    a_mask.tif         255 where the probability is above --threshold, else 0
    a.geojson          one feature per object, with holes, its score (mean probability), its pixels
    a_probability.tif  with --probabilities: float32; of a picture a 16-bit PNG, 65535 for 1

of the size of the image, with its georeference; pictures (PNG, JPEG, BMP and WebP without one) give
PNG, and polygons in pixels from the top left. `results.json` lists all objects as COCO results:
image ids count the images from 1 in the order of their paths, or are those of `--annotations`, and
so is the category, unless `--category` says otherwise. Images of 2^32 pixels and more have no
entries there. `predicted.jsonl` lists the files that were written: the same images may be predicted
anew into the folder, other images need another one, and nothing else there is replaced.

A directory of map tiles (z/x/y.png, or NAME-x-y-z.png and no other images) is one image in Web
Mercator, or several if it has parts that do not touch, named DIRECTORY-x-y-z; `--tms` says that y
counts from the south, `--nomap_tiles` takes each tile as a picture.

The net knows objects at the size that they had in its training tiles. If those were made of images
on a map, images on a map are scaled to their metres per pixel. Otherwise `--scale` says how: if
tiles were shrunk from 300 to 100 pixels, images of the same sharpness need `--scale=0.3333`, and a
note tells so; what is written has the images' size all the same. Where an image has no data (alpha
0, its nodata value or its mask) the probability is 0. Images are read as the run's training tiles
were, by the rules of `tvjax.data.pictures` and with the `--bands`, `--black` and `--white` that
were given to `prepare`; images of 16 bits per channel of another white need `--white`.

Images are read by tiles, and results written by rows: memory is flat in an image's height and
width, but for the outlines of objects that are not complete yet. Files appear when they are
complete; Ctrl-C and SIGTERM leave none that is not. Exit status: 0; 1 if images were skipped, each
with a line on stderr; 2 after a mistake in the flags, or if `--out` cannot be written; 74 if its
disk is full; 130 after Ctrl-C or SIGTERM.
"""

import json
import math
import os
import sys
from pathlib import Path

from absl import flags

from tvjax import files, program
from tvjax.data import coco, mosaic, scaling
from tvjax.errors import UserError
from tvjax.inference import writing
from tvjax.inference.predictor import Predictor
from tvjax.training import rundir

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, e.g. runs/roofs.")
_IMAGES = flags.DEFINE_multi_string(
    "images", [], "A file, a directory or a quoted glob of images, e.g. town.tif; repeatable."
)
_OUT = flags.DEFINE_string("out", None, "Folder of the results, e.g. OUT.")
_SCALE = flags.DEFINE_float(
    "scale",
    None,
    "Factor, 0.001 to 1000, by which an image's width and height are multiplied before the net "
    "sees it, e.g. 0.3333 where tiles were shrunk from 300 to 100; default: by the resolution of "
    "the run's tiles if both are on a map, else 1.",
)
_MAP_TILES = flags.DEFINE_bool(
    "map_tiles", True, "Whether directories of map tiles are images on the map."
)
_TMS = flags.DEFINE_bool("tms", False, "Whether the y of map tiles counts from the south.")
_THRESHOLD = flags.DEFINE_float(
    "threshold", 0.5, "Probability, 0 to 1, above which a pixel is an object's, e.g. 0.4."
)
_PROBABILITIES = flags.DEFINE_bool(
    "probabilities", False, "Whether to write the probabilities too."
)
_DENOISE = flags.DEFINE_float(
    "denoise",
    None,
    "Weight of a TV denoising of each tile, e.g. 0.1; default: the run's own; 0: none.",
)
_SIMPLIFY = flags.DEFINE_float(
    "simplify", 0.0, "How far, in pixels of the image, polygons may leave the mask, e.g. 1."
)
_REGULARIZE = flags.DEFINE_bool(
    "regularize",
    False,
    "Whether polygons get right angles where the outline says so; their area changes by at most a "
    "tenth.",
)
_MIN_AREA = flags.DEFINE_integer(
    "min_area", 1, "Pixels of the smallest object that has a polygon, e.g. 20."
)
_WHITE = flags.DEFINE_float(
    "white",
    None,
    "The value that is white in images of 16 bits per channel, e.g. 10000; default: the run's own.",
)
_ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "A COCO file with the images' ids, e.g. annotation.json."
)
_CATEGORY = flags.DEFINE_integer(
    "category",
    None,
    "COCO category of the objects in results.json, e.g. 100; default: the only one of "
    "--annotations, else 1.",
)
_CHECKPOINT = program.define_checkpoint_flag()
_AUGMENT = program.define_augment_flag()
_TILE = flags.DEFINE_integer(
    "tile", None,
    "Side, in pixels, of the tiles that large images are cut into, a multiple of 32 of at least "
    "128, e.g. 512; "
    "default: 512, or if all images are of one size, what fits them, at most 768.",
)  # fmt: skip
_BATCH = flags.DEFINE_integer(
    "batch", 1, "How many tiles of an image the net takes at once, e.g. 4."
)


def main(argv: list[str]) -> None:
    """Predicts and prints what was found."""
    del argv
    workdir, out = _WORKDIR.value, _OUT.value
    if not (workdir and out and _IMAGES.value):
        raise UserError("--workdir, --images and --out are needed, see --help")
    folder = Path(os.path.realpath(out))  # of a link, what it points to
    if _SCALE.value is not None:
        scaling.check_scale(_SCALE.value)
    if _WHITE.value is not None and not 0 < _WHITE.value < math.inf:
        raise UserError(f"--white={_WHITE.value} must be positive and finite")
    for flag in (_THRESHOLD, _DENOISE, _SIMPLIFY):
        if not 0 <= (flag.value or 0) < math.inf:
            raise UserError(f"--{flag.name}={flag.value} must be finite and not negative")
    if _THRESHOLD.value > 1:
        raise UserError(f"--threshold={_THRESHOLD.value} must be a probability, at most 1")
    if _MIN_AREA.value < 0:
        raise UserError(f"--min_area={_MIN_AREA.value} must not be negative")
    places = writing.find_images(_IMAGES.value, as_map=_MAP_TILES.value, is_tms=_TMS.value)
    if any(mosaic.path_of(place).parent.resolve() == folder for place in places):
        raise UserError(f"--out={out} holds images; masks there would be taken for images")
    files.check_folder("out", Path(out))
    writing.check_replaced(Path(out), places)
    net = Predictor.load(
        workdir, denoise=_DENOISE.value, checkpoint=_CHECKPOINT.value, augment=_AUGMENT.value,
        contact=True,
    )  # fmt: skip
    reading, _ = rundir.read_images_of(Path(workdir))
    if _WHITE.value is not None:
        reading = reading._replace(white=(_WHITE.value,))
    options = writing.Options(
        rundir.read_scales(Path(workdir), _SCALE.value), _THRESHOLD.value, _PROBABILITIES.value,
        _SIMPLIFY.value, _MIN_AREA.value,
        coco.choose_category(_ANNOTATIONS.value, _CATEGORY.value), reading, _REGULARIZE.value,
    )  # fmt: skip
    try:
        objects, skipped = writing.predict_images(
            writing.number_images(places, _ANNOTATIONS.value), folder, net,
            options=options, tile=_TILE.value, batch=_BATCH.value,
            whole=rundir.read_size(Path(workdir)),
            declared=writing.declared_sizes(_ANNOTATIONS.value),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt("complete images stay") from None
    done = len(places) - len(skipped)
    found = {"images": done, "skipped": len(skipped), "objects": objects, "out": out}
    print(json.dumps(found | {"step": int(net.state.step)}))
    sys.exit(1 if skipped else 0)


if __name__ == "__main__":
    program.run(main)
