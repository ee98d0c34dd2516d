"""From the network's output to the painted photo: how long reading and drawing take on large photos.

The baseline of the panoptic reading is the usual procedure, which resizes every mask to the whole photo.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import pem
from analysis.arguments import add_shared, natural
from analysis.plain_panoptic import plain_panoptic
from analysis.results import EXAMPLES, Report
from analysis.timing import Workload, measure_rounds, percentiles, whole
from pem.photos import ImageError, to_array
from pem.predict import READINGS


def resized(path: Path, megapixels: float) -> np.ndarray:
    """The photo with about so many pixels, uint8 RGB [H, W, 3]. Raises ImageError for a file that is none."""
    try:
        photo = Image.fromarray(to_array(path))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    scale = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
    return np.asarray(photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC))


def measure(model: pem.PEM, photo: np.ndarray, repeats: int) -> list[dict[str, Any]]:
    """A row for each reading: medians with the 10th and 90th percentile.

    ``speedup`` is how many times as long the usual procedure takes, the median of the ratios of the rounds, and
    ``differing_px`` in how many pixels it finds something else.
    """
    batch = pem.preprocess([photo], model.config, next(model.parameters()).device)
    with torch.inference_mode():
        output = model(batch.pixels)
    results = {name: read(output, batch, model.config)[0] for name, read in READINGS.items()}
    differing_px = int((results["panoptic"].ids != plain_panoptic(output, batch, model.config)[0].cpu().numpy()).sum())

    def workload(read: Callable[..., list[pem.Segmentation]]) -> Workload:
        def run(stage_done: Callable[[], None]) -> None:
            (result,) = read(output, batch, model.config)
            stage_done()
            pem.render(photo, result)
            stage_done()

        return run

    workloads = {name: workload(read) for name, read in READINGS.items()}
    workloads["usual"] = whole(partial(plain_panoptic, output, batch, model.config))
    # Readings end with ids on the CPU, so they wait for a GPU by themselves.
    times_ms, _ = measure_rounds(workloads, torch.device("cpu"), repeats)
    rows = []
    for name, result in results.items():
        row: dict[str, Any] = {"reading": name, "segments": len(result.segments)}
        reading, drawing = times_ms[name].T
        for part, ms in (("reading", reading), ("drawing", drawing), ("total", reading + drawing)):
            median, p10, p90 = percentiles(ms)
            row |= {f"{part}_ms": median, f"{part}_p10_ms": p10, f"{part}_p90_ms": p90}
        usual = {
            "usual_ms": float(np.median(times_ms["usual"])),
            "speedup": float(np.median(times_ms["usual"][:, 0] / reading)),
            "differing_px": differing_px,
        }
        rows.append(row | (usual if name == "panoptic" else dict.fromkeys(usual)))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photos", type=Path, nargs="+", default=sorted(EXAMPLES.glob("*.jpg")), metavar="FILE")
    parser.add_argument("--megapixels", type=natural, default=12, help="to which each photo is resized")
    parser.add_argument("--model", default="default", help="what pem.load_model takes (default: %(default)s)")
    add_shared(parser, repeats=7, device="auto", out=None)


def run(args: argparse.Namespace) -> None:
    """A row for each photo and reading."""
    shown = ("photo", "width_px", "height_px", "reading", "segments", "reading_ms", "drawing_ms", "speedup")
    report = Report(*shown, device=args.device, out=args.out)
    model = pem.load_model(args.model, device=args.device)
    for path in args.photos:
        photo = resized(path, args.megapixels)
        height, width = photo.shape[:2]
        for row in measure(model, photo, args.repeats):
            report.add({"photo": path.name, "height_px": height, "width_px": width, **row})
    report.save("readings")
