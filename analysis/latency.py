"""How long a PEM takes and how much memory, whole and by stage."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import pem
from analysis.results import conditions, save_json

MIB = 2**20

# Does its work and calls the function it is given at the end of each part.
Workload = Callable[[Callable[[], None]], None]


@dataclass(frozen=True)
class LatencyRow:
    stage: str  # "backbone", "pixel decoder", "decoder", "masks": the full-size mask product at the end
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


@torch.inference_mode()
def measure_latency(
    model: pem.PEM, size: tuple[int, int] = (512, 1024), batch: int = 1, repeats: int = 20, warmup: int = 3
) -> LatencyResult:
    """Times ``model`` on its own device, from pixels [batch, 3, *size] to full-size mask logits.

    Stages are timed by calling the model's parts one after the other, which is all that its forward does: nothing is
    hooked, and each run's stages add up to its total. Raises ValueError for a model in training mode.
    """
    if model.training:
        raise ValueError("The model is in training mode; call model.eval() first.")
    weight = next(model.parameters())
    pixels = torch.randn(batch, 3, *size, device=weight.device, dtype=weight.dtype)

    def run(stage_done: Callable[[], None]) -> None:
        features = model.backbone(pixels)
        stage_done()
        mask_features, levels = model.pixel_decoder(features)
        del features  # as in the model, whose decoder does not keep them alive
        stage_done()
        output = model.decoder(mask_features, levels)
        stage_done()
        _ = output.pred_masks
        stage_done()

    for _ in range(warmup):
        _ = model(pixels).pred_masks
    times_ms = np.array([measure_ms(run, pixels.device) for _ in range(repeats)])
    peaks_mib = measure_peak_mib(run, pixels.device)
    stages = ("backbone", "pixel decoder", "decoder", "masks")
    return LatencyResult(
        *percentiles(times_ms.sum(axis=1)),
        max(peaks_mib),
        rows=tuple(LatencyRow(stage, *percentiles(times_ms[:, i]), peaks_mib[i]) for i, stage in enumerate(stages)),
    )


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
        prog="python -m analysis.latency", description="Latency and memory of a preset with random weights."
    )
    parser.add_argument("--preset", default="default")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()

    model = pem.build_model(pem.get_config(args.preset)).to(args.device)
    result = measure_latency(model, tuple(args.size), args.batch, args.repeats, args.warmup)
    measured_on = conditions(args.device)
    print(f"{args.preset}, {args.size[0]}x{args.size[1]}, batch {args.batch}, {args.repeats} repeats, ", end="")
    print(f"{measured_on['device']}, {measured_on['threads']} threads, {measured_on['precision']}")
    print(f"{'stage':14} {'median ms':>10} {'p10':>8} {'p90':>8} {'peak MiB':>9}")
    total = LatencyRow("total", result.median_ms, result.p10_ms, result.p90_ms, result.peak_mib)
    for row in (*result.rows, total):
        print(f"{row.stage:14} {row.median_ms:10.2f} {row.p10_ms:8.2f} {row.p90_ms:8.2f} {row.peak_mib:9.1f}")
    if args.out:
        setup = {name: getattr(args, name) for name in ("preset", "size", "batch", "repeats", "warmup")}
        save_json({"conditions": measured_on, **setup, "result": result}, args.out)


if __name__ == "__main__":
    main()
