"""Hostile COCO files and images, each read in a process with little memory.

`python tests/helpers/hostile.py coco|images FOLDER` prints a line of JSON per case: its name,
what came of it, the seconds of the processor that it took.
"""

import io
import json
import os
import random
import resource
import socket
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tvjax.data import coco, pictures
from tvjax.errors import UserError

MEMORY = 500 << 20
"""Bytes that a case may take."""

SQUARE = [[2, 2, 10, 2, 10, 10, 2, 10]]
RANDOM = 90
DEEP = "[" * 100_000 + "]" * 100_000
VALUES = (
    None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -1e308,
    float("nan"), float("inf"), "", "x", "7", "\0", "\n", "\x1b[2J", "\u202ea", "x" * 5000,
    "\ud800", [], [[]], [[[[]]]], {}, {"size": [32, 40]}, [1] * 1000, "../a.png",
    "/etc/passwd", ".", "..",
)  # fmt: skip


def content(segmentation=SQUARE, name="a.png", size=(32, 40)):
    return {
        "images": [{"id": 7, "file_name": name, "height": size[0], "width": size[1]}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "roof"}],
    }


def code(counts, size=(32, 40)):
    return content({"size": list(size), "counts": counts})


def of(key, value, where="annotations"):
    found = content()
    found[where][0][key] = value
    return found


def many(number):
    found = content()
    found["annotations"] *= number
    return found


def zigzag(points, far):
    return [[value for k in range(points) for value in (far * (-1) ** k, k % 32)]]


def coco_cases():
    """Contents, or the text of files, by names."""
    yield "whole", content()
    for k, text in enumerate(
        ["", "{", "[]", "null", "1", '"x"', DEEP, '{"a":' * 50_000, "NaN", "1" * 5000, "\0",
         "\ufeff{}", '{"images": [], "annotations": []}', '{"images": {}, "annotations": []}',
         '{"images": [' + DEEP + '], "annotations": []}', json.dumps(content())[:-20]]
    ):  # fmt: skip
        yield f"text {k}", text
    for name in (
        "..", "../a.png", "/etc/hostname", "sub/../../a.png", "out.png", "outside/a.png",
        "pipe.png", "folder.png", "a.vrt", "x" * 5000, "\x1b]0;x\x07.png", "a\nb.png",
        "\u202egnp.a", "\ud800.png", "a\0.png", ".", "./", "a.png/", "a.png/b",
        "loop.png", "/dev/zero", "socket.png",
    ):  # fmt: skip
        yield f"name {name[:20]!a}", content(name=name)
    for k, segmentation in enumerate(
        [zigzag(20_000, 600), zigzag(10_000, 640), zigzag(200_000, 30), [zigzag(400, 600)[0]] * 200,
         zigzag(3, 1e308), zigzag(3, 10**400), [[1, True, 5, 1, 5, 5]],
         [[1] * 20_000 + ["x" * 10**5]], [[]] * 10_000, [SQUARE], [[[[[[[]]]]]]],
         [[float("nan")] * 8], [[float("-inf")] * 8], [[0, 0] * 50_000], [None], [SQUARE[0], {}],
         {"counts": [1280]}, {"size": [32, 40]}]
    ):  # fmt: skip
        yield f"outline {k}", content(segmentation)
    for k, counts in enumerate(
        ["P" * 4_000_000, "o" * 4_000_000, "0" * 4_000_000, "PPPPPPPPP1", "ooooooooooooo0",
         "1" * 3000, "\ud800", "", "~", "\u2603" * 9, [1280, -1, 1], [2**64, -(2**64)], [1e3, 280],
         [True, 1279], [0] * 10**6 + [1280], ["1280"], [[1280]], [10**400], 1280,
         {}, None, [0] * 1280 + [1280]]
    ):  # fmt: skip
        yield f"code {k}", code(counts)
    for size in ((40, 32), (2**31, 2**31), (True, 40), (32.0, 40.0), ("32", "40"), (), (-32, -40)):
        yield f"size of code {size}", code([1280], size)
    for size in ((2**31 - 1, 2**31 - 1), (30_000, 30_000), (32, 41), (2**63, 1), (1, 2**31 - 1)):
        yield f"size {size}", content(size=size)
        yield (
            f"size and code {size}",
            {**content({"size": list(size), "counts": [size[0] * size[1]]}, size=size)},
        )
    yield "parts", content(SQUARE * (coco.MOST_REGIONS + 1))
    yield "folders", content(name="a/" * 100_000 + "a.png")
    yield "many", many(coco.MOST_REGIONS + 1)
    yield "twice", {**content(), "images": content()["images"] * 2}
    yield "categories", of("category_id", [1])
    yield (
        "many categories",
        {
            **content(),
            "annotations": [
                {**content()["annotations"][0], "category_id": k} for k in range(10_000)
            ],
        },
    )
    yield "long category", {**content(), "categories": [{"id": 10**400, "name": "x" * 10**6}]}
    for seed in range(RANDOM):
        yield f"random {seed}", changed(random.Random(seed))


