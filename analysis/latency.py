"""How long a PEM takes and how much memory, whole and by stage."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

import pem
from analysis.arguments import add_shared, natural, parse_preset
from analysis.results import Report
from analysis.timing import Workload, at_precision, measure_peak_mib, measure_rounds, percentiles
from pem.model import require_eval
from pem.preprocess import check_size

PRESETS = ("cityscapes-panoptic-r50", "cityscapes-panoptic-stdc1", "cityscapes-panoptic-stdc2", "default")
STAGES = ("backbone", "pixel decoder", "decoder", "masks")  # the last: the full-size mask product at the end
# On a GPU, small networks wait for Python to launch their kernels: compiled so, they are recorded once and replayed.
COMPILED: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}


@dataclass(frozen=True)
class LatencyRow:
    stage: str  # one of STAGES
    median_ms: float
    p10_ms: float
    p90_ms: float
    peak_mib: float


@dataclass(frozen=True)
class LatencyResult:
    """Over all repeats: the median and the 10th and 90th percentile. Memory is that of tensors, without the weights."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    peak_mib: float
    rows: tuple[LatencyRow, ...]
    num_warmup: int  # runs that it took to become stable


def measure_latency(
    model: pem.PEM,
    size: tuple[int, int] = (512, 1024),
    batch: int = 1,
    repeats: int = 20,
    warmup: int = 20,
    precision: str = "float32",
) -> LatencyResult:
    """Times ``model`` on its own device, from pixels [batch, 3, *size] to full-size mask logits.

    The model's own forward pass tells when a stage is done, and each run's stages add up to its total. ``warmup`` runs
    at most precede the ``repeats`` that count, fewer when the times are stable before. Raises ValueError for a model in
    training mode and for a size that is no multiple of 32.
    """
    run = model_workload(model, size, batch, precision)
    device = next(model.parameters()).device
    times_ms, num_warmup = measure_rounds({"model": run}, device, repeats, warmup)
    stage_ms = times_ms["model"]
    peaks_mib = measure_peak_mib(run, device)
    return LatencyResult(
        *percentiles(stage_ms.sum(axis=1)),
        max(peaks_mib),
        rows=tuple(LatencyRow(stage, *percentiles(stage_ms[:, i]), peaks_mib[i]) for i, stage in enumerate(STAGES)),
        num_warmup=num_warmup,
    )


def model_workload(model: pem.PEM, size: tuple[int, int], batch: int = 1, precision: str = "float32") -> Workload:
    """A forward pass of ``model``, without gradients; its parts are STAGES.

    Raises ValueError in training mode and for a size (height, width) that is no multiple of 32.
    """
    require_eval(model)
    check_size(size)  # the model's own check is in its forward pass
    weight = next(model.parameters())
    pixels = torch.randn(batch, 3, *size, device=weight.device, dtype=weight.dtype)

    @torch.inference_mode()
    def run(stage_done: Callable[[], None]) -> None:
        with at_precision(precision, pixels.device):
            _ = model(pixels, stage_done=stage_done).pred_masks
            stage_done()

    return run


def compile_stages(model: pem.PEM) -> None:
    """Has torch.compile make the model's parts, in place, each as one graph; each new size is compiled anew."""
    for stage in (model.backbone, model.pixel_decoder, model.decoder):
        stage.compile(fullgraph=True, **COMPILED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", type=parse_preset, nargs="+", default=PRESETS)
    parser.add_argument("--batch", type=natural, default=1)
    parser.add_argument("--warmup", type=natural, default=20, help="at most; fewer when the times are stable before")
    parser.add_argument("--compiled", action="store_true", help="by torch.compile, replayed as CUDA graphs on a GPU")
    add_shared(parser, size=(512, 1024), repeats=10, precision="float32", device="auto", out=None)


def run(args: argparse.Namespace) -> None:
    """Presets with random weights: a row for each stage, and one for the whole."""
    shown = ("preset", "stage", "median_ms", "p10_ms", "p90_ms", "peak_mib")
    report = Report(*shown, device=args.device, precision=args.precision, out=args.out)
    for preset in args.preset:
        model = pem.accelerate(pem.build_model(pem.get_config(preset))).to(args.device)
        if args.compiled:
            compile_stages(model)
        result = measure_latency(model, args.size, args.batch, args.repeats, args.warmup, args.precision)
        total = LatencyRow("total", result.median_ms, result.p10_ms, result.p90_ms, result.peak_mib)
        about = {"preset": preset, "height_px": args.size[0], "width_px": args.size[1], "batch": args.batch}
        for row in (*result.rows, total):
            report.add({**about, **asdict(row), "repeats": args.repeats, "num_warmup": result.num_warmup})
    report.save("latency-compiled" if args.compiled else "latency")
