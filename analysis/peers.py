"""PEM beside its masked baseline and other segmentation networks: random weights, the same input, one run, in turns.

The other networks are built from their configuration by Hugging Face's `transformers` (requirements-peers.txt). Where
that is not installed, their rows say so. Each network runs to its class and mask logits, and nothing reads those.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

import pem
from analysis.arguments import add_shared
from analysis.counter import mac_counter
from analysis.results import Report, Row
from analysis.timing import Workload, measure_rounds, percentiles, whole
from pem.config import PEMConfig

BASELINE = "Mask2Former R50"  # all speeds are given relative to it
# What is measured of a network: 1 MAC = 2 FLOPs. "ratio" is the median over the rounds of its time by that of the first
# network, "speedup" that of BASELINE's time by its own.
NUMBERS = ("gmacs", "params_m", "median_ms", "p10_ms", "p90_ms", "ratio", "speedup")
NUM_CLASSES, NUM_QUERIES = 19, 100  # Cityscapes; OneFormer keeps its 150 queries, SegFormer has none

MISSING = "not measured: transformers is not installed; run `pip install -r requirements-peers.txt`."


@dataclass(frozen=True)
class Peer:
    name: str
    build: Callable[[tuple[int, int]], nn.Module]  # for images of that size (height, width): random weights, on the CPU
    run: Callable[[nn.Module, Tensor], Any]  # pixels [B, 3, H, W] to what has class and mask logits
    note: str = ""
    from_transformers: bool = True

    @property
    def missing(self) -> str | None:
        """Why it cannot be built here, in one sentence; None when it can."""
        if self.from_transformers and importlib.util.find_spec("transformers") is None:
            return MISSING
        return None


def peers() -> tuple[Peer, ...]:
    """Every network that can be compared: first PEM and its masked baselines."""
    lighter = "as Hugging Face builds it: no encoder layers, and only the last masks"
    unfused = "its cross-attention as Hugging Face runs it: unfused"
    return (
        *_pem("PEM R50", "cityscapes-panoptic-r50"),
        *_pem("PEM STDC1", "cityscapes-panoptic-stdc1"),
        *_pem("PEM default", "default"),
        Peer(BASELINE, _mask2former, _run, unfused),
        Peer("MaskFormer R50", partial(_maskformer, depths=(3, 4, 6, 3)), _run, lighter),
        Peer("MaskFormer R101", partial(_maskformer, depths=(3, 4, 23, 3)), _run, lighter),
        Peer("OneFormer R50", _oneformer, _run_oneformer, f"150 queries; {unfused}"),
        Peer("EoMT-S", _eomt, _run_eomt, "on square windows, as published"),
        Peer("SegFormer-B0", partial(_segformer, widths=(32, 64, 160, 256), depths=(2, 2, 2, 2), dim=256), _run),
        Peer("SegFormer-B2", partial(_segformer, widths=(64, 128, 320, 512), depths=(3, 4, 6, 3), dim=768), _run),
    )


def _pem(name: str, preset: str) -> tuple[Peer, Peer]:
    """The preset, and the same with standard masked attention."""

    def run(model: nn.Module, pixels: Tensor) -> Any:
        return model(pixels).pred_masks

    def peer(name: str, config: PEMConfig, note: str = "") -> Peer:
        return Peer(name, lambda size: pem.build_model(config), run, note, from_transformers=False)

    config = pem.get_config(preset)
    return peer(name, config), peer(f"{name}, masked", replace(config, attention="masked"), "one field changed")


def _transformers() -> Any:
    """The library, which is optional and slow to import, without its remarks on unusual backbones."""
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    return transformers


def _resnet(depths: Sequence[int] = (3, 4, 6, 3)) -> Any:
    return _transformers().ResNetConfig(
        layer_type="bottleneck",
        hidden_sizes=[256, 512, 1024, 2048],
        depths=list(depths),
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _mask2former(size: tuple[int, int]) -> nn.Module:
    hf = _transformers()
    config = hf.Mask2FormerConfig(backbone_config=_resnet(), num_labels=NUM_CLASSES, num_queries=NUM_QUERIES)
    return hf.Mask2FormerForUniversalSegmentation(config)


def _maskformer(size: tuple[int, int], depths: Sequence[int]) -> nn.Module:
    hf = _transformers()
    decoder = hf.DetrConfig(backbone_config=_resnet(depths), num_queries=NUM_QUERIES)
    config = hf.MaskFormerConfig(backbone_config=_resnet(depths), decoder_config=decoder, num_labels=NUM_CLASSES)
    return hf.MaskFormerForInstanceSegmentation(config)


def _oneformer(size: tuple[int, int]) -> nn.Module:
    hf = _transformers()
    return hf.OneFormerForUniversalSegmentation(hf.OneFormerConfig(backbone_config=_resnet(), num_labels=NUM_CLASSES))


def _eomt(size: tuple[int, int]) -> nn.Module:
    hf = _transformers()
    config = hf.EomtConfig(
        image_size=min(size),
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_blocks=3,
        num_queries=NUM_QUERIES,
        num_labels=NUM_CLASSES,
    )
    model = hf.EomtForUniversalSegmentation(config)
    # A trained EoMT has annealed its attention masks away. As plain numbers, these need no look at a tensor.
    del model.attn_mask_probs
    model.attn_mask_probs = (0.0,) * config.num_blocks
    return model


def _segformer(size: tuple[int, int], widths: Sequence[int], depths: Sequence[int], dim: int) -> nn.Module:
    hf = _transformers()
    config = hf.SegformerConfig(
        hidden_sizes=list(widths), depths=list(depths), decoder_hidden_size=dim, num_labels=NUM_CLASSES
    )
    return hf.SegformerForSemanticSegmentation(config)


def _run(model: nn.Module, pixels: Tensor) -> Any:
    return model(pixel_values=pixels)


def _run_oneformer(model: nn.Module, pixels: Tensor) -> Any:
    task = torch.zeros(len(pixels), 77, dtype=torch.long, device=pixels.device)  # the words "the task is panoptic"
    return model(pixel_values=pixels, task_inputs=task)


def _run_eomt(model: nn.Module, pixels: Tensor) -> Any:
    """Its position embedding has one square size, so a longer image is cut into windows, which may overlap."""
    side = min(pixels.shape[2:])
    dim = 3 if pixels.shape[3] > side else 2
    slack = pixels.shape[dim] - side
    count = math.ceil(pixels.shape[dim] / side)
    starts = [round(i * slack / max(count - 1, 1)) for i in range(count)]
    return model(pixel_values=torch.cat([pixels.narrow(dim, start, side) for start in starts]))


def count_peer(peer: Peer, size: tuple[int, int]) -> tuple[float, int]:
    """GMACs for one image of ``size`` (height, width), and the number of parameters.

    Counted on tensors without data where the network lets them; one that looks at values (OneFormer) is run.
    """
    model = peer.build(size).eval()
    params = sum(parameter.numel() for parameter in model.parameters())
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), mac_counter(model) as counter:
            peer.run(model, torch.empty(1, 3, *size))
    except DataDependentOutputException:
        # Build it anew: a network may have kept tensors without data for its next run.
        model = peer.build(size).eval()
        with mac_counter(model) as counter:
            peer.run(model, torch.zeros(1, 3, *size))
    return counter.total().gmacs, params


def compare_networks(
    size: tuple[int, int] = (512, 1024),
    names: Sequence[str] = (),
    repeats: int = 5,
    max_warmup: int = 5,
    device: str = "cpu",
) -> list[Row]:
    """Counts and times the networks named, or all, for one image of ``size`` (height, width; multiples of 32).

    They take turns in every round, so that a machine that slows down slows all of them. Of each row, ``status`` is
    "measured", or says why the NUMBERS are None. Raises ValueError for a name that is none of ``peers()``.
    """
    known = {peer.name: peer for peer in peers()}
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(f"There is no network {', '.join(sorted(unknown))}; choose among: {'; '.join(known)}.")
    chosen = [known[name] for name in names or known]
    present = [peer for peer in chosen if peer.missing is None]
    costs = {peer.name: count_peer(peer, size) for peer in present}
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def workload(peer: Peer) -> Workload:
        model = peer.build(size).eval().to(device)
        if isinstance(model, pem.PEM):
            model = pem.accelerate(model)
        return whole(torch.inference_mode()(partial(peer.run, model, pixels)))

    workloads = {peer.name: workload(peer) for peer in present}
    times_ms, _ = measure_rounds(workloads, pixels.device, repeats, max_warmup)
    numbers = {}
    for name, ms in times_ms.items():
        gmacs, params = costs[name]
        ratio = float(np.median(ms / times_ms[present[0].name]))
        speedup = float(np.median(times_ms[BASELINE] / ms)) if BASELINE in times_ms else None
        numbers[name] = dict(zip(NUMBERS, (gmacs, params / 1e6, *percentiles(ms), ratio, speedup), strict=True))
    return [
        {"network": peer.name, "status": peer.missing or "measured", "note": peer.note}
        | numbers.get(peer.name, dict.fromkeys(NUMBERS))
        for peer in chosen
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [peer.name for peer in peers()]
    parser.add_argument("--networks", nargs="*", choices=names, default=(), metavar="NAME", help="default: all")
    add_shared(parser, size=(512, 1024), repeats=5, device="auto", out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each network."""
    shown = ("network", "params_m", "gmacs", "median_ms", "p10_ms", "p90_ms", "ratio", "status")
    report = Report(*shown, device=args.device, out=args.out)
    if importlib.util.find_spec("transformers"):
        report.conditions["transformers"] = importlib.metadata.version("transformers")
    for row in compare_networks(args.size, args.networks, args.repeats, device=args.device):
        report.add(row)
    report.save(f"peers-{args.size[0]}x{args.size[1]}", size=args.size, repeats=args.repeats)