def changed(draw):
    """A COCO file of which up to three values are replaced."""
    found = content() if draw.random() < 0.7 else code("123")
    for _ in range(draw.randint(1, 3)):
        places = list(walk(found))
        parent, key = draw.choice(places)
        if draw.random() < 0.2 and isinstance(parent, dict):
            del parent[key]
        else:
            parent[key] = draw.choice(VALUES)
    return found


def walk(value):
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from walk(value[key])


def lay_out(folder):
    """Images, and what only looks like them."""
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (40, 32), "red").save(images / "a.png")
    Image.new("RGB", (40, 32), "red").save(folder / "a.png")
    os.mkfifo(images / "pipe.png")
    (images / "folder.png").mkdir()
    (images / "out.png").symlink_to("../a.png")
    (images / "outside").symlink_to("..")
    (images / "loop.png").symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(images)  # for names of sockets are short
        bound.bind("socket.png")
    return images


def read_coco(folder, made):
    text = made if isinstance(made, str) else json.dumps(made)
    file = folder / "annotation.json"
    file.write_text(text, errors="surrogatepass")

    def read():
        tiles = coco.read(file, folder / "images")
        return [tile.load()[1].sum() for tile in tiles]

    return read


def ifd(entries, count=None):
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count or len(entries)) + body + bytes(4)


def tiff_of(width, height, *more, **tags):
    base = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 8}
    base |= {int(key[1:]): value for key, value in tags.items()}
    return ifd([*((tag, 4, 1, value) for tag, value in sorted(base.items())), *more])


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width, height, *before, rows=None, bits=8):
    deflate = zlib.compressobj(1)
    row = bytes(1 + (3 * width * bits) // 8)
    data = b"".join(deflate.compress(row) for _ in range(rows or 0)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *before, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_of(width=None, height=None, scans=0):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "jpeg", progressive=True)
    found = bytearray(file.getvalue())
    place = found.index(b"\xff\xc2")
    if width:
        found[place + 5 : place + 9] = struct.pack(">HH", height, width)
    last = found.rindex(b"\xff\xda")
    return bytes(found[:last]) + bytes(found[last:-2]) * (scans + 1) + b"\xff\xd9"


VRT = (
    '<VRTDataset rasterXSize="40" rasterYSize="32"><VRTRasterBand dataType="Byte" band="1">'
    '<SimpleSource><SourceFilename>{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
    "</VRTRasterBand></VRTDataset>"
)  # fmt: skip


def image_cases():
    """Contents of image files, by names."""
    tags = [(700 + k, 7, 700_000, 8) for k in range(60_000)]
    yield "tags.tif", ifd(tags) + bytes(100)
    yield "entries.tif", ifd([], 65_535)
    yield "wide.tif", tiff_of(2**31 - 1, 2)
    yield "large.tif", tiff_of(2**31 - 1, 2**31 - 1)
    yield "strip.tif", tiff_of(100_000, 100_000, t259=8)
    yield "tile.tif", tiff_of(100_000, 100_000, t259=8, t322=65_536, t323=65_536, t324=8, t325=8)
    yield "bands.tif", tiff_of(64, 64, t277=65_535)
    yield "blocks.tif", tiff_of(4096, 4096, t277=65_000, t259=8)
    yield "loop.tif", tiff_of(64, 64)[:-4] + struct.pack("<I", 8)
    yield "pages.tif", pages(20_000)
    yield "none.tif", tiff_of(0, 0)
    yield "bomb.png", png_of(8400, 8400, rows=8400)
    yield "empty.png", png_of(2**31 - 1, 2**31 - 1)
    yield "wide.png", png_of(2**31 - 1, 1)
    yield (
        "exif.png",
        png_of(8, 8, chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(10**6)), rows=8),
    )
    yield "text.png", png_of(8, 8, *[chunk(b"zTXt", b"a\0\0" + ZEROS)] * 50, rows=8)
    yield "profile.png", png_of(8, 8, chunk(b"iCCP", b"a\0\0" + ZEROS), rows=8)
    yield "chunks.png", png_of(8, 8, *[chunk(b"aaAa", b"")] * (1 << 18), rows=8)
    yield "large.jpg", jpeg_of(65_500, 65_500)
    yield "hollow.jpg", jpeg_of(20_000, 20_000)
    yield "scans.jpg", jpeg_of(2000, 2000, 20_000)
    yield "large.gif", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0" + bytes(20)
    yield "moving.gif", moving(20_000)
    sizes = struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, 60_000, 60_000, 1, 24)
    yield "large.bmp", b"BM" + sizes + bytes(24)
    yield (
        "large.webp",
        b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\x3f\0" * 2 + bytes(40),
    )
    for k, name in enumerate(
        ["/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif", "a.png", "/dev/zero",
         "b.vrt", "b2.vrt", "<VRTDataset/>", "", "\u00e9" * 300, "GTIFF_DIR:1:a.tif"]
    ):  # fmt: skip
        yield f"b{k}.vrt", VRT.format(name.replace("<", "&lt;")).encode()
        yield f"b{k}.tif", VRT.format(name.replace("<", "&lt;")).encode()
    yield "entities.vrt", b'<!DOCTYPE a [<!ENTITY b "x">]><VRTDataset>&b;</VRTDataset>'
    yield "python.vrt", b'<VRTDataset><VRTRasterBand subClass="VRTDerivedRasterBand"/></VRTDataset>'
    yield "deep.vrt", b"<VRTDataset>" * 100_000
    for name in ("pipe.png", "pipe.tif", "folder.tif", "socket.png", "\x1b[2J.png", "none.jpg"):
        yield name, None


