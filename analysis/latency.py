"""How long a PEM takes and how much memory, whole and by stage; and how to time rivals fairly."""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import pem
from analysis.arguments import json_file, natural, parse_device, parse_preset, parse_size
from analysis.results import result_path, save_tables
from pem.conditions import conditions
from pem.preprocess import check_size

MIB = 2**20
PRECISIONS = ("float32", "bfloat16", "float16")
PRESETS = ("cityscapes-panoptic-r50", "cityscapes-panoptic-stdc1", "cityscapes-panoptic-stdc2", "default")
STAGES = ("backbone", "pixel decoder", "decoder", "masks")  # the last: the full-size mask product at the end
# On a GPU, small networks wait for Python to launch their kernels: compiled so, they are recorded once and replayed.
COMPILED: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}

# Does its work and calls the function it is given at the end of each part.
Workload = Callable[[Callable[[], None]], None]


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


@dataclass(frozen=True)
class Round:
    """One run of every workload."""

    times_ms: dict[str, list[float]]  # of each workload, the duration of its parts
    is_warmup: bool


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
    if model.training:
        raise ValueError("The model is in training mode; call model.eval() first.")
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


def at_precision(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast, which is how this project computes in half precision. Raises ValueError for none of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; choose one of: {', '.join(PRECISIONS)}.")
    return nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))


def rounds(
    workloads: dict[str, Workload],
    device: torch.device,
    repeats: int = 20,
    max_warmup: int = 20,
    seconds: float = math.inf,
) -> Iterator[Round | None]:
    """Runs the workloads in turns, so that a machine that slows down slows all of them.

    In every round they come in another order (the same in every run): whoever follows one that frees large blocks of
    memory gets fresh pages, and takes up to half as long again. The first rounds warm up, until every workload is
    stable, but for ``max_warmup`` rounds or a third of ``seconds`` at most. Then come ``repeats`` rounds, fewer when
    the next one would not end in time. Between two workloads of a round it gives None: nothing runs before it is asked
    for, so that the caller can cancel, or let something else run.
    """
    start = time.perf_counter()
    totals_ms: dict[str, list[float]] = {name: [] for name in workloads}
    is_warmup = True
    num_rounds = num_measured = 0
    took = 0.0  # the last round, in seconds
    while num_measured < repeats:
        before = time.perf_counter()
        if before - start + took >= seconds:
            return
        if is_warmup:
            stable = all(is_stable(totals) for totals in totals_ms.values())
            is_warmup = not stable and num_rounds < max_warmup and before - start < seconds / 3
        order = random.Random(num_rounds).sample(list(workloads), len(workloads))
        times_ms: dict[str, list[float]] = {}
        for name in order:
            if times_ms:
                yield None
            times_ms[name] = measure_ms(workloads[name], device)
            totals_ms[name].append(sum(times_ms[name]))
        took = sum(totals[-1] for totals in totals_ms.values()) / 1000
        num_rounds += 1
        num_measured += not is_warmup
        yield Round(times_ms, is_warmup)


def is_stable(times_ms: list[float]) -> bool:
    """Whether the last run moved the median of the last three by less than 5 %."""
    if len(times_ms) < 4:
        return False
    before, now = median(times_ms[-4:-1]), median(times_ms[-3:])
    return abs(now - before) < 0.05 * before


def measure_rounds(
    workloads: dict[str, Workload],
    device: torch.device,
    repeats: int = 20,
    max_warmup: int = 20,
    seconds: float = math.inf,
) -> tuple[dict[str, np.ndarray], int]:
    """All of ``rounds``: for each workload its times in ms [repeats, parts], and the number of warm-up rounds.

    Row i of every array comes from the same round, so that rivals may be compared in pairs. Raises ValueError when
    ``seconds`` leave no time for a single round after the warm-up.
    """
    done = [one for one in rounds(workloads, device, repeats, max_warmup, seconds) if one is not None]
    measured = [r.times_ms for r in done if not r.is_warmup]
    if not measured:
        raise ValueError(f"{seconds:g} s are too few for a single round; allow more, or measure something smaller.")
    return {name: np.array([times[name] for times in measured]) for name in workloads}, len(done) - len(measured)


