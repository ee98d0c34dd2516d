"""What the page keeps of a photo and of the network's output, so that another look at it does not run the network."""

from __future__ import annotations

import io
import logging
import pickle
import secrets
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pem.arrays import AnyPrediction, as_arrays, to_numpy
from pem.config import PEMConfig
from pem.explain import Choice, Evolution, explain_choice
from pem.outputs import Batch, LayerTrace
from pem.preprocess import padded_size, to_pixels
from ui.file_names import safe_stem
from ui.storage import Storage

_log = logging.getLogger("pem")


@dataclass(frozen=True)
class KeptLayer:
    """A LayerTrace of one image."""

    stride: int
    grid_size: tuple[int, int]
    prototype_index: np.ndarray  # int32 [h, Q]
    similarity: np.ndarray  # float16 [h, Q]
    allowed_fraction: np.ndarray  # float32 [Q]
    target: np.ndarray  # float16 [Q, D]
    key: np.ndarray  # float16 [N, D]
    banned_bits: np.ndarray  # uint8 [Q, ceil(N / 8)]: eight tokens to a byte

    @classmethod
    def of(cls, layer: LayerTrace) -> KeptLayer:
        """Keeps the layer of the first image of a batch."""
        return cls(
            stride=layer.stride,
            grid_size=layer.grid_size,
            prototype_index=to_numpy(layer.prototype_index[0]).astype(np.int32),
            similarity=to_numpy(layer.similarity[0]).astype(np.float16),
            allowed_fraction=to_numpy(layer.allowed_fraction[0]),
            target=to_numpy(layer.target[0]).astype(np.float16),
            key=to_numpy(layer.key[0]).astype(np.float16),
            banned_bits=np.packbits(to_numpy(layer.banned[0]), axis=1),
        )

    def banned(self, query: int) -> np.ndarray:
        """Whether each token lies outside the previous mask of this query, bool [N]."""
        return np.unpackbits(self.banned_bits[query], count=len(self.key)).astype(bool)

    def choice(self, query: int, head: int) -> Choice:
        """Why this head of this query took its prototype. Raises ValueError for a head that does not exist."""
        return explain_choice(self.target[query], self.key, self.banned(query), head, len(self.prototype_index))


class KeptOutput(NamedTuple):
    """The part of an output that the readings use."""

    pred_logits: np.ndarray  # float16 [1, Q, K+1]
    pred_masks: np.ndarray  # float16 [1, Q, H/4, W/4]

    @classmethod
    def of(cls, output: AnyPrediction) -> KeptOutput:
        with np.errstate(over="ignore"):  # readings know what to make of infinite logits
            return cls(*(x.astype(np.float16) for x in as_arrays(output)))


@dataclass(frozen=True)
class KeptResult:
    """One photo and the network's output for it: about 7 MiB for the bundled model."""

    name: str  # of an example photo; empty for the visitor's own
    file_name: str  # of either, without folders; empty where it is not known
    config: PEMConfig  # of the network
    jpeg: bytes  # the photo in its own size, for exports
    original_size: tuple[int, int]
    shown_size: tuple[int, int]  # what the viewer draws; never larger than the original
    resized: np.ndarray  # uint8 [H, W, 3]: the photo as the network saw it, before normalisation and padding
    output: KeptOutput
    evolution: Evolution
    layers: tuple[KeptLayer, ...]
    stage_ms: dict[str, float]  # in the order in which the stages ran
    notice: str = ""  # what the visitor should know about the run
    arrived: float = field(default_factory=lambda: monotonic())  # when the photo did

    @property
    def stem(self) -> str:
        """How the names of files that are made of it begin."""
        return self.name or safe_stem(self.file_name)

    @property
    def content_size(self) -> tuple[int, int]:
        """The (height, width) of the photo as the network saw it, without the padding."""
        return self.resized.shape[0], self.resized.shape[1]

    @property
    def padded_size(self) -> tuple[int, int]:
        """The (height, width) of the network's input."""
        return padded_size(self.content_size)

    @property
    def pixels(self) -> np.ndarray:
        """The network's input, float32 [1, 3, H, W]."""
        return to_pixels([self.resized], self.config)

    def batch(self, size: tuple[int, int]) -> Batch:
        """The geometry for a reading at this (height, width). It has no pixels, which readings do not use."""
        return Batch(None, (size,), (self.content_size,))

    @property
    def photo(self) -> Image.Image:
        """RGB, in its own size."""
        return Image.open(io.BytesIO(self.jpeg))

    @property
    def num_bytes(self) -> int:
        arrays = [self.resized, *self.output, self.evolution.masks]
        for layer in self.layers:
            arrays += [layer.target, layer.key, layer.banned_bits, layer.similarity, layer.prototype_index]
        return len(self.jpeg) + sum(array.nbytes for array in arrays)


