"""Augmentation: scale jitter, crop, colour jitter, and things of another photo pasted in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pem.training.config import TrainingConfig
from pem.training.target import FIRST_SEGMENT, Target


def draw_crop(
    original: tuple[int, int], settings: TrainingConfig, shrink: float = 1.0
) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """Large-scale jitter and a crop in one, so that only the crop is resized.

    Returns the crop's size (height, width) after scaling, and its box (left, top, right, bottom) in the original.
    """
    short_side = shrink * settings.short_sides_px[int(torch.randint(len(settings.short_sides_px), ()))]
    scale = min(short_side / min(original), settings.max_long_side_px / max(original))
    scaled = [max(1, int(side * scale + 0.5)) for side in original]
    size = (min(scaled[0], settings.crop_px[0]), min(scaled[1], settings.crop_px[1]))
    top, left = (int(torch.randint(s - c + 1, ())) for s, c in zip(scaled, size))
    per_row, per_col = original[0] / scaled[0], original[1] / scaled[1]
    right, bottom = (left + size[1]) * per_col, (top + size[0]) * per_row
    return size, (left * per_col, top * per_row, min(right, original[1]), min(bottom, original[0]))


def jitter_colour(image: Image.Image) -> Image.Image:
    """SSD's photometric distortion: brightness, contrast (before or after the rest), saturation and hue.

    Each has a chance of one half, and is a table of 256 values per channel. torchvision's RandomPhotometricDistort does
    something else: it multiplies brightness, turns contrast around the mean, and swaps channels.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(()))

    brightness, contrast_first, contrast_last, saturation, hue = (torch.rand(5) < 0.5).tolist()
    steps = np.arange(256, dtype=np.float32)
    if brightness:
        image = image.point(_table(steps + uniform(-32, 32)) * 3)
    contrast = _table(steps * uniform(0.5, 1.5)) * 3
    if contrast_first:
        image = image.point(contrast)
    if saturation or hue:
        # Hue goes once round in 256 steps here; 25 of them are the usual 18 of 180.
        hues = (steps + uniform(-25.6, 25.6)) % 256 if hue else steps
        saturations = steps * uniform(0.5, 1.5) if saturation else steps
        table = _table(hues) + _table(saturations) + _table(steps)
        image = image.convert("HSV").point(table).convert("RGB")
    if contrast_last and not contrast_first:
        image = image.point(contrast)
    return image


def _table(values: np.ndarray) -> list[int]:
    return np.clip(values, 0, 255).astype(np.uint8).tolist()


def paste(onto: tuple[Tensor, Target], source: tuple[Tensor, Target], label: int) -> tuple[Tensor, Target]:
    """Copy-paste augmentation (arXiv 2012.07177): the segments of one class in ``source``, pasted onto ``onto``.

    Both are augmented photos with their targets, laid on each other at random. Segments that a machine named are not
    pasted. Returns the new image and target, without the segments that are hidden completely.
    """
    (image, target), (other_image, other) = onto, source
    height, width = (min(a, b) for a, b in zip(image.shape[1:], other_image.shape[1:], strict=True))
    top, left = (int(torch.randint(a - b + 1, ())) for a, b in zip(image.shape[1:], (height, width), strict=True))
    pasted = ((other.labels == label) & (other.weights == 1)).nonzero()[:, 0]
    new_ids = other.ids.new_zeros(len(other.labels) + FIRST_SEGMENT)
    new_ids[pasted + FIRST_SEGMENT] = (
        torch.arange(len(pasted), dtype=new_ids.dtype) + len(target.labels) + FIRST_SEGMENT
    )
    over = new_ids[other.ids[:height, :width].long()]  # 0 where nothing is pasted

    image, ids = image.clone(), target.ids.clone()
    pixels = image[:, top : top + height, left : left + width]
    pixels[:] = torch.where(over > 0, other_image[:, :height, :width], pixels)
    below = ids[top : top + height, left : left + width]
    below[:] = torch.where(over > 0, over, below)
    labels = torch.cat((target.labels, other.labels[pasted]))
    weights = torch.cat((target.weights, other.weights[pasted]))
    return image, replace(target, ids=ids, labels=labels, weights=weights).without_hidden()
