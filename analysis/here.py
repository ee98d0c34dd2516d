"""Prototype against masked attention on this machine, in less than a minute: what the page's button measures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import pem
from analysis.attention import attention_workloads
from analysis.results import machine
from analysis.timing import Round, Workload, at_precision, percentiles, rounds, whole
from pem.conditions import conditions
from pem.decoder import STRIDES, Decoder
from pem.fast import accelerate_decoder
from pem.preprocess import check_size
from pem.tiles import MASK_STRIDE

REPEATS = 40
FEWEST_ROUNDS = 3  # a comparison with fewer is left out


@dataclass(frozen=True)
class Comparison:
    """Prototype and masked attention, run in turns. Times are medians with their 10th and 90th percentile."""

    subject: str  # "16x32 tokens", the size of the level that one layer looks at; or "the whole decoder"
    prototype_ms: tuple[float, float, float]
    masked_ms: tuple[float, float, float]
    # Masked time over prototype time, round by round: above 1, prototype attention is faster.
    speedup: tuple[float, float, float]
    num_rounds: int

    @property
    def verdict(self) -> str:
        """ "faster" or "slower" when at least 90 % of the rounds agree on it, else "not clearly faster or slower"."""
        _, p10, p90 = self.speedup
        return "faster" if p10 > 1 else "slower" if p90 < 1 else "not clearly faster or slower"


@dataclass(frozen=True)
class Measurement:
    """What is known so far; complete when ``doing`` is empty."""

    size_px: tuple[int, int]
    num_queries: int
    precision: str
    conditions: dict[str, Any]
    comparisons: tuple[Comparison, ...]
    fraction_done: float
    doing: str  # the subject that is being measured; "" at the end


def measure_here(
    size_px: tuple[int, int] = (512, 1024),
    num_queries: int = 100,
    precision: str = "float32",
    seconds: float = 45.0,
    device: str = "cpu",
) -> Iterator[Measurement]:
    """Prototype against masked attention: one layer at each level of an image of ``size_px``, then the whole decoder.

    Gives a new Measurement after every run, for a progress bar. A caller that stops asking cancels the rest. Each
    comparison gets an equal share of the time that is left; one with fewer than three rounds is left out. Only the
    round in progress can run past ``seconds``. The decoder is the paper's, with random weights. Raises ValueError when
    a side of ``size_px`` is not a multiple of 32, and for an unknown precision.
    """
    check_size(size_px)
    target = torch.device(device)
    at_precision(precision, target)
    grids = [(size_px[0] // stride, size_px[1] // stride) for stride in STRIDES]
    rest = (num_queries, target, precision)
    subjects: list[tuple[str, Callable[[], dict[str, Workload]]]] = [
        *((f"{h}x{w} tokens", partial(level_workloads, (h, w), *rest)) for h, w in grids),
        ("the whole decoder", partial(decoder_workloads, size_px, *rest)),
    ]
    start = time.perf_counter()
    about = (size_px, num_queries, precision, conditions(target, precision))
    done: list[Comparison] = []
    for i, (subject, build) in enumerate(subjects):
        workloads = build()
        began = time.perf_counter()
        share = (start + seconds - began) / (len(subjects) - i)
        measured: list[Round] = []
        for one in rounds(workloads, target, REPEATS, seconds=share):
            if one is not None and not one.is_warmup:
                measured.append(one)
            part = max(len(measured) / REPEATS, min(1.0, (time.perf_counter() - began) / share))
            yield Measurement(*about, tuple(done), (i + part) / len(subjects), subject)
        if len(measured) >= FEWEST_ROUNDS:
            done.append(compare(subject, measured))
    yield Measurement(*about, tuple(done), 1.0, "")


def level_workloads(
    grid: tuple[int, int], num_queries: int, device: torch.device, precision: str
) -> dict[str, Workload]:
    workloads = attention_workloads(grid, num_queries, device, ("prototype", "sdpa"), precision=precision)
    return dict(zip(("prototype", "masked"), workloads.values()))


def decoder_workloads(
    size_px: tuple[int, int], num_queries: int, device: torch.device, precision: str
) -> dict[str, Workload]:
    """The decoder of the paper's networks with its masks, and its masked baseline, on the same features."""
    dtype = getattr(torch, precision)
    config = dataclasses.replace(pem.get_config("cityscapes-panoptic-r50"), num_queries=num_queries)

    def random(channels: int, stride: int) -> torch.Tensor:
        features = torch.randn(1, channels, size_px[0] // stride, size_px[1] // stride, device=device).relu()
        return features.to(dtype, memory_format=torch.channels_last)  # as a pixel decoder hands them on

    mask_features = random(config.hidden_dim, MASK_STRIDE)
    levels = [random(config.conv_dim, stride) for stride in STRIDES]

    @torch.inference_mode()
    def run(decoder: Decoder) -> None:
        with at_precision(precision, device):
            _ = decoder(mask_features, levels).pred_masks

    prototype = Decoder(config).eval().to(device)
    accelerate_decoder(prototype)
    masked = Decoder(dataclasses.replace(config, attention="masked")).eval().to(device)
    return {"prototype": whole(partial(run, prototype)), "masked": whole(partial(run, masked))}


def compare(subject: str, measured: list[Round]) -> Comparison:
    prototype, masked = (np.array([sum(r.times_ms[name]) for r in measured]) for name in ("prototype", "masked"))
    return Comparison(
        subject, percentiles(prototype), percentiles(masked), percentiles(masked / prototype), len(measured)
    )


def describe(measurement: Measurement) -> str:
    """One plain sentence on what was found, whoever is faster."""
    if not measurement.comparisons:
        return "Nothing was measured: no three rounds fitted into the time. Allow more, or choose a smaller size."
    clauses = []
    for verdict in ("faster", "slower", "not clearly faster or slower"):
        found = [f"{c.subject} ({c.speedup[0]:.2f}x as fast)" for c in measurement.comparisons if c.verdict == verdict]
        if found:
            *others, last = found
            clauses.append(f"{verdict} over {', '.join(others)}{' and ' if others else ''}{last}")
    return (
        f"Compared with masked attention, prototype attention is {'; '.join(clauses)}: "
        f"{measurement.num_queries} queries on {machine(measurement.conditions)}."
    )
