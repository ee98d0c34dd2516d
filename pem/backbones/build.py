"""A backbone by name: our two kinds, or any of timm's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pem.backbones.base import Backbone
from pem.backbones.resnet import ResNet50
from pem.backbones.stdc import STDC

LEVELS = ("res2", "res3", "res4", "res5")


class TimmBackbone(Backbone):
    """Any timm model that gives features at strides 4, 8, 16 and 32."""

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
        if any(s not in strides for s in (4, 8, 16, 32)):
            raise ValueError(f"timm's {name} has strides {strides}; PEM needs 4, 8, 16 and 32.")
        self.picks = tuple(strides.index(s) for s in (4, 8, 16, 32))
        self.channels = tuple(info.channels()[i] for i in self.picks)

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.net(pixels)
        return {level: features[i] for level, i in zip(LEVELS, self.picks, strict=True)}


def build_backbone(name: str) -> Backbone:
    """A backbone with random weights. Raises ValueError for a name that is neither ours nor timm's."""
    if name == "resnet50":
        return ResNet50()
    if name in ("stdc1", "stdc2"):
        return STDC(name)
    return TimmBackbone(name)
