"""Files that Pillow decodes whole: pictures, and TIFFs that are plain enough.

A TIFF is plain if Pillow and GDAL cannot but agree on it; it is read here where rasterio is not
installed. Colours are taken as they are stored: profiles and gammas are ignored, and colours are
not blended where a pixel is half transparent.
"""

import contextlib
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tvjax.data import local, orientation
from tvjax.errors import UserError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
"""Endings of pictures' names; what a file is, its content tells."""

KINDS = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,  # also of those that hold a second picture (MPO)
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
}
"""Readers by how files begin. Chosen here, they do not guess, nor refuse large images."""

TOGETHER = 1 << 22
"""Pixels that are converted at once: all at once would take three times the memory."""

MOST_SCANS = 200
"""Scans of a JPEG, which is decoded as often as it has scans; progressive ones have some ten."""

MOST_CHUNKS = 1 << 18
"""Chunks of a PNG: as many as a picture of 2^29 pixels has at the 8 KiB that are usual."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFFs begin."""

ENTRIES = ("HHI4x", "HHQ8x")
"""Tag, type and number of values of an entry, of TIFFs and of big ones."""

BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Size of a number in a TIFF's tag, by its type; others have one."""

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")
"""Pillow's names of the pixels that become red, green and blue without loss of range."""


class Header(NamedTuple):
    """What is known of a picture before it is decoded."""

    format: str
    """"PNG", "JPEG" and so on."""
    height: int
    """Height in pixels, as stored."""
    width: int
    """Width in pixels, as stored."""
    bits: int
    """Bits per channel."""
    orientation: int
    """Orientation, 1 to 8, see `tvjax.data.orientation`."""
    has_alpha: bool
    """Whether pixels may be transparent."""
    key: int | None = None
    """The grey, 0 to 255, that is transparent in a PNG; Pillow's own is wrong of few bits."""
    is_complete: bool = True
    """False of a PNG that does not end."""


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Around what reads, and no more: of a broken file decoders raise almost anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(
            f"{path}: cannot be decoded, it may be truncated or no image ({reason})"
        ) from error


