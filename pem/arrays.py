"""What a network returned, as NumPy arrays. All that comes after the network works on them, and so needs no torch."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class AnyPrediction(Protocol):
    """What ``Arrays`` has, as tensors or as arrays; a PEMOutput, for example."""

    @property
    def pred_logits(self) -> Any: ...
    @property
    def pred_masks(self) -> Any: ...


class Arrays(NamedTuple):
    """A prediction in float32 or float64."""

    pred_logits: np.ndarray  # [B, Q, K+1], before softmax; the last class is no-object
    pred_masks: np.ndarray  # [B, Q, H/4, W/4], before the sigmoid


def as_arrays(prediction: AnyPrediction) -> Arrays:
    """A prediction that was made in torch, on any device, or by another runtime."""
    if isinstance(prediction.pred_logits, np.ndarray):
        kept = prediction.pred_logits, prediction.pred_masks
        return Arrays(*(x.astype(np.float32) if x.itemsize < 4 else x for x in kept))
    import torch

    from pem.devices import to_float, without_autocast

    # The masks are made now, without the autocast and the gradients that the caller may want from the network.
    with torch.no_grad(), without_autocast(prediction.pred_logits.device):
        return Arrays(*(to_numpy(to_float(x)) for x in (prediction.pred_logits, prediction.pred_masks)))


def to_numpy(x: Any) -> np.ndarray:
    """A tensor of any device, or an array, as an array."""
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()
