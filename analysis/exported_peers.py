"""PEM and its peers outside PyTorch: random weights, exported for one size, in the same runtimes and precisions.

All take turns, with Hugging Face's Mask2Former as it ships among them. A network that the exporter or a runtime refuses
has a row that says why.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pem
from analysis.arguments import add_shared
from analysis.peers import BASELINE, Peer, peers
from analysis.results import Report, Row
from analysis.runtimes import CPU, in_turns
from pem.devices import has_bfloat16
from pem.errors import first_line
from pem.exporting.network import Exportable
from pem.exporting.onnx_file import run_exporter, to_onnx
from pem.runtimes import PREDICTION, RUNTIMES, usable_runtimes

NETWORKS = ("PEM R50", "PEM R50, masked", BASELINE, "MaskFormer R50", "EoMT-S")  # those with queries
OUTPUTS = ("class_queries_logits", "masks_queries_logits")  # what transformers calls PREDICTION


class ClassAndMaskLogits(nn.Module):
    """A network of transformers that returns these two alone."""

    def __init__(self, peer: Peer, model: nn.Module) -> None:
        super().__init__()
        self.peer, self.model = peer, model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        output = self.peer.run(self.model, pixels)
        return tuple(output[name] for name in OUTPUTS)


def export(peer: Peer, model: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Writes an ONNX file. Raises whatever the exporter raises."""
    if isinstance(model, pem.PEM):
        path.write_bytes(to_onnx(Exportable(model, trace=False)).SerializeToString())
        return
    program = run_exporter(ClassAndMaskLogits(peer, model), torch.zeros(1, 3, *size), PREDICTION)
    program.save(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    add_shared(parser, size=(512, 1024), repeats=7, out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each network, runtime and precision; ``speedup`` is over Mask2Former as it ships, in torch."""
    report = Report("network", "runtime", "precision", "median_ms", "speedup", "note", out=args.out)
    pixels = torch.randn(1, 3, *args.size, generator=torch.Generator().manual_seed(0))
    known = {peer.name: peer for peer in peers()}
    baseline = known[BASELINE]
    if baseline.missing:
        raise ValueError(f"{BASELINE} is {baseline.missing}")
    kinds = [(name, "float32") for name in usable_runtimes()]
    kinds += [("openvino", "bfloat16")] * (has_bfloat16(CPU) and ("openvino", "float32") in kinds)
    as_it_ships = torch.inference_mode()(partial(baseline.run, baseline.build(args.size).eval(), pixels))
    works: dict[tuple[str, str, str], Callable[[], object]] = {(BASELINE, "torch", "float32"): as_it_ships}
    refused: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(args.networks):
            peer, path = known[name], Path(folder) / f"{number}.onnx"
            for runtime, precision in [("the exporter", ""), *kinds]:
                try:
                    if not precision:
                        export(peer, peer.build(args.size).eval(), args.size, path)
                        continue
                    work: Any = RUNTIMES[runtime](path, args.size, precision == "bfloat16")
                    work = partial(work, pixels.numpy(), PREDICTION)
                    work()
                except Exception as error:  # each has its own
                    why = f"refused by {runtime}: {first_line(error)}"[:200]
                    refused.append({"network": name, "runtime": runtime, "precision": precision, "note": why})
                    if not precision:
                        break
                else:
                    works[name, runtime, precision] = work
        times = in_turns({" | ".join(key): work for key, work in works.items()}, args.repeats)
    for (name, runtime, precision), row in zip(works, times.values(), strict=True):
        note = "as Hugging Face ships it" if runtime == "torch" else known[name].note
        report.add({"network": name, "runtime": runtime, "precision": precision, **row, "note": note})
    for row in refused:
        report.add(row)
    height, width = args.size
    report.save(f"exported-peers-{height}x{width}", size=args.size)
