"""Small pieces that several parts share."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def to_float(tensor: Tensor) -> Tensor:
    """At least float32: half precision is for the network's products, not for norms and decisions."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, for products that decide something: float16 may overflow, and bfloat16 has 8 bits."""
    # The meta device knows no autocast.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast on a GPU; elsewhere what the caller has switched on."""
    return torch.autocast("cuda") if device.type == "cuda" else nullcontext()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16. CPUs without take 14 times as long as in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def first_line(error: Exception) -> str:
    """What an error says, in one line without a full stop; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the CPU or a GPU is too small; of the CPU, torch tells it in words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
