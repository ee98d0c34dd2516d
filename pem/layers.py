"""Layers that several parts of the network share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pem.devices import to_float


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """Unit vectors along ``dim``. In float32 at least: the floor of 1e-12 is 0 in half precision."""
    return F.normalize(to_float(x), dim=dim)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, n, D] -> [B, h, n, D/h]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class ConvBNReLU(nn.Sequential):
    """1x1 convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, a=1)
        super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class MLP(nn.Sequential):
    """``num_layers`` linear layers of one width with ReLU between them."""

    def __init__(self, dim: int, num_layers: int) -> None:
        layers: list[nn.Module] = [nn.Linear(dim, dim)]
        for _ in range(num_layers - 1):
            layers += [nn.ReLU(), nn.Linear(dim, dim)]
        super().__init__(*layers)


def sine_position_embedding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Where each cell lies, as sines and cosines: float32 [1, dim, height, width] (as in DETR, normalised to 2 pi),
    in channels_last.

    The first half of the channels encodes the row, the second the column; even channels are sines, odd ones cosines.
    """
    half = dim // 2
    exponent = torch.arange(half, device=device, dtype=torch.float32).div(2, rounding_mode="floor") * 2 / half
    wavelength = 10_000**exponent

    def encode(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
        angle = position[:, None] / wavelength  # [length, half]
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    cols = encode(width).expand(height, width, half)
    return torch.cat((rows, cols), dim=2).permute(2, 0, 1)[None]
