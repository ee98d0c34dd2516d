"""How time and memory grow with resolution, queries and heads: PEM, its masked baseline, and the attention alone.

Each point is kept as soon as it is measured. A run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pem
from analysis.arguments import add_shared, natural, parse_preset
from analysis.attention import attention_workloads, layer_macs
from analysis.charts import MASKED, select, swept_value
from analysis.flops import count_macs
from analysis.latency import PRESETS, STAGES, model_workload
from analysis.results import Report, Row, load, markdown_table, save
from analysis.timing import Workload, measure_peak_mib, measure_rounds, percentiles

# A file is continued only by a run that shares these conditions with it.
SAME_RUN = ("device", "threads", "torch", "precision", "commit")
METHODS = {"prototype attention": "prototype", "masked attention": "sdpa"}


@dataclass(frozen=True)
class Point:
    """One setting. The image is twice as wide as high; the attention alone gets the level of stride 8."""

    backbone: str  # the preset that it comes from
    long_side_px: int
    num_queries: int
    num_heads: int

    @property
    def size_px(self) -> tuple[int, int]:
        return self.long_side_px // 2, self.long_side_px


# Every sweep varies one field of this point.
BASE = Point("cityscapes-panoptic-stdc1", long_side_px=1024, num_queries=100, num_heads=8)


def sweep(field: str, values: Iterable[Any]) -> list[Point]:
    return [dataclasses.replace(BASE, **{field: value}) for value in values]


def measure_point(point: Point, device: torch.device, precision: str, repeats: int, seconds: float) -> list[Row]:
    """Times everything in turns: a row for each stage of both networks and for each attention.

    ``seconds`` is the budget of a 512x1024 image; larger ones have more, in proportion to their pixels.
    """
    config = dataclasses.replace(
        pem.get_config(point.backbone), num_queries=point.num_queries, num_heads=point.num_heads
    )
    configs = {"PEM": config, MASKED: dataclasses.replace(config, attention="masked")}
    tokens = (point.size_px[0] // 8, point.size_px[1] // 8)
    workloads: dict[str, Workload] = {
        name: model_workload(pem.accelerate(pem.build_model(config)).to(device), point.size_px, precision=precision)
        for name, config in configs.items()
    }
    layers = attention_workloads(tokens, point.num_queries, device, list(METHODS.values()), point.num_heads, precision)
    workloads |= {name: layers[method] for name, method in METHODS.items()}
    budget = seconds * max(1.0, (point.long_side_px / BASE.long_side_px) ** 2)
    times_ms, num_warmup = measure_rounds(workloads, device, repeats, seconds=budget)

    rows = []
    for subject, parts_ms in times_ms.items():
        if subject in configs:
            gmacs = count_macs(configs[subject], point.size_px).total_gmacs
        else:
            gmacs = layer_macs(METHODS[subject], tokens[0] * tokens[1], point.num_queries) / 1e9
        peaks_mib = measure_peak_mib(workloads[subject], device)
        # An attention has one part, which is its total.
        costs = [(stage, parts_ms[:, i], peaks_mib[i]) for i, stage in enumerate(STAGES) if subject in configs]
        for stage, ms, peak_mib in (*costs, ("total", parts_ms.sum(axis=1), max(peaks_mib))):
            rows.append(
                {
                    **asdict(point),
                    "subject": subject,
                    "stage": stage,
                    **dict(zip(("median_ms", "p10_ms", "p90_ms"), percentiles(ms))),
                    "peak_mib": peak_mib,
                    "gmacs": gmacs if stage == "total" else None,
                    "num_rounds": len(ms),
                    "num_warmup": num_warmup,
                }
            )
    return rows


def measure_points(
    points: list[Point], path: Path, measured_on: Row, measure: Callable[[Point], list[Row]]
) -> Iterable[list[Row]]:
    """Measures the points that ``path`` does not have yet: writes the rows of each to it, then gives them.

    Raises ValueError when the file was measured under other conditions: on another machine, say.
    """
    rows: list[Row] = []
    if path.exists():
        kept = load(path)
        differ = [name for name in SAME_RUN if kept["conditions"][name] != measured_on[name]]
        if differ:
            raise ValueError(f"{path} was measured with another {', '.join(differ)}; give another --out or delete it.")
        rows = kept["rows"]
    for point in points:
        if select(rows, **asdict(point)):
            continue
        found = measure(point)
        rows += found
        save({"conditions": measured_on, "base": BASE, "growth": growths(rows), "rows": rows}, path)
        yield found


def growth(x: Iterable[float], y: Iterable[float]) -> Row:
    """A cost y grows like x to the power of ``exponent``: least squares through (log x, log y).

    Raises ValueError for fewer than three points: they have no ``standard_error``.
    """
    log_x, log_y = np.log(list(x)), np.log(list(y))
    if len(log_x) < 3:
        raise ValueError(f"A fit of {len(log_x)} points has no error; measure at least three.")
    (slope, _), covariance = np.polyfit(log_x, log_y, deg=1, cov=True)
    return {"exponent": float(slope), "standard_error": float(covariance[0, 0] ** 0.5)}


def growths(rows: list[Row]) -> list[Row]:
    """Of time and memory, for every field that was swept with at least three values; for the resolution, over H*W."""
    fits = []
    for field in ("long_side_px", "num_queries", "num_heads"):
        swept = select(rows, **{name: value for name, value in asdict(BASE).items() if name != field})
        for subject, stage in dict.fromkeys((row["subject"], row["stage"]) for row in swept):
            curve = select(swept, subject=subject, stage=stage)
            if stage not in ("total", "decoder") or len(curve) < 3:
                continue
            x = [swept_value(row, field) for row in curve]
            for quantity in ("median_ms", "peak_mib"):
                fit = growth(x, [row[quantity] for row in curve])
                about = {"swept": "pixels" if field == "long_side_px" else field, "subject": subject, "stage": stage}
                fits.append(about | {"quantity": quantity} | fit | {"num_points": len(curve)})
    return fits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--long-sides", type=natural, nargs="*", default=[256, 512, 1024, 1536, 2048], metavar="PX")
    parser.add_argument("--queries", type=natural, nargs="*", default=[20, 50, 100, 200, 300])
    parser.add_argument("--heads", type=natural, nargs="*", default=[2, 4, 8, 16, 32])
    parser.add_argument(
        "--backbones",
        type=parse_preset,
        nargs="*",
        default=PRESETS,
        metavar="PRESET",
        help=f"all other sweeps use {BASE.backbone}",
    )
    parser.add_argument("--seconds", type=float, default=20, help="per 512x1024 point; larger images have more")
    add_shared(parser, repeats=5, precision="float32", device="auto", out=None)


def run(args: argparse.Namespace) -> None:
    """Measures what the file has not yet, and prints the growth of all that it has then."""
    swept = [
        *sweep("long_side_px", args.long_sides),
        *sweep("num_queries", args.queries),
        *sweep("num_heads", args.heads),
        *sweep("backbone", args.backbones),
    ]
    points = list(dict.fromkeys(swept))  # the sweeps cross in BASE
    shown = ("backbone", "long_side_px", "num_queries", "num_heads", "subject", "median_ms", "peak_mib")
    report = Report(*shown, device=args.device, precision=args.precision, out=args.out)
    path = report.path("scaling")

    def measure(point: Point) -> list[Row]:
        print(f"point {points.index(point) + 1} of {len(points)}", flush=True)
        return measure_point(point, args.device, args.precision, args.repeats, args.seconds)

    for rows in measure_points(points, path, report.conditions, measure):
        for row in select(rows, stage="total"):
            report.show(row)
    if fits := load(path)["growth"]:
        print(markdown_table(fits))
