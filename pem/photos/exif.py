"""How a photo lies: its EXIF Orientation."""

from __future__ import annotations

import struct
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where a reader keeps the orientation in Image.info. A PNG may hold a text under any name, but none under a tuple.
ORIENTATION: Any = ("pem", "orientation")
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # types of EXIF tags; Orientation should be a 3


def orientation(image: Image.Image) -> int:
    """How a photo lies, from 1 (upright) to 8: its EXIF Orientation, or 1 where there is none or it cannot be read.

    With 5 to 8 the sides are swapped. No other tag counts: the rest of EXIF may be malformed, and XMP data often keep
    the Orientation of a photo that has been turned since. Browsers do the same.
    """
    if ORIENTATION in image.info:  # open_photo has read it
        return image.info[ORIENTATION]
    if isinstance(image, TiffImageFile):  # opened elsewhere: Pillow turns it while it decodes
        return 1
    exif, text = image.info.get("exif"), image.info.get("Raw profile type exif")  # a text may have either name
    if isinstance(exif, bytes) and exif:
        return orientation_in(exif)
    return orientation_in(exif_of_text(text)) if isinstance(text, str) else 1


def orientation_in(exif: bytes) -> int:
    """The Orientation in a block of EXIF, or 1. Pillow would stop at the first tag that is malformed."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "!")  # anything else leads nowhere
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == ExifTags.Base.Orientation and kind in _INTEGERS:
                number = order + _INTEGERS[kind]
                inside = length * struct.calcsize(number) <= 4  # else the entry says where the numbers are
                position = entry + 8 if inside else struct.unpack_from(f"{order}I", exif, entry + 8)[0]
                (value,) = struct.unpack_from(number, exif, position)
                return value if value in TURN_UPRIGHT else 1
    except struct.error:  # a photo with a broken EXIF block is still a photo
        pass
    return 1


def exif_of_text(text: str) -> bytes:
    """EXIF as ImageMagick writes it into a text of a PNG: an empty line, a name, the length, and hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""
