"""A PEM small enough to be built and run many times in a test."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import pem
from pem.config import PEMConfig


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
