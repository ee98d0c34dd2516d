"""What every backbone is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    channels: tuple[int, ...]  # of the four features, from fine to coarse

    @abstractmethod
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels [B, 3, H, W] -> {"res2", "res3", "res4", "res5"}, each [B, C_s, H/s, W/s], s = 4, 8, 16, 32."""
