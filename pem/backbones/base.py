"""What every backbone is."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """Pixels [B, 3, H, W] -> {"res2", "res3", "res4", "res5"}, each [B, C_s, H/s, W/s], s = 4, 8, 16, 32."""

    channels: tuple[int, ...]  # the four C_s, from fine to coarse

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError
