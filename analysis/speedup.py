"""The network and its fast copy: time and memory before and after, over resolution and queries, in one run.

The two compute the same (tests/test_fast_path.py); both take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import torch

import pem
from analysis.arguments import add_shared, natural, parse_size
from analysis.latency import model_workload
from analysis.results import Report
from analysis.timing import measure_peak_mib, measure_rounds, percentiles
from pem.config import PRESETS

STAGES = ("backbone", "decoders", "total")  # the second: pixel decoder, decoder and masks
BASE_SIZE, BASE_QUERIES = (512, 1024), 100


def compare(
    preset: str, size: tuple[int, int], num_queries: int, device: torch.device, precision: str, repeats: int
) -> list[dict[str, Any]]:
    """A row for each stage: medians with the 10th and 90th percentile, peak memory without weights, and ratios.

    ``speedup`` is the median of the ratios of the rounds, ``memory`` the fast copy's peak over the plain network's.
    """
    torch.manual_seed(0)
    model = pem.build_model(dataclasses.replace(pem.get_config(preset), num_queries=num_queries)).to(device)
    workloads = {
        "plain": model_workload(model, size, precision=precision),
        "fast": model_workload(pem.accelerate(model), size, precision=precision),
    }
    parts, _ = measure_rounds(workloads, device, repeats)
    # Each has the backbone as its first part; all others are what stands here as decoders.
    times_ms = {name: np.column_stack((x[:, 0], x[:, 1:].sum(1), x.sum(1))) for name, x in parts.items()}
    peaks_mib = {}
    for name, run in workloads.items():
        backbone, *rest = measure_peak_mib(run, device)
        peaks_mib[name] = (backbone, max(rest), max(backbone, *rest))
    rows = []
    for i, stage in enumerate(STAGES):
        row: dict[str, Any] = {
            "preset": preset,
            "height_px": size[0],
            "width_px": size[1],
            "num_queries": num_queries,
            "stage": stage,
        }
        for name in workloads:
            median, p10, p90 = percentiles(times_ms[name][:, i])
            row |= {f"{name}_ms": median, f"{name}_p10_ms": p10, f"{name}_p90_ms": p90}
            row[f"{name}_mib"] = peaks_mib[name][i]
        row["speedup"] = float(np.median(times_ms["plain"][:, i] / times_ms["fast"][:, i]))
        row["memory"] = peaks_mib["fast"][i] / peaks_mib["plain"][i]
        rows.append(row)
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=PRESETS, default="cityscapes-panoptic-r50", metavar="PRESET")
    parser.add_argument(
        "--sizes",
        type=parse_size,
        nargs="+",
        default=[(256, 512), BASE_SIZE, (1024, 2048)],
        metavar="HEIGHTxWIDTH",
        help=f"with {BASE_QUERIES} queries",
    )
    parser.add_argument("--queries", type=natural, nargs="+", default=[20, 300], help="at {}x{} px".format(*BASE_SIZE))
    add_shared(parser, repeats=5, precision="float32", device="auto", out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each size, number of queries and stage."""
    shown = ("height_px", "width_px", "num_queries", "stage", "plain_ms", "fast_ms", "speedup", "plain_mib", "fast_mib")
    report = Report(*shown, device=args.device, precision=args.precision, out=args.out)
    settings = [(size, BASE_QUERIES) for size in args.sizes] + [(BASE_SIZE, n) for n in args.queries]
    for size, num_queries in settings:
        for row in compare(args.preset, size, num_queries, args.device, args.precision, args.repeats):
            report.add(row)
    report.save("speedup")
