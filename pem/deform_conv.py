"""Modulated deformable convolution (DCNv2), by the fastest exact way of each device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from pem.layers import to_float


def modulated_deform_conv2d(x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution, stride 1, padding 1, no bias, whose nine taps each read at a learnt offset and are scaled.

    Args:
        x: [B, C, H, W].
        offset: [B, 18, H, W] in cells; channel 2t is the row offset of tap t (row-major), 2t + 1 its column offset.
        modulation: [B, 9, H, W], the factor of each tap.
        weight: [O, C, 3, 3].

    Returns:
        [B, O, H, W]. Outside the image x is 0; between cells it is interpolated bilinearly.
    """
    if x.is_cuda:
        return deform_conv2d(x, offset, weight, padding=1, mask=modulation)
    return _by_grid_sample(x, offset, modulation, weight)


def _by_grid_sample(x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor) -> Tensor:
    """The nine taps of a photo as one tall sampling grid, then one matrix product.

    On CPU, torchvision's kernel walks pixel by pixel, forward and backward; grid_sample is vectorised.
    Positions need float32: half precision cannot tell neighbouring cells of a large image apart.
    """
    dtype = x.dtype
    x, offset = to_float(x), to_float(offset)
    batch, channels, height, width = x.shape
    taps = torch.arange(9, device=x.device)
    row = torch.arange(height, device=x.device).view(1, 1, -1, 1) + (taps // 3 - 1).view(1, -1, 1, 1) + offset[:, 0::2]
    col = torch.arange(width, device=x.device).view(1, 1, 1, -1) + (taps % 3 - 1).view(1, -1, 1, 1) + offset[:, 1::2]
    # Cell centres in grid_sample's -1..1 with align_corners=False, which has no division by zero at size 1.
    grid = torch.stack(((2 * col + 1) / width - 1, (2 * row + 1) / height - 1), dim=-1).flatten(1, 2)
    sampled = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    sampled = sampled.view(batch, channels, 9, height, width).to(dtype) * modulation[:, None]
    return (weight.flatten(1) @ sampled.flatten(3).flatten(1, 2)).view(batch, -1, height, width)
