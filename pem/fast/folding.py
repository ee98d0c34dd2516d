"""Batch norms folded into the convolutions before them, and the layout of the features."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from pem.backbones import Backbone
from pem.devices import without_autocast
from pem.fast.deform_conv import fast_deform_conv2d
from pem.pixel_decoder import DeformableUpsample


def folded(backbone: Backbone) -> Backbone:
    """A copy with its norms folded; without, where that changes the features, as its norms are applied elsewhere."""
    copied = copy.deepcopy(backbone)
    try:
        fold_norms(copied)
        return copied if compute_the_same(backbone, copied) else copy.deepcopy(backbone)
    except (RuntimeError, KeyError):  # a norm of another width, a parametrised convolution
        return copy.deepcopy(backbone)


@torch.no_grad()
def compute_the_same(plain: nn.Module, other: nn.Module) -> bool:
    """Whether two backbones give the same features of noise; without looking at backbones that hold no values."""
    weight = next(plain.parameters())
    if weight.is_meta:
        return True
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(weight)
    with without_autocast(weight.device):
        pairs = zip(plain(pixels).values(), other(pixels).values(), strict=True)
        return all(torch.allclose(x, y, rtol=1e-3, atol=1e-3 * float(x.abs().max())) for x, y in pairs)


def fold_norms(module: nn.Module) -> None:
    """Folds, in place, each batch norm that stands right behind a convolution among the children of a module."""
    previous = ("", nn.Module())
    for name, child in module.named_children():
        if isinstance(previous[1], nn.Conv2d) and isinstance(child, nn.BatchNorm2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, what_remains(child))
        else:
            fold_norms(child)
        previous = name, child


def what_remains(norm: Any) -> nn.Module:
    """timm's norms hold an activation, too."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


class ChannelsLast(Backbone):
    """A backbone in channels_last, which convolutions like best. The layers after it keep this layout."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.inner, self.channels = backbone, backbone.channels

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.inner(pixels.contiguous(memory_format=torch.channels_last))


class FoldedUpsample(nn.Module):
    """``DeformableUpsample`` with its norms folded."""

    deform_conv = staticmethod(fast_deform_conv2d)

    def __init__(self, plain: DeformableUpsample) -> None:
        super().__init__()
        norm: Any = plain.norm
        self.offset = plain.offset
        self.weight, self.bias = fuse_conv_bn_weights(
            plain.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.upsample = fuse_conv_bn_eval(plain.upsample, plain.upsample_norm, transpose=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        offset, modulation = self.offset(x).split((18, 9), dim=1)
        level = self.deform_conv(x, offset, modulation.sigmoid(), self.weight, self.bias).relu_()
        return level, self.upsample(level).relu_()
