"""How to time workloads fairly, in turns and warmed up, and how much memory each part of them takes."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from analysis.results import MIB

PRECISIONS = ("float32", "bfloat16", "float16")

# A workload does its work, and calls the function that it is given at the end of each part.
Workload = Callable[[Callable[[], None]], None]


@dataclass(frozen=True)
class Round:
    """One run of every workload."""

    times_ms: dict[str, list[float]]  # of each workload, the duration of its parts
    is_warmup: bool


def at_precision(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast, which is how this project computes in half precision. Raises ValueError for none of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; choose one of: {', '.join(PRECISIONS)}.")
    return nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))


def whole(work: Callable[[], object]) -> Workload:
    """A workload of one part."""

    def run(done: Callable[[], None]) -> None:
        work()
        done()

    return run


def rounds(
    workloads: dict[str, Workload],
    device: torch.device,
    repeats: int = 20,
    max_warmup: int = 20,
    seconds: float = math.inf,
) -> Iterator[Round | None]:
    """Runs the workloads in turns, so that a machine that slows down slows all of them.

    The order changes from round to round, in the same way in every run. It matters: after a workload that frees large
    blocks of memory, the next one gets fresh pages and takes up to half as long again. The first rounds warm up, until
    every workload is stable, for at most ``max_warmup`` rounds and a third of ``seconds``. Then ``repeats`` rounds are
    measured, fewer when the next one would not end within ``seconds``. Between two workloads of a round the iterator
    gives None. Nothing runs until the caller asks for more, so it can cancel or let something else run.
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

    Row i of every array comes from the same round, so that workloads can be compared in pairs. Raises ValueError when
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
    """Duration of each part of one run. On a GPU, events in its queue take the times, without waits."""
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

    Only what torch's own allocators hand out counts. The scratch space of oneDNN and BLAS on a CPU does not.
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

    # Without this it reports an error where torch could use a GPU and there is none.
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
