"""Modulated deformable convolution on a CPU, by torch's operators instead of torchvision's kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pem.deform_conv import modulated_deform_conv2d
from pem.devices import to_float

# Cells whose taps are sampled at a time on a CPU: with 128 channels 4.7 MB, which stay in the cache.
CELLS_AT_ONCE = 1024


def fast_deform_conv2d(
    x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``modulated_deform_conv2d``, on a CPU in channels_last; it has gradients.

    On a CPU, torchvision's kernel walks pixel by pixel, forward and backward. What a tap reads is a weighted sum of
    four rows of a table, the channels of four cells: ``embedding_bag`` adds whole rows. Then comes one matrix product.
    Positions need float32: half precision cannot tell neighbouring cells of a large image apart.
    """
    if x.device.type != "cpu":
        return modulated_deform_conv2d(x, offset, modulation, weight, bias)
    batch, channels, height, width = x.shape
    table = to_float(x).permute(0, 2, 3, 1).reshape(-1, channels)
    offset = to_float(offset).permute(0, 2, 3, 1).contiguous().unflatten(3, (9, 2))
    modulation = to_float(modulation).permute(0, 2, 3, 1).contiguous()

    # Every tap reads two rows and two columns of cells, [B, H, W, 9, 2]. All coordinates are those of the grid.
    tap = torch.arange(9, device=x.device)
    rows, row_weights = _neighbours(
        torch.arange(height, device=x.device)[:, None, None] + tap // 3 - 1 + offset[..., 0], height
    )
    cols, col_weights = _neighbours(torch.arange(width, device=x.device)[:, None] + tap % 3 - 1 + offset[..., 1], width)
    images = torch.arange(batch, device=x.device).view(-1, 1, 1, 1, 1)
    cells = ((images * height + rows) * width)[..., :, None] + cols[..., None, :]
    weights = (row_weights * modulation[..., None])[..., :, None] * col_weights[..., None, :]

    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)  # [9 C, O]
    blocks = []
    for cell, factor in zip(cells.view(-1, 9, 4).split(CELLS_AT_ONCE), weights.view(-1, 9, 4).split(CELLS_AT_ONCE)):
        sampled = F.embedding_bag(cell.flatten(0, 1), table, per_sample_weights=factor.flatten(0, 1), mode="sum")
        sampled = sampled.view(-1, 9 * channels).to(x.dtype)
        blocks.append(sampled @ matrix if bias is None else torch.addmm(bias, sampled, matrix))
    return torch.cat(blocks).view(batch, height, width, -1).permute(0, 3, 1, 2)


def _neighbours(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two cells around a position on an axis, and their bilinear weights, 0 off the axis: [..., 2] each."""
    first = position.floor()
    second_weight = position - first
    cells = torch.stack((first, first + 1), dim=-1).detach()
    weights = torch.stack((1 - second_weight, second_weight), dim=-1) * ((cells >= 0) & (cells < length))
    return cells.nan_to_num().clamp(0, length - 1).long(), weights  # a position that is no number keeps its weight: nan
