"""Opens and decodes photos of all formats, as PIL images or as arrays."""

from __future__ import annotations

import io
import os
import warnings
from typing import IO, TypeAlias

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PREFIXES, TiffImageFile

from pem.photos.colours import to_srgb
from pem.photos.exif import TURN_UPRIGHT, orientation
from pem.photos.heif import AVIF, is_heic, open_heic, without_exif
from pem.photos.jpeg import decode, open_jpeg
from pem.photos.limits import DAMAGED, MAX_METADATA_BYTES, MAX_PIXELS, ImageError, check_size
from pem.photos.png import open_png
from pem.photos.tiff import check_kind, mend_palette, open_tiff, unreadable

# Pillow knows dozens more. Some start other programs (EPS: Ghostscript), which a stranger's file must not.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
ROWS_AT_ONCE = 256
_OPENERS = {b"\xff\xd8\xff": open_jpeg, b"\x89PN": open_png}  # by how a file begins

Photo: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"


def load_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """The first picture in a file, upright, in RGB, with transparency on white and deeper pixels scaled to 8 bits.

    Raises ImageError for what is missing, no image, damaged or of a kind that Pillow does not read right; for a side
    below 8 px or above 65,500; and for more than 40 megapixels. The size is looked at before anything is decoded.

    >>> image = pem.load_image("photo.jpg")
    >>> image.size, image.mode
    ((640, 480), 'RGB')
    """
    with open_photo(file) as image:
        return to_rgb(image)


def to_array(image: Photo) -> np.ndarray:
    """A photo (path, PIL image or uint8 RGB [H0, W0, 3]) as uint8 RGB [H0, W0, 3].

    A PIL image is read as ``load_image`` reads a file. Raises ValueError for an array of another dtype or shape, and
    ImageError for a file that is no usable photo.
    """
    if isinstance(image, (str, os.PathLike)):
        with open_photo(image) as opened:
            return _pixels(_to_upright_rgb(opened))
    if isinstance(image, Image.Image):
        return _pixels(_to_upright_rgb(image))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"An image must be a path, a PIL image or a numpy array, not {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"An image array must be uint8 RGB of shape [height, width, 3], not {image.dtype} of {list(image.shape)}."
        )
    return image


def _pixels(image: Image.Image) -> np.ndarray:
    """The same as np.asarray(image), without a copy of the whole on the way."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):
        bottom = min(top + ROWS_AT_ONCE, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """In RGB of 8 bits, with transparency on white; turned as ``orientation`` says, unless ``upright`` is False.

    Raises ImageError for a file that turns out to be damaged, and for colours that Pillow cannot convert.
    """
    rgb = _to_upright_rgb(image, upright)
    rgb = rgb.copy() if rgb is image else rgb
    rgb.info = {}  # the caller must not turn it again
    return rgb


def _to_upright_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """The same, but the image itself where there is nothing to do."""
    if isinstance(image, TiffImageFile):
        check_kind(image.tag_v2)
        mend_palette(image)
    try:
        decode(image)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(image, TiffImageFile) and image.info.get("compression") in ("webp", "zstd", "lzma"):
            raise ImageError(unreadable(image.tag_v2)) from error  # not every Pillow has them
        raise ImageError(DAMAGED) from error
    turn = TURN_UPRIGHT.get(orientation(image)) if upright else None
    try:
        image = to_srgb(image)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"Colours of the kind {image.mode} cannot be read; save the image as RGB.") from error
    return image if turn is None else image.transpose(turn)


def open_photo(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """A file as a PIL image that is not decoded yet; its size is that of the pixels as stored, before any turning.

    Raises ImageError for all that ``load_image`` refuses, as far as the header tells.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of sizes that are beyond our own limits
            image = _open(file)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"There is no file {str(file)!r}.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"The image has more than {MAX_PIXELS // 10**6} megapixels; make it smaller.") from None
    except Image.UnidentifiedImageError:
        raise ImageError(
            "The file is not an image that can be read; use JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP or GIF."
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # of the file system, not of a parser
            raise ImageError(f"The file cannot be opened: {error.strerror}.") from error
        if str(error).startswith("Unsupported "):  # as Pillow says of a BMP
            raise ImageError(f"This kind of image file cannot be read ({error}); save it as JPEG or PNG.") from error
        raise ImageError(DAMAGED) from error
    try:
        check_size(*image.size)
        if isinstance(image, TiffImageFile):
            check_kind(image.tag_v2)
    except ImageError:
        image.close()
        raise
    return image


def _open(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:
            return _open_stream(stream, file) if stream.seekable() else _open(stream)
    try:
        file.seek(0)
    except (AttributeError, io.UnsupportedOperation):  # a pipe
        file = io.BytesIO(file.read())
    return _open_stream(file, file)


def _open_stream(stream: IO[bytes], file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Pillow opens ``file``: the path if there is one, because the ``stream`` of a path will be closed."""
    start = stream.read(MAX_METADATA_BYTES)
    if opener := _OPENERS.get(start[:3]):
        return opener(start + stream.read())
    if is_heic(start):
        return open_heic(file)
    if start[:4] in PREFIXES:
        return open_tiff(file, stream)
    if start[4:12] in AVIF:
        file = without_exif(start + stream.read())
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])  # AVIF needs Pillow 11.3