def read_header(path: Path) -> Header | None:
    """The header of a picture; None if the file is something else.

    Raises:
      UserError: the file is missing, broken, animated, or its colours are none of red, green, blue.
    """
    kind = _kind(path)
    if kind is None:
        return None
    if kind is JpegImageFile:
        _check_scans(path)
    with decoding(path):
        chunks = dict(_png_chunks(path)) if kind is PngImageFile else {}
    with decoding(path), kind(path) as image:
        bits = chunks[b"IHDR"][8] if b"IHDR" in chunks else 8
        # Not how many: of a GIF Pillow would decode them all to tell.
        if kind is not JpegImageFile and getattr(image, "is_animated", False):
            raise UserError(f"{path}: holds several pictures; save one of them by itself")
        if image.mode not in MODES and bits <= 8:
            raise UserError(f"{path}: has pixels of kind {image.mode}; convert it to RGB")
        return Header(
            image.format or "", image.height, image.width, bits,
            _orientation(image, chunks.get(b"eXIf")), _has_alpha(image), _grey_key(chunks),
            not chunks or b"IEND" in chunks,
        )  # fmt: skip


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture, as it is shown.

    Raises:
      UserError: the file is no picture.
    """
    header = _required(path)
    return orientation.shown_size(header.orientation, header.height, header.width)


def decode(path: Path, header: Header) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes a picture or a plain TIFF of 8 bits per channel.

    Returns:
      uint8 `[H, W, 3]` as stored, and bool `[H, W]`, False where it is fully transparent; None:
      nowhere.

    Raises:
      UserError: the file is truncated or no picture.
    """
    has_alpha = header.has_alpha and header.key is None
    rgb = np.empty((header.height, header.width, 3), np.uint8)
    valid = np.ones(rgb.shape[:2], bool) if header.has_alpha or header.key is not None else None
    with decoding(path), (_kind(path) or TiffImageFile)(path) as image:
        if (image.height, image.width) != rgb.shape[:2]:
            raise UserError(f"{path}: was changed while it was read")
        rows = max(1, TOGETHER // image.width)
        for top in range(0, image.height, rows):
            part = image.crop((0, top, image.width, min(top + rows, image.height)))
            # Palettes with alpha too by RGBA: Pillow warns of RGB at once.
            values = np.asarray(part.convert("RGBA" if has_alpha else "RGB"))
            rgb[top : top + rows] = values[..., :3]
            if valid is not None:
                opaque = values[..., 3] > 0 if has_alpha else values[..., 0] != header.key
                valid[top : top + rows] = opaque
    return rgb, valid


def read_values(path: Path) -> np.ndarray:
    """The numbers that a picture holds: of a palette file the indices; alpha is dropped.

    Returns:
      Unsigned integers `[H, W]`, or `[H, W, 3]` of a colour file, as it is shown.

    Raises:
      UserError: the file is truncated or no picture, or a colour file of 16 bits per channel.
    """
    header = _required(path)
    with decoding(path), (_kind(path) or TiffImageFile)(path) as image:
        if header.bits > 8 and image.mode != "I;16":
            raise UserError(f"{path}: has 16 bits per channel; a mask is grey, of 0 and 255")
        values = np.asarray(image)
    if image.mode == "L" and header.bits < 8:
        values = values // (255 // (2**header.bits - 1))  # Pillow spreads them over 0 to 255
    if values.ndim == 3:
        values = values[..., 0] if image.mode in ("LA", "PA") else values[..., :3]
    return orientation.shown(header.orientation, values.astype(np.uint16))


def has_palette(path: Path) -> bool:
    """Whether the numbers of a picture are indices of colours."""
    with decoding(path), (_kind(path) or TiffImageFile)(path) as image:
        return image.mode in ("P", "PA")


def read_colors(path: Path) -> np.ndarray:
    """The colours that a picture shows, a palette's own: uint8 `[H, W, 3]`; alpha is dropped.

    Raises:
      UserError: the file is truncated or no picture, or has 16 bits per channel.
    """
    header = _required(path)
    if header.bits > 8:
        raise UserError(f"{path}: has 16 bits per channel, and colours have 8; name its numbers")
    return orientation.shown(header.orientation, decode(path, header)[0])


def tiff_tags(path: Path) -> ImageFileDirectory_v2 | None:
    """Tags of a TIFF's first page; None if the file is no TIFF."""
    with decoding(path), open(path, "rb") as file:
        begin = file.read(8)
        if begin[:4] not in TIFF:
            return None
        tags = ImageFileDirectory_v2(begin + (file.read(8) if 43 in begin[2:4] else b""))
        file.seek(tags.next)
        _check_tags(path, file, begin)
        file.seek(tags.next)
        tags.load(file)
        return tags


def _check_tags(path: Path, file: BinaryIO, begin: bytes) -> None:
    """Refuses tags that lie in one another: a small file could ask for any amount of memory."""
    order, is_big = "<" if begin[:2] == b"II" else ">", 43 in begin[2:4]
    number, entry = struct.Struct(order + "HQ"[is_big]), struct.Struct(order + ENTRIES[is_big])
    (count,) = number.unpack(file.read(number.size))
    size = os.fstat(file.fileno()).st_size
    content = file.read(entry.size * min(count, size // entry.size))
    found = entry.iter_unpack(content[: len(content) // entry.size * entry.size])
    total = sum(BYTES.get(kind, 1) * length for _, kind, length in found)
    if total > 2 * size + 4096:  # some programs let tags of the same value share it
        raise UserError(f"{path}: cannot be decoded (its tags are larger than the file)")


def read_plain_tiff(path: Path) -> Header | None:
    """The header of a TIFF that `decode` may read; None of any other file.

    It has one page of 8 bits per channel, grey or red, green and blue, row by row, upright, without
    loss, without holes, and nothing in it or beside it that GDAL alone understands.
    """
    with decoding(path):
        tags = tiff_tags(path)
        if tags is None or not _is_plain(path, tags):
            return None
        with TiffImageFile(path) as image:
            return Header("TIFF", image.height, image.width, 8, 1, _has_alpha(image))


def _is_plain(path: Path, tags: ImageFileDirectory_v2) -> bool:
    # By number: width, height, bits, compression, photometric, samples, planar, extra samples.
    samples, photometric = tags.get(277, 1), tags.get(262)
    extra = tuple(np.atleast_1d(tags.get(338, ())).tolist())
    known = {(1, ()): 1, (1, (2,)): 2, (2, ()): 3, (2, (0,)): 4, (2, (2,)): 4, (0, ()): 1}
    return (
        known.get((photometric, extra)) == samples
        and set(np.atleast_1d(tags.get(258, 1)).tolist()) == {8}
        and set(np.atleast_1d(tags.get(339, 1)).tolist()) == {1}
        and tags.get(259, 1) in (1, 5, 8, 32773, 32946)
        and (tags.get(284, 1), tags.get(orientation.TAG, 1)) == (1, 1)
        and all(np.atleast_1d(tags.get(279, tags.get(325, 0))).tolist())
        and not set(tags) & {42112, 42113}  # GDAL's own: metadata and the value of no data
        and not tags.next  # page
        and not any(Path(f"{path}{end}").exists() for end in (".aux.xml", ".msk"))
    )


def _required(path: Path) -> Header:
    header = read_header(path)
    if header is None:
        raise UserError(f"{path}: cannot be decoded, it may be truncated or no image")
    return header


def read_beginning(path: Path) -> bytes:
    """The first bytes of a regular file, by which it is told what it is.

    Raises:
      UserError: it is no regular file, or cannot be read.
    """
    local.check_regular(path)
    try:
        with open(path, "rb") as file:
            return file.read(12)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _kind(path: Path) -> type[ImageFile.ImageFile] | None:
    begin = read_beginning(path)
    if begin[:4] == b"RIFF" and begin[8:] != b"WEBP":
        return None
    return next((kind for magic, kind in KINDS.items() if begin.startswith(magic)), None)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info


def _grey_key(chunks: dict[bytes, bytes]) -> int | None:
    """The level of a grey picture that is transparent, see `Header.key`."""
    header, key = chunks.get(b"IHDR", b""), chunks.get(b"tRNS", b"")
    if len(header) < 10 or header[9] != 0 or len(key) != 2 or header[8] > 8:
        return None
    return int.from_bytes(key) * 255 // (2 ** header[8] - 1)


def _orientation(image: Image.Image, exif: bytes | None) -> int:
    """The orientation, 1 to 8; 1 if the file does not say, or nothing that makes sense."""
    try:
        if exif is not None:  # also after the pixels, where Pillow would have to decode them first
            found = Image.Exif()
            found.load(exif)
        else:
            found = Image.Image.getexif(image)
        number = found.get(orientation.TAG, 1)
    except Exception:  # viewers ignore it too
        return 1
    return number if number in orientation.TURNS else 1


def _check_scans(path: Path) -> None:
    """Counts the marks of scans, which stand nowhere else but in pictures within the picture."""
    scans, last = 0, b""
    with decoding(path), open(path, "rb") as file:
        while scans <= MOST_SCANS and (block := file.read(1 << 20)):
            scans += (last + block).count(b"\xff\xda")
            last = block[-1:] if block[-1:] == b"\xff" else b""
    if scans > MOST_SCANS:
        raise UserError(f"{path}: has more than {MOST_SCANS} scans; save it anew as a JPEG")


def _png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks as far as it is whole, without its pixels."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(8)
        for number in itertools.count(1):
            if number > MOST_CHUNKS:
                raise UserError(f"{path}: has more than {MOST_CHUNKS} chunks; save it anew")
            if len(begin := file.read(8)) < 8:
                return
            length, name = struct.unpack(">I4s", begin)
            if file.tell() + length + 4 > size:
                return
            content = file.read(length) if name in (b"IHDR", b"eXIf", b"tRNS") else b""
            file.seek(length - len(content) + 4, 1)
            yield name, content
