"""ResNet-50: torchvision's layers, cut before its classifier, with the norms folded out of training."""

from __future__ import annotations

from torch import Tensor
from torchvision.models import resnet50
from torchvision.models.resnet import Bottleneck

from pem.backbones.base import Backbone
from pem.layers import conv_norm


class ResNet50(Backbone):
    channels = (256, 512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        net = resnet50(weights=None)
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(conv_norm(self.conv1, self.bn1, pixels).relu_())
        features = {}
        for name, stage in zip(
            ("res2", "res3", "res4", "res5"), (self.layer1, self.layer2, self.layer3, self.layer4), strict=True
        ):
            for block in stage:
                x = bottleneck(block, x)
            features[name] = x
        return features


def bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    out = conv_norm(block.conv1, block.bn1, x).relu_()
    out = conv_norm(block.conv2, block.bn2, out).relu_()
    out = conv_norm(block.conv3, block.bn3, out)
    out += x if block.downsample is None else conv_norm(block.downsample[0], block.downsample[1], x)
    return out.relu_()
