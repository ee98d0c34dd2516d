"""Photos -> Batch: resized, normalised and padded, with the sizes that undo it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pem.config import PEMConfig
from pem.outputs import Batch
from pem.photos import Photo, to_array

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
    if isinstance(images, (str, os.PathLike, np.ndarray, Image.Image)) or not images:
        raise ValueError("preprocess takes a list of at least one image; put a single image in brackets.")
    arrays = [to_array(image) for image in images]
    resized = [resize(array, config) for array in arrays]
    original_sizes, content_sizes = (tuple(array.shape[:2] for array in some) for some in (arrays, resized))
    return Batch(to_pixels(resized, config).to(device), original_sizes, content_sizes)


def resize(image: np.ndarray, config: PEMConfig) -> np.ndarray:
    """A photo, uint8 RGB [H0, W0, 3], at the size at which the network sees it."""
    height, width = _content_size((image.shape[0], image.shape[1]), config)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def to_pixels(resized: Sequence[np.ndarray], config: PEMConfig) -> Tensor:
    """What ``resize`` returned, normalised and padded: float32 [B, 3, H, W]."""
    height, width = (max(sides) for sides in zip(*(padded_size(image.shape[:2]) for image in resized), strict=True))
    mean = torch.tensor(config.pixel_mean)[:, None, None]
    std = torch.tensor(config.pixel_std)[:, None, None]
    padded = []
    for image in resized:
        pixels = (torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std
        padded.append(F.pad(pixels, (0, width - image.shape[1], 0, height - image.shape[0])))
    return torch.stack(padded)


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
