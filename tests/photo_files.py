"""Photos of all kinds, written byte by byte where Pillow would not write them, for the tests of the reader."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from pem.photos import load_image

Image.init()
HAS_AVIF = "AVIF" in Image.SAVE


def gradient(height: int, width: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return np.stack((rows % 256, cols % 256, (rows + cols) % 256), axis=2).astype(np.uint8)


def read(content: bytes) -> np.ndarray:
    return np.asarray(load_image(io.BytesIO(content)))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: bytes, size: tuple[int, int], depth: int, colour: int, *before: bytes, after: bytes = b"") -> bytes:
    """A PNG of the rows in ``pixels``, of (width, height), with chunks before and after them."""
    row = len(pixels) // size[1]
    rows = b"".join(b"\0" + pixels[i : i + row] for i in range(0, len(pixels), row))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    end = png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + png_chunk(b"IDAT", zlib.compress(rows)) + after + end


def grey_png(levels: np.ndarray, *before: bytes, after: bytes = b"") -> bytes:
    """Of 8 or 16 bits."""
    depth = 8 * levels.itemsize
    return png(levels.astype(f">u{levels.itemsize}").tobytes(), levels.shape[::-1], depth, 0, *before, after=after)


def ifd(order: str, tags: dict[int, tuple[int, list[int] | bytes]], start: int, next_at: int = 0) -> bytes:
    """A directory of TIFF or EXIF at ``start``, with what does not fit into its entries behind it."""
    entries, behind = b"", b""
    data_at = start + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        letter = {1: "B", 2: "s", 3: "H", 4: "I", 9: "i", 11: "f"}.get(kind, "B")
        data = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(data) > 4:
            data, behind = struct.pack(f"{order}I", data_at + len(behind)), behind + data
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    return struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", next_at) + behind


def exif(order: str = "<", **tags: tuple[int, list[int] | bytes]) -> bytes:
    """``t274=(3, [6])``: tag 274 of type 3 (SHORT) is 6. 2 is text, 1 a byte, 4 a LONG."""
    mark = {"<": b"II", ">": b"MM"}[order]
    return mark + struct.pack(f"{order}HI", 42, 8) + ifd(order, {int(n[1:]): tag for n, tag in tags.items()}, 8)


def tiff(data: bytes, size: tuple[int, int], bits: list[int], colour: int, order: str = "<", **tags: object) -> bytes:
    """An uncompressed TIFF of (width, height); ``tags`` as in ``exif``, or None for those that it shall lack."""
    width, height = size
    all_tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, bits), 259: (3, [1]), 262: (3, [colour]), 273: (4, [8]),
        277: (3, [len(bits)]), 278: (4, [height]), 279: (4, [len(data)]),
    } | {int(name[1:]): tag for name, tag in tags.items()}  # fmt: skip
    data += b"\0" * (len(data) % 2)
    mark = {"<": b"II", ">": b"MM"}[order]
    return mark + struct.pack(f"{order}HI", 42, 8 + len(data)) + data + ifd(order, all_tags, 8 + len(data))


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def with_exif(kind: str, *blocks: bytes, image: Image.Image | None = None) -> bytes:
    """A photo of that kind with those EXIF blocks, however malformed."""
    image = Image.fromarray(gradient(10, 20)) if image is None else image
    if kind == "JPEG":
        content = saved(image, "JPEG", quality=95)
        return content[:2] + b"".join(jpeg_segment(0xE1, b"Exif\0\0" + block) for block in blocks) + content[2:]
    if kind == "PNG":
        content = saved(image, "PNG")
        return content[:33] + b"".join(png_chunk(b"eXIf", block) for block in blocks) + content[33:]
    return saved(image, kind, exif=b"Exif\0\0" + blocks[0], lossless=True)


UPRIGHT = gradient(16, 24)
SIX: dict[str, tuple[int, list[int] | bytes]] = {"t274": (3, [6])}
STORED = np.rot90(UPRIGHT)  # what Orientation 6 asks to turn by 90 degrees clockwise
EXACT = ["PNG", "WEBP"]  # formats with EXIF and without loss


def is_upright(content: bytes) -> bool:
    loaded = read(content).astype(int)
    return loaded.shape == UPRIGHT.shape and np.abs(loaded - UPRIGHT).mean() < 8


RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
SIZE = (8, 8)


def ramp(white: float, dtype: str) -> np.ndarray:
    levels = RAMP.astype(float) / 255 * white
    return (levels if dtype.endswith("f4") else levels.round()).astype(dtype)


def packed(levels: np.ndarray, bits: int) -> bytes:
    """Levels one behind the other without gaps, most significant bit first."""
    return np.packbits((levels[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(bool)).tobytes()


def told_white(white: int) -> dict[str, tuple[int, list[int]]]:
    return {"t341": (3, [white])}


SIGNED, FLOAT = {"t339": (3, [2])}, {"t339": (3, [3])}
