"""Image -> Batch: resized, normalised and padded, with the sizes that undo it. Also the safe way to open a file."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from typing import IO, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from pem.config import PEMConfig
from pem.outputs import Batch

SIZE_DIVISOR = 32  # the coarsest level of the backbone has this stride, and all levels must fit into each other
MIN_SIDE_PX = 8
MAX_SIDE_PX = 65_500  # the longest that a JPEG can be
MAX_PIXELS = 40_000_000
# Pillow knows dozens more, some of which start other programs (EPS: Ghostscript), which a stranger's file must not.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
# Said of every other exception: for broken data Pillow's parsers raise half a dozen unrelated types.
_DAMAGED = "The image file is damaged or incomplete."

Photo: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"


class ImageError(ValueError):
    """A file that cannot be used as a photo. Its message is one sentence for the person who chose the file."""


def load_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """The first picture in a file, upright, in RGB, with transparency on white and deeper pixels scaled to 8 bits.

    Raises ImageError for what is missing, no image or damaged, for a side below 8 px or above 65,500, and for more than
    40 megapixels; the size is looked at before anything is decoded.
    """
    try:
        # Our own limit is below the one that Pillow warns about.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
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

    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"The image has {width} x {height} pixels; make it smaller than {MAX_PIXELS // 10**6} megapixels."
            )
        if max(width, height) > MAX_SIDE_PX:
            raise ImageError(f"The image has {width} x {height} pixels; it may have at most {MAX_SIDE_PX} a side.")
        if min(width, height) < MIN_SIDE_PX:
            raise ImageError(f"The image has {width} x {height} pixels; it needs at least {MIN_SIDE_PX} a side.")
        try:
            image.load()
            return to_rgb(image)
        except Exception as error:
            raise ImageError(_DAMAGED) from error


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


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError for an image of a height and width in pixels that the network cannot take."""
    if any(side < 1 or side % SIZE_DIVISOR for side in size):
        raise ValueError(f"The image is {size[0]}x{size[1]} px; both sides must be multiples of {SIZE_DIVISOR}.")


def preprocess(images: Sequence[Photo], config: PEMConfig, device: torch.device | str | None = None) -> Batch:
    """Make a batch of photos (paths, PIL images or uint8 RGB [H0, W0, 3]) ready for the network, on ``device``.

    The shortest side becomes ``config.short_side_px``, unless the longest would exceed ``config.max_long_side_px``.
    Padding, up to the largest image of the batch and to multiples of 32, lies right and below and is 0 after
    normalisation, which is mid-grey image to the network: for results that do not depend on the company, batch
    images of one size.
    """
    if isinstance(images, (str, os.PathLike, np.ndarray, Image.Image)) or not images:
        raise ValueError("preprocess takes a list of at least one image; put a single image in brackets.")
    arrays = [to_array(image) for image in images]
    original_sizes = tuple((array.shape[0], array.shape[1]) for array in arrays)
    content_sizes = tuple(_content_size(size, config) for size in original_sizes)
    height, width = (-(-max(sides) // SIZE_DIVISOR) * SIZE_DIVISOR for sides in zip(*content_sizes, strict=True))

    mean = torch.tensor(config.pixel_mean)[:, None, None]
    std = torch.tensor(config.pixel_std)[:, None, None]
    padded = []
    for array, (rows, cols) in zip(arrays, content_sizes, strict=True):
        resized = np.array(Image.fromarray(array).resize((cols, rows), Image.Resampling.BILINEAR))
        pixels = (torch.from_numpy(resized).permute(2, 0, 1).float() - mean) / std
        padded.append(F.pad(pixels, (0, width - cols, 0, height - rows)))
    return Batch(torch.stack(padded).to(device), original_sizes, content_sizes)


def _content_size(original_size: tuple[int, int], config: PEMConfig) -> tuple[int, int]:
    """The (height, width) that an image is resized to."""
    scale = config.short_side_px / min(original_size)
    # Rounded in the reference's order: first the short side exactly, then both down if the long one is too long.
    sides = [side * scale for side in original_size]
    if max(sides) > config.max_long_side_px:
        scale = config.max_long_side_px / max(sides)
        sides = [side * scale for side in sides]
    height, width = (max(int(side + 0.5), 1) for side in sides)
    return height, width


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, in RGB, with transparency on white and deeper pixels scaled to 8 bits."""
    with contextlib.suppress(Exception):  # a photo with a broken EXIF block is still a photo
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, 32 bits or float -> 8 bits. Pillow's own conversion would clip them at 255."""
    levels = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
    brightest = float(levels.max())
    # Floats come as 0..1, 0..255 or 0..65535, whichever holds them; whole numbers are 16-bit unless they are larger.
    # Of mode "I" are both 16-bit files and arrays of 8-bit levels.
    usual = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    white = next((level for level in usual if brightest <= level), brightest)
    return Image.fromarray((levels.clip(0, white) * (255 / white) + 0.5).astype(np.uint8))
