"""One reader: training and prediction see the same, known pixels of a file of any make, or refuse.

Each make of file is read whole, in windows, as prediction does, by GDAL where Pillow would do, and
without rasterio.
"""

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvjax.data import coco, orientation, pictures
from tvjax.errors import UserError
from tvjax.inference import writing

rasterio = pytest.importorskip("rasterio")
from rasterio.enums import ColorInterp  # noqa: E402

HEIGHT, WIDTH = 32, 48
BLOCKS = np.random.default_rng(0).integers(1, 256, (HEIGHT // 8, WIDTH // 8, 4))
PIXELS = BLOCKS.repeat(8, 0).repeat(8, 1).astype(np.uint8)
RGB, GREY = PIXELS[..., :3], PIXELS[..., 0]
HOLES = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 7 > 2
ALPHA = np.where(HOLES, 130, 0).astype(np.uint8)
PALETTE = [(17 * k, 255 - 17 * k, 29 * k % 256) for k in range(16)]
NIBBLES = GREY % 16


def grey(values):
    return np.repeat(values[..., None], 3, axis=-1)


def tiff(bands, *, interp=None, colors=None, mask=None, dtype="uint8", **options):
    """Writes bands `[H, W, C]` by GDAL."""

    def write(path):
        values = bands if bands.ndim == 3 else bands[..., None]
        with rasterio.open(
            path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=values.shape[-1],
            dtype=dtype, **options,
        ) as file:  # fmt: skip
            if colors:
                file.write_colormap(1, dict(enumerate(colors)))
            if interp:
                file.colorinterp = [ColorInterp[name] for name in interp.split()]
            file.write(np.moveaxis(values, -1, 0).astype(dtype))
            if mask is not None:
                file.write_mask(mask)

    return ".tif", write


def picture(image, suffix=".png", turned=None, **options):
    """Writes an image by Pillow, or bytes as they are."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(image))
    if turned is not None:
        options["exif"] = Image.Exif()
        options["exif"][orientation.TAG] = turned
    return suffix, lambda path: image.save(path, **options)


def chunk(name, content):
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(values, bits, kind, *before, after=b""):
    """Writes a PNG of 1, 2, 4, 8 or 16 bits per channel; values `[H, W]` or `[H, W, C]`."""
    values = values.reshape(HEIGHT, -1)
    if bits < 8:
        ones = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -bits:]
        rows = np.packbits(ones.reshape(HEIGHT, -1), axis=-1)
    else:
        rows = values.astype(f">u{bits // 8}").view(np.uint8)
    content = zlib.compress(np.pad(rows.reshape(HEIGHT, -1), ((0, 0), (1, 0))).tobytes())
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *before, chunk(b"IDAT", content), after, chunk(b"IEND", b""))
    return ".png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def decoded(image, **options):
    """Pixels of a lossy picture as its decoder gives them."""
    file = io.BytesIO()
    image.save(file, **options)
    return np.asarray(Image.open(file).convert("RGB"))


def exif(number):
    found = Image.Exif()
    found[orientation.TAG] = number
    return found.tobytes()[6:]


def as_shown(number):
    """An independent oracle: TIFF 6's table of where row 0 and column 0 are shown."""
    turn = {
        2: lambda a: np.fliplr(a),
        3: lambda a: np.rot90(a, 2),
        4: lambda a: np.flipud(a),
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: lambda a: np.rot90(a, 1),
    }
    return turn[number](RGB)


RGBA = np.dstack([RGB, ALPHA])
DEEP = RGB.astype(np.uint16) * 8
FULL = np.full((HEIGHT, WIDTH), 65535)
JPEG = Image.fromarray(RGB)
LOSSY = decoded(JPEG, format="jpeg")
KEY = tuple(int(value) for value in RGB[0, 0])
SPARSE = np.zeros_like(RGB)
SPARSE[:16, :16] = RGB[:16, :16]


def sparse(path):
    with rasterio.open(
        path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=3, dtype="uint8",
        tiled=True, blockxsize=16, blockysize=16, sparse_ok=True,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(RGB[:16, :16], -1, 0), window=((0, 16), (0, 16)))


def beside(path):
    tiff(RGB, photometric="RGB")[1](path)
    with rasterio.open(path) as file:  # which may then write no more than a file beside it
        pass
    Path(f"{path}.aux.xml").write_text(
        "<PAMDataset>"
        + "".join(
            f'<PAMRasterBand band="{k}"><ColorInterp>{name}</ColorInterp></PAMRasterBand>'
            for k, name in enumerate(("Blue", "Green", "Red"), 1)
        )
        + "</PAMDataset>"
    )
    del file


GOOD = {
    "rgb.tif": (tiff(RGB), RGB),
    "planar.tif": (tiff(RGB, interleave="band"), RGB),
    "minisblack.tif": (tiff(RGB, photometric="MINISBLACK"), RGB),
    "bgr.tif": (tiff(RGB[..., ::-1], interp="blue green red"), RGB),
    "bgrn.tif": (tiff(PIXELS[..., [2, 1, 0, 3]], interp="blue green red undefined"), RGB),
    "bgr_beside.tif": ((".tif", beside), RGB[..., ::-1]),
    "rgbn.tif": (tiff(PIXELS, photometric="RGB", alpha="no"), RGB),
    "five.tif": (tiff(np.dstack([PIXELS, GREY]), photometric="RGB"), RGB),
    "grey.tif": (tiff(GREY), grey(GREY)),
    "white_is_0.tif": (tiff(GREY, photometric="MINISWHITE"), grey(255 - GREY)),
    "bit.tif": (tiff(GREY % 2, nbits=1), grey(GREY % 2 * 255)),
    "bit_white_is_0.tif": (
        tiff(GREY % 2, nbits=1, photometric="MINISWHITE"), grey(255 - GREY % 2 * 255)
    ),
    "2_bits.tif": (tiff(GREY % 4, nbits=2), grey(GREY % 4 * 85)),
    "4_bits.tif": (tiff(NIBBLES, nbits=4), grey(NIBBLES * 17)),
    "4_bits_white_is_0.tif": (
        tiff(NIBBLES, nbits=4, photometric="MINISWHITE"), grey(255 - NIBBLES * 17)
    ),
    "4_bits_rgb.tif": (tiff(RGB % 16, nbits=4), RGB % 16 * 17),
    "palette.tif": (tiff(NIBBLES, colors=PALETTE), np.array(PALETTE)[NIBBLES]),
    "palette_of_4_bits.tif": (tiff(NIBBLES, colors=PALETTE, nbits=4), np.array(PALETTE)[NIBBLES]),
    "palette_nodata.tif": (
        tiff(NIBBLES, colors=PALETTE, nodata=3), np.array(PALETTE)[NIBBLES], NIBBLES != 3
    ),
    "pillow_palette.tif": (picture(JPEG.convert("P"), ".tif"), JPEG.convert("P").convert("RGB")),
    "sparse.tif": ((".tif", sparse), SPARSE),
    "big.tif": (tiff(RGB, bigtiff="yes"), RGB),
    "tiled.tif": (tiff(RGB, tiled=True, blockxsize=16, blockysize=16, compress="lzw"), RGB),
    "predictor.tif": (tiff(RGB, compress="deflate", predictor=2), RGB),
    "zstd.tif": (tiff(RGB, compress="zstd"), RGB),
    "rgba.tif": (tiff(RGBA, alpha="yes"), RGB, HOLES),
    "grey_alpha.tif": (tiff(RGBA[..., [0, 3]], alpha="yes"), grey(GREY), HOLES),
    "nodata.tif": (tiff(RGB * HOLES[..., None], nodata=0), RGB * HOLES[..., None], HOLES),
    "mask.tif": (tiff(RGB, mask=HOLES), RGB, HOLES),
    "pillow.tif": (picture(JPEG, ".tif"), RGB),
    "cmyk.tif": (picture(JPEG.convert("CMYK"), ".tif"), RGB),
    "rgb.png": (picture(JPEG), RGB),
    "gamma.png": (png(RGB, 8, 2, chunk(b"gAMA", struct.pack(">I", 100_000))), RGB),
    "rgba.png": (picture(RGBA), RGB, HOLES),
    "grey_alpha.png": (picture(RGBA[..., [0, 3]]), grey(GREY), HOLES),
    "key.png": (picture(JPEG, transparency=KEY), RGB, (RGB != KEY).any(-1)),
    "grey_key.png": (picture(GREY, transparency=KEY[0]), grey(GREY), GREY != KEY[0]),
    "bit.png": (png(GREY % 2, 1, 0), grey(GREY % 2 * 255)),
    "2_bits.png": (png(GREY % 4, 2, 0), grey(GREY % 4 * 85)),
    "4_bits_key.png": (
        png(NIBBLES, 4, 0, chunk(b"tRNS", b"\0\3")), grey(NIBBLES * 17), NIBBLES != 3
    ),
    "bit_key.png": (
        png(GREY % 2, 1, 0, chunk(b"tRNS", b"\0\1")), grey(GREY % 2 * 255), GREY % 2 == 0
    ),
    "palette.png": (
        png(NIBBLES, 4, 3, chunk(b"PLTE", bytes(np.ravel(PALETTE).tolist()))),
        np.array(PALETTE)[NIBBLES],
    ),
    "palette_alpha.png": (
        png(
            NIBBLES, 8, 3, chunk(b"PLTE", bytes(np.ravel(PALETTE).tolist())),
            chunk(b"tRNS", bytes([255, 0, 9, 0])),
        ),
        np.array(PALETTE)[NIBBLES], (NIBBLES != 1) & (NIBBLES != 3),
    ),
    "late_exif.png": (png(RGB, 8, 2, after=chunk(b"eXIf", exif(6))), as_shown(6)),
    "rgb.jpg": (picture(JPEG, ".jpg"), LOSSY),
    "grey.jpg": (picture(GREY, ".jpg"), decoded(Image.fromarray(GREY), format="jpeg")),
    "cmyk.jpg": (
        picture(JPEG.convert("CMYK"), ".jpg"), decoded(JPEG.convert("CMYK"), format="jpeg")
    ),
    "progressive.jpg": (
        picture(JPEG, ".jpg", progressive=True), decoded(JPEG, format="jpeg", progressive=True)
    ),
    "rgb.bmp": (picture(JPEG, ".bmp"), RGB),
    "rgba.webp": (picture(RGBA, ".webp", lossless=True, exact=True), RGB, HOLES),
    "one.gif": (picture(JPEG.convert("P"), ".gif"), JPEG.convert("P").convert("RGB")),
    **{f"turned_{n}.png": (picture(JPEG, turned=n), as_shown(n)) for n in range(2, 9)},
    **{f"turned_{n}.tif": (picture(JPEG, ".tif", turned=n), as_shown(n)) for n in range(2, 9)},
    "turned.webp": (picture(JPEG, ".webp", turned=8, lossless=True), as_shown(8)),
    "senseless.tif": (picture(JPEG, ".tif", turned=9), RGB),
    "senseless_exif.png": (picture(JPEG, turned=9), RGB),
    "broken_exif.png": (png(RGB, 8, 2, chunk(b"eXIf", b"no")), RGB),
}  # fmt: skip


def animation(path):
    JPEG.save(path, save_all=True, append_images=[Image.fromarray(RGB[::-1])])


def deep(values, kind):
    return png(values, 16, kind), "16 bits per channel.*--white"


BAD = {
    "deep_grey.png": deep(DEEP[..., 0], 0),
    "deep_rgb.png": deep(DEEP, 2),
    "deep_grey_alpha.png": deep(np.dstack([DEEP[..., 0], FULL]), 4),
    "deep_rgba.png": deep(np.dstack([DEEP, FULL]), 6),
    "deep.tif": (tiff(DEEP, dtype="uint16", photometric="RGB"), "16 bits per channel.*--white"),
    "deep_planar.tif": (
        tiff(DEEP, dtype="uint16", photometric="RGB", interleave="band"), "16 bits.*--white"
    ),
    "12_bits.tif": (tiff(DEEP, dtype="uint16", nbits=12, photometric="RGB"), "16 bits.*--white"),
    "float.tif": (tiff(RGB / 255, dtype="float32"), "type float32"),
    "signed.tif": (tiff(RGB // 2, dtype="int16"), "type int16"),
    "lab.tif": (tiff(RGB, photometric="CIELAB"), "kind CIELAB"),
    "two.tif": (tiff(PIXELS[..., :2]), "has 2 bands"),
    "four.tif": (tiff(PIXELS, photometric="MINISBLACK", alpha="no"), "has 4 bands"),
    "nrg.tif": (tiff(RGB, interp="undefined red green"), "has 3 bands .undefined, red, green"),
    "pages.tif": ((".tif", animation), "holds 2 pictures"),
    "moving.png": ((".png", animation), "holds several pictures"),
    "moving.gif": ((".gif", animation), "holds several pictures"),
    "moving.webp": ((".webp", animation), "holds several pictures"),
    "place_turned.tif": (
        picture(
            JPEG, ".tif",
            tiffinfo={
                33550: (1.0, 1.0, 0.0), 33922: (0.0, 0.0, 0.0, 5.0, 5.0, 0.0), orientation.TAG: 6
            },
        ),
        "both a georeference and orientation 6",
    ),
    "text.png": ((".png", lambda path: path.write_text("no image")), "cannot be decoded"),
    "cut.jpg": (
        (".jpg", lambda path: path.write_bytes(picture_bytes(JPEG)[:-60])), "cannot be decoded"
    ),
}  # fmt: skip


def picture_bytes(image):
    file = io.BytesIO()
    image.save(file, "jpeg")
    return file.getvalue()


def make(folder, name, entry):
    (suffix, write), *_ = entry
    path = folder / f"{Path(name).stem}{suffix}"
    write(path)
    return path


def by_training(path, folder, size):
    """What a net is trained on: pixels and mask of a tile that is all object."""
    height, width = size
    outline = [[0, 0, width, 0, width, height, 0, height]]
    content = {
        "images": [{"id": 1, "file_name": path.name, "height": height, "width": width}],
        "annotations": [{"id": 1, "image_id": 1, "segmentation": outline}],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    (tile,) = coco.read(folder / "coco.json", folder)
    loaded = tile.load()
    return loaded.image, loaded.objects


def by_prediction(path, folder):
    """What a net is given in prediction, where it says that all is object, and what is kept."""
    seen = []

    def net(images):
        seen.append(np.rint(images[0] * 255).astype(np.uint8))
        return np.ones_like(images[..., :1])

    _, skipped = writing.predict_images([(1, path)], folder / "out", net)
    if skipped:
        return skipped[0], None
    (written,) = (folder / "out").glob("*_mask.*")
    with rasterio.open(written) as file:
        return seen[0][: file.height, : file.width], file.read(1) > 0


def windows(path):
    """Pixels and what has data, read in parts."""
    with pictures.open_raster(path) as raster:
        image = np.zeros((raster.height, raster.width, 3), np.uint8)
        valid = np.ones(image.shape[:2], bool)
        for top in range(0, raster.height, 13):
            for left in range(0, raster.width, 17):
                ends = min(top + 13, raster.height), min(left + 17, raster.width)
                part, window = np.s_[top : ends[0], left : ends[1]], (top, ends[0], left, ends[1])
                image[part] = raster.read(*window)
                if raster.valid is not None:
                    valid[part] = raster.valid(*window)
    return image, valid


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", GOOD)
def test_all_see_the_pixels_that_were_written(name, tmp_path, monkeypatch):
    path = make(tmp_path, name, GOOD[name])
    _, expected, *holes = GOOD[name]
    expected = np.asarray(expected)
    has_data = holes[0] if holes else np.ones(expected.shape[:2], bool)

    def assert_same(image, valid):
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(valid, has_data)

    assert_same(*by_training(path, tmp_path, expected.shape[:2]))
    assert_same(*by_prediction(path, tmp_path))
    assert_same(*windows(path))
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "WHOLE", 0)  # PNGs too by GDAL
        assert_same(*windows(path))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    if reads(path, r"tvjax\[geo\]"):
        assert_same(*windows(path))
    else:
        assert path.suffix == ".tif"


def test_annotations_of_the_stored_pixels_are_told_from_those_of_the_shown_ones(tmp_path):
    path = make(tmp_path, "a.png", GOOD["turned_6.png"])
    words = rf"is {HEIGHT}x{WIDTH} pixels as it is shown .orientation counts., but the annotations"
    with pytest.raises(UserError, match=words):
        by_training(path, tmp_path, (HEIGHT, WIDTH))


def reads(path, refusal):
    """Whether the file can be read; if it cannot, it says so."""
    try:
        pictures.read_image(path)
    except UserError as error:
        assert path.name in str(error)
        with pytest.raises(UserError, match=refusal):
            raise
        return False
    return True


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", BAD)
def test_all_refuse_alike(name, tmp_path, monkeypatch):
    path = make(tmp_path, name, BAD[name])
    with pytest.raises(UserError, match=BAD[name][1]) as error:
        by_training(path, tmp_path, (HEIGHT, WIDTH))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert by_prediction(path, tmp_path) == (str(error.value), None)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert not reads(path, rf"{BAD[name][1]}|tvjax\[geo\]")
