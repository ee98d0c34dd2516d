"""MACs of whole networks as formulas, to compare what ``analysis.counter`` counts with."""

from __future__ import annotations

from analysis.closed_forms import (
    attention_macs,
    mask_product_macs,
    masked_attention_macs,
    prototype_attention_macs,
)
from pem.config import PEMConfig


def conv_macs(in_channels: int, out_channels: int, kernel: int, cells: int, groups: int = 1) -> int:
    """cells * out * (in / groups) * kernel^2. ``cells`` of the output; of the input for a transposed convolution."""
    return cells * out_channels * (in_channels // groups) * kernel**2


def resnet50_macs(cells: int) -> int:
    """ResNet-50 v1.5 for ``cells`` pixels: a 7x7 stem, then bottlenecks 1x1, 3x3 (which strides), 1x1 and shortcuts."""
    macs = conv_macs(3, 64, 7, cells // 4)
    cells, channels = cells // 16, 64
    for blocks, width in zip((3, 4, 6, 3), (64, 128, 256, 512)):
        for block in range(blocks):
            macs += conv_macs(channels, width, 1, cells)
            if block == 0:
                cells //= 1 if width == 64 else 4
                macs += conv_macs(channels, 4 * width, 1, cells)
            macs += conv_macs(width, width, 3, cells) + conv_macs(width, 4 * width, 1, cells)
            channels = 4 * width
    return macs


def pixel_decoder_macs(config: PEMConfig, in_channels: tuple[int, ...], cells: int) -> int:
    """For ``cells`` pixels and a backbone with ``in_channels`` at strides 4, 8, 16, 32; C is ``conv_dim``.

    Every level: lateral 1x1 and the squeeze and expansion of its mean, C^2. All but the finest: offsets 3x3 C -> 27,
    deformable 3x3 C -> C, transposed 4x4. Once: the global mean's 1x1 and the mask features' 1x1.
    """
    c = config.conv_dim
    macs = in_channels[-1] * c + conv_macs(c, config.hidden_dim, 1, cells // 16)
    for channels, stride in zip(in_channels, (4, 8, 16, 32)):
        level = cells // stride**2
        macs += conv_macs(channels, c, 1, level) + c**2
        if stride > 4:
            macs += conv_macs(c, 27, 3, level) + conv_macs(c, c, 3, level) + conv_macs(c, c, 4, level)
    return macs


def decoder_macs(config: PEMConfig, cells: int) -> int:
    """The published decoder for ``cells`` pixels, with a full-size mask product at every depth."""
    q, d, layers = config.num_queries, config.hidden_dim, config.num_layers
    cross_attention = prototype_attention_macs if config.attention == "prototype" else masked_attention_macs
    levels = [cells // stride**2 for stride in (32, 16, 8)]
    heads = q * (3 * d**2 + d * (config.num_classes + 1)) + mask_product_macs(q, cells // 16, d)
    self_attention = 4 * q * d**2 + attention_macs(q, q, d)
    return (
        sum(conv_macs(config.conv_dim, d, 1, level) for level in levels)
        + sum(cross_attention(levels[i % 3], q, d) for i in range(layers))
        + layers * (self_attention + 2 * q * d * config.ffn_dim)
        + (layers + 1) * heads
    )
