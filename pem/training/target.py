"""What is known about a photo: the form that labels take for the losses and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

VOID = 0
NONE_OF_THESE = 1
FIRST_SEGMENT = 2


@dataclass(frozen=True)
class Target:
    """What is known about one image with M segments and K classes.

    In ``ids``, 0 is void (ignored by every mask loss), 1 is labelled as none of the exhaustive categories
    (padding too), and m + 2 is segment m.
    """

    ids: Tensor  # int16 [H, W]
    labels: Tensor  # int64 [M], class index 0..K-1
    weights: Tensor  # float32 [M]: 1, or training.pseudo_weight where a machine named the segment
    exhaustive: Tensor  # bool [K]: every segment of this class is labelled here

    def to(self, device: torch.device | str) -> Target:
        ids, labels, weights, exhaustive = (
            tensor.to(device) for tensor in (self.ids, self.labels, self.weights, self.exhaustive)
        )
        return Target(ids, labels, weights, exhaustive)

    def without_hidden(self) -> Target:
        """Without the segments that have no pixel."""
        num_ids = len(self.labels) + FIRST_SEGMENT
        present = torch.bincount(self.ids.flatten().long(), minlength=num_ids)[FIRST_SEGMENT:] > 0
        new_ids = torch.arange(num_ids, dtype=self.ids.dtype)
        new_ids[FIRST_SEGMENT:][present] = torch.arange(int(present.sum()), dtype=self.ids.dtype) + FIRST_SEGMENT
        ids = new_ids[self.ids.long()]
        return replace(self, ids=ids, labels=self.labels[present], weights=self.weights[present])
