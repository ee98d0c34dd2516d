"""A stand-in for PEM whose answer is known: the left half of any photo is a cat, the right half a couch."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

import pem
from pem.outputs import PEMOutput

CAT, COUCH = 9, 19  # class indices of the default model
CAT_SCORE, COUCH_SCORE = 0.9, 0.6


class HalvesModel(nn.Module):
    """Counts its forward passes. Query 0 draws the cat, query 1 the couch, query 2 nothing."""

    def __init__(self) -> None:
        super().__init__()
        # A size that needs no padding for the photos of the tests, so that a half is a half.
        self.config = dataclasses.replace(pem.get_config("default"), short_side_px=384, max_long_side_px=768)
        self.weight = nn.Parameter(torch.zeros(1))
        self.forwards = 0

    def forward(self, pixels: Tensor) -> PEMOutput:
        self.forwards += 1
        height, width = pixels.shape[2] // 4, pixels.shape[3] // 4
        # A class with probability p against 47 others that share the rest.
        pred_logits = torch.zeros(1, 3, 48)
        for query, index, score in ((0, CAT, CAT_SCORE), (1, COUCH, COUCH_SCORE), (2, 47, 0.99)):
            pred_logits[0, query, index] = math.log(score / (1 - score) * 47)
        side = torch.where(torch.arange(width) < width // 2, 10.0, -10.0).expand(height, width)
        masks = torch.stack((side, -side, torch.full_like(side, -10.0)))[None]
        return PEMOutput(pred_logits, torch.eye(3)[None], masks)
