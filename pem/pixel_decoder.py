"""The convolutional pixel decoder (paper section 3.3): context self-modulation and a deformable top-down path."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pem.deform_conv import modulated_deform_conv2d
from pem.layers import ConvBNReLU


class ContextSelfModulation(nn.Module):
    """x + x * s: scales each channel by what the whole image says of it.

    The reference applies the sigmoid twice, so s lies in (0.5, 0.7311): the block is a gain of 1.5 to 1.7311 and
    cannot switch a channel off. Kept, because published results were obtained with it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = ConvBNReLU(channels, channels // 2)
        self.expand = nn.Conv2d(channels // 2, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        context = self.expand(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * (1 + context.sigmoid().sigmoid())


class DeformableUpsample(nn.Module):
    """Deformable 3x3 convolution, then a transposed convolution that doubles the size.

    Returns both: the convolved map is a level for the decoder, the doubled one goes on to the next finer level.
    ``deform_conv`` may be replaced by another function that computes the same (see pem.fast).
    """

    deform_conv = staticmethod(modulated_deform_conv2d)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 27, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(channels)
        self.upsample = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
        # Bilinear weights from every input channel to output channel 0: the reference's start, a recipe for
        # depthwise layers that it applies to a dense one.
        ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            self.upsample.weight[:, 0] = ramp[:, None] * ramp
        self.upsample_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        offset, modulation = self.offset(x).split((18, 9), dim=1)
        level = self.norm(self.deform_conv(x, offset, modulation.sigmoid(), self.weight)).relu_()
        return level, self.upsample_norm(self.upsample(level)).relu_()


class PixelDecoder(nn.Module):
    """Backbone features -> mask features [B, mask_dim, H/4, W/4] and levels [B, conv_dim, H/s, W/s], s = 32, 16, 8."""

    def __init__(self, in_channels: tuple[int, ...], conv_dim: int, mask_dim: int) -> None:
        super().__init__()
        # All lists run from coarse (res5) to fine (res2), like the path itself.
        self.lateral = nn.ModuleList(ConvBNReLU(c, conv_dim) for c in reversed(in_channels))
        self.global_context = ConvBNReLU(in_channels[-1], conv_dim)
        self.modulation = nn.ModuleList(ContextSelfModulation(conv_dim) for _ in in_channels)
        self.upsample = nn.ModuleList(DeformableUpsample(conv_dim) for _ in in_channels[1:])
        self.mask_projection = ConvBNReLU(conv_dim, mask_dim)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Takes the features out of the dict: they are large, and each is freed as soon as it has been read."""
        top_down = self.global_context(features["res5"].mean((2, 3), keepdim=True))
        levels = []
        for i, name in enumerate(("res5", "res4", "res3")):
            x = self.modulation[i](self.lateral[i](features.pop(name)))
            level, top_down = self.upsample[i](x.add_(top_down))
            levels.append(level)
        x = self.modulation[3](self.lateral[3](features.pop("res2")))
        return self.mask_projection(x.add_(top_down)), levels
