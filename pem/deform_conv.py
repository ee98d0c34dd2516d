"""Modulated deformable convolution (DCNv2) by torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from pem.devices import to_float, without_autocast


def modulated_deform_conv2d(
    x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """A 3x3 convolution with stride 1 and padding 1 whose nine taps each read at a learnt offset and are scaled.

    Args:
        x: [B, C, H, W].
        offset: [B, 18, H, W] in cells; channel 2t is the row offset of tap t (row-major), 2t + 1 its column offset.
        modulation: [B, 9, H, W], the factor of each tap.
        weight: [O, C, 3, 3].
        bias: [O].

    Returns:
        [B, O, H, W]. Outside the image x is 0; between cells it is interpolated bilinearly.
    """
    # The library takes finite positions only. Where one is not finite, the result is not a number.
    is_finite = offset.isfinite().unflatten(1, (9, 2)).all(2)
    offset, modulation = offset.nan_to_num(0, 0, 0), modulation.masked_fill(~is_finite, torch.nan)
    # It wants all of one type, and does not know half precision on every device.
    with without_autocast(x.device):
        x_, offset, modulation, weight = map(to_float, (x, offset, modulation, weight))
        bias = None if bias is None else to_float(bias)
        return deform_conv2d(x_, offset, weight, bias, padding=1, mask=modulation).to(x.dtype)
