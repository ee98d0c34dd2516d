"""Which query answers for which segment: Hungarian matching on sampled points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from pem.devices import to_float
from pem.outputs import Prediction
from pem.training.config import TrainingConfig
from pem.training.target import FIRST_SEGMENT, NONE_OF_THESE, Target


def draw_points(count: int, num_points: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """``count`` sets of uniform random points (row, col) in 0..1: [count, P, 2].

    If a mask of this size has no more pixels than that, the points are its pixel centres, each once.
    """
    height, width = size
    if num_points < height * width:
        return torch.rand(count, num_points, 2, device=device)
    rows = (torch.arange(height, device=device) + 0.5) / height
    cols = (torch.arange(width, device=device) + 0.5) / width
    return torch.cartesian_prod(rows, cols).expand(count, -1, 2)


def sample_bilinear(maps: Tensor, points: Tensor) -> Tensor:
    """Maps [B, C, h, w] at points [B, P, 2] -> [B, C, P]."""
    grid = (2 * points.flip(-1) - 1)[:, :, None]
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]


def sample_segments(ids: Tensor, points: Tensor, segment: Tensor) -> Tensor:
    """How much of each point belongs to a segment, by bilinear interpolation of its mask.

    ids int [H, W], points [S, P, 2] (or [1, P, 2], shared), segment int [S] (the number of a segment, from 0)
    -> [S, P]. Looks up the four neighbours in the id map, so it needs no mask.
    """
    height, width = ids.shape
    row, col = points[..., 0] * height - 0.5, points[..., 1] * width - 0.5
    top, left = row.floor(), col.floor()
    below, right = row - top, col - left
    inside = torch.zeros(len(segment), points.shape[1], device=ids.device)
    for r, row_weight in ((top, 1 - below), (top + 1, below)):
        for c, col_weight in ((left, 1 - right), (left + 1, right)):
            # The border repeats outwards: a mask that reaches the edge of the image does not fade there.
            near = ids[r.long().clamp(0, height - 1), c.long().clamp(0, width - 1)]
            inside += (near == segment[:, None] + FIRST_SEGMENT) * (row_weight * col_weight)
    return inside


def sample_nearest(ids: Tensor, points: Tensor) -> Tensor:
    """The id under each point: ids [H, W] at points [..., 2] -> [...]."""
    height, width = ids.shape
    rows = (points[..., 0] * height).long().clamp(max=height - 1)
    cols = (points[..., 1] * width).long().clamp(max=width - 1)
    return ids[rows, cols]


def is_known(ids: Tensor, labels: Tensor, exhaustive: Tensor) -> Tensor:
    """Where a point says something about a segment: ids [S or 1, P], labels [S] -> bool [S, P].

    Void says nothing. A point that is none of the image's exhaustive categories (NONE_OF_THESE) is outside the segments
    of those categories, and may or may not belong to a segment of another one.
    """
    return (ids > NONE_OF_THESE) | ((ids == NONE_OF_THESE) & exhaustive[labels][:, None])


def matching_cost(
    class_logits: Tensor, mask_logits: Tensor, labels: Tensor, inside: Tensor, known: Tensor, config: TrainingConfig
) -> Tensor:
    """What it would cost each query to answer for each segment (as in Mask2Former): [..., Q, M].

    class_logits [..., Q, K+1], mask_logits [..., Q, P], labels [M], inside and known [M, P].
    """
    weight = known.to(mask_logits.dtype)
    positive = inside * weight
    # softplus(-x) = softplus(x) - x
    bce = (F.softplus(mask_logits) @ weight.T - mask_logits @ positive.T) / weight.sum(1).clamp(min=1)
    probs = mask_logits.sigmoid()
    dice = 1 - (2 * probs @ positive.T + 1) / (probs @ weight.T + positive.sum(1) + 1)
    class_cost = -class_logits.softmax(-1)[..., labels]
    return config.match_class_weight * class_cost + config.mask_weight * bce + config.dice_weight * dice


@dataclass(frozen=True)
class Matches:
    """Which query answers for which segment of one image, over all predictions: int64 [S] each."""

    prediction: Tensor
    query: Tensor
    segment: Tensor


@torch.no_grad()
def match(predictions: list[Prediction], targets: list[Target], config: TrainingConfig) -> tuple[list[Matches], Tensor]:
    """Matches every prediction anew, image by image.

    Also returns ``unlabelled`` [L, B, Q]: the share of each query's foreground that lies on points of no segment
    (0 where it has no foreground).
    """
    features = predictions[0].mask_features
    size = (features.shape[2], features.shape[3])
    points = draw_points(len(targets), config.match_points, size, features.device)
    sampled = sample_bilinear(to_float(features), points)  # [B, D, P]
    embed = torch.stack([to_float(p.mask_embed) for p in predictions], dim=1)  # [B, L, Q, D]
    mask_logits = (embed.flatten(1, 2) @ sampled).unflatten(1, embed.shape[1:3])  # [B, L, Q, P]
    class_logits = torch.stack([to_float(p.pred_logits) for p in predictions], dim=1)

    costs, unlabelled = [], []
    for b, target in enumerate(targets):
        ids = sample_nearest(target.ids, points[b])
        foreground = (mask_logits[b] > 0).float()
        unlabelled.append(foreground @ (ids <= NONE_OF_THESE).float() / foreground.sum(-1).clamp(min=1))
        segments = torch.arange(len(target.labels), device=features.device)
        inside = sample_segments(target.ids, points[b : b + 1], segments)
        known = is_known(ids[None], target.labels, target.exhaustive)
        costs.append(matching_cost(class_logits[b], mask_logits[b], target.labels, inside, known, config))

    matches = []
    for cost in costs:  # not in the loop above: each copy from a GPU waits for it
        pairs = np.concatenate(
            [
                np.stack((np.full_like(q, i), q, s))
                for i, (q, s) in enumerate(map(linear_sum_assignment, cost.nan_to_num().cpu().numpy()))
            ],
            axis=1,
        )
        matches.append(Matches(*torch.as_tensor(pairs, device=features.device)))
    return matches, torch.stack(unlabelled, dim=1)
