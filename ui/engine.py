"""Runs the network once per photo, and reads what it kept of that as often as the visitor likes. Knows no widgets."""

from __future__ import annotations

import dataclasses
import filecmp
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import pem
from analysis.timing import measure_ms
from pem.explain import Choice, evolution, explain_choice, match_queries
from pem.layers import mixed_precision
from pem.outputs import PEMOutput, Segmentation
from pem.photos import open_photo, to_array
from pem.predict import READINGS
from pem.preprocess import resize, to_pixels
from pem.weights import DEFAULT_WEIGHTS
from ui.gate import Gate, bytes_for
from ui.results import KeptLayer, KeptOutput, KeptResult, ResultStore
from ui.storage import Storage

_log = logging.getLogger("pem")
TASKS = ("panoptic", "semantic", "instance")
# What the twin made of a photo has the same id, but for this at its end.
TWIN = "~masked"
TWINS_MAY_DIFFER = ("name", "trained", "training", "attention", "empty_mask")
# The viewer draws larger photos at this size, so that a reading and a redraw take no noticeable time.
MAX_SHOWN_PX = 1280


def is_bundled(name: str) -> bool:
    """Whether a model that is named so is the one that comes with this project, be it a copy of its file."""
    return name == "default" or (
        Path(name).is_file() and DEFAULT_WEIGHTS.is_file() and filecmp.cmp(name, DEFAULT_WEIGHTS, shallow=False)
    )


