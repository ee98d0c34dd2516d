"""The one reader of photos: a file becomes upright RGB of 8 bits, or an ImageError says in a sentence why not."""

from __future__ import annotations

import os
import warnings
from typing import IO, TypeAlias

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

MIN_SIDE_PX = 8
MAX_SIDE_PX = 65_500  # the longest that a JPEG can be
MAX_PIXELS = 40_000_000
# Pillow knows dozens more, some of which start other programs (EPS: Ghostscript), which a stranger's file must not.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
# Said of every other exception: for broken data Pillow's parsers raise half a dozen unrelated types.
_DAMAGED = "The image file is damaged or incomplete."
_ORIENTATION = ExifTags.Base.Orientation
_TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Photo: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"


class ImageError(ValueError):
    """A file that cannot be used as a photo. Its message is one sentence for the person who chose the file."""


def load_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """The first picture in a file, upright, in RGB, with transparency on white and deeper pixels scaled to 8 bits.

    Raises ImageError for what is missing, no image or damaged, for a side below 8 px or above 65,500, and for more than
    40 megapixels; the size is looked at before anything is decoded.
    """
    with open_photo(file) as image:
        return to_rgb(image)


def to_array(image: Photo) -> np.ndarray:
    """A photo (path, PIL image or uint8 RGB [H0, W0, 3]) as uint8 RGB [H0, W0, 3].

    A PIL image is read as ``load_image`` reads a file. Raises ValueError for an array of another dtype or shape, and
    ImageError for a file that is no usable photo.
    """
    if isinstance(image, (str, os.PathLike)):
        return np.asarray(load_image(image))
    if isinstance(image, Image.Image):
        image = np.asarray(to_rgb(image))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"An image must be a path, a PIL image or a numpy array, not {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"An image array must be uint8 RGB of shape [height, width, 3], not {image.dtype} of {list(image.shape)}."
        )
    return image


def open_photo(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """A file as a PIL image that is not decoded yet; its size is that of the pixels as stored, before any turning.

    Raises ImageError for all that ``load_image`` refuses, as far as the header tells it.
    """
    try:
        # Our own limit is below the one that Pillow warns about.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=FORMATS)
            _keep_as_stored(image)
    except FileNotFoundError:
        raise ImageError(f"There is no file {str(file)!r}.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"The image has more than {MAX_PIXELS // 10**6} megapixels; make it smaller.") from None
    except Image.UnidentifiedImageError:
        raise ImageError(
            "The file is not an image that can be read; use JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF."
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # of the file system, not of a parser
            raise ImageError(f"The file cannot be opened: {error.strerror}.") from error
        raise ImageError(_DAMAGED) from error
    try:
        _check_size(*image.size)
    except ImageError:
        image.close()
        raise
    return image


def orientation(image: Image.Image) -> int:
    """How a photo lies: its EXIF Orientation, 1 (upright) to 8; 1 where it has none or it cannot be read.

    Orientation 5 to 8 swap the sides. Of the other tags none counts: they may be malformed.
    """
    if "orientation" in image.info:  # open_photo has read it
        return image.info["orientation"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_ORIENTATION, 1)
            if isinstance(value, (tuple, bytes)):  # stored as several numbers, or as a byte
                value = value[0]
            value = int(value)
    except Exception:  # a photo with a broken EXIF block is still a photo
        return 1
    return value if value in _TURN_UPRIGHT else 1


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """In RGB of 8 bits, with transparency on white; turned as ``orientation`` says, unless ``upright`` is False.

    Raises ImageError for a file that turns out to be damaged.
    """
    try:
        image.load()
        rgb = _eight_bits(image)
    except Exception as error:
        raise ImageError(_DAMAGED) from error
    turn = _TURN_UPRIGHT.get(orientation(image)) if upright else None
    return rgb if turn is None else rgb.transpose(turn)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"The image has {width} x {height} pixels; make it smaller than {MAX_PIXELS // 10**6} megapixels."
        )
    if max(width, height) > MAX_SIDE_PX:
        raise ImageError(f"The image has {width} x {height} pixels; it may have at most {MAX_SIDE_PX} a side.")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"The image has {width} x {height} pixels; it needs at least {MIN_SIDE_PX} a side.")


def _keep_as_stored(image: Image.Image) -> None:
    """Stop Pillow from turning a TIFF while it decodes, which fails where another tag is malformed."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    image.info["orientation"] = orientation(image)
    exif = image.getexif()
    for tag in list(exif):
        del exif[tag]
    image.tag_v2.pop(_ORIENTATION, None)
    image._size = (image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength])


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _scale_levels(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _scale_levels(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, 32 bits or float -> 8 bits. Pillow's own conversion would clip them at 255."""
    levels = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
    brightest = float(levels.max())
    # Floats come as 0..1, 0..255 or 0..65535, whichever holds them; whole numbers are 16-bit unless they are larger.
    # Of mode "I" are both 16-bit files and arrays of 8-bit levels.
    usual = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    white = next((level for level in usual if brightest <= level), brightest)
    return Image.fromarray((levels.clip(0, white) * (255 / white) + 0.5).astype(np.uint8))
