"""From photos to segmentations in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
import torch

from pem.layers import mixed_precision
from pem.model import PEM
from pem.outputs import Segmentation
from pem.photos import Photo, to_array
from pem.postprocess import instances, panoptic, semantic
from pem.preprocess import preprocess

READINGS: dict[str, Callable[..., list[Segmentation]]] = {
    "panoptic": panoptic,
    "semantic": semantic,
    "instance": instances,
}
MAX_BATCH = 8  # so that a long list does not have to fit into memory as one batch


@overload
def predict(model: PEM, image: Photo, task: str = "panoptic", **thresholds: Any) -> Segmentation: ...
@overload
def predict(model: PEM, image: list[Photo], task: str = "panoptic", **thresholds: Any) -> list[Segmentation]: ...


@torch.inference_mode()
def predict(
    model: PEM, image: Photo | list[Photo], task: str = "panoptic", **thresholds: Any
) -> Segmentation | list[Segmentation]:
    """The segmentation of a photo (path, PIL image or uint8 RGB [H0, W0, 3]), or of each photo in a list, in order.

    ``task`` is "panoptic", "semantic" or "instance"; ``thresholds`` are those of ``pem.panoptic`` or ``pem.instances``.
    A list is run in batches of photos of equal size: PEM does not mask padding, so photos of different sizes in one
    batch would change each other's results. A float32 model runs in mixed precision on a GPU, and on a CPU in whatever
    precision ``torch.autocast`` around this call asks for; a float64 model runs in float64.

    Raises ValueError for an unknown task and for a model in training mode or half precision, and ImageError for a file
    that is no usable photo.
    """
    if model.training:
        raise ValueError("The model is in training mode; call model.eval() first.")
    if task not in READINGS:
        raise ValueError(f"There is no task {task!r}; choose one of: {', '.join(READINGS)}.")
    if not isinstance(image, list):
        return _predict_batch(model, [to_array(image)], task, thresholds)[0]

    arrays = [to_array(photo) for photo in image]
    indices_of_size: dict[tuple[int, ...], list[int]] = {}
    for index, array in enumerate(arrays):
        indices_of_size.setdefault(array.shape, []).append(index)
    results: dict[int, Segmentation] = {}
    for indices in indices_of_size.values():
        for start in range(0, len(indices), MAX_BATCH):
            chosen = indices[start : start + MAX_BATCH]
            found = _predict_batch(model, [arrays[index] for index in chosen], task, thresholds)
            results.update(zip(chosen, found))
    return [results[index] for index in range(len(arrays))]


def _predict_batch(model: PEM, arrays: list[np.ndarray], task: str, thresholds: dict[str, Any]) -> list[Segmentation]:
    parameter = next(model.parameters())
    batch = preprocess(arrays, model.config, parameter.device)
    with mixed_precision(parameter.device):
        output = model(batch.pixels.to(parameter.dtype))
    return READINGS[task](output, batch, model.config, **thresholds)
