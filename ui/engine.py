"""Runs the network once per photo, and reads the kept output as often as the visitor likes. Knows no widgets."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import pem
from analysis.timing import measure_ms
from pem.devices import mixed_precision
from pem.explain import Choice, check_index, evolution, match_queries
from pem.outputs import PEMOutput, Segmentation
from pem.photos import open_photo, to_array
from pem.postprocess import READINGS
from pem.preprocess import resize, to_pixels
from ui.gate import Busy, Gate, bytes_for
from ui.results import KeptLayer, KeptOutput, KeptResult, ResultStore, encode
from ui.storage import Storage, cannot_write

if TYPE_CHECKING:
    from pem.run import AnyPEM

_log = logging.getLogger("pem")
TASKS = tuple(READINGS)
BASELINE = "~masked"  # the masked baseline's result for a photo has the same id with this at its end
MAX_SHOWN_PX = 1280  # the viewer draws larger photos at this size, so that readings and redraws take no noticeable time


@dataclass(frozen=True)
class Reading:
    """The segments that one task and its thresholds make of a kept result."""

    segmentation: Segmentation
    task: str
    object_threshold: float
    overlap_threshold: float
    reading_ms: float


class ResultGone(LookupError):
    """The kept result had to make room for newer ones."""


EXPECTED = (ResultGone, Busy, ValueError, OSError)  # what may go wrong without a mistake in the code


def sentence(error: Exception, way_out: str) -> str:
    """What a visitor is told of one of EXPECTED; the ``way_out`` is for results that are gone."""
    if isinstance(error, OSError):
        return cannot_write(error)
    return f"{error} {way_out}" if isinstance(error, ResultGone) else str(error)


class Engine:
    """One model and its kept results: ``budget_bytes`` of them in memory, and all in the ``storage`` if there is one.

    ``on_gpu`` wraps the forward pass where a GPU is lent for each call.
    The results of ``examples`` have the ids "example-NAME". They are made when somebody asks for them.
    ``baseline`` is the same network trained with masked attention, for comparison. It runs on a photo when somebody
    asks for its result, by the id of the photo's result with BASELINE at its end.
    """

    def __init__(
        self,
        model: AnyPEM,
        budget_bytes: int = 32 * 2**20,
        on_gpu: Callable[[Callable], Callable] = lambda function: function,
        examples: Sequence[Path] = (),
        baseline: AnyPEM | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.model = model
        self.baseline = baseline
        self.examples = {f"example-{path.stem}": path for path in examples}
        self.results = ResultStore(budget_bytes, storage)
        is_exported = isinstance(model, pem.ExportedPEM)
        self._forward = self._forward_of_exported if is_exported else on_gpu(self._forward_on_arrays)
        self.gate = Gate()
        # The network runs on one photo at a time. Readings of kept results go on meanwhile.
        self.network_gate = Gate(places=1, max_waiting=16, in_order=True)
        self.num_runs = 0
        self.run_ms: Counter[str] = Counter()  # by stage

    def run(self, photo: np.ndarray | Path, name: str = "", result_id: str = "", file_name: str = "") -> str:
        """Runs the network on a photo, uint8 [H0, W0, 3] or a file, and returns the id of the kept result.

        Only examples have a ``name``; ``file_name`` is that of any file. Raises ImageError for a file that is no photo,
        and Busy.
        """
        with self.network_gate.place(), self.gate.place(bytes_for(size_of(photo))):
            image = to_array(photo)
            start = time.perf_counter()
            resized = resize(image, self.model.config)
            pixels = to_pixels([resized], self.model.config)
            preprocess_ms = (time.perf_counter() - start) * 1000
            passed = self._forward(pixels, resized.shape[:2], False)
            passed["stage_ms"] = {"preprocess": preprocess_ms, **passed["stage_ms"]}
            result = KeptResult(
                name=name,
                file_name=file_name,
                config=self.model.config,
                jpeg=encode(image, "jpeg", quality=95, subsampling=0),
                original_size=image.shape[:2],
                shown_size=_shown_size(image.shape[:2]),
                resized=resized,
                **passed,
            )
        return self._keep(result, result_id)

    def _run_baseline(self, result_id: str) -> str:
        """Runs the baseline on exactly the pixels that the model saw; the kept JPEG would differ a little."""
        assert self.baseline is not None
        seen = self.result(result_id.removesuffix(BASELINE))
        with self.network_gate.place(), self.gate.place():
            passed = self._forward(seen.pixels, seen.content_size, True)
        passed["stage_ms"] = seen.stage_ms | passed["stage_ms"]  # the photo was prepared once, for both
        return self._keep(dataclasses.replace(seen, config=self.baseline.config, **passed), result_id)

    def _keep(self, result: KeptResult, result_id: str) -> str:
        self.num_runs += 1
        self.run_ms.update(result.stage_ms)
        with self.gate.place(result.num_bytes):
            return self.results.put(result, result_id)

    def result(self, result_id: str) -> KeptResult:
        """The kept result of this id; those of examples and of the baseline are made when they are not kept.

        Raises ResultGone for any other result that is not kept, and Busy.
        """
        result = self.results.get(result_id)
        if result is None:
            with self.network_gate.place():  # if several ask for the same result, one makes it and the others find it
                result = self.results.get(result_id) or self._make(result_id)
        return result

    def _make(self, result_id: str) -> KeptResult:
        if result_id in self.examples:
            path = self.examples[result_id]
            made_id = self.run(path, path.stem, result_id, path.name)
        elif self.baseline is not None and result_id.endswith(BASELINE) and result_id.count(BASELINE) == 1:
            made_id = self._run_baseline(result_id)
        else:
            raise ResultGone("This result is no longer kept on the server.")
        made = self.results.get(made_id)
        assert made is not None  # the newest is always kept
        return made

    def other(self, result_id: str) -> str | None:
        """The id of the other network's result for the same photo; None where there is no other network."""
        if self.baseline is None:
            return None
        return result_id.removesuffix(BASELINE) if result_id.endswith(BASELINE) else result_id + BASELINE

    def read(
        self,
        result: KeptResult,
        task: str,
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> Reading:
        """Reads a kept result for a task, by default at the photo's own size. The network does not run.

        None takes a threshold from the config. A semantic reading has no threshold, one of instances only the first.
        Raises ValueError for an unknown task and for thresholds outside 0..1, and Busy.
        """
        if task not in TASKS:
            raise ValueError(f"There is no task {task!r}; choose one of: {', '.join(TASKS)}.")
        config = result.config
        object_threshold = config.object_threshold if object_threshold is None else object_threshold
        overlap_threshold = config.overlap_threshold if overlap_threshold is None else overlap_threshold
        thresholds: dict[str, dict[str, Any]] = {
            "panoptic": {"object_threshold": object_threshold, "overlap_threshold": overlap_threshold},
            "instance": {"score_threshold": object_threshold},
            "semantic": {},
        }
        batch = result.batch(size or result.original_size)
        with self.gate.place(bytes_for(batch.original_sizes[0])):
            start = time.perf_counter()
            segmentation = READINGS[task](result.output, batch, config, **thresholds[task])[0]
            reading_ms = (time.perf_counter() - start) * 1000
        return Reading(segmentation, task, object_threshold, overlap_threshold, reading_ms)

    def choice(self, result: KeptResult, query: int, layer: int, head: int) -> Choice:
        """Why a head took its prototype. Raises ValueError for a query, layer or head that does not exist, and Busy."""
        check_index("layer", layer, len(result.layers))
        check_index("query", query, len(result.layers[layer].target))
        with self.gate.place():
            return result.layers[layer].choice(query, head)

    def baseline_choice(
        self, result_id: str, query: int, layer: int, head: int
    ) -> tuple[KeptLayer, Choice, int, float] | None:
        """The attention of the baseline's most similar query in the same layer and head.

        Returns the baseline's layer, the choice of that query, its index, and the IoU of the two masks. Returns None
        without a baseline, for results of the baseline itself, and where no mask of the baseline overlaps.
        """
        if self.baseline is None or result_id.endswith(BASELINE):
            return None
        result, other = self.result(result_id), self.result(result_id + BASELINE)
        with self.gate.place():
            matches, ious = match_queries(result.output, other.output, result.content_size)
        if ious[query] == 0:
            return None
        match, kept = int(matches[query]), other.layers[layer]
        return kept, kept.choice(match, head), match, float(ious[query])

    def _forward_of_exported(
        self, pixels: np.ndarray, content_size: tuple[int, int], by_baseline: bool
    ) -> dict[str, Any]:
        network: Any = self.baseline if by_baseline else self.model
        start = time.perf_counter()
        output = network(pixels, trace=True)
        return kept(output, content_size) | {"stage_ms": {"network + trace": (time.perf_counter() - start) * 1000}}

    @torch.inference_mode()
    def _forward_on_arrays(
        self, pixels: np.ndarray, content_size: tuple[int, int], by_baseline: bool
    ) -> dict[str, Any]:
        # Arrays come and go, and the network is no argument: a lent GPU belongs to another process.
        network: Any = self.baseline if by_baseline else self.model
        device = next(network.parameters()).device
        try:
            return self._forward_on(device, network, pixels, content_size)
        except torch.OutOfMemoryError:  # of a GPU
            _log.warning("The GPU has too little memory for a photo; it runs on the CPU.")
        torch.cuda.empty_cache()
        try:
            passed = self._forward_on(torch.device("cpu"), network.cpu(), pixels, content_size)
        finally:
            network.to(device)
        return passed | {"notice": "The GPU had too little memory for this photo, so the CPU segmented it."}

    def _forward_on(
        self, device: torch.device, network: pem.PEM, pixels: np.ndarray, content_size: tuple[int, int]
    ) -> dict[str, Any]:
        """One pass on this device, as the fields of a KeptResult."""
        tensor = torch.from_numpy(pixels).to(device)
        output: PEMOutput | None = None

        def run(stage_done: Callable[[], None]) -> None:
            nonlocal output
            output = network(tensor, trace=True, stage_done=stage_done)

        with mixed_precision(device):
            times_ms = measure_ms(run, device)
        assert output is not None
        stage_ms = dict(zip(("backbone", "pixel decoder", "decoder + trace"), times_ms))
        return kept(output, content_size) | {"stage_ms": stage_ms}


def kept(output: PEMOutput, content_size: tuple[int, int]) -> dict[str, Any]:
    """What a KeptResult keeps of a traced output."""
    assert output.trace is not None
    return {
        "output": KeptOutput.of(output),
        "evolution": evolution(output, content_size),
        "layers": tuple(KeptLayer.of(layer) for layer in output.trace),
    }


def size_of(photo: np.ndarray | Path) -> tuple[int, int]:
    """(height, width); a file is not decoded for it. Raises ImageError."""
    if isinstance(photo, np.ndarray):
        return photo.shape[0], photo.shape[1]
    with open_photo(photo) as image:
        return image.height, image.width


def _shown_size(original_size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, MAX_SHOWN_PX / max(original_size))
    height, width = (max(1, round(side * scale)) for side in original_size)
    return height, width
