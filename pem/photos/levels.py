"""Greys that are deeper than 8 bits, signed or float, as 8 bits. Pillow's own conversion would clip them."""

from __future__ import annotations

import contextlib
import re

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as tiff

from pem.photos.png import SIGNIFICANT_BITS
from pem.photos.tiff import GDAL_NODATA, S_MAX_SAMPLE_VALUE, SIGNED, UNSIGNED, number

_LARGEST_LEVEL = 1e30  # programs mark missing values with larger ones
_NUMBERS = {(32, UNSIGNED): np.uint32, (8, SIGNED): np.int8}  # Pillow gives them the other sign


def is_deep_grey(image: Image.Image) -> bool:
    is_signed = isinstance(image, tiff.TiffImageFile) and number(image.tag_v2, tiff.SAMPLEFORMAT, UNSIGNED) == SIGNED
    return image.mode.startswith(("I", "F")) or (image.mode == "L" and is_signed)


def scale_levels(image: Image.Image) -> Image.Image:
    """A deep grey as an image of the mode L. What is transparent becomes white.

    Where the file does not say what white is, it is the largest level of its bits. Floats, and whole numbers of 32 bits
    or of no file, are 0..1, 0..255 or 0..65535, whichever holds them. Where all that fails, the brightest is white.
    """
    levels = np.asarray(image)
    whites: tuple[float, ...] = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    white_is_zero = False
    if isinstance(image, tiff.TiffImageFile):
        tags = image.tag_v2
        bits, kind = number(tags, tiff.BITSPERSAMPLE, 1), number(tags, tiff.SAMPLEFORMAT, UNSIGNED)
        if (bits, kind) in _NUMBERS:
            levels = levels.view(_NUMBERS[bits, kind])
        if bits < 32:
            whites = (2 ** (bits - (kind == SIGNED)) - 1,)
        if (bits, kind) == (16, UNSIGNED) and 0 < (described := _described_white(tags)) < 65536:
            whites = (described, *whites)
        if 0 < (told := number(tags, S_MAX_SAMPLE_VALUE, 0)) <= _LARGEST_LEVEL:
            whites = (told, *whites)
        white_is_zero = number(tags, tiff.PHOTOMETRIC_INTERPRETATION, 0) == 0
    elif (bits := image.info.get(SIGNIFICANT_BITS, 16)) < 16:
        # By the standard such levels are spread over all 16 bits: the low bits repeat the high ones, or are 0. If
        # neither can be, a program has left the levels in the low bits.
        if levels.max() < 2**bits and (levels % 2 ** (16 - bits)).any():
            whites = (2**bits - 1,)

    clear = image.info.get("transparency")
    is_clear = levels == clear if isinstance(clear, int) else None
    scaled = levels.astype(np.float32)
    scaled[~(np.abs(scaled) <= _LARGEST_LEVEL)] = 0  # and what is no number
    if image.mode == "F" and isinstance(image, tiff.TiffImageFile):
        with contextlib.suppress(TypeError, ValueError):  # no such tag, or no number in it
            scaled[scaled == np.float32(image.tag_v2.get(GDAL_NODATA))] = 0
    brightest = float(scaled.max())
    white = next((level for level in whites if brightest <= level), brightest)
    np.clip(scaled, 0, white, out=scaled)
    scaled *= 255 / white
    if white_is_zero:
        np.subtract(255, scaled, out=scaled)
    grey = (scaled + 0.5).astype(np.uint8)
    if is_clear is not None:
        grey[is_clear] = 255
    return Image.fromarray(grey)


def _described_white(tags: tiff.ImageFileDirectory_v2) -> float:
    """The white that the description tells, as microscopes (OME) and ImageJ write it, or 0."""
    text = tags.get(tiff.IMAGEDESCRIPTION)
    if not isinstance(text, str):
        return 0
    if bits := re.search(r'\bSignificantBits="(\d{1,2})"', text):
        return float(2 ** int(bits[1]) - 1)
    white = re.search(r"^max=(\d+(?:\.\d+)?)\s*$", text, re.MULTILINE) if text.startswith("ImageJ=") else None
    return float(white[1]) if white else 0
