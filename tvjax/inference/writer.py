"""Images written strip by strip, under another name until they are complete."""

import errno
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 16
"""Rows of a GeoTIFF that are compressed together."""


class Png:
    """A grey PNG, uint8 or uint16; a context manager. Pillow would want the whole image."""

    def __init__(self, path: Path, height: int, width: int, dtype: Any):
        self._dtype = np.dtype(dtype).newbyteorder(">")
        self._file = open(path, "wb")
        self._deflate = zlib.compressobj(6)
        self._file.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", width, height, 8 * self._dtype.itemsize, 0, 0, 0, 0)
        self._chunk(b"IHDR", header)

    def write(self, strip: np.ndarray) -> None:
        """Appends rows `[h, W]`."""
        rows = np.ascontiguousarray(strip, self._dtype).view(np.uint8).reshape(len(strip), -1)
        # Each row begins with the number of its filter: 0, none.
        content = self._deflate.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
        if content:
            self._chunk(b"IDAT", content)

    def __enter__(self) -> "Png":
        return self

    def __exit__(self, kind: Any, *_) -> None:
        with self._file:
            if kind is None:
                self._chunk(b"IDAT", self._deflate.flush())
                self._chunk(b"IEND", b"")

    def _chunk(self, name: bytes, content: bytes) -> None:
        check = struct.pack(">I", zlib.crc32(name + content))
        self._file.write(struct.pack(">I", len(content)) + name + content + check)


class GeoTiff:
    """A GeoTIFF of one band; a context manager."""

    def __init__(
        self,
        path: Path,
        height: int,
        width: int,
        dtype: Any,
        transform: Any = None,
        crs: Any = None,
    ):
        import rasterio

        self._path, self._dtype = path, np.dtype(dtype)
        self._file = rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=1,
            dtype=self._dtype.name, transform=transform, crs=crs,
            # Blocks of whole rows: strips then fill them in turn, and none is compressed twice.
            compress="deflate", blockysize=BLOCK, bigtiff="if_safer",
        )  # fmt: skip
        self._row = self._check = 0

    def write(self, strip: np.ndarray) -> None:
        """Appends rows `[h, W]`."""
        bottom = self._row + len(strip)
        strip = np.asarray(strip, self._dtype)
        self._file.write(strip, 1, window=((self._row, bottom), (0, strip.shape[1])))
        self._row, self._check = bottom, zlib.crc32(strip.tobytes(), self._check)

    def __enter__(self) -> "GeoTiff":
        return self

    def __exit__(self, kind: Any, *_) -> None:
        self._file.close()
        if kind is None:
            self._read_back()

    def _read_back(self) -> None:
        """GDAL writes the last blocks, of small files all, while it closes, and rasterio tells of
        no error then."""
        import rasterio

        check = 0
        with rasterio.open(self._path) as file:
            for top in range(0, self._row, BLOCK):
                window = (top, min(top + BLOCK, self._row)), (0, file.width)
                check = zlib.crc32(file.read(1, window=window).tobytes(), check)
        if check != self._check:
            raise OSError(errno.EIO, "not all of it is there after writing", str(self._path))


class JsonList:
    """A JSON list written item by item; a context manager."""

    def __init__(self, path: Path, before: str = "[", after: str = "]"):
        self._file = open(path, "w")
        self._file.write(before)
        self._after, self._items = after, 0

    def add(self, item: Any) -> None:
        """Appends an item, on a line of its own."""
        self._file.write((",\n" if self._items else "\n") + json.dumps(item))
        self._items += 1

    def __len__(self) -> int:
        return self._items

    def mark(self) -> tuple[int, int]:
        """The present end, for `back_to`."""
        return self._file.tell(), self._items

    def back_to(self, mark: tuple[int, int]) -> None:
        """Drops what was added after a mark."""
        position, self._items = mark
        self._file.seek(position)
        self._file.truncate()

    def __enter__(self) -> "JsonList":
        return self

    def __exit__(self, *_) -> None:
        with self._file:
            self._file.write(f"\n{self._after}\n")
