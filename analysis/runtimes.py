"""The bundled model in each runtime that is installed, beside torch: the network, a photo, and a whole process.

The network with masked attention runs in all of them, too: what prototypes save once the runtime is the same.

The networks compute the same (tests/test_default_model.py). All take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import pem
from analysis.arguments import add_shared, parse_size
from analysis.results import EXAMPLES, MIB, Report, Row
from analysis.timing import Workload, measure_rounds, percentiles
from pem.exported import ExportedPEM
from pem.load import DEFAULT_WEIGHTS
from pem.run import run as run_network
from pem.runtimes import usable_runtimes

MASKED = DEFAULT_WEIGHTS.with_stem("default-masked")  # the same network with masked attention
PHOTO = EXAMPLES / "cat.jpg"
CPU = torch.device("cpu")


def compare(what: str, works: Mapping[str, Callable[[], object]], repeats: int) -> list[Row]:
    """A row for each runtime; the name of a work begins with that of its runtime."""
    times = in_turns(works, repeats)
    return [{"what": what, "runtime": name, "version": version(name.split()[0])} | row for name, row in times.items()]


def in_turns(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Row]:
    """The times of each work; ``speedup`` is the median over the rounds of the first work's time by its own."""
    workloads = {name: after_a_rest(work) for name, work in works.items()}
    times_ms = {name: times[:, 1] for name, times in measure_rounds(workloads, CPU, repeats)[0].items()}
    first = next(iter(times_ms.values()))
    rows: dict[str, Row] = {}
    for name, times in times_ms.items():
        median, p10, p90 = percentiles(times)
        speedup = float(np.median(first / times))
        rows[name] = {"median_ms": median, "p10_ms": p10, "p90_ms": p90, "speedup": speedup}
    return rows


def after_a_rest(work: Callable[[], object]) -> Workload:
    """Two parts: a rest, in which the threads of the runtime before stop to wait busily, and the work."""

    def run(done: Callable[[], None]) -> None:
        time.sleep(0.05)
        done()
        work()
        done()

    return run


def masks(model: pem.PEM | ExportedPEM, pixels: np.ndarray) -> object:
    return run_network(model, pixels).pred_masks  # torch makes them when they are asked for


# A process starts with the peak of the one that started it, so a small one starts it.
LAUNCHER = "import os, subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=2); print(*os.wait4(p.pid, 0)[1:])"


def run_process(runtime: str, folder: Path, model: str | Path = "default") -> tuple[float, float]:
    """Seconds and peak MiB of a process that segments one photo and ends."""
    command = [sys.executable, "-m", "pem", str(PHOTO), "--model", str(model), "--runtime", runtime]
    command += ["--out", str(folder / "overlay.png")]
    start = time.perf_counter()
    launch = [sys.executable, "-S", "-c", LAUNCHER, *command]
    run = subprocess.run(launch, capture_output=True, text=True, encoding="utf-8", cwd=Path(__file__).parents[1])
    seconds = time.perf_counter() - start
    if not (match := re.match(r"0 resource.struct_rusage\(.*ru_maxrss=(\d+)", run.stdout)):
        raise RuntimeError(f"python -m pem with {runtime} failed: {run.stderr.strip().splitlines()[-1]}")
    return seconds, int(match[1]) * 1024 / MIB  # Linux counts in KiB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", type=parse_size, nargs="+", default=[(288, 384), (512, 1024)], metavar="HEIGHTxWIDTH"
    )
    parser.add_argument("--photo-px", type=parse_size, default=(896, 1152), metavar="HEIGHTxWIDTH", help="for predict")
    add_shared(parser, repeats=20, out=None)


def run(args: argparse.Namespace) -> None:
    """Rows for the network at each size, for ``pem.predict`` with decoded photo, and for a process of its own."""
    row: Row
    report = Report("what", "runtime", "median_ms", "speedup", "peak_mib", out=args.out)
    names = ["torch", *usable_runtimes()]
    models = {name: pem.load_model("default", device="cpu", runtime=name) for name in names}
    endings = {"torch": ".safetensors"}
    masked = {
        f"{name} masked": pem.load_model(MASKED.with_suffix(endings.get(name, ".onnx")), device="cpu", runtime=name)
        for name in names
    }
    for height, width in args.sizes:
        pixels = np.random.default_rng(0).standard_normal((1, 3, height, width), np.float32)
        networks = {name: partial(masks, model, pixels) for name, model in {**models, **masked}.items()}
        for row in compare(f"network, {height}x{width}", networks, args.repeats):
            report.add(row)
    height, width = args.photo_px
    photo = np.asarray(Image.open(PHOTO).resize((width, height)))
    predictions = {name: partial(pem.predict, model, photo) for name, model in models.items()}
    for row in compare(f"predict, photo {height}x{width}", predictions, args.repeats):
        report.add(row)
    with tempfile.TemporaryDirectory() as folder:
        runs = [{name: run_process(name, Path(folder)) for name in names} for _ in range(5)]
    for name in names:
        seconds = np.array([[times[name][0], times["torch"][0]] for times in runs])
        median, p10, p90 = percentiles(1000 * seconds[:, 0])
        row = {"what": "process, one photo", "runtime": name, "version": version(name), "median_ms": median}
        row |= {"p10_ms": p10, "p90_ms": p90, "speedup": float(np.median(seconds[:, 1] / seconds[:, 0]))}
        report.add(row | {"peak_mib": float(np.median([times[name][1] for times in runs]))})
    report.save("runtimes")
