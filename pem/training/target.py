"""What is known about a photo: the form that labels take for the losses and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

VOID = 0
NONE_OF_THESE = 1
FIRST_SEGMENT = 2


@dataclass(frozen=True)
class Target:
    """What is known about one image with M segments, C crowds and K classes.

    In ``ids``, 0 is void (ignored by every mask loss), 1 is labelled as none of the exhaustive categories
    (padding too), m + 2 is segment m, and M + c + 2 is crowd c: a region of many things of one class, in the order of
    the JSON. Only targets to judge a model by have crowds.
    """

    ids: Tensor  # int16 [H, W]
    labels: Tensor  # int64 [M], class index 0..K-1
    weights: Tensor  # float32 [M]: 1, or training.pseudo_weight where a machine named the segment
    exhaustive: Tensor  # bool [K]: every segment of this class is labelled here
    crowds: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # int64 [C], class index

    def to(self, device: torch.device | str) -> Target:
        return Target(*(getattr(self, this.name).to(device) for this in fields(self)))

    def without_hidden(self) -> Target:
        """Without the segments and crowds that have no pixel."""
        num_ids = len(self.labels) + len(self.crowds) + FIRST_SEGMENT
        present = torch.bincount(self.ids.flatten().long(), minlength=num_ids)[FIRST_SEGMENT:] > 0
        new_ids = torch.arange(num_ids, dtype=self.ids.dtype)
        new_ids[FIRST_SEGMENT:][present] = torch.arange(int(present.sum()), dtype=self.ids.dtype) + FIRST_SEGMENT
        kept, kept_crowds = present.split([len(self.labels), len(self.crowds)])
        return Target(
            new_ids[self.ids.long()], self.labels[kept], self.weights[kept], self.exhaustive, self.crowds[kept_crowds]
        )
