"""From photos to segmentations in one call."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, overload

import numpy as np
import torch
from PIL import Image, ImageFile

from pem.layers import mixed_precision
from pem.model import PEM
from pem.outputs import Batch, PEMOutput, Segmentation
from pem.photos import ImageError, Photo, open_photo, orientation, to_array
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
    batch would change each other's results. So that many large photos need little more memory than one, files are
    decoded one after the other, and each result is a ``PackedSegmentation``, whose arrays are read-only.

    A float32 model runs in mixed precision on a GPU, and on a CPU in whatever precision ``torch.autocast`` around this
    call asks for; a float64 model runs in float64.

    Raises ValueError for an unknown task and for a model in training mode or half precision, and ImageError for a file
    that is no usable photo; of a list it names the photo.
    """
    if model.training:
        raise ValueError("The model is in training mode; call model.eval() first.")
    if task not in READINGS:
        raise ValueError(f"There is no task {task!r}; choose one of: {', '.join(READINGS)}.")
    parameter = next(model.parameters())
    if not isinstance(image, list):
        batch = preprocess([image], model.config, parameter.device)
        return READINGS[task](_run(model, batch), batch, model.config, **thresholds)[0]

    results: dict[int, Segmentation] = {}
    for batches in _in_batches(image, model):
        output = _run(model, Batch(torch.cat([batch.pixels for batch in batches.values()]), (), ()))
        for number, (index, batch) in enumerate(batches.items()):
            (found,) = READINGS[task](_of_one_image(output, number), batch, model.config, **thresholds)
            results[index] = PackedSegmentation(found.ids, found.segments, found.masks, found.outcomes)
    return [results[index] for index in range(len(image))]


def _run(model: PEM, batch: Batch) -> PEMOutput:
    parameter = next(model.parameters())
    with mixed_precision(parameter.device):
        return model(batch.pixels.to(parameter.dtype))


def _of_one_image(output: PEMOutput, number: int) -> PEMOutput:
    one = slice(number, number + 1)
    return PEMOutput(output.pred_logits[one], output.mask_embed[one], output.mask_features[one])


# --------------------------------------------------------------------------------------------------- lists of photos
# 300 photos of 12 megapixels, decoded, and their results would fill 25 GB. So photos are opened twice, first for their
# size alone, and of each remain only what the network wants of it and, in the end, its result as run lengths.


class _RunLengths:
    """An attribute that keeps an array as runs of equal values, a hundredth of the size of an id map."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_runs_of_{name}"

    def __get__(self, instance: Segmentation | None, owner: type) -> Any:
        if instance is None:
            return self
        runs = vars(instance)[self.name]
        if runs is None:
            return None
        shape, values, lengths = runs
        array = np.repeat(values, lengths).reshape(shape)
        array.flags.writeable = False  # it is not kept, so what is written into it would be lost
        return array

    def __set__(self, instance: Segmentation, array: np.ndarray | None) -> None:
        runs = None
        if array is not None:
            flat = array.ravel()
            is_start = np.ones(flat.size, bool)
            is_start[1:] = flat[1:] != flat[:-1]
            starts = is_start.nonzero()[0]
            runs = array.shape, flat[starts], np.diff(starts, append=flat.size)
        vars(instance)[self.name] = runs


class PackedSegmentation(Segmentation):
    """A Segmentation that keeps its arrays as run lengths: each time they are read they are made anew, read-only."""

    ids: np.ndarray = _RunLengths()  # type: ignore[assignment]
    masks: np.ndarray | None = _RunLengths()  # type: ignore[assignment]


def _in_batches(photos: list[Photo], model: PEM) -> Iterator[dict[int, Batch]]:
    """Batches of one photo each, by their place in the list; what comes together is of one size."""
    sizes = []
    for index, photo in enumerate(photos):
        with _naming(photo, index):
            sizes.append(_upright_size(photo))
    together: dict[int, Batch] = {}
    for index in sorted(range(len(photos)), key=sizes.__getitem__):
        with _naming(photos[index], index):
            batch = preprocess([_opened_anew(photos[index])], model.config, next(model.parameters()).device)
        # Of a file that somebody else has opened, decoding may show another orientation.
        others = [other.original_sizes for other in together.values()]
        if others and (len(others) == MAX_BATCH or others[0] != batch.original_sizes):
            yield together
            together = {}
        together[index] = batch
    if together:
        yield together


@contextlib.contextmanager
def _naming(photo: Photo, index: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        name = os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else f"photo {index} (counted from 0)"
        raise (ImageError if isinstance(error, ImageError) else ValueError)(f"{name}: {error}") from error


def _upright_size(photo: Photo) -> tuple[int, ...]:
    """(height, width), of a file by its header."""
    if isinstance(photo, (str, os.PathLike)):
        photo = open_photo(photo)
    if isinstance(photo, Image.Image):
        return photo.size if orientation(photo) >= 5 else photo.size[::-1]
    return to_array(photo).shape[:2]


def _opened_anew(photo: Photo) -> Photo:
    """Decoded, the pixels of a PIL file would stay in the caller's image."""
    if not isinstance(photo, ImageFile.ImageFile):
        return photo
    is_undecoded = photo.tile or getattr(photo, "_im", None) is None  # WebP and AVIF get their tiles late
    if is_undecoded and photo.fp and photo.tell() == 0:
        position = photo.fp.tell()
        photo.fp.seek(0)
        with contextlib.suppress(Exception):
            anew = Image.open(io.BytesIO(photo.fp.read()))
            photo.fp.seek(position)
            if (anew.size, anew.mode) == (photo.size, photo.mode):  # else the caller has called draft
                return anew
        photo.fp.seek(position)
    return photo
