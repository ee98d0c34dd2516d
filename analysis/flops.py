"""Multiply-accumulates (MACs) of a PEM. 1 MAC = 2 FLOPs; what the paper calls FLOPs are MACs.

Counted, as in the paper: convolutions and matrix products. Not counted: norms, activations, softmax, resizing, and the
bilinear reads of the deformable convolution.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pem
from analysis.results import conditions, save_json
from pem.config import PEMConfig

# What `python -m analysis.flops` counts: the models and sizes of the paper, and the default.
CASES = (
    ("cityscapes-panoptic-r50", (1024, 2048)),
    ("cityscapes-panoptic-stdc1", (1024, 2048)),
    ("cityscapes-panoptic-stdc2", (1024, 2048)),
    ("ade20k-panoptic-r50", (640, 640)),
    ("ade20k-semantic-r50", (512, 512)),
    ("ade20k-semantic-r50", (512, 672)),
    ("ade20k-semantic-stdc1", (512, 672)),
    ("ade20k-semantic-stdc2", (512, 672)),
    ("default", (288, 384)),
)


@dataclass(frozen=True)
class CostRow:
    stage: str  # "backbone", "pixel decoder", "decoder"
    operator: str
    gmacs: float


@dataclass(frozen=True)
class ModelCost:
    """What one image costs. ``reference_total_gmacs`` is the total with the published code's mask products.

    Our decoder multiplies queries with mask features at full size (a quarter of the image) once, at the end; its layers
    take small products at the size of their level. The published code takes a full-size product at every depth, and
    the paper's numbers contain those. All else is the same.
    """

    rows: tuple[CostRow, ...]
    total_params: int
    reference_total_gmacs: float

    @property
    def total_gmacs(self) -> float:
        return sum(row.gmacs for row in self.rows)

    def stage_gmacs(self, stage: str) -> float:
        return sum(row.gmacs for row in self.rows if row.stage == stage)


def count_macs(config: PEMConfig, size: tuple[int, int] = (1024, 2048)) -> ModelCost:
    """Cost of one image of ``size`` (height, width; multiples of 32). On the meta device: nothing is computed."""
    with torch.device("meta"):
        # torch's counter fails on views of parameters that want a gradient.
        model = pem.build_model(config).requires_grad_(False)
        pixels = torch.empty(1, 3, *size)
    with mac_counter() as counter:
        output = model(pixels)
    with mac_counter() as full_size:
        _ = output.pred_masks
    counts = counter.get_flop_counts()

    def macs(parts: str) -> int:
        """Of all modules that the pattern names."""
        return sum(sum(by_op.values()) for name, by_op in counts.items() if fnmatchcase(name, f"PEM.{parts}")) // 2

    # The only matrix products in the pixel decoder are the nine taps of its deformable convolutions. They are made by
    # another kernel on a GPU, but cost as many MACs.
    convolutions = counts["PEM.pixel_decoder"][torch.ops.aten.convolution] // 2
    decoder_parts = {
        "input projection": macs("decoder.input_proj.*"),
        "cross-attention": macs("decoder.layers.*.cross_attention"),
        "self-attention": macs("decoder.layers.*.self_attention"),
        "feed-forward": macs("decoder.layers.*.feed_forward"),
        "prediction heads": macs("decoder.class_embed") + macs("decoder.mask_embed"),
    }
    # What is left belongs to the decoder itself: the mask of each layer, at the size of its level.
    level_masks = macs("decoder") - sum(decoder_parts.values())
    full_size_mask = full_size.get_total_flops() // 2

    table = {
        "backbone": {"all": macs("backbone")},
        "pixel decoder": {
            "convolution": convolutions,
            "deformable convolution": macs("pixel_decoder") - convolutions,
        },
        "decoder": decoder_parts | {"mask product, level size": level_masks, "mask product, full size": full_size_mask},
    }
    total = sum(sum(parts.values()) for parts in table.values())
    return ModelCost(
        rows=tuple(CostRow(stage, name, n / 1e9) for stage, parts in table.items() for name, n in parts.items()),
        total_params=sum(parameter.numel() for parameter in model.parameters()),
        reference_total_gmacs=(total - level_masks + config.num_layers * full_size_mask) / 1e9,
    )


@contextmanager
def mac_counter() -> Iterator[FlopCounterMode]:
    """torch's counter of FLOPs (2 per MAC), able to see attention.

    Left alone it counts 0 for the CPU's scaled_dot_product_attention, so attention runs as plain matrix products here.
    It stays blind to deform_conv2d and to the fast path of nn.MultiheadAttention; on the meta device PEM takes neither.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def prototype_attention_macs(num_tokens: int, num_queries: int, dim: int = 256) -> int:
    """PEM-CA. Tokens: depthwise 3x3, one projection, their similarity to the queries. Queries: three projections."""
    return num_tokens * (9 * dim + dim**2 + num_queries * dim) + 3 * num_queries * dim**2


def masked_attention_macs(num_tokens: int, num_queries: int, dim: int = 256) -> int:
    """Masked attention. Tokens: key and value projections, score, weighted sum. Queries: two projections."""
    return num_tokens * (2 * dim**2 + 2 * num_queries * dim) + 2 * num_queries * dim**2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.flops", description="GMACs of the paper's models.")
    parser.add_argument("--out", help="JSON file to write, with every row")
    args = parser.parse_args()

    print("GMACs (1 MAC = 2 FLOPs); 'reference' takes seven full-size mask products, as the published code does")
    print(f"{'preset':26} {'size':>9} {'Mparams':>8} {'backbone':>8} {'pixel d.':>8} {'decoder':>8} ", end="")
    print(f"{'total':>8} {'reference':>9}")
    cases = []
    for name, size in CASES:
        cost = count_macs(pem.get_config(name), size)
        stages = (cost.stage_gmacs(stage) for stage in ("backbone", "pixel decoder", "decoder"))
        print(f"{name:26} {size[0]:4}x{size[1]:4} {cost.total_params / 1e6:8.2f} ", end="")
        print(*(f"{gmacs:8.1f}" for gmacs in (*stages, cost.total_gmacs)), f"{cost.reference_total_gmacs:9.1f}")
        cases.append(
            {
                "preset": name,
                "size": size,
                "total_params": cost.total_params,
                "total_gmacs": cost.total_gmacs,
                "reference_total_gmacs": cost.reference_total_gmacs,
                "rows": cost.rows,
            }
        )
    if args.out:
        save_json({"conditions": conditions("meta"), "cases": cases}, args.out)


if __name__ == "__main__":
    main()
