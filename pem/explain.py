"""What happened inside: where prototypes lie on the photo, why they were chosen, and how masks grew.

A *step* is one of the L+1 predictions: 0 is made before any decoder layer, step i after layer i (counted from 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pem.arrays import AnyPrediction, as_arrays
from pem.outputs import PEMOutput
from pem.postprocess import class_probs
from pem.tiles import MASK_STRIDE, sigmoid


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


def evolution(output: PEMOutput, content_size: tuple[int, int], max_mask_side: int = 128) -> Evolution:
    """The predictions of the first image of an output, step by step; its photo filled ``content_size`` of the input.

    Where a mask has more than ``max_mask_side`` cells along a side, ``masks`` holds it smaller.
    """
    predictions = [_of_content(prediction, content_size) for prediction in (*output.aux_outputs, output)]
    rows, cols = predictions[-1][1].shape[1:]
    final = predictions[-1][1] > 0
    scale = min(1.0, max_mask_side / max(rows, cols))
    by_row, by_col = (_area_weights(side, max(1, round(side * scale))) for side in (rows, cols))

    steps = []
    for probs, logits in predictions:
        category_id, score = probs[:, :-1].argmax(1), probs[:, :-1].max(1)
        inside = logits > 0
        masks = by_row @ sigmoid(logits) @ by_col.T
        area = inside.sum((1, 2), dtype=np.float32) / (rows * cols)
        both, either = (joined.sum((1, 2)) for joined in (inside & final, inside | final))
        iou = np.where(either > 0, both / np.maximum(either, 1), 1).astype(np.float32)
        steps.append((category_id, score, probs[:, -1], area, iou, np.rint(masks * 255).astype(np.uint8)))
    return Evolution(*(np.stack(parts) for parts in zip(*steps, strict=True)))


def _area_weights(cells: int, fewer: int) -> np.ndarray:
    """Makes ``fewer`` cells of an axis the means of the cells that they touch: float32 [fewer, cells]."""
    first, last = np.arange(fewer) * cells // fewer, -(-np.arange(1, fewer + 1) * cells // fewer)
    touches = (np.arange(cells) >= first[:, None]) & (np.arange(cells) < last[:, None])
    return np.float32(touches / touches.sum(1, keepdims=True))


def match_queries(
    output: AnyPrediction, other: AnyPrediction, content_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """For each query of the first image of ``output``, the query of another network that says most nearly the same.

    Queries of two networks have nothing to do with each other, whatever their numbers. Of the queries that draw much
    the same mask all but one say no-object, so the IoU of the final masks is weighed by how alike the class
    probabilities are (their Bhattacharyya coefficient). Returns the indices, int [Q], and the IoU of the two masks,
    float32 [Q]; 0 where no mask overlaps.
    """
    (our_probs, our_masks), (their_probs, their_masks) = (_of_content(each, content_size) for each in (output, other))
    ours, theirs = (np.float32(masks > 0).reshape(len(masks), -1) for masks in (our_masks, their_masks))
    intersection = ours @ theirs.T
    union = ours.sum(1)[:, None] + theirs.sum(1) - intersection
    iou = intersection / np.maximum(union, 1)
    index = (iou * (np.sqrt(our_probs) @ np.sqrt(their_probs).T)).argmax(1)
    return index, np.take_along_axis(iou, index[:, None], 1)[:, 0]


def _of_content(prediction: AnyPrediction, content_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities [Q, K+1] of the first image, and its mask logits [Q, rows, cols] without the padding."""
    logits, masks = as_arrays(prediction)
    rows, cols = (-(-side // MASK_STRIDE) for side in content_size)
    return class_probs(logits[0]), np.nan_to_num(masks[0, :, :rows, :cols])