ZEROS = zlib.compress(bytes(20_000_000), 1)


def pages(number):
    size = 2 + 9 * 12 + 4
    page = tiff_of(8, 8)[8:-4]
    links = (struct.pack("<I", 8 + size * k if k < number else 0) for k in range(1, number + 1))
    return b"II*\0\x08\0\0\0" + b"".join(page + link for link in links)


def moving(number):
    frame = b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0"
    colors = b"GIF89a" + struct.pack("<HH", 1, 1) + b"\x80\0\0" + bytes(6)
    return colors + frame * number + b";"


def put_image(folder, name, made, prefix=""):
    """Makes the file, pipe or folder of a case."""
    file = folder / "images" / f"{prefix}{name}"
    if made is not None:
        file.write_bytes(made)
    elif name.startswith("pipe") and not file.exists():
        os.mkfifo(file)
    elif name.startswith("folder"):
        file.mkdir()
    return file


def write_images(folder):
    """Writes all images into a folder, by names that are told apart without their endings."""
    here = os.getcwd()
    lay_out(folder)
    cases = ((name, made) for name, made in image_cases() if name != "bomb.png")  # it is sound
    for k, (name, made) in enumerate(cases):
        put_image(folder, name, made, f"{k}_")
    os.chdir(here)


def read_image(folder, name, made):
    file = put_image(folder, name, made)

    def read():
        with pictures.open_raster(file) as raster:
            height, width = min(raster.height, 512), min(raster.width, 512)
            raster.read(0, height, 0, width)
            if raster.valid is not None:
                raster.valid(0, height, 0, width)
        return pictures.read_image(file).sum()

    return read


def tried(read):
    """What came of reading, and the seconds of the processor that it took."""
    start = time.process_time()
    try:
        read()
        outcome = "read"
    except UserError as error:
        outcome = f"refused: {error}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:200]}"
    return outcome, time.process_time() - start


def main(kind, folder):
    folder = Path(folder).absolute()
    lay_out(folder)
    warnings.simplefilter("ignore")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    cases = coco_cases() if kind == "coco" else image_cases()
    for name, made in cases:
        read = read_coco(folder, made) if kind == "coco" else read_image(folder, name, made)
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, -1))
        outcome, seconds = tried(read)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        print(json.dumps([name, outcome, round(seconds, 2)]), flush=True)


if __name__ == "__main__":
    np.zeros(1)
    main(*sys.argv[1:])
