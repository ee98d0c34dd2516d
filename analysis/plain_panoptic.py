"""The panoptic reading of an output, written plainly: to prove the reading in tiles exact, and to time it against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pem.categories import categories_for
from pem.config import PEMConfig
from pem.outputs import Batch, PEMOutput
from pem.tiles import MASK_STRIDE


def resize_masks(maps: Tensor, content: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """[Q, h, w] at the size of the padded input -> [Q, *original]: without the padding, then bilinear."""
    inside = maps[None, :, : content[0], : content[1]]
    return F.interpolate(inside, size=original, mode="bilinear", align_corners=False)[0]


def enlarge_masks(masks: Tensor) -> Tensor:
    """[Q, h, w], from mask cells to the size of the padded input."""
    return F.interpolate(masks[None], scale_factor=MASK_STRIDE, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def plain_panoptic(output: PEMOutput, batch: Batch, config: PEMConfig) -> tuple[Tensor, list[tuple[int, int]]]:
    """The first image's ids, int32 [H0, W0], and (class, pixels) of each segment: query by query on whole masks."""
    categories = categories_for(config)
    scores, labels = output.pred_logits[0].softmax(-1).max(-1)
    kept = ((labels != config.num_classes) & (scores > config.object_threshold)).nonzero()[:, 0]
    ids = torch.zeros(batch.original_sizes[0], dtype=torch.int32, device=scores.device)
    if len(kept) == 0:
        return ids, []
    masks = enlarge_masks(output.pred_masks[0][kept])
    probs = resize_masks(masks, batch.content_sizes[0], batch.original_sizes[0]).sigmoid()
    owner = (scores[kept, None, None] * probs).max(0).indices  # many times as fast as argmax
    classes: list[int] = []
    id_of_stuff: dict[int, int] = {}
    for place, label in enumerate(labels[kept].tolist()):
        owned, inside = owner == place, probs[place] >= 0.5
        visible = owned & inside
        if not visible.any() or owned.sum() / inside.sum() < config.overlap_threshold:
            continue
        if label in id_of_stuff:
            ids[visible] = id_of_stuff[label]
            continue
        classes.append(label)
        ids[visible] = len(classes)
        if not categories[label].is_thing:
            id_of_stuff[label] = len(classes)
    areas_px = ids.flatten().bincount(minlength=len(classes) + 1)[1:].tolist()
    return ids, list(zip(classes, areas_px, strict=True))