def load_twin(model: pem.PEM, name: str) -> pem.PEM | None:
    """The same network trained with masked attention, where its checkpoint NAME-masked.safetensors lies beside it."""
    path = DEFAULT_WEIGHTS if is_bundled(name) else Path(name)
    path = path.with_name(f"{path.stem}-masked.safetensors")
    if not path.exists():
        return None
    try:
        twin = pem.load_model(path, device="auto")
        ours, theirs = (vars(config) for config in (model.config, twin.config))
        unlike = [key for key in ours if key not in TWINS_MAY_DIFFER and ours[key] != theirs[key]]
        if twin.config.attention != "masked" or unlike:
            other = f"another {unlike[0]}" if unlike else "the same attention"
            raise ValueError(f"{path} has {other}; it must be this network trained with masked attention.")
    except (OSError, ValueError) as error:
        _log.warning("The page goes without a network to compare with: %s", error)
        return None
    return twin


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
    """One model and its kept results; ``budget_bytes`` of them are in memory, all in the ``storage`` if there is one.

    ``on_gpu`` wraps the forward pass where a GPU is lent call by call.
    The results of ``examples`` have the ids "example-NAME", and are made whenever they are asked for and not kept.
    ``twin`` is the same network trained with masked attention, for comparison. It runs on a photo when somebody asks
    for what it makes of it, by the id of the photo's result with TWIN at its end.
    """

    def __init__(
        self,
        model: pem.PEM,
        budget_bytes: int = 32 * 2**20,
        on_gpu: Callable[[Callable], Callable] = lambda function: function,
        examples: Sequence[Path] = (),
        twin: pem.PEM | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.model = model
        self.twin = twin
        self.examples = {f"example-{path.stem}": path for path in examples}
        self.results = ResultStore(budget_bytes, storage)
        self._forward = on_gpu(self._forward_on_cpu_tensors)
        self.gate = Gate()
        # The network runs on one photo at a time. What is asked of kept results goes on meanwhile.
        self.network_gate = Gate(places=1, max_waiting=16, in_order=True)
        self.num_runs = 0
        self.run_ms: Counter[str] = Counter()  # by stage

    def run(self, photo: np.ndarray | Path, name: str = "", result_id: str = "", file_name: str = "") -> str:
        """Photo to the id of its kept result; ``name`` is of examples, ``file_name`` of any file.

        The photo is uint8 [H0, W0, 3] or a file. Raises ImageError for one that is no photo, and Busy.
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
                jpeg=_encode_jpeg(image),
                original_size=image.shape[:2],
                shown_size=_shown_size(image.shape[:2]),
                resized=resized,
                **passed,
            )
        return self._keep(result, result_id)

    def _run_twin(self, result_id: str) -> str:
        """The twin on what PEM saw, to the last bit, which the photo that is kept as a JPEG is not."""
        assert self.twin is not None
        seen = self.result(result_id.removesuffix(TWIN))
        with self.network_gate.place(), self.gate.place():
            passed = self._forward(seen.pixels, seen.content_size, True)
        passed["stage_ms"] = seen.stage_ms | passed["stage_ms"]  # the photo was prepared once, for both
        return self._keep(dataclasses.replace(seen, config=self.twin.config, **passed), result_id)

    def _keep(self, result: KeptResult, result_id: str) -> str:
        self.num_runs += 1
        self.run_ms.update(result.stage_ms)
        with self.gate.place(result.num_bytes):
            return self.results.put(result, result_id)

    def result(self, result_id: str) -> KeptResult:
        """Raises ResultGone where it is no longer kept, and Busy."""
        result = self.results.get(result_id)
        if result is None:
            with self.network_gate.place():  # of several that ask for the same, one makes it and the others find it
                result = self.results.get(result_id) or self._make(result_id)
        return result

    def _make(self, result_id: str) -> KeptResult:
        """What can be made from the id alone: an example, or what the twin makes of a kept photo."""
        if result_id in self.examples:
            path = self.examples[result_id]
            made_id = self.run(path, path.stem, result_id, path.name)
        elif self.twin is not None and result_id.endswith(TWIN) and result_id.count(TWIN) == 1:
            made_id = self._run_twin(result_id)
        else:
            raise ResultGone("This result is no longer kept on the server.")
        made = self.results.get(made_id)
        assert made is not None  # the newest is always kept
        return made

    def other(self, result_id: str) -> str | None:
        """The id of what the other network makes of the same photo; None where there is no other network."""
        if self.twin is None:
            return None
        return result_id.removesuffix(TWIN) if result_id.endswith(TWIN) else result_id + TWIN

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
        """Why a head took its prototype. Raises ValueError for a query, layer or head that does not exist."""
        if not 0 <= layer < len(result.layers):
            raise ValueError(f"There is no layer {layer}; choose one from 0 to {len(result.layers) - 1}.")
        kept = result.layers[layer]
        if not 0 <= query < len(kept.target):
            raise ValueError(f"There is no query {query}; choose one from 0 to {len(kept.target) - 1}.")
        with self.gate.place():
            return explain_choice(kept.target[query], kept.key, kept.banned(query), head, len(kept.prototype_index))

    def twin_choice(
        self, result_id: str, query: int, layer: int, head: int
    ) -> tuple[KeptLayer, Choice, int, float] | None:
        """What the twin's query that says most nearly the same attends to in the same layer and head: the layer, that,
        its index, and the IoU of the masks. None without a twin, for what the twin itself made, and where no query of
        the twin draws anything there."""
        if self.twin is None or result_id.endswith(TWIN):
            return None
        result, twin = self.result(result_id), self.result(result_id + TWIN)
        with self.gate.place():
            matches, ious = match_queries(result.output, twin.output, result.content_size)
        if ious[query] == 0:
            return None
        match, kept = int(matches[query]), twin.layers[layer]
        choice = explain_choice(kept.target[match], kept.key, kept.banned(match), head, len(kept.similarity))
        return kept, choice, match, float(ious[query])

    def _network(self, by_twin: bool) -> pem.PEM:
        network = self.twin if by_twin else self.model
        assert network is not None
        return network

    @torch.inference_mode()
    def _forward_on_cpu_tensors(self, pixels: Tensor, content_size: tuple[int, int], by_twin: bool) -> dict[str, Any]:
        # CPU in, CPU out: a lent GPU lives in another process.
        network = self._network(by_twin)
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
        self, device: torch.device, network: pem.PEM, pixels: Tensor, content_size: tuple[int, int]
    ) -> dict[str, Any]:
        pixels = pixels.to(device)
        output: PEMOutput | None = None

        def run(stage_done: Callable[[], None]) -> None:
            nonlocal output
            output = network(pixels, trace=True, stage_done=stage_done)

        with mixed_precision(device):
            times_ms = measure_ms(run, device)
        assert output is not None
        return {
            "output": KeptOutput(output.pred_logits.half().cpu(), output.pred_masks.half().cpu()),
            "evolution": evolution(output, content_size),
            "layers": _keep_layers(output),
            "stage_ms": dict(zip(("backbone", "pixel decoder", "decoder + trace"), times_ms)),
        }


def size_of(photo: np.ndarray | Path) -> tuple[int, int]:
    """(height, width); of a file without decoding it. Raises ImageError."""
    if isinstance(photo, np.ndarray):
        return photo.shape[0], photo.shape[1]
    with open_photo(photo) as image:
        return image.height, image.width


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