def percentiles(times_ms: list[float] | np.ndarray) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    median, p10, p90 = np.percentile(times_ms, (50, 10, 90)).tolist()
    return median, p10, p90


def measure_ms(run: Workload, device: torch.device) -> list[float]:
    """Duration of each part of one run. On a GPU by events in its queue, which do not make it wait between parts."""
    if device.type != "cuda":
        moments = [time.perf_counter()]
        run(lambda: moments.append(time.perf_counter()))
        return [(end - start) * 1e3 for start, end in pairwise(moments)]

    events: list[torch.cuda.Event] = []

    def record() -> None:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()

    with torch.cuda.device(device):
        torch.cuda.synchronize()
        record()
        run(record)
        torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(events)]


def measure_peak_mib(run: Workload, device: torch.device) -> list[float]:
    """The most memory that tensors took at once during each part of one run, beyond what they took before it.

    What torch's own allocators hand out: on a CPU the scratch space of oneDNN and BLAS is not seen.
    """
    peaks: list[float] = []
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)

        def note_peak() -> None:
            peaks.append((torch.cuda.max_memory_allocated(device) - before) / MIB)
            torch.cuda.reset_peak_memory_stats(device)

        run(note_peak)
        return peaks

    def mark() -> None:
        with record_function(END_OF_PART):
            pass

    # Else it calls it an error when torch could use a GPU and there is none.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run(mark)
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    taken = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            taken += event.nbytes()
            peak = max(peak, taken)
        elif event.name() == END_OF_PART:
            peaks.append(peak / MIB)
            peak = taken
    return peaks


END_OF_PART = "analysis: end of part"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.latency", description="Latency and memory of presets with random weights, by stage."
    )
    parser.add_argument("--preset", type=parse_preset, nargs="+", default=PRESETS)
    parser.add_argument("--size", type=parse_size, default=(512, 1024), metavar="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=natural, default=1)
    parser.add_argument("--repeats", type=natural, default=10)
    parser.add_argument("--warmup", type=natural, default=20, help="at most; fewer when the times are stable before")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--compiled", action="store_true", help="by torch.compile, replayed as CUDA graphs on a GPU")
    parser.add_argument("--device", type=parse_device, default="auto")
    parser.add_argument("--out", type=json_file, help="JSON to write, with CSV and Markdown beside it")
    args = parser.parse_args()

    measured_on = conditions(args.device, args.precision)
    print(f"batch {args.batch}, {args.repeats} repeats, ", end="")
    print(f"{measured_on['device']}, {measured_on['threads']} threads, {measured_on['precision']}")
    print(f"{'preset':26} {'stage':14} {'median ms':>10} {'p10':>8} {'p90':>8} {'peak MiB':>9}")
    rows = []
    for preset in args.preset:
        model = pem.accelerate(pem.build_model(pem.get_config(preset))).to(args.device)
        if args.compiled:
            compile_stages(model)
        result = measure_latency(model, args.size, args.batch, args.repeats, args.warmup, args.precision)
        total = LatencyRow("total", result.median_ms, result.p10_ms, result.p90_ms, result.peak_mib)
        for row in (*result.rows, total):
            print(f"{preset:26} {row.stage:14} {row.median_ms:10.2f} {row.p10_ms:8.2f} {row.p90_ms:8.2f} ", end="")
            print(f"{row.peak_mib:9.1f}", flush=True)
            about = {"preset": preset, "height_px": args.size[0], "width_px": args.size[1], "batch": args.batch}
            rows.append({**about, **asdict(row), "repeats": args.repeats, "num_warmup": result.num_warmup})
    name = "latency-compiled" if args.compiled else "latency"
    save_tables({"conditions": measured_on, "rows": rows}, args.out or result_path(name, measured_on))


if __name__ == "__main__":
    main()
