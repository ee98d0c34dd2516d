"""Colours and greys of any kind -> sRGB of 8 bits. Screens, and the photos that a network learns from, are sRGB."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms

from pem.photos.levels import is_deep_grey, scale_levels

_SPACE_OF_MODE = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
_SAME_LEVELS = 1  # two ways of rounding differ by so much


def to_srgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode in RGB, with transparency on white; itself where there is nothing to do."""
    profile = image.info.get("icc_profile")
    if not isinstance(image.info.get("transparency", 0), (int, bytes, tuple)):  # a text of that name
        image = image.copy()
        del image.info["transparency"]
    if is_deep_grey(image):
        image = scale_levels(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data and image.mode != "LA":
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    image = _by_profile(image, profile)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_profile(image: Image.Image, profile: object) -> Image.Image:
    """RGB, grey or CMYK of 8 bits -> sRGB, by its ICC profile (bytes); alpha is kept.

    Browsers ignore a profile that is malformed or made for other pixels. So does this: the image stays as it is.
    """
    if not isinstance(profile, bytes):
        return image
    if image.mode in ("RGBA", "LA"):
        *_, alpha = image.split()
        image = _by_profile(image.convert(image.mode[:-1]), profile).convert("RGB")
        image.putalpha(alpha)
    elif image.mode == "P":
        image = _by_profile(image.convert("RGB"), profile)
    elif transform := _transform(profile, image.mode):
        image = ImageCms.applyTransform(image, transform) or image
    return image


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where there is nothing to do."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space.strip() != _SPACE_OF_MODE.get(mode):
            return None
        transform = ImageCms.buildTransform(opened, _srgb(), mode, "RGB", flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a profile is sRGB under another name, as most are: tried on a grid of all colours."""
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3)
    tried = Image.fromarray(grid).convert(mode)
    changed = np.asarray(ImageCms.applyTransform(tried, transform))
    return int(np.abs(changed.astype(int) - np.asarray(tried.convert("RGB"))).max()) <= _SAME_LEVELS
