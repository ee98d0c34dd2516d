"""A stand-in for PEM whose answers are known: the left half of any photo is a cat, the right half a couch.

Query 0 draws the cat, query 1 the couch, query 2 nothing: it has no foreground in any layer. In every layer heads 0 to
5 of query 0 pick the token a quarter down and a quarter across, heads 6 and 7 the one an eighth across; query 1 picks
their mirror images. Masks are empty before the first layer and final after it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import pem
from pem.outputs import LayerTrace, PEMOutput, Prediction

CAT, COUCH = 9, 19  # class indices of the default model
CAT_SCORE, COUCH_SCORE = 0.9, 0.6
SIMILARITY = 0.75  # of every chosen token; of all others -0.25
STRIDES = (32, 16, 8, 32, 16, 8)


def picked_token(query: int, head: int, rows: int, cols: int) -> tuple[int, int]:
    """(row, col) of the prototype of query 0 or 1."""
    col = cols // 4 if head < 6 else cols // 8
    return rows // 4, col if query == 0 else cols - 1 - col


class HalvesModel(nn.Module):
    """Counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        # A size that needs no padding for the photos of the tests, so that a half is a half.
        self.config = dataclasses.replace(
            pem.get_config("default"), short_side_px=384, max_long_side_px=768, num_queries=3, object_threshold=0.5
        )
        self.weight = nn.Parameter(torch.zeros(1))
        self.forwards = 0

    def forward(self, pixels: Tensor, trace: bool = False, stage_done: Callable[[], None] = lambda: None) -> PEMOutput:
        features = self.backbone(pixels)
        stage_done()
        mask_features, levels = self.pixel_decoder(features)
        stage_done()
        output = self.decoder(mask_features, levels, trace)
        stage_done()
        return output

    def backbone(self, pixels: Tensor) -> Tensor:
        self.forwards += 1
        return pixels

    def pixel_decoder(self, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        return features[:, :, ::4, ::4], []

    def decoder(self, mask_features: Tensor, levels: list[Tensor], trace: bool = False) -> PEMOutput:
        height, width = mask_features.shape[2:]
        # A class with probability p against 47 others that share the rest.
        pred_logits = torch.zeros(1, 3, 48)
        for query, index, score in ((0, CAT, CAT_SCORE), (1, COUCH, COUCH_SCORE), (2, 47, 0.99)):
            pred_logits[0, query, index] = math.log(score / (1 - score) * 47)
        side = torch.where(torch.arange(width) < width // 2, 10.0, -10.0).expand(height, width)
        nothing = torch.full_like(side, -10.0)
        masks = torch.stack((side, -side, nothing))[None]
        start = Prediction(torch.zeros(1, 3, 48), torch.eye(3)[None], nothing.expand(1, 3, -1, -1))
        end = Prediction(pred_logits, torch.eye(3)[None], masks)
        return PEMOutput(
            pred_logits,
            torch.eye(3)[None],
            masks,
            aux_outputs=(start, *[end] * 5),
            trace=tuple(_layer(stride, (4 * height // stride, 4 * width // stride), end) for stride in STRIDES)
            if trace
            else None,
        )


class HalvesBaseline(HalvesModel):
    """A masked baseline. Its query 1 draws what query 0 of the model draws, and its query 0 what query 1 draws."""

    def __init__(self) -> None:
        super().__init__()
        self.config = dataclasses.replace(self.config, attention="masked")

    def decoder(self, mask_features: Tensor, levels: list[Tensor], trace: bool = False) -> PEMOutput:
        output = super().decoder(mask_features, levels, trace)
        swapped = [1, 0, 2]
        return dataclasses.replace(
            output, pred_logits=output.pred_logits[:, swapped], mask_embed=output.mask_embed[:, swapped]
        )


def _layer(stride: int, grid_size: tuple[int, int], prediction: Prediction) -> LayerTrace:
    rows, cols = grid_size
    index = torch.zeros(1, 8, 3, dtype=torch.int64)
    # Two channels per head: the first is compared with query 0, the second with query 1.
    key = torch.full((1, rows * cols, 8, 2), -0.25)
    for head in range(8):
        for query in (0, 1):
            row, col = picked_token(query, head, rows, cols)
            index[0, head, query] = row * cols + col
            key[0, row * cols + col, head, query] = SIMILARITY
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).repeat(1, 8)[None]
    left = torch.arange(rows * cols) % cols < cols // 2
    banned = torch.stack((~left, left, torch.ones_like(left)))[None]
    similarity = torch.full((1, 8, 3), SIMILARITY)
    similarity[:, :, 2] = 0
    return LayerTrace(
        stride, grid_size, index, similarity, target, key.flatten(2), banned, (~banned).float().mean(2), prediction
    )
