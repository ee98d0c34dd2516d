"""STDC1 and STDC2: short-term dense concatenation networks (arXiv 2104.13188)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pem.backbones.base import Backbone

BLOCKS_PER_STAGE = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}


class ConvX(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu_()


class CatBlock(nn.Module):
    """Four convolutions in a row, of 1/2, 1/4, 1/8 and 1/8 of the width; the output is all four, concatenated."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half, quarter, eighth = out_channels // 2, out_channels // 4, out_channels // 8
        self.conv_list = nn.ModuleList(
            [
                ConvX(in_channels, half, 1),
                ConvX(half, quarter, 3),
                ConvX(quarter, eighth, 3),
                ConvX(eighth, eighth, 3),
            ]
        )
        self.stride = stride
        if stride == 2:
            # No ReLU after this one: it only shrinks what the second convolution reads.
            self.avd_layer = nn.Sequential(
                nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False), nn.BatchNorm2d(half)
            )
            self.skip = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_list[0](x)
        x = self.avd_layer(first) if self.stride == 2 else first
        outputs = [self.skip(first) if self.stride == 2 else first]
        for conv in self.conv_list[1:]:
            x = conv(x)
            outputs.append(x)
        return torch.cat(outputs, dim=1)


class STDC(Backbone):
    channels = (64, 256, 512, 1024)

    def __init__(self, name: str) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvX(3, 32, 3, 2), ConvX(32, 64, 3, 2)]
        channels = 64
        self.stage_ends = [len(features)]
        for num_blocks, width in zip(BLOCKS_PER_STAGE[name], self.channels[1:], strict=True):
            for i in range(num_blocks):
                features.append(CatBlock(channels, width, stride=2 if i == 0 else 1))
                channels = width
            self.stage_ends.append(len(features))
        self.features = nn.ModuleList(features)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x, outputs, start = pixels, {}, 0
        for level, end in zip(("res2", "res3", "res4", "res5"), self.stage_ends, strict=True):
            for layer in self.features[start:end]:
                x = layer(x)
            outputs[level], start = x, end
        return outputs
