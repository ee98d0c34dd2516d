"""The records that pass between the parts. They hold data and do no work.

Letters in shapes, here and everywhere: B images, Q queries, K classes without no-object, L decoder layers,
h heads, D channels, N = H*W tokens of one level, s stride. Sizes are (height, width); points are (row, col).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:  # what an exported network returns needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images made ready for the network, and what it takes to undo that.

    An image of ``original_sizes[i]`` was resized to ``content_sizes[i]``, which lies in the top left corner
    of ``pixels[i]``; the rest is padding (0 after normalisation).
    """

    pixels: Any  # float32 [B, 3, H, W], a tensor or an array, normalised; H and W are multiples of 32
    original_sizes: tuple[tuple[int, int], ...]
    content_sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Prediction:
    """What the prediction heads say of every query at one depth of the decoder.

    The mask logits are the product of the mask embeddings with the mask features. They are large, and seldom
    wanted before the last layer, so they are made when they are first asked for.
    """

    pred_logits: Tensor  # [B, Q, K+1], before softmax; the last class is no-object
    mask_embed: Tensor  # [B, Q, D]
    mask_features: Tensor  # [B, D, H/4, W/4], shared by all predictions of one pass

    @property
    def pred_masks(self) -> Tensor:
        """Mask logits [B, Q, H/4, W/4], before the sigmoid."""
        if getattr(self.mask_embed, "requires_grad", False):  # arrays have no gradients
            import torch

            if not torch.is_grad_enabled():
                return self._masks()  # not kept: a loss that asks later needs a gradient
        return self._kept_masks

    @cached_property
    def _kept_masks(self) -> Tensor:
        return self._masks()

    def _masks(self) -> Tensor:
        batch, _, height, width = self.mask_features.shape
        return (self.mask_embed @ self.mask_features.reshape(batch, -1, height * width)).reshape(
            batch, -1, height, width
        )


class Attended(NamedTuple):
    """What a cross-attention looked at: the part of a LayerTrace that it knows itself, described there."""

    prototype_index: Tensor
    similarity: Tensor
    target: Tensor
    key: Tensor


@dataclass(frozen=True)
class LayerTrace:
    """What one decoder layer did, for whoever wants to look inside. Token n lies at row n // W, column n % W.

    With prototype attention, ``prototype_index`` is the one token that each head picked for each query and
    ``similarity`` the score it won with (a partial dot product of unit vectors, so within -1..1). With masked
    attention they are the token with the largest attention weight, and that weight.
    """

    stride: int  # 32, 16 or 8: token (row, col) is centred on pixel ((row + 0.5) * stride, (col + 0.5) * stride)
    grid_size: tuple[int, int]
    prototype_index: Tensor  # int64 [B, h, Q]
    similarity: Tensor  # [B, h, Q]
    # What was compared: the product of one head's channels of both is that head's score of every query and token,
    # a partial cosine with prototype attention, the logit before the softmax with masked attention.
    target: Tensor  # [B, Q, D]
    key: Tensor  # [B, N, D]
    banned: Tensor  # bool [B, Q, N]: the token lies outside the query's previous mask
    allowed_fraction: Tensor  # [B, Q]: share of tokens inside the previous mask; 0 = this query had no foreground here
    prediction: Prediction  # made after this layer

    @property
    def pred_logits(self) -> Tensor:
        return self.prediction.pred_logits

    @property
    def pred_masks(self) -> Tensor:
        return self.prediction.pred_masks


@dataclass(frozen=True)
class PEMOutput(Prediction):
    """The last prediction, the L earlier ones (before any layer, then after each but the last), and the trace."""

    aux_outputs: tuple[Prediction, ...] = ()
    trace: tuple[LayerTrace, ...] | None = None


@dataclass(frozen=True)
class Segment:
    """One region of a segmentation."""

    id: int  # its value in the id map, from 1
    category_id: int  # index of its class, 0..K-1: a column of pred_logits
    label: str
    is_thing: bool
    score: float  # 0..1
    area_px: int  # in the original image
    bbox: tuple[int, int, int, int]  # (left, top, width, height) in pixels of the original, as in COCO
    queries: tuple[int, ...]  # the queries that drew it; several where stuff was merged
    color: tuple[int, int, int] = (128, 128, 128)  # RGB; the things of one class differ in shade


Fate: TypeAlias = Literal[
    "kept",  # it drew a segment; in a panoptic reading a thing, or the first part of a stuff segment
    "merged",  # panoptic: it joined a stuff segment that an earlier query began
    "no object",  # panoptic: its best class is no-object
    "low score",  # its score is not above the threshold, or no pair of it is among the top_k of an instance reading
    "empty mask",  # it competed, but its mask probability is nowhere at least 0.5
    "lost pixels",  # panoptic: it has a mask, but painted no pixel of it
    "small overlap",  # panoptic: it won less of its mask than the overlap threshold asks for
    "little evidence",  # semantic: it is not among the queries of any segment
    "not a thing",  # instances: its best class is stuff, and it was not kept for another one
]


@dataclass(frozen=True)
class QueryOutcome:
    """What became of one query in a reading."""

    query: int
    category_id: int  # its best class, no-object left aside
    label: str
    score: float  # probability of that class; of instances, times the mean mask probability where the mask was read
    no_object_score: float  # probability of no-object
    fate: Fate
    segment_ids: tuple[int, ...]  # the segments it drew or helped to draw, ascending; () when it was dropped
    # What is held against the overlap threshold: the pixels it won per pixel of its mask, at most 1. None unless it
    # competed for pixels (panoptic only) and has a mask.
    mask_share: float | None


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Segmentation:
    """A reading of the output for one image: panoptic and semantic regions do not overlap, instances may.

    ``ids`` is 0 where nothing was recognised. Where instances overlap, it shows the one with the best score,
    and ``masks`` keeps them whole.
    """

    ids: np.ndarray  # int32 [H0, W0]
    segments: tuple[Segment, ...]
    masks: np.ndarray | None = None  # bool [len(segments), H0, W0], of instance readings only
    outcomes: tuple[QueryOutcome, ...] = ()  # one per query, in query order; the readings fill it
