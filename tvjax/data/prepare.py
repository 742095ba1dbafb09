r"""Prepares images with labels for training: COCO files, masks, YOLO, or polygons on a map.

    python -m tvjax.data.prepare --annotations=annotation.json --images=images --out=DATA_DIR
    python -m tvjax.data.prepare --annotations=train.json --annotations=val.json \
        --annotations=test.json --images=images --out=DATA_DIR
    python -m tvjax.data.prepare --masks=masks --images=images --out=DATA_DIR
    python -m tvjax.data.prepare --labels=labels --images=images --out=DATA_DIR
    python -m tvjax.data.prepare --labels=roofs.geojson --images=town.tif --out=DATA_DIR

Images are read by the rules of `tvjax.data.pictures`; runs remember `--bands`, `--black` and
`--white`, and prediction reads alike. Masks hold 0 and one other value, which is the objects'; if
they hold more, `--object=3` (a grey level, or a palette's index) or `--object="#3C1098"` (a colour,
also of a palette) says which are objects, and all others are background. Alpha never counts. YOLO
polygons are text files, labels/train/a.txt for images/train/a.jpg; `--category` names a class.

Polygons on a map (`--labels`: GeoJSON, GeoPackage or Shapefile, with the extra `geo`) need images
with a place on a map, of any size, such as GeoTIFFs: those are cut into tiles of `--tile` pixels,
at `--resolution` metres per pixel, and polygons reprojected to each image's coordinate system.
Tiles that no polygon touches are left out: nobody knows whether the labels are complete there.
`--extent=FILE` says where they are: tiles within it are kept, others left out. `--keep_empty` says
that they are complete in all images. Tiles of which more than half has no data are left out.
Images are cut into blocks with `--gap` pixels between them, and each block falls into one split.
Directories of map tiles (z/x/y.png, or NAME-x-y-z.png and no other images) are images in Web
Mercator; `--tms` says that y counts from the south.

What a COCO file names lies in the folder of images: a `file_name` or a link that leads out of it is
refused (the folder itself may be a link). Files of the two folders may be links to anywhere with
`--masks`, where nothing but the folders' user names them.

Splits are drawn, and near-duplicates stay together, as far as hashes of the images tell them; so
does ground that overlaps or touches, where names are those of map tiles (z/x/y, NAME-x-y-z or
NAME_z_x_y), and what `--group` finds equal in names. Nothing knows of other ways in which images
belong together (one roof from two sides, one town on two days): name them by `--group`, or give the
splits by three COCO files or `--split_file`. `splits.csv` says which tile is where, and
`contact.png` shows sixteen tiles with their labels.

It may be interrupted and run again: DATA_DIR appears when it is complete, and not before. It may be
a link: what that points to is made.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from absl import flags

from tvjax import files, program
from tvjax.data import builder, manifest, mask_files, reading
from tvjax.data.origins import Images, Origin
from tvjax.errors import UserError

_ANNOTATIONS = flags.DEFINE_multi_string(
    "annotations", [],
    "The COCO file, e.g. annotation.json; or given three times, those of train, val and test in "
    "this order.",
)  # fmt: skip
_MASKS = flags.DEFINE_string(
    "masks",
    None,
    "Instead of a COCO file, a directory of mask PNGs, e.g. masks: of 0 and one other value, "
    "the objects'.",
)
_CATEGORY = flags.DEFINE_multi_integer(
    "category",
    [],
    "The COCO category that is object, e.g. 100; repeatable. Default: the only one.",
)
_OBJECT = flags.DEFINE_multi_string(
    "object", [],
    "The masks' number or colour that is object, e.g. 3 or '#3C1098'; repeatable, and all others "
    "are background. Default: the only one besides 0 or black.",
)  # fmt: skip
_IMAGES = flags.DEFINE_multi_string(
    "images", None,
    "The directory of images, e.g. images; or one for each of three COCO files; with --labels also "
    "image files, repeatable.",
    required=True,
)  # fmt: skip
_LABELS = flags.DEFINE_string(
    "labels", None,
    "Instead of a COCO file, polygons on a map, e.g. roofs.geojson, roofs.gpkg or roofs.shp; or a "
    "directory of YOLO polygons, e.g. labels.",
)  # fmt: skip
_WHERE = flags.DEFINE_multi_string(
    "where", [],
    "The polygons of --labels that are objects, e.g. building=yes, or building for any value; "
    "repeatable.",
)  # fmt: skip
_LAYER = flags.DEFINE_string(
    "layer", None, "The layer of a GeoPackage, e.g. roofs; default: the only one."
)
_EXTENT = flags.DEFINE_string(
    "extent", None, "A file of polygons within which --labels are complete, e.g. extent.geojson."
)
_TMS = flags.DEFINE_bool(
    "tms", False, "Whether the y of map tiles counts from the south, with --labels."
)
_KEEP_EMPTY = flags.DEFINE_bool(
    "keep_empty", False,
    "Whether tiles that no polygon of --labels touches are kept, as background.",
)  # fmt: skip
_TILE = flags.DEFINE_integer(
    "tile", 256, "Side, in pixels, of the tiles that images are cut into, with --labels."
)
_RESOLUTION = flags.DEFINE_float(
    "resolution", None,
    "Metres per pixel of the tiles, with --labels, e.g. 0.3; default: each image's own.",
)  # fmt: skip
_GAP = flags.DEFINE_integer(
    "gap", 32, "Pixels between tiles of one image that fall into different splits, with --labels."
)
_BANDS = flags.DEFINE_string(
    "bands", None,
    "Numbers of the bands that are red, green and blue, e.g. 4,3,2, or of one that is grey; "
    "default: by their names.",
)  # fmt: skip
_WHITE = flags.DEFINE_multi_float(
    "white", [],
    "The value that is white in images of 16 bits per channel, e.g. 10000; once, or once per band.",
)  # fmt: skip
_BLACK = flags.DEFINE_multi_float(
    "black", [], "The value that is black in them, e.g. 200; once, or once per band. Default: 0."
)
_SPLIT_FILE = flags.DEFINE_string(
    "split_file", None,
    "A CSV file that gives the splits, e.g. splits.csv: an image's name, and train, val or test.",
)  # fmt: skip
_GROUP = flags.DEFINE_string(
    "group", None,
    "A regular expression, e.g. '^[a-z]+': images in whose names it finds the same (in its first "
    "parentheses, if it has any) stay in one split.",
)  # fmt: skip
_MAP_TILES = flags.DEFINE_bool(
    "map_tiles", True,
    "Whether ground that overlaps or touches stays in one split, where all names are those of map "
    "tiles, and with --labels such tiles are images on the map.",
)  # fmt: skip
_OUT = flags.DEFINE_string("out", None, "The directory to make, e.g. TILES.", required=True)
_SIZE = flags.DEFINE_string(
    "size", "100", "Side of the tiles in pixels, or HEIGHTxWIDTH, e.g. 100x120."
)
_LIMIT = flags.DEFINE_integer(
    "limit", None, "Number of tiles, drawn at random, e.g. 5000; default: all."
)
_SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Whether to leave out images that cannot be used.")
_LEAVE_OUT = flags.DEFINE_string(
    "leave_out", None,
    "A CSV file of images to leave out, e.g. FAULTS/worst.csv: the id of each, and after it, if at "
    "all, its file's name.",
)  # fmt: skip
_WORKERS = flags.DEFINE_integer(
    "workers", None,
    "Processes that read whole images, e.g. 2; default: as many as there are cores, if there are "
    "enough images. Records do not depend on it.",
    lower_bound=1,
)  # fmt: skip
_BOUNDARIES = flags.DEFINE_integer(
    "boundaries", None,
    "Pixels, 1 to 64, e.g. 4: tiles then tell where polygons are closer (for data.boundaries).",
)  # fmt: skip
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random draw and of the splits, e.g. 1.")

BATCH = 16
"""Tiles in a batch by the configs, training and validation; fewer tiles need a flag."""


def parse_size(text: str) -> tuple[int, int]:
    """Reads "100" or "100x120" as a height and a width.

    Raises:
      UserError: the text is neither.
    """
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    if not match:
        raise UserError(f"--size={text}: give a number of pixels, or HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def summary(content: dict[str, Any], out: str) -> str:
    """What was built, for the reader of a terminal; `content` is that of `source.json`."""
    lines = ["split    tiles  foreground"]
    for name, split in content["splits"].items():
        lines.append(f"{name:<6} {split['tiles']:>7}  {split['foreground']:>9.1%}")
    tiles = sum(split["tiles"] for split in content["splits"].values())
    left_out = manifest.number_left_out(content)
    if left_out:
        images = "1 image was" if left_out == 1 else f"{left_out} images were"
        lines.append(f"{images} left out, whole or in part; {out}/{manifest.FILE} tells why")
    options = f" --config.data.directory={shlex.quote(out)}"
    if content["request"].get("boundaries") is not None:
        options += " --config.data.boundaries=True"
    train, val = (content["splits"][name]["tiles"] for name in ("train", "val"))
    if train < BATCH:
        options += f" --config.train.batch_size={train}"
    learned = f" --config.hypergrad.batch_size={val}" if val < BATCH else ""
    clusters, twins = content["clusters"], content["near_duplicate_clusters"]
    more = "" if clusters == twins else f" (by near-duplicates alone: {twins})"
    lines += [
        f"{tiles} tiles are in {out}, in {clusters} clusters that stay in one split each{more}",
        "splits.csv says which tile is where, contact.png shows sixteen with their labels",
        f"train on them: python -m tvjax.main --config=configs/roofs.py{options}",
        "from scratch, with a learned lambda: python -m tvjax.main "
        f"--config=configs/lunet_bilevel.py{options}{learned}",
    ]
    return "\n".join(lines)


def find_origin() -> tuple[Origin, tuple[int, int]]:
    """Where the tiles come from, by the flags, and their height and width.

    Raises:
      UserError: the flags contradict each other, or name what is not there.
    """
    given = [flag.name for flag in (_ANNOTATIONS, _MASKS, _LABELS) if flag.value]
    if len(given) != 1:
        raise UserError(
            "give either --annotations (a COCO file), --masks (a directory) or --labels (polygons)"
        )
    _check_flags(given[0])
    read_as = reading.parse(_BANDS.value, _BLACK.value, _WHITE.value)
    if _LABELS.value and not Path(_LABELS.value).is_dir():
        from tvjax.data.vector import Request, Scenes

        extent = None if _EXTENT.value is None else Path(_EXTENT.value)
        asked = Request(
            _IMAGES.value, Path(_LABELS.value), _TILE.value, _RESOLUTION.value, _GAP.value,
            _WHERE.value, _LAYER.value, extent, _KEEP_EMPTY.value, _MAP_TILES.value, _TMS.value,
            read_as,
        )  # fmt: skip
        return Scenes(asked), (_TILE.value, _TILE.value)
    masks = _MASKS.value
    if masks and not Path(masks).is_dir():
        raise UserError(f"--masks={masks}: no such directory")
    if masks and any(os.path.realpath(x) == os.path.realpath(masks) for x in _IMAGES.value):
        raise UserError(f"--masks={masks}: is the directory of the images too")
    place = masks or _LABELS.value
    labels = [place] if place else _ANNOTATIONS.value
    objects = list(map(mask_files.parse_object, _OBJECT.value))
    if len({type(value) for value in objects}) > 1:
        raise UserError("--object: give numbers or colours, not both")
    chosen = objects or _CATEGORY.value
    origin = Images(labels, _IMAGES.value, chosen, read_as, is_yolo=bool(_LABELS.value))
    return origin, parse_size(_SIZE.value)


def _check_flags(kind: str) -> None:
    """Refuses flags that would not matter with labels of a kind."""
    is_folder = _LABELS.value is not None and Path(_LABELS.value).is_dir()
    of_maps = _WHERE, _LAYER, _EXTENT, _KEEP_EMPTY, _TILE, _RESOLUTION, _GAP, _TMS
    useless = {
        "labels": (_SIZE, _CATEGORY, _OBJECT, _WORKERS),
        "masks": of_maps,
        "annotations": (*of_maps, _OBJECT),
    }[kind if not is_folder else "annotations"]
    instead = {"object": "; give --category"}
    if kind == "labels" and not is_folder:
        instead = {"size": "; give --tile", "category": "; give --where"}
    for name in (flag.name for flag in useless):
        if flags.FLAGS[name].present:
            raise UserError(f"--{name}: does not go with --{kind}{instead.get(name, '')}")


def main(argv: list[str]) -> None:
    """Reads the flags, builds and prints the summary."""
    del argv
    if os.path.realpath(_OUT.value) == os.path.realpath("."):
        raise UserError(f"--out={_OUT.value} is the working folder itself; name one within it")
    out = Path(os.path.realpath(_OUT.value))
    if files.held_by(out) != "prepared tiles":  # which are compared with what is asked for
        files.check_apart("out", Path(_OUT.value), out)
    origin, size = find_origin()
    try:
        content = builder.build_from(
            origin, _OUT.value, size=size, limit=_LIMIT.value, seed=_SEED.value,
            skip_bad=_SKIP_BAD.value, split_file=_SPLIT_FILE.value, group=_GROUP.value,
            map_tiles=_MAP_TILES.value,
            leave_out=_LEAVE_OUT.value, boundaries=_BOUNDARIES.value, workers=_WORKERS.value,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing was written") from None
    print(summary(content, _OUT.value))


if __name__ == "__main__":
    program.run(main)
