"""What a PEM costs, counted without computing it: multiply-accumulates (MACs), parameters, comparisons and bytes."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import pem
from analysis.arguments import add_shared, parse_preset
from analysis.counter import NOTHING, NUMBERS, CostRow, mac_counter
from analysis.results import RESULTS, Report
from pem.config import PEMConfig
from pem.pixel_decoder import DeformableUpsample

# The models and sizes of the paper, the default, and masked baselines.
CASES: tuple[tuple[str, tuple[int, int], Literal["prototype", "masked"]], ...] = (
    ("cityscapes-panoptic-r50", (1024, 2048), "prototype"),
    ("cityscapes-panoptic-r50", (1024, 2048), "masked"),
    ("cityscapes-panoptic-stdc1", (1024, 2048), "prototype"),
    ("cityscapes-panoptic-stdc2", (1024, 2048), "prototype"),
    ("ade20k-panoptic-r50", (640, 640), "prototype"),
    ("ade20k-semantic-r50", (512, 512), "prototype"),
    ("ade20k-semantic-stdc1", (512, 512), "prototype"),
    ("ade20k-semantic-stdc2", (512, 512), "prototype"),
    ("default", (288, 384), "prototype"),
    ("default", (288, 384), "masked"),
)


@dataclass(frozen=True)
class ModelCost:
    """What one image costs. ``reference_total_gmacs`` is the total with the published code's mask products.

    Our decoder multiplies queries with mask features at full size (a quarter of the image) once, at the end; its layers
    take small products at the size of their level. The published code takes a full-size product at every depth, and
    the paper's numbers contain those. All else is the same.
    """

    rows: tuple[CostRow, ...]
    reference_total_gmacs: float

    @property
    def total_gmacs(self) -> float:
        return sum(row.gmacs for row in self.rows)

    @property
    def total_params(self) -> int:
        return sum(row.params for row in self.rows)

    def grouped(self, by: str) -> dict[str, CostRow]:
        """The sums of the rows of each "stage" or "operator", which are the keys. The texts of the sums are empty."""
        sums: dict[str, CostRow] = {}
        for row in self.rows:
            key = getattr(row, by)
            sums[key] = sums.get(key, NOTHING) + row
        return sums


def count_macs(config: PEMConfig, size: tuple[int, int] = (1024, 2048)) -> ModelCost:
    """Cost of one image of ``size`` (height, width; multiples of 32). Nothing is computed: tensors have no data.

    Raises ValueError for a size that the network cannot take.
    """
    with FakeTensorMode():
        model = pem.build_model(config)
        with mac_counter(model) as counter:
            _ = model(torch.empty(1, 3, *size)).pred_masks

    rows: dict[tuple[str, str, str], CostRow] = {}

    def add(path: str, row: CostRow) -> None:
        key = (*_stage_and_part(path), row.operator)
        rows[key] = rows.get(key, CostRow(*key)) + row

    for path, row in counter.rows():
        add(path, row)
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            add(path, CostRow("", "", _parameter_operator(module), params=parameter.numel()))

    full_size = rows["masks", "", "mask product"].gmacs
    level_size = rows["decoder", "", "mask product"].gmacs
    total = sum(row.gmacs for row in rows.values())
    return ModelCost(tuple(rows.values()), total - level_size + config.num_layers * full_size)


def _stage_and_part(path: str) -> tuple[str, str]:
    """The part of a PEM that a module belongs to. The full-size mask product at the end belongs to no module."""
    stage, *inner = path.split(".")
    if stage != "decoder":
        return stage.replace("_", " ") or "masks", ""
    return stage, (inner[2] if inner[0] == "layers" else inner[0]) if inner else ""


def _parameter_operator(module: nn.Module) -> str:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return "convolution"
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
        return "linear"
    if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        return "norm"
    return "deformable convolution" if isinstance(module, DeformableUpsample) else "other"


@dataclass(frozen=True)
class FvcoreCount:
    """What fvcore counts. ``product_gmacs`` leaves out norms and interpolations, as our count does."""

    product_gmacs: float
    other_gmacs: float
    not_counted: dict[str, int]  # operators that it has no formula for, and how often each ran


def count_with_fvcore(model: nn.Module, pixels: Tensor) -> FvcoreCount:
    """fvcore traces a real run, which takes the time and memory of one. It cannot trace tensors without data."""
    from fvcore.nn import FlopCountAnalysis  # only this comparison needs it

    class Whole(nn.Module):
        """All class logits and the last mask logits: what no output depends on is not traced."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            output = self.model(pixels)
            return (output.pred_masks, output.pred_logits, *(earlier.pred_logits for earlier in output.aux_outputs))

    with torch.no_grad():
        analysis = FlopCountAnalysis(Whole().eval(), pixels)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = analysis.by_operator()
    products = sum(by_operator[name] for name in ("conv", "linear", "matmul", "addmm", "bmm", "einsum"))
    return FvcoreCount(products / 1e9, (by_operator.total() - products) / 1e9, dict(analysis.unsupported_ops()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", type=parse_preset, help="default: those of the paper and the default, with fvcore")
    parser.add_argument("--attention", choices=("prototype", "masked"), default="prototype", help="of that preset")
    parser.add_argument("--by", choices=("stage", "operator"), default="stage")
    parser.add_argument("--fvcore", action="store_true", help="what fvcore counts beside it: runs every network once")
    add_shared(parser, size=(1024, 2048), out=None)


def run(args: argparse.Namespace) -> None:
    """Prints what is counted. All CASES are kept in analysis/results/macs.json, one preset only where ``out`` says."""
    out = args.out or (None if args.preset else RESULTS / "macs.json")
    report = Report("preset", "attention", "size", args.by, *NUMBERS, device="meta", out=out)
    cases = []
    for name, size, attention in [(args.preset, args.size, args.attention)] if args.preset else CASES:
        config = replace(pem.get_config(name), attention=attention)
        cost = count_macs(config, size)
        about = {"preset": name, "attention": attention, "size": size}
        for group, row in cost.grouped(args.by).items():
            report.show(about | {"size": "x".join(map(str, size))} | asdict(row) | {args.by: group})
        print(f"{cost.total_params / 1e6:.2f} M parameters, {cost.total_gmacs:.1f} GMACs, ", end="")
        print(f"{cost.reference_total_gmacs:.1f} as published")
        case = about | {
            "total_params": cost.total_params,
            "total_gmacs": cost.total_gmacs,
            "reference_total_gmacs": cost.reference_total_gmacs,
            "rows": cost.rows,
        }
        if args.fvcore or not args.preset:
            found = count_with_fvcore(pem.build_model(config), torch.zeros(1, 3, *size))
            case["fvcore"] = found
            products = ("attention", "deform")  # what it has no formula for and we count
            missed = [f"{name} ({n}x)" for name, n in found.not_counted.items() if any(p in name for p in products)]
            gap = cost.total_gmacs - found.product_gmacs
            print(f"fvcore: {found.product_gmacs:.3f} GMACs, {gap:.3f} too few: no formula for {', '.join(missed)}")
        cases.append(case)
    if out:
        report.save("macs", cases=cases)
