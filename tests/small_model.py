"""A PEM small enough to be built and run many times in a test."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.nn import functional as F

import pem
from pem.config import PEMConfig
from pem.layers import split_heads
from pem.outputs import PEMOutput

# Choices of float32 that are compared differ by more than this. Their rounding is below 1e-6, on any processor.
CLEAR = 1e-5


def small_config(**changes: Any) -> PEMConfig:
    """STDC1 with narrow decoders; six layers and every tensor name are those of the preset."""
    small = {"num_classes": 5, "num_queries": 12, "hidden_dim": 32, "num_heads": 4, "ffn_dim": 48, "conv_dim": 16}
    return dataclasses.replace(pem.get_config("cityscapes-panoptic-stdc1"), **(small | changes))


def small_model(seed: int = 0, **changes: Any) -> pem.PEM:
    """Random weights, the same for the same seed, with batch norms that do something."""
    torch.manual_seed(seed)
    model = pem.build_model(small_config(**changes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    # As published, the offsets of the deformable convolutions start at zero; here they move.
    for stage in model.pixel_decoder.upsample:
        torch.nn.init.normal_(stage.offset.weight, std=0.1)
    return model


def clear_choices(output: PEMOutput, num_heads: int) -> PEMOutput:
    """The output, with a trace, if no choice in it hangs on rounding: the best token of a head is clearly the best, and
    no mask is nearly 0 where it bans a token or not. Otherwise the test needs other inputs."""
    for layer, previous in zip(output.trace or (), output.aux_outputs, strict=True):
        scores = split_heads(layer.target, num_heads) @ split_heads(layer.key, num_heads).transpose(2, 3)
        banned = layer.banned & ~layer.banned.all(dim=2, keepdim=True)
        best, second = scores.masked_fill(banned[:, None], -torch.inf).topk(2).values.unbind(-1)
        features = F.interpolate(previous.mask_features, size=layer.grid_size, mode="bilinear", align_corners=False)
        masks = previous.mask_embed @ features.flatten(2)
        assert (best - second).min() > CLEAR and masks.abs().min() > CLEAR, "the inputs leave a choice to rounding"
    return output
