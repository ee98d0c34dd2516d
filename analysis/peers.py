"""PEM beside its masked twin and other segmentation networks: random weights, the same input, one run, in turns.

The rivals are those of Hugging Face's `transformers` (requirements-peers.txt), built from their configuration alone.
Without it their rows say so. Each network runs to its class and mask logits; reading them is left out for all.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

import pem
from analysis.arguments import json_file, natural, parse_device, parse_size
from analysis.flops import mac_counter
from analysis.latency import measure_rounds, percentiles
from analysis.results import result_path, save_tables
from pem.conditions import conditions

RIVAL = "Mask2Former R50"  # what the speed of all others is told by
NUM_CLASSES, NUM_QUERIES = 19, 100  # Cityscapes; OneFormer keeps its 150 queries, SegFormer has none

MISSING = "not measured: transformers is not installed; run `pip install -r requirements-peers.txt`."


@dataclass(frozen=True)
class Peer:
    name: str
    build: Callable[[tuple[int, int]], nn.Module]  # for images of that size (height, width): random weights, on the CPU
    run: Callable[[nn.Module, Tensor], None]  # pixels [B, 3, H, W] to class and mask logits
    note: str = ""
    from_transformers: bool = True

    @property
    def missing(self) -> str | None:
        """Why it cannot be built here, in one sentence; None when it can."""
        if self.from_transformers and importlib.util.find_spec("transformers") is None:
            return MISSING
        return None


@dataclass(frozen=True)
class NetworkRow:
    """One network at one size. What could not be had is None, and ``status`` says why; else it is "measured"."""

    network: str
    status: str
    note: str
    gmacs: float | None = None  # 1 MAC = 2 FLOPs
    params_m: float | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None  # median over the rounds of its time by that of the first network
    speedup: float | None = None  # median over the rounds of RIVAL's time by its own; None without RIVAL


def peers() -> tuple[Peer, ...]:
    """Every network that can be compared: PEM and its twins first."""
    lighter = "as Hugging Face builds it: no encoder layers, and only the last masks"
    unfused = "its cross-attention as Hugging Face runs it: unfused"
    return (
        *_pem("PEM R50", "cityscapes-panoptic-r50"),
        *_pem("PEM STDC1", "cityscapes-panoptic-stdc1"),
        *_pem("PEM default", "default"),
        Peer(RIVAL, _mask2former, _run, unfused),
        Peer("MaskFormer R50", partial(_maskformer, depths=(3, 4, 6, 3)), _run, lighter),
        Peer("MaskFormer R101", partial(_maskformer, depths=(3, 4, 23, 3)), _run, lighter),
        Peer("OneFormer R50", _oneformer, _run_oneformer, f"150 queries; {unfused}"),
        Peer("EoMT-S", _eomt, _run_eomt, "on square windows, as published"),
        Peer("SegFormer-B0", partial(_segformer, widths=(32, 64, 160, 256), depths=(2, 2, 2, 2), dim=256), _run),
        Peer("SegFormer-B2", partial(_segformer, widths=(64, 128, 320, 512), depths=(3, 4, 6, 3), dim=768), _run),
    )


def _pem(name: str, preset: str) -> tuple[Peer, Peer]:
    """The preset, and the same with standard masked attention."""
    config = pem.get_config(preset)
    twin = replace(config, attention="masked")

    def run(model: nn.Module, pixels: Tensor) -> None:
        _ = model(pixels).pred_masks

    return (
        Peer(name, lambda size: pem.build_model(config), run, from_transformers=False),
        Peer(f"{name}, masked", lambda size: pem.build_model(twin), run, "one field changed", from_transformers=False),
    )


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


def _run(model: nn.Module, pixels: Tensor) -> None:
    model(pixel_values=pixels)


def _run_oneformer(model: nn.Module, pixels: Tensor) -> None:
    task = torch.zeros(len(pixels), 77, dtype=torch.long, device=pixels.device)  # the words "the task is panoptic"
    model(pixel_values=pixels, task_inputs=task)


def _run_eomt(model: nn.Module, pixels: Tensor) -> None:
    """Its position embedding is for one square size: a longer image is cut into windows, which overlap if they must."""
    side = min(pixels.shape[2:])
    dim = 3 if pixels.shape[3] > side else 2
    slack = pixels.shape[dim] - side
    count = math.ceil(pixels.shape[dim] / side)
    starts = [round(i * slack / max(count - 1, 1)) for i in range(count)]
    model(pixel_values=torch.cat([pixels.narrow(dim, start, side) for start in starts]))


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
        # Anew: a network may have kept tensors without data for its next run.
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
) -> list[NetworkRow]:
    """Counts and times the networks named, or all, for one image of ``size`` (height, width; multiples of 32).

    They take turns in every round, so that a machine that slows down slows all of them. Raises ValueError for a name
    that is none of ``peers()``.
    """
    known = {peer.name: peer for peer in peers()}
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(f"There is no network {', '.join(sorted(unknown))}; choose among: {'; '.join(known)}.")
    chosen = [known[name] for name in names or known]
    present = [peer for peer in chosen if peer.missing is None]
    costs = {peer.name: count_peer(peer, size) for peer in present}
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def workload(peer: Peer) -> Callable[[Callable[[], None]], None]:
        model = peer.build(size).eval().to(device)
        if isinstance(model, pem.PEM):
            model = pem.accelerate(model)

        @torch.inference_mode()
        def run(done: Callable[[], None]) -> None:
            peer.run(model, pixels)
            done()

        return run

    workloads = {peer.name: workload(peer) for peer in present}
    times_ms, _ = measure_rounds(workloads, pixels.device, repeats, max_warmup)
    rows = []
    for peer in chosen:
        if peer.missing:
            rows.append(NetworkRow(peer.name, peer.missing, peer.note))
            continue
        gmacs, params = costs[peer.name]
        ratio = float(np.median(times_ms[peer.name] / times_ms[present[0].name]))
        speedup = float(np.median(times_ms[RIVAL] / times_ms[peer.name])) if RIVAL in times_ms else None
        timing = (*percentiles(times_ms[peer.name]), ratio, speedup)
        rows.append(NetworkRow(peer.name, "measured", peer.note, gmacs, params / 1e6, *timing))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.peers", description="PEM beside other networks.")
    parser.add_argument("--size", type=parse_size, default=(512, 1024), metavar="HEIGHTxWIDTH")
    names = [peer.name for peer in peers()]
    parser.add_argument("--networks", nargs="*", choices=names, default=(), metavar="NAME", help="default: all")
    parser.add_argument("--repeats", type=natural, default=5)
    parser.add_argument("--device", type=parse_device, default="auto")
    parser.add_argument("--out", type=json_file, help="JSON to write, with CSV and Markdown beside it")
    args = parser.parse_args()

    rows = compare_networks(args.size, args.networks, args.repeats, device=args.device)
    measured_on = conditions(args.device)
    if importlib.util.find_spec("transformers"):
        measured_on["transformers"] = importlib.metadata.version("transformers")
    print(f"{args.size[0]}x{args.size[1]}, {args.repeats} rounds, {measured_on['device']}, ", end="")
    print(f"{measured_on['threads']} threads, {measured_on['precision']}")
    print(f"{'network':20} {'Mparams':>8} {'GMACs':>8} {'median ms':>10} {'p10':>9} {'p90':>9} {'ratio':>6}")
    for row in rows:
        if row.median_ms is None:
            print(f"{row.network:20} {row.status}")
            continue
        print(f"{row.network:20} {row.params_m:8.2f} {row.gmacs:8.2f} {row.median_ms:10.1f} ", end="")
        print(f"{row.p10_ms:9.1f} {row.p90_ms:9.1f} {row.ratio:6.2f}")
    out = args.out or result_path(f"peers-{args.size[0]}x{args.size[1]}", measured_on)
    result = {"conditions": measured_on, "size": args.size, "repeats": args.repeats}
    save_tables(result | {"rows": [asdict(row) for row in rows]}, out)


if __name__ == "__main__":
    main()
