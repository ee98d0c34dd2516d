"""Photos -> Batch: resized, normalised and padded, with the sizes that undo it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pem.config import PEMConfig
from pem.outputs import Batch
from pem.photos import Photo, to_array

if TYPE_CHECKING:
    import torch

SIZE_DIVISOR = 32  # the stride of the backbone's coarsest level; all levels must fit into each other


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError for a (height, width) in pixels that the network cannot take."""
    if any(side < 1 or side % SIZE_DIVISOR for side in size):
        raise ValueError(f"The image is {size[0]}x{size[1]} px; both sides must be multiples of {SIZE_DIVISOR}.")


def preprocess(images: Sequence[Photo], config: PEMConfig, device: torch.device | str | None = None) -> Batch:
    """Make a batch of photos (paths, PIL images or uint8 RGB [H0, W0, 3]) ready for the network, on ``device``.

    The shortest side becomes ``config.short_side_px``, unless the longest would exceed ``config.max_long_side_px``.
    Padding, up to the largest image of the batch and to multiples of 32, lies right and below and is 0 after
    normalisation, which the network takes for a mid-grey part of the image. So batch images of one size, or they
    change each other's results.

    >>> batch = pem.preprocess(["photo.jpg"], pem.get_config("cityscapes-panoptic-r50"))
    >>> batch.original_sizes, batch.content_sizes, batch.pixels.shape
    (((480, 640),), ((1024, 1365),), torch.Size([1, 3, 1024, 1376]))
    """
    import torch

    batch = preprocess_arrays(images, config)
    return replace(batch, pixels=torch.from_numpy(batch.pixels).to(device))


def preprocess_arrays(images: Sequence[Photo], config: PEMConfig) -> Batch:
    """What ``preprocess`` returns, with the pixels as a NumPy array. It needs no torch."""
    if isinstance(images, (str, os.PathLike, np.ndarray, Image.Image)) or not images:
        raise ValueError("preprocess takes a list of at least one image; put a single image in brackets.")
    arrays = [to_array(image) for image in images]
    resized = [resize(array, config) for array in arrays]
    original_sizes, content_sizes = (tuple(array.shape[:2] for array in some) for some in (arrays, resized))
    return Batch(to_pixels(resized, config), original_sizes, content_sizes)


def resize(image: np.ndarray, config: PEMConfig) -> np.ndarray:
    """A photo, uint8 RGB [H0, W0, 3], at the size at which the network sees it."""
    height, width = _content_size((image.shape[0], image.shape[1]), config)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def to_pixels(resized: Sequence[np.ndarray], config: PEMConfig) -> np.ndarray:
    """What ``resize`` returned, normalised and padded: float32 [B, 3, H, W]."""
    height, width = (max(sides) for sides in zip(*(padded_size(image.shape[:2]) for image in resized), strict=True))
    pixels = np.zeros((len(resized), 3, height, width), np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (config.pixel_mean, config.pixel_std))
    for padded, image in zip(pixels, resized, strict=True):
        padded[:, : image.shape[0], : image.shape[1]] = (image.transpose(2, 0, 1) - mean) / std
    return pixels


def padded_size(content_size: Sequence[int]) -> tuple[int, int]:
    """The next (height, width) that the network takes."""
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in content_size)
    return height, width


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
