"""The family of HEIC and AVIF."""

from __future__ import annotations

import io
import os
import re
from typing import IO

from PIL import Image

from pem.photos.exif import ORIENTATION
from pem.photos.limits import DAMAGED, ImageError

_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}  # as such files name themselves
AVIF = (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1")


def is_heic(start: bytes) -> bool:
    """Whether a file that begins so says that it is HEIC, or that it can pass as HEIC."""
    names = start[8 : int.from_bytes(start[:4], "big")]
    # The second name is a version.
    return start[4:8] == b"ftyp" and not _HEIC.isdisjoint(names[at : at + 4] for at in (0, *range(8, len(names), 4)))


def open_heic(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """A HEIC that is not decoded yet. Raises ImageError, also where the package that reads it is missing."""
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            "HEIC photos are read by the package pillow-heif, which is not installed; save the photo as JPEG."
        ) from None
    pillow_heif.register_heif_opener(thumbnails=False)
    try:
        image = Image.open(file, formats=["HEIF"])
    except Image.UnidentifiedImageError:
        raise ImageError(DAMAGED) from None
    image.info[ORIENTATION] = 1  # it is turned while it is decoded
    return image


def without_exif(avif: bytes) -> IO[bytes]:
    """An AVIF whose EXIF is renamed: malformed EXIF would make it unreadable, and another field says how it lies."""
    return io.BytesIO(re.sub(rb"(infe\x02.{7}|infe\x03.{9})Exif", rb"\1skip", avif, flags=re.DOTALL))
