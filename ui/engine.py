"""Runs the network once per photo, and reads what it kept of that as often as the visitor likes. Knows no widgets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import pem
from pem.outputs import Batch, Segmentation
from ui.results import KeptResult, ResultStore

TASKS = ("panoptic", "semantic")


@dataclass(frozen=True)
class Reading:
    """What one task and its thresholds make of a kept result."""

    image: np.ndarray  # uint8 [H0, W0, 3]
    segmentation: Segmentation
    task: str
    network_ms: float
    reading_ms: float


class ResultGone(LookupError):
    """The kept result had to make room for newer ones."""


class Engine:
    """One model and its kept results. ``on_gpu`` wraps the forward pass where a GPU is lent call by call."""

    def __init__(
        self,
        model: pem.PEM,
        budget_bytes: int = 256 * 2**20,
        on_gpu: Callable[[Callable], Callable] = lambda function: function,
    ) -> None:
        self.model = model
        self.results = ResultStore(budget_bytes)
        self._forward = on_gpu(self._forward_on_cpu_tensors)

    def run(self, image: np.ndarray) -> str:
        """Photo uint8 [H0, W0, 3] to the id of its kept result. The only place where the network runs."""
        start = time.perf_counter()
        batch = pem.preprocess([image], self.model.config)
        pred_logits, pred_masks = self._forward(batch.pixels)
        network_ms = (time.perf_counter() - start) * 1000
        # Readings need to know how large the pixels were, not what they were.
        geometry = Batch(torch.zeros(()).expand(batch.pixels.shape), batch.original_sizes, batch.content_sizes)
        return self.results.put(KeptResult(image, pred_logits, pred_masks, geometry, network_ms))

    def read(self, result_id: str, task: str, object_threshold: float, overlap_threshold: float) -> Reading:
        """Another reading of a kept result. Raises ResultGone where it is no longer kept."""
        result = self.results.get(result_id)
        if result is None:
            raise ResultGone("This result is no longer kept on the server: please press Segment again.")
        start = time.perf_counter()
        if task == "semantic":
            segmentation = pem.semantic(result.output, result.batch, self.model.config)[0]
        else:
            segmentation = pem.panoptic(
                result.output,
                result.batch,
                self.model.config,
                object_threshold=object_threshold,
                overlap_threshold=overlap_threshold,
            )[0]
        reading_ms = (time.perf_counter() - start) * 1000
        return Reading(result.image, segmentation, task, result.network_ms, reading_ms)

    @torch.inference_mode()
    def _forward_on_cpu_tensors(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        # CPU in, CPU out: a lent GPU lives in another process. Half precision halves what is kept.
        device = next(self.model.parameters()).device
        output = self.model(pixels.to(device))
        return output.pred_logits.half().cpu(), output.pred_masks.half().cpu()
