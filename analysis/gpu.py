"""Everything that is to be tried on a GPU, in one command: first whether it is right, then how fast it is.

``python -m analysis gpu`` takes under 25 minutes. Each step is a process of its own with a time limit, so that one that
fails or hangs takes nothing else away; its result, or what it said last, is a row. ``--device cpu`` tries the command
itself, with small inputs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import pem
from analysis.arguments import add_shared
from analysis.results import RESULTS, Report
from analysis.timing import measure_rounds, percentiles, whole
from pem.fastest import installed_version

ROOT = RESULTS.parents[1]
# Their tests for CUDA: kernels, golden values, autocast, deformable convolution, and what the page runs.
TESTED = ("kernels", "attention", "model", "golden", "deform_conv", "engine")
R50 = "cityscapes-panoptic-r50"


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str] = field(repr=False)  # what comes after "python"
    limit_s: int


def steps(device: str, out: Path) -> Iterator[Step]:
    """On a CPU the same commands with small inputs, and the tests that need no GPU."""
    on_cpu = device == "cpu"
    tests = [f"tests/test_{name}.py" for name in TESTED]
    yield Step("tests", ["-m", "pytest", "-q", *(["-k", "cuda"] if on_cpu else []), *tests], 300)

    def measure(name: str, command: str, limit_s: int) -> Step:
        file = out / f"gpu-{name.replace(' ', '-')}.json"
        return Step(name, ["-m", "analysis", *command.split(), "--out", str(file)], limit_s)

    shared = f"--device {device} --precision bfloat16 --repeats {1 if on_cpu else 20}"
    tokens = "4x8" if on_cpu else "64x128 128x256"
    methods = "--methods prototype sdpa softmax --queries 100"
    yield measure("attention", f"attention {shared} --tokens {tokens} {methods}", 120)
    if not on_cpu:  # a CPU has no launches to save
        yield measure("attention compiled", f"attention {shared} --tokens {tokens} {methods} --compiled", 120)
    for size in ("64x128",) if on_cpu else ("1024x2048", "640x640"):
        for batch in (1,) if on_cpu else (1, 8):
            for how, limit_s in {"": 40, **({} if on_cpu else {" --compiled": 110})}.items():
                name = f"latency {size} batch {batch}{how.replace(' --', ' ')}"
                yield measure(name, f"latency {shared} --preset {R50} --size {size} --batch {batch}{how}", limit_s)
    training = "--size 64 --batch-size 2 --repeats 1" if on_cpu else "--repeats 3"
    yield measure("training", f"training_speed {training}", 120)
    height, width = (64, 128) if on_cpu else (1024, 2048)
    yield Step("onnxruntime", ["-c", f"from analysis.gpu import runtime; runtime({device!r}, {height}, {width})"], 180)


def runtime(device: str, height: int, width: int) -> None:
    """PEM-R50, exported, in onnxruntime on this device: prints its time and how far it is from torch. TensorRT first
    where it is installed; onnxruntime takes the next one where a provider cannot run an operator."""
    import onnxruntime

    from pem.exporting import network, onnx_file

    wanted = ["CPUExecutionProvider"]
    if device != "cpu":
        wanted = ["TensorrtExecutionProvider", "CUDAExecutionProvider", *wanted]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    if device != "cpu" and len(providers) == 1:
        sys.exit("This onnxruntime has no provider for a GPU: pip install onnxruntime-gpu.")
    torch.manual_seed(0)
    plain = pem.build_model(pem.get_config(R50))
    exported = onnx_file.to_onnx(network.Exportable(plain, trace=False)).SerializeToString()
    session = onnxruntime.InferenceSession(exported, providers=providers)
    pixels = np.random.default_rng(0).standard_normal((1, 3, height, width), np.float32)
    found = session.run(["pred_logits"], {"pixels": pixels})[0]
    with torch.inference_mode():
        expected = plain(torch.from_numpy(pixels)).pred_logits.numpy()
    times, _ = measure_rounds({"it": whole(lambda: session.run(None, {"pixels": pixels}))}, torch.device("cpu"), 10)
    median, p10, p90 = percentiles(times["it"])
    error = float(np.abs(found - expected).max())
    print(f"{providers[0]}, float32: {median:.1f} ms ({p10:.1f} to {p90:.1f}); class logits within {error:.1e}")


def attempt(step: Step) -> tuple[str, str, float]:
    """Whether the step passed, the last line that it printed, and the seconds it took."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *step.command],
            cwd=ROOT,
            timeout=step.limit_s,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        lines = done.stdout.strip().splitlines() or [""]
        result = "passed" if done.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        lines, result = [f"ended after {step.limit_s} s"], "failed"
    return result, lines[-1][:200], time.perf_counter() - start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="WORD", default="", help="only the steps whose name has this word")
    add_shared(parser, device="cuda", out=RESULTS / "gpu.json")


def run(args: argparse.Namespace) -> None:
    """A row for each step. The measurements are stored beside ``out``, which has a row for each of them."""
    device = str(args.device)
    report = Report("step", "result", "seconds", "said", device=device, precision="bfloat16", out=args.out)
    for step in steps(device.partition(":")[0], args.out.parent):
        if args.only in step.name:
            result, said, seconds = attempt(step)
            report.add({"step": step.name, "result": result, "seconds": round(seconds, 1), "said": said})
    versions = {
        name: installed_version(name) for name in ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "tensorrt")
    }
    report.save("gpu", versions=versions)
