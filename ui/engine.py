"""Runs the network once per photo, and reads what it kept of that as often as the visitor likes. Knows no widgets."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import pem
from analysis.latency import measure_ms
from analysis.prototypes import Choice, evolution, explain_choice, match_queries
from pem.outputs import PEMOutput, Segmentation
from pem.predict import READINGS
from ui.results import KeptLayer, KeptOutput, KeptResult, KeptTwin, ResultStore

TASKS = ("panoptic", "semantic", "instance")
# The viewer draws larger photos at this size, so that a reading and a redraw take no noticeable time.
MAX_SHOWN_PX = 1280


@dataclass(frozen=True)
class Reading:
    """What one task and its thresholds make of a kept result."""

    segmentation: Segmentation
    task: str
    object_threshold: float
    overlap_threshold: float
    reading_ms: float


class ResultGone(LookupError):
    """The kept result had to make room for newer ones."""


class Engine:
    """One model and its kept results. ``on_gpu`` wraps the forward pass where a GPU is lent call by call.

    The results of ``examples`` have the ids "example-NAME", and are made whenever they are asked for and not kept.
    ``twin`` is the same network trained with masked attention, whose attention maps are shown for comparison.
    """

    def __init__(
        self,
        model: pem.PEM,
        budget_bytes: int = 256 * 2**20,
        on_gpu: Callable[[Callable], Callable] = lambda function: function,
        examples: Sequence[Path] = (),
        twin: pem.PEM | None = None,
    ) -> None:
        self.model = model
        self.twin = twin
        self.examples = {f"example-{path.stem}": path for path in examples}
        self.results = ResultStore(budget_bytes)
        self._forward = on_gpu(self._forward_on_cpu_tensors)
        self._one_at_a_time = threading.Lock()

    def run(self, image: np.ndarray, name: str = "", result_id: str = "") -> str:
        """Photo uint8 [H0, W0, 3] to the id of its kept result. The only place where the network runs."""
        with self._one_at_a_time:
            start = time.perf_counter()
            batch = pem.preprocess([image], self.model.config)
            preprocess_ms = (time.perf_counter() - start) * 1000
            passed = self._forward(batch.pixels, batch.content_sizes[0])
        result = KeptResult(
            name=name,
            jpeg=_encode_jpeg(image),
            original_size=batch.original_sizes[0],
            shown_size=_shown_size(batch.original_sizes[0]),
            content_size=batch.content_sizes[0],
            padded_size=(batch.pixels.shape[2], batch.pixels.shape[3]),
            **{**passed, "stage_ms": {"preprocess": preprocess_ms, **passed["stage_ms"]}},
        )
        return self.results.put(result, result_id)

    def result(self, result_id: str) -> KeptResult:
        """Raises ResultGone where it is no longer kept."""
        result = self.results.get(result_id)
        if result is None and result_id in self.examples:
            path = self.examples[result_id]
            self.run(np.asarray(pem.load_image(path)), path.stem, result_id)
            result = self.results.get(result_id)
        if result is None:
            raise ResultGone("This result is no longer kept on the server: please press Segment again.")
        return result

    def read(
        self,
        result: KeptResult,
        task: str,
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> Reading:
        """Another reading of a kept result, at the photo's own size unless told. The network does not run.

        None takes a threshold from the config. A semantic reading has none; one of instances has no overlap threshold.
        Raises ValueError for an unknown task and for thresholds outside 0..1.
        """
        if task not in TASKS:
            raise ValueError(f"There is no task {task!r}; choose one of: {', '.join(TASKS)}.")
        config = self.model.config
        object_threshold = config.object_threshold if object_threshold is None else object_threshold
        overlap_threshold = config.overlap_threshold if overlap_threshold is None else overlap_threshold
        thresholds: dict[str, dict[str, Any]] = {
            "panoptic": {"object_threshold": object_threshold, "overlap_threshold": overlap_threshold},
            "instance": {"score_threshold": object_threshold},
            "semantic": {},
        }
        start = time.perf_counter()
        batch = result.batch(size or result.original_size)
        segmentation = READINGS[task](result.output, batch, config, **thresholds[task])[0]
        reading_ms = (time.perf_counter() - start) * 1000
        return Reading(segmentation, task, object_threshold, overlap_threshold, reading_ms)

    def choice(self, result: KeptResult, query: int, layer: int, head: int) -> Choice:
        """Why a head took its prototype. Raises ValueError for a query, layer or head that does not exist."""
        if not 0 <= layer < len(result.layers):
            raise ValueError(f"There is no layer {layer}; choose one from 0 to {len(result.layers) - 1}.")
        kept = result.layers[layer]
        if not 0 <= query < len(kept.target):
            raise ValueError(f"There is no query {query}; choose one from 0 to {len(kept.target) - 1}.")
        return explain_choice(kept.target[query], kept.key, kept.banned(query), head, len(kept.prototype_index))

    def twin_choice(self, result: KeptResult, query: int, layer: int, head: int) -> tuple[Choice, int, float] | None:
        """What the twin's most similar query attends to in the same layer and head: that, its index, and their IoU."""
        if result.twin is None:
            return None
        match, iou = int(result.twin.query[query]), float(result.twin.iou[query])
        kept = result.twin.layers[layer]
        return explain_choice(kept.target[match], kept.key, kept.banned(match), head, len(kept.similarity)), match, iou

    @torch.inference_mode()
    def _forward_on_cpu_tensors(self, pixels: Tensor, content_size: tuple[int, int]) -> dict[str, Any]:
        # CPU in, CPU out: a lent GPU lives in another process.
        device = next(self.model.parameters()).device
        pixels = pixels.to(device)
        output: PEMOutput | None = None

        def run(stage_done: Callable[[], None]) -> None:
            nonlocal output
            features = self.model.backbone(pixels)
            stage_done()
            mask_features, levels = self.model.pixel_decoder(features)
            stage_done()
            output = self.model.decoder(mask_features, levels, trace=True)
            stage_done()

        with torch.autocast(device.type, enabled=device.type == "cuda"):
            times_ms = measure_ms(run, device)
            twin_output = self.twin(pixels, trace=True) if self.twin else None
        assert output is not None
        twin = None
        if twin_output is not None:
            twin = KeptTwin(_keep_layers(twin_output), *match_queries(output, twin_output, content_size))
        return {
            "output": KeptOutput(output.pred_logits.half().cpu(), output.pred_masks.half().cpu()),
            "evolution": evolution(output, content_size),
            "layers": _keep_layers(output),
            "stage_ms": dict(zip(("backbone", "pixel decoder", "decoder"), times_ms)),
            "twin": twin,
        }


def _keep_layers(output: PEMOutput) -> tuple[KeptLayer, ...]:
    assert output.trace is not None
    return tuple(
        KeptLayer(
            stride=layer.stride,
            grid_size=layer.grid_size,
            prototype_index=layer.prototype_index[0].int().cpu().numpy(),
            similarity=layer.similarity[0].half().cpu().numpy(),
            allowed_fraction=layer.allowed_fraction[0].float().cpu().numpy(),
            target=layer.target[0].half().cpu().numpy(),
            key=layer.key[0].half().cpu().numpy(),
            banned_bits=np.packbits(layer.banned[0].cpu().numpy(), axis=1),
        )
        for layer in output.trace
    )


def _encode_jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _shown_size(original_size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, MAX_SHOWN_PX / max(original_size))
    height, width = (max(1, round(side * scale)) for side in original_size)
    return height, width
