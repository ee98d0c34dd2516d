"""ResNet-50: torchvision's, cut before its classifier."""

from __future__ import annotations

from torch import Tensor
from torchvision.models import resnet50

from pem.backbones.base import Backbone


class ResNet50(Backbone):
    channels = (256, 512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        net = resnet50(weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        res2 = self.layer1(x)
        res3 = self.layer2(res2)
        res4 = self.layer3(res3)
        return {"res2": res2, "res3": res3, "res4": res4, "res5": self.layer4(res4)}
