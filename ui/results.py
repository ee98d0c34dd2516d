"""What the page remembers of a photo, so that another reading of it does not run the network again."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pem.outputs import Batch, PEMOutput


@dataclass(frozen=True)
class KeptResult:
    """The network's output for one photo, small enough to keep: about 2 MiB of tensors beside the photo itself."""

    image: np.ndarray  # uint8 [H0, W0, 3]
    pred_logits: Tensor  # float16 [1, Q, K+1]
    pred_masks: Tensor  # float16 [1, Q, H/4, W/4]
    batch: Batch  # the geometry alone; its pixels take no memory
    network_ms: float

    @property
    def output(self) -> PEMOutput:
        """The kept masks as an output: embeddings that are unit vectors, times features that are the masks."""
        queries = self.pred_masks.shape[1]
        return PEMOutput(
            pred_logits=self.pred_logits.float(),
            mask_embed=torch.eye(queries)[None],
            mask_features=self.pred_masks.float(),
        )

    @property
    def num_bytes(self) -> int:
        return self.image.nbytes + self.pred_logits.nbytes + self.pred_masks.nbytes


class ResultStore:
    """The most recently used results that fit into ``budget_bytes``, and always the newest one; safe across threads."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._results: OrderedDict[str, KeptResult] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, result: KeptResult) -> str:
        """Keeps the result and returns its id, which nobody can guess."""
        result_id = secrets.token_urlsafe(12)
        with self._lock:
            self._results[result_id] = result
            total = sum(kept.num_bytes for kept in self._results.values())
            while total > self.budget_bytes and len(self._results) > 1:
                _, oldest = self._results.popitem(last=False)
                total -= oldest.num_bytes
        return result_id

    def get(self, result_id: str) -> KeptResult | None:
        """The result of that id, or None where it had to make room for newer ones."""
        with self._lock:
            if result_id in self._results:
                self._results.move_to_end(result_id)
            return self._results.get(result_id)
