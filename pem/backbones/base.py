"""What every backbone is."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    channels: tuple[int, ...]  # of the four features, from fine to coarse

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels [B, 3, H, W] -> {"res2", "res3", "res4", "res5"}, each [B, C_s, H/s, W/s], s = 4, 8, 16, 32.

        Out of training they are in channels_last, in which convolutions are faster, and so is all that follows: every
        layer hands the layout on.
        """
        layout = torch.contiguous_format if self.training else torch.channels_last
        return self.extract(pixels.contiguous(memory_format=layout))

    @abstractmethod
    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """``forward``, in the layout that it chose."""
