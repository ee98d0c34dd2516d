"""JPEG, without its metadata, and also where the end is missing."""

from __future__ import annotations

import io
import re
import struct

from PIL import Image, ImageFile

from pem.photos.exif import ORIENTATION, orientation_in
from pem.photos.limits import ImageError

MAX_SCANS = 64  # usual ones have 10, and each costs a pass over all pixels
_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd8-\xfe])")  # with a length; FF00 is a byte, and pixels go on after D0 to D7
_ICC = b"ICC_PROFILE\0"


def open_jpeg(content: bytes) -> Image.Image:
    """A JPEG that is not decoded yet. Raises ImageError."""
    begin, kept, turn = 2, [content[:2]], 1
    profile: dict[int, bytes] = {}  # its parts, by their numbers from 1
    while True:
        marker, length = struct.unpack(">HH", content[begin : begin + 4].ljust(4, b"\0"))
        if marker == 0xFFFF:  # a byte to fill up
            begin += 1
            continue
        if not 0xFFC0 <= marker <= 0xFFFE or 0xFFD0 <= marker <= 0xFFDA:  # all that follows the first scan is pixels
            break
        end = begin + 2 + length
        data = content[begin + 4 : end]
        if marker == 0xFFE1 and turn == 1:  # there may be several
            turn = orientation_in(data)
        elif marker == 0xFFE2 and data.startswith(_ICC) and len(data) > 14:
            profile[data[12]] = data[14:]
        # Two of the applications' segments say which colours these are: JFIF's (E0) and Adobe's (EE). FE is a comment.
        if marker < 0xFFE0 or marker in (0xFFE0, 0xFFEE) or 0xFFEF < marker < 0xFFFE:
            kept.append(content[begin:end])
        begin = end
    if num_scans(content, begin) > MAX_SCANS:
        raise ImageError("The image takes too long to decode; save it anew, as an ordinary JPEG or PNG.")
    try:
        image = Image.open(io.BytesIO(b"".join((*kept, memoryview(content)[begin:]))), formats=["JPEG"])
    except Image.UnidentifiedImageError:
        raise ImageError(
            "The JPEG file is damaged or of a rare kind, such as 12 bits; save it as an 8-bit JPEG or as PNG."
        ) from None
    image.info[ORIENTATION] = turn
    if profile:
        image.info["icc_profile"] = b"".join(part for _, part in sorted(profile.items()))
    return image


def num_scans(content: bytes, begin: int) -> int:
    """Of the picture whose segments go on at ``begin``. What follows its end, such as a phone's video, has none."""
    scans = 0
    while (found := _MARKER.search(content, begin)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        begin = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    return scans


def decode(image: Image.Image) -> None:
    """Decodes a photo of any format; also a JPEG that lacks nothing but the marker of its end."""
    try:
        image.load()
    except OSError:
        if image.format != "JPEG" or not isinstance(image, ImageFile.ImageFile) or not image.fp:
            raise
        file, tiles = image.fp, image.tile
        file.seek(0)
        content = file.read().removesuffix(b"\xff")
        # libjpeg fills up missing pixels without an error. If none is missing, it does not matter what follows them.
        is_whole, decoded = False, []
        try:
            for filling in (b"\xaa" * 64, b""):
                image.fp, image.tile = io.BytesIO(content + filling + b"\xff\xd9"), list(tiles)
                image.load()
                decoded.append(image.tobytes())
            is_whole = decoded[0] == decoded[1]
        finally:
            if not is_whole:
                image.fp, image.tile = file, tiles
        if not is_whole:
            raise
        if image._exclusive_fp:  # Pillow has opened it
            file.close()
