"""PNG, without its metadata: they may be malformed, or unpack to more than a megabyte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

from pem.photos.exif import ORIENTATION, exif_of_text, orientation_in
from pem.photos.limits import MAX_METADATA_BYTES

SIGNIFICANT_BITS: Any = ("pem", "significant bits")  # in Image.info, where no text of a file can have this name


def open_png(content: bytes) -> Image.Image:
    """A PNG that is not decoded yet."""
    begin, kept, name = 8, [memoryview(content)[:8]], b""
    is_grey, depth, significant_bits, exif, profile = False, 8, 16, b"", b""
    while len(content) >= begin + 8 and name != b"IEND":
        length, name = struct.unpack_from(">I4s", content, begin)
        end = begin + 12 + length
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(memoryview(content)[begin:end])
        data = content[begin + 8 : begin + 8 + min(length, MAX_METADATA_BYTES)]
        if name == b"IHDR" and length >= 13:
            depth, is_grey = data[8], data[9] == 0
        elif name == b"sBIT" and length:
            significant_bits = data[0]
        elif name == b"eXIf":
            exif = data
        elif name == b"iCCP":
            profile = _unpack(data.partition(b"\0")[2][1:])
        elif name in (b"tEXt", b"zTXt") and data.startswith(b"Raw profile type exif\0"):  # before there was eXIf
            text = data.partition(b"\0")[2]
            text = _unpack(text[1:]) if name == b"zTXt" else text
            exif = exif or exif_of_text(text.decode("latin-1"))
        begin = end
    image = Image.open(io.BytesIO(b"".join(kept)), formats=["PNG"])
    image.info[ORIENTATION] = orientation_in(exif)
    if profile:
        image.info["icc_profile"] = profile
    if is_grey and depth == 16 and 0 < significant_bits < 16:
        image.info[SIGNIFICANT_BITS] = significant_bits
    # Pillow scales levels to 8 bits, but not the level or colour that is transparent.
    clear = image.info.get("transparency")
    if is_grey and depth in (2, 4) and clear is not None:
        image.info["transparency"] = clear * 255 // (2**depth - 1)
    elif depth == 16 and isinstance(clear, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    return image


def _unpack(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, MAX_METADATA_BYTES)
    except zlib.error:
        return b""
