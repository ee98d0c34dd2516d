"""What the page remembers of a photo, so that another look at it does not run the network again."""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from analysis.prototypes import Evolution
from pem.config import PEMConfig
from pem.outputs import Batch
from ui.file_names import safe_stem


@dataclass(frozen=True)
class KeptLayer:
    """A LayerTrace of one image, in few bytes."""

    stride: int
    grid_size: tuple[int, int]
    prototype_index: np.ndarray  # int32 [h, Q]
    similarity: np.ndarray  # float16 [h, Q]
    allowed_fraction: np.ndarray  # float32 [Q]
    target: np.ndarray  # float16 [Q, D]
    key: np.ndarray  # float16 [N, D]
    banned_bits: np.ndarray  # uint8 [Q, ceil(N / 8)]: eight tokens to a byte

    def banned(self, query: int) -> np.ndarray:
        """Whether each token lies outside the previous mask of this query, bool [N]."""
        return np.unpackbits(self.banned_bits[query], count=len(self.key)).astype(bool)


class KeptOutput(NamedTuple):
    """All of an output that a reading looks at."""

    pred_logits: Tensor  # float16 [1, Q, K+1]
    pred_masks: Tensor  # float16 [1, Q, H/4, W/4]


@dataclass(frozen=True)
class KeptResult:
    """One photo and what the network said of it: about 8 MiB for the bundled model."""

    name: str  # of an example photo; empty for the visitor's own
    file_name: str  # of either, without folders; empty where it is not known
    config: PEMConfig  # of the network
    jpeg: bytes  # the photo in its own size, for exports
    original_size: tuple[int, int]
    shown_size: tuple[int, int]  # what the viewer draws; never larger than the original
    content_size: tuple[int, int]  # what the network saw, without the padding ...
    pixels: Tensor  # float32 [1, 3, H, W]: ... and all of it, padded
    output: KeptOutput
    evolution: Evolution
    layers: tuple[KeptLayer, ...]
    stage_ms: dict[str, float]  # in the order in which the stages ran
    arrived: float = field(default_factory=lambda: time.monotonic())  # when the photo did

    @property
    def stem(self) -> str:
        """What the names of files made of it begin with."""
        return self.name or safe_stem(self.file_name)

    def batch(self, size: tuple[int, int]) -> Batch:
        """What the network saw, with the geometry that leads a reading to this size."""
        return Batch(self.pixels, (size,), (self.content_size,))

    @property
    def photo(self) -> Image.Image:
        """RGB, in its own size."""
        return Image.open(io.BytesIO(self.jpeg))

    @property
    def num_bytes(self) -> int:
        arrays = [self.pixels, *self.output, self.evolution.masks]
        for layer in self.layers:
            arrays += [layer.target, layer.key, layer.banned_bits, layer.similarity, layer.prototype_index]
        return len(self.jpeg) + sum(array.nbytes for array in arrays)


class ResultStore:
    """The most recently used results that fit into ``budget_bytes``, and always the newest one; safe across threads."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._results: OrderedDict[str, KeptResult] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, result: KeptResult, result_id: str = "") -> str:
        """Keeps the result and returns its id; where none is given, one that nobody can guess."""
        result_id = result_id or secrets.token_urlsafe(12)
        with self._lock:
            self._results[result_id] = result
            self._results.move_to_end(result_id)
            total = sum(kept.num_bytes for kept in self._results.values())
            while total > self.budget_bytes and len(self._results) > 1:
                _, oldest = self._results.popitem(last=False)
                total -= oldest.num_bytes
        return result_id

    def forget_older(self, keep_seconds: float) -> None:
        """Forgets the photos that arrived longer ago, and what was made of them."""
        oldest = time.monotonic() - keep_seconds
        with self._lock:
            for result_id in [key for key, result in self._results.items() if result.arrived < oldest]:
                del self._results[result_id]

    def clear(self) -> None:
        with self._lock:
            self._results.clear()

    def get(self, result_id: str) -> KeptResult | None:
        """The result of that id, or None where it had to make room for newer ones."""
        with self._lock:
            if result_id in self._results:
                self._results.move_to_end(result_id)
            return self._results.get(result_id)
