"""ResNet-50: torchvision's layers, cut before its classifier."""

from __future__ import annotations

from torch import Tensor
from torchvision.models import resnet50

from pem.backbones.base import Backbone


class ResNet50(Backbone):
    channels = (256, 512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        net = resnet50(weights=None)
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(self.bn1(self.conv1(pixels)).relu_())
        features = {}
        for name, stage in zip(
            ("res2", "res3", "res4", "res5"), (self.layer1, self.layer2, self.layer3, self.layer4), strict=True
        ):
            features[name] = x = stage(x)
        return features
