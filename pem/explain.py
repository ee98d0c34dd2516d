"""What happened inside: where prototypes lie on the photo, why they were chosen, and how masks grew.

A *step* is one of the L+1 predictions: 0 is made before any decoder layer, step i after layer i (counted from 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pem.devices import to_float
from pem.outputs import PEMOutput, Prediction
from pem.postprocess import class_probs
from pem.tiles import MASK_STRIDE


def cell_centres(count: int, stride: int, content_px: int) -> np.ndarray:
    """Where the cells of one axis of a level are centred, as fractions of the photo's height or width, float64 [count].

    The photo was resized to ``content_px`` and padded at its end: a centre beyond 1 lies in the padding.
    """
    return (np.arange(count) + 0.5) * stride / content_px


def check_index(what: str, index: int, count: int) -> None:
    """Raises ValueError unless there is such a query, layer or head (``what``) among ``count`` of them."""
    if not 0 <= index < count:
        raise ValueError(f"There is no {what} {index}; choose one from 0 to {count - 1}.")


@dataclass(frozen=True)
class Choice:
    """Why one head of one query took its prototype: what it compared, over all tokens of the level."""

    scores: np.ndarray  # float32 [N]: similarities with prototype attention, logits with masked attention
    banned: np.ndarray  # bool [N]: outside the previous mask
    index: int  # the best token that is not banned
    # Every token is banned. Index and weights are then as if none were, which is what masked attention does; a
    # prototype is token 0 with the published rule (``empty_mask``).
    empty: bool
    weights: np.ndarray  # float32 [N]: softmax of the scores over the tokens that are not banned

    @property
    def tokens_for_half(self) -> int:
        """The fewest tokens that hold half of the softmax weight together."""
        cumulative = np.cumsum(np.sort(self.weights)[::-1])
        return int(np.searchsorted(cumulative, 0.5 * cumulative[-1]) + 1)


def explain_choice(target: np.ndarray, key: np.ndarray, banned: np.ndarray, head: int, num_heads: int) -> Choice:
    """What one head saw, from the trace: target [D] of its query, key [N, D] of the level, banned bool [N].

    Raises ValueError for a head that does not exist.
    """
    check_index("head", head, num_heads)
    channels = np.split(np.arange(key.shape[1]), num_heads)[head]
    scores = key[:, channels].astype(np.float32) @ target[channels].astype(np.float32)
    empty = bool(banned.all())
    allowed_scores = scores if empty else np.where(banned, -np.inf, scores)
    weights = np.exp(allowed_scores - allowed_scores.max())
    return Choice(scores, banned, int(allowed_scores.argmax()), empty, weights / weights.sum())


@dataclass(frozen=True)
class Evolution:
    """What every query said at each step. Masks are where the logit is positive, without the padding."""

    category_id: np.ndarray  # int [L+1, Q]: the best class, no-object left aside
    score: np.ndarray  # float32 [L+1, Q]: probability of that class
    no_object_score: np.ndarray  # float32 [L+1, Q]
    area_fraction: np.ndarray  # float32 [L+1, Q]: of the photo
    final_iou: np.ndarray  # float32 [L+1, Q]: overlap with the query's mask of the last step; 1 where both are empty
    masks: np.ndarray  # uint8 [L+1, Q, rows, cols]: mask probability * 255


@torch.no_grad()
def evolution(output: PEMOutput, content_size: tuple[int, int], max_mask_side: int = 128) -> Evolution:
    """The predictions of the first image of an output, step by step; its photo filled ``content_size`` of the input.

    Where a mask has more than ``max_mask_side`` cells along a side, ``masks`` holds it smaller.
    """
    rows, cols = (-(-side // MASK_STRIDE) for side in content_size)
    scale = min(1.0, max_mask_side / max(rows, cols))
    kept_size = (max(1, round(rows * scale)), max(1, round(cols * scale)))
    final = _content_masks(output, rows, cols) > 0

    steps = []
    for prediction in (*output.aux_outputs, output):
        probs = class_probs(prediction.pred_logits[0])
        score, category_id = probs[:, :-1].max(-1)
        logits = _content_masks(prediction, rows, cols)
        inside = logits > 0
        intersection, union = (inside & final).sum((1, 2)), (inside | final).sum((1, 2))
        iou = torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
        masks = logits.sigmoid()
        if scale < 1:
            masks = F.interpolate(masks[None], size=kept_size, mode="area")[0]
        area = inside.sum((1, 2)) / (rows * cols)
        steps.append((category_id, score, probs[:, -1], area, iou, (masks * 255).round().byte()))
    return Evolution(*(torch.stack(parts).cpu().numpy() for parts in zip(*steps, strict=True)))


@torch.no_grad()
def match_queries(output: PEMOutput, other: PEMOutput, content_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """For each query of the first image of ``output``, the query of another network that says most nearly the same.

    Queries of two networks have nothing to do with each other, whatever their numbers. Of the queries that draw much
    the same mask all but one say no-object, so the IoU of the final masks is weighed by how alike the class
    probabilities are (their Bhattacharyya coefficient). Returns the indices, int [Q], and the IoU of the two masks,
    float32 [Q]; 0 where no mask overlaps.
    """
    rows, cols = (-(-side // MASK_STRIDE) for side in content_size)
    ours, theirs = (to_float(_content_masks(each, rows, cols) > 0).flatten(1) for each in (output, other))
    intersection = ours @ theirs.T
    union = ours.sum(1)[:, None] + theirs.sum(1) - intersection
    iou = intersection / union.clamp(min=1)
    our_probs, their_probs = (class_probs(each.pred_logits[0]) for each in (output, other))
    index = (iou * (our_probs.sqrt() @ their_probs.sqrt().T)).argmax(1)
    return index.cpu().numpy(), iou.gather(1, index[:, None])[:, 0].float().cpu().numpy()


def _content_masks(prediction: Prediction, rows: int, cols: int) -> Tensor:
    return to_float(prediction.pred_masks[0, :, :rows, :cols]).nan_to_num()
