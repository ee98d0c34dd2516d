"""The losses of all predictions against the labels of people and, with less weight, of machines."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pem.config import PEMConfig
from pem.devices import to_float
from pem.outputs import PEMOutput, Prediction
from pem.training.config import TrainingConfig
from pem.training.matcher import (
    Matches,
    draw_points,
    is_known,
    match,
    sample_bilinear,
    sample_nearest,
    sample_segments,
)
from pem.training.target import FIRST_SEGMENT, NONE_OF_THESE, Target


class Criterion(nn.Module):
    """Class, mask and dice loss of every prediction, each matched anew, with partial labels respected.

    The losses are Mask2Former's (arXiv 2112.01527, section 3.3), which PEM keeps.

    ``forward(output, targets)`` returns the weighted losses by name, scalars; their sum is to be minimised.
    """

    def __init__(self, network: PEMConfig, config: TrainingConfig) -> None:
        super().__init__()
        self.config = config
        # Supervises the mask features directly, which learn slowly through the matched queries alone.
        self.semantic_head = (
            nn.Conv2d(network.hidden_dim, network.num_classes, 1) if config.auxiliary_semantic_weight else None
        )

    def forward(self, output: PEMOutput, targets: list[Target]) -> dict[str, Tensor]:
        predictions: list[Prediction] = [*output.aux_outputs, output]
        matches, unlabelled = match(predictions, targets, self.config)
        losses = {
            "class": self.config.class_weight * self.class_loss(predictions, targets, matches, unlabelled),
            **self.mask_losses(predictions, targets, matches),
        }
        if self.semantic_head is not None:
            loss = self.semantic_loss(output.mask_features, targets)
            losses["semantic"] = self.config.auxiliary_semantic_weight * loss
        return losses

    def class_loss(
        self, predictions: list[Prediction], targets: list[Target], matches: list[Matches], unlabelled: Tensor
    ) -> Tensor:
        """Cross-entropy over all queries, summed over the predictions; an unmatched query should say no-object.

        A query on an unlabelled part of the image may also say any class that the image does not label completely.
        """
        log_probs = torch.stack([to_float(p.pred_logits) for p in predictions]).log_softmax(-1)  # [L, B, Q, K+1]
        exhaustive = torch.stack([t.exhaustive for t in targets])  # [B, K]
        may_say = torch.cat((~exhaustive, exhaustive.new_ones(len(targets), 1)), dim=1)  # with no-object
        may_say = may_say[None, :, None].expand_as(log_probs) & (unlabelled > 0.5)[..., None]
        may_say[..., -1] = True
        loss = -log_probs.masked_fill(~may_say, -torch.inf).logsumexp(-1)
        weight = torch.full_like(loss, self.config.no_object_weight)
        prediction = torch.cat([m.prediction for m in matches])
        image = torch.cat([torch.full_like(m.query, b) for b, m in enumerate(matches)])
        query = torch.cat([m.query for m in matches])
        label = torch.cat([t.labels[m.segment] for t, m in zip(targets, matches, strict=True)])
        matched = (prediction, image, query)
        loss = loss.index_put(matched, -log_probs[prediction, image, query, label])
        weight[matched] = torch.cat([t.weights[m.segment] for t, m in zip(targets, matches, strict=True)])
        normalizer = mean_over_ranks(weight.sum((1, 2)))
        return ((loss * weight).sum((1, 2)) / normalizer).sum()

    def mask_losses(
        self, predictions: list[Prediction], targets: list[Target], matches: list[Matches]
    ) -> dict[str, Tensor]:
        """Binary cross-entropy and dice on points of the matched masks, most of them where the mask is unsure."""
        num_masks = mean_over_ranks(sum(t.weights.sum() for t in targets)).clamp(min=1)  # type: ignore[arg-type]
        embed = torch.stack([p.mask_embed for p in predictions])  # [L, B, Q, D]
        # Not indexed image by image, because the gradient of each index would fill a whole batch with zeros.
        features = predictions[0].mask_features.unbind()
        # Keeps every parameter in the graph when there is no segment, which distributed training needs.
        mask_loss = dice_loss = 0.0 * (to_float(embed).sum() + to_float(predictions[0].mask_features).sum())
        for b, (target, pairs) in enumerate(zip(targets, matches, strict=True)):
            if len(target.labels) == 0:
                continue
            segment = pairs.segment
            matched = embed[pairs.prediction, b, pairs.query]  # [S, D]
            masks = to_float((matched @ features[b].flatten(1)).unflatten(1, features[b].shape[1:]))[:, None]
            points = self.choose_points(masks)
            logits = sample_bilinear(masks, points)[:, 0]  # [S, P]
            inside = sample_segments(target.ids, points, segment)
            known = is_known(sample_nearest(target.ids, points), target.labels[segment], target.exhaustive)
            weight = known.to(logits.dtype)
            bce = F.binary_cross_entropy_with_logits(logits, inside, reduction="none")
            probs = logits.sigmoid() * weight
            inside = inside * weight
            dice = 1 - (2 * (probs * inside).sum(1) + 1) / (probs.sum(1) + inside.sum(1) + 1)
            trust = target.weights[segment]
            mask_loss = mask_loss + ((bce * weight).sum(1) / weight.sum(1).clamp(min=1) * trust).sum()
            dice_loss = dice_loss + (dice * trust).sum()
        return {
            "mask": self.config.mask_weight * mask_loss / num_masks,
            "dice": self.config.dice_weight * dice_loss / num_masks,
        }

    @torch.no_grad()
    def choose_points(self, masks: Tensor) -> Tensor:
        """Points for each of the masks [S, 1, h, w]: the least sure of many random ones, and some fresh: [S, P, 2]."""
        size = (masks.shape[2], masks.shape[3])
        num_points = self.config.num_points
        if num_points >= size[0] * size[1]:
            return draw_points(len(masks), num_points, size, masks.device)
        num_important = int(num_points * self.config.importance_ratio)
        candidates = torch.rand(len(masks), int(num_points * self.config.oversample_ratio), 2, device=masks.device)
        unsure = sample_bilinear(masks, candidates)[:, 0].abs().topk(num_important, largest=False).indices
        important = candidates.gather(1, unsure[..., None].expand(-1, -1, 2))
        return torch.cat((important, torch.rand(len(masks), num_points - num_important, 2, device=masks.device)), 1)

    def semantic_loss(self, mask_features: Tensor, targets: list[Target]) -> Tensor:
        """Cross-entropy per cell of the mask features.

        Where a pixel is none of the exhaustive categories, the probability of all others together is what should be 1.
        """
        assert self.semantic_head is not None
        log_probs = self.semantic_head(to_float(mask_features)).log_softmax(1)
        size = (mask_features.shape[2], mask_features.shape[3])
        points = draw_points(1, size[0] * size[1], size, mask_features.device)[0].view(*size, 2)
        total, count = log_probs.sum() * 0, log_probs.new_zeros(())
        for per_class, target in zip(log_probs, targets, strict=True):
            ids = sample_nearest(target.ids, points).long()
            segment = ids > NONE_OF_THESE
            if segment.any():
                index = ids[segment] - FIRST_SEGMENT
                own = per_class[:, segment].gather(0, target.labels[index][None])[0]
                weight = target.weights[index]
                total, count = total - (own * weight).sum(), count + weight.sum()
            other = ids == NONE_OF_THESE
            if other.any() and not target.exhaustive.all():
                total = total - per_class[~target.exhaustive][:, other].logsumexp(0).sum()
                count = count + other.sum()
        return total / mean_over_ranks(count).clamp(min=1)


def mean_over_ranks(count: Tensor) -> Tensor:
    """The mean over processes, so that several give the same loss as one; no gradient flows through it."""
    if not distributed.is_initialized():
        return count
    count = count.detach().clone()
    distributed.all_reduce(count)
    return count / distributed.get_world_size()
