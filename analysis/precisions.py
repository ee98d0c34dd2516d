"""The bundled model in each precision that it can be exported to: what it scores, and what it costs in each runtime.

``python -m analysis precisions --data FOLDER`` exports the files, scores each on the validation split, and lets all of
them run in turns, beside torch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

import pem
from analysis.arguments import add_shared, parse_size
from analysis.results import Report
from analysis.runtimes import CPU, compare, masks, run_process
from analysis.timing import at_precision
from pem.devices import has_bfloat16
from pem.exported import ExportedPEM
from pem.exporting import PRECISIONS
from pem.training.data import PanopticDataset, open_split
from pem.training.evaluate import evaluate


def score(model: pem.PEM | ExportedPEM, dataset: PanopticDataset) -> dict[str, float]:
    """PQ and mIoU, as fractions."""
    overall = evaluate(model, model.config, dataset)["overall"]
    return {"pq": overall["pq"], "miou": overall["miou"]}


def with_autocast(work: Callable[[], object]) -> object:
    with at_precision("bfloat16", CPU):
        return work()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=parse_size, default=(288, 384), metavar="HEIGHTxWIDTH", help="of the timed images"
    )
    add_shared(parser, data=None, repeats=20, out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each runtime and precision; OpenVINO also at a fixed size, ``fixed_ms``."""
    report = Report("runtime", "precision", "file_mb", "pq", "miou", "median_ms", "speedup", "fixed_ms", out=args.out)
    torch_model, plain = (pem.load_model("default", "cpu", fast=fast) for fast in (True, False))
    dataset = open_split(args.data, "val", plain.config)
    pixels = np.random.default_rng(0).standard_normal((1, 3, *args.size), np.float32)
    float32 = partial(masks, torch_model, pixels)
    works: dict[str, Callable[[], object]] = {"torch": float32}
    if has_bfloat16(CPU):
        works["torch bfloat16"] = partial(with_autocast, float32)
    about = {"torch": score(torch_model, dataset)}
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            file = Path(folder) / f"{precision}.onnx"
            for kept in pem.export(plain, file, precision):
                name, model = f"{kept.runtime} {precision}", ExportedPEM(file, kept.runtime)
                processes = [run_process(kept.runtime, Path(folder), file) for _ in range(3)]
                about[name] = score(model, dataset) | {
                    "prototypes": kept.prototypes,
                    "pixels": kept.pixels,
                    "file_mb": file.stat().st_size / 1e6,
                    "peak_mib": median(mib for _, mib in processes),
                }
                works[name] = partial(masks, model, pixels)
                if kept.runtime == "openvino":
                    works[f"{name} fixed"] = partial(masks, ExportedPEM(file, kept.runtime, size=args.size), pixels)
    times = {str(row["runtime"]): row for row in compare("network", works, args.repeats)}
    for name, row in times.items():
        runtime, precision = (name.split() + ["float32"])[:2]
        if name.endswith("fixed"):
            continue
        cost = {key: row[key] for key in ("median_ms", "p10_ms", "p90_ms", "speedup")}
        if at_fixed_size := times.get(f"{name} fixed"):
            cost |= {"fixed_ms": at_fixed_size["median_ms"], "fixed_speedup": at_fixed_size["speedup"]}
        report.add({"runtime": runtime, "precision": precision, **about.get(name, {}), **cost})
    report.save("precisions", size=list(args.size), photos=len(dataset))
