"""A backbone by name: our two kinds, or one of timm's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pem.backbones.base import Backbone
from pem.backbones.resnet import ResNet50
from pem.backbones.stdc import STDC

LEVELS = ("res2", "res3", "res4", "res5")
STRIDES = (4, 8, 16, 32)


class TimmBackbone(Backbone):
    """A timm model that gives features [B, C, H/s, W/s], s = 4, 8, 16, 32, of images of any size: most that are made
    of convolutions (ConvNeXt, MobileNet, HRNet), not those with windows (Swin, MaxViT)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm  # imported late: a second of start-up that the other backbones do not need

        if not timm.is_model(name):
            raise ValueError(f"There is no backbone {name!r}; use resnet50, stdc1, stdc2 or the name of a timm model.")
        try:
            self.net = timm.create_model(name, features_only=True, pretrained=False)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"timm's {name} cannot give features by stage; choose another backbone.") from error
        info: Any = self.net.feature_info
        strides = info.reduction()
        if any(s not in strides for s in STRIDES):
            raise ValueError(f"timm's {name} has strides {strides}; PEM needs 4, 8, 16 and 32.")
        self.picks = tuple(strides.index(s) for s in STRIDES)
        self.channels = tuple(info.channels()[i] for i in self.picks)
        if not self._fits():
            raise ValueError(
                f"timm's {name} cannot be a backbone: PEM needs features [B, C, H/s, W/s] at strides s = 4, 8, 16 and "
                "32, for every H and W that are multiples of 32; choose another one."
            )

    def _fits(self) -> bool:
        """Tries it: many models take one size only, or give their channels last, and their description is silent."""
        wanted = [(1, c, 96 // s, 128 // s) for c, s in zip(self.channels, STRIDES, strict=True)]
        try:
            with torch.no_grad():
                return [x.shape for x in self.eval()(torch.zeros(1, 3, 96, 128)).values()] == wanted
        except Exception:  # each fails in its own way
            return False
        finally:
            self.train()

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.net(pixels)
        return {level: features[i] for level, i in zip(LEVELS, self.picks, strict=True)}


def build_backbone(name: str) -> Backbone:
    """A backbone with random weights. Raises ValueError for a name that is neither ours nor timm's, and for
    a model of timm's that does not keep the contract."""
    if name == "resnet50":
        return ResNet50()
    if name in ("stdc1", "stdc2"):
        return STDC(name)
    return TimmBackbone(name)