class ResultStore:
    """Results by their ids, safe across threads.

    Memory holds the most recently used ones that fit into ``budget_bytes``, and always the newest one. With a
    ``storage`` all are also files, which are read again when somebody asks for them, as long as the storage keeps them.
    """

    def __init__(self, budget_bytes: int, storage: Storage | None = None) -> None:
        self.budget_bytes, self.storage = budget_bytes, storage
        self._in_memory: OrderedDict[str, KeptResult] = OrderedDict()
        self._files: dict[str, tuple[Path, float]] = {}  # and when the photo arrived
        self._lock = threading.Lock()

    def put(self, result: KeptResult, result_id: str = "") -> str:
        """Keeps the result and returns its id. Without a given id it gets one that nobody can guess."""
        result_id = result_id or secrets.token_urlsafe(12)
        file = self._write(result)
        with self._lock:
            old, _ = self._files.pop(result_id, (None, None))
            if file is not None:
                self._files[result_id] = file, result.arrived
            self._remember(result_id, result)
        if old is not None:
            old.unlink(missing_ok=True)
        return result_id

    def get(self, result_id: str) -> KeptResult | None:
        """The result of this id, or None if it had to make room for newer ones."""
        with self._lock:
            result = self._in_memory.get(result_id)
            file, _ = self._files.get(result_id, (None, None))
            if result is not None:
                self._in_memory.move_to_end(result_id)
        if result is None and file is not None:
            try:
                # The server wrote this file itself, into a folder that no other user can write to.
                result = pickle.loads(file.read_bytes())
            except OSError:  # it made room
                return None
            with self._lock:
                self._remember(result_id, result)
        return result

    def forget_older(self, keep_seconds: float) -> None:
        """Forgets photos that arrived longer ago, with everything that was made of them."""
        oldest = monotonic() - keep_seconds
        with self._lock:
            for result_id in [key for key, result in self._in_memory.items() if result.arrived < oldest]:
                del self._in_memory[result_id]
            for result_id in [key for key, (_, arrived) in self._files.items() if arrived < oldest]:
                self._files.pop(result_id)[0].unlink(missing_ok=True)

    def clear(self) -> None:
        """Forgets everything."""
        self.forget_older(-1)

    def _remember(self, result_id: str, result: KeptResult) -> None:
        self._in_memory[result_id] = result
        self._in_memory.move_to_end(result_id)
        total = sum(kept.num_bytes for kept in self._in_memory.values())
        while total > self.budget_bytes and len(self._in_memory) > 1:
            _, oldest = self._in_memory.popitem(last=False)
            total -= oldest.num_bytes

    def _write(self, result: KeptResult) -> Path | None:
        if self.storage is None:
            return None
        file = self.storage.results / secrets.token_urlsafe(16)
        try:
            self.storage.make_room(result.num_bytes)
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # a cleaner may have removed it
            file.write_bytes(pickle.dumps(result, protocol=5))
        except OSError as error:
            _log.warning("A result stays in memory only: %s", error)
            with suppress(OSError):
                file.unlink()
            return None
        return file


def encode(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    """Pixels as an image file of this kind, "jpeg" or "png", with the options of Pillow."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    # For PNG: twice as fast as usual, for 3 % more bytes.
    image.save(file, kind, compress_level=4, **options)
    return file.getvalue()
