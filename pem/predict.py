"""From photos to segmentations in one call."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image, ImageFile

from pem.arrays import Arrays
from pem.config import PEMConfig
from pem.outputs import Batch, PEMOutput, Segmentation
from pem.packed import PackedSegmentation
from pem.photos import ImageError, Photo, open_photo, orientation, to_array
from pem.postprocess import READINGS
from pem.preprocess import preprocess_arrays
from pem.run import run

if TYPE_CHECKING:
    from pem.run import AnyPEM

MAX_BATCH = 8  # so that a long list does not have to fit into memory as one batch


@overload
def predict(model: AnyPEM, image: Photo, task: str = "panoptic", **thresholds: Any) -> Segmentation: ...
@overload
def predict(model: AnyPEM, image: list[Photo], task: str = "panoptic", **thresholds: Any) -> list[Segmentation]: ...


def predict(
    model: AnyPEM, image: Photo | list[Photo], task: str = "panoptic", **thresholds: Any
) -> Segmentation | list[Segmentation]:
    """The segmentation of a photo (path, PIL image or uint8 RGB [H0, W0, 3]), or of each photo in a list, in order.

    ``task`` is "panoptic", "semantic" or "instance"; ``thresholds`` are those of ``pem.panoptic`` or ``pem.instances``.
    A list is run in batches of photos of equal size: PEM does not mask padding, so photos of different sizes in one
    batch would change each other's results. Many large photos need little more memory than one: files are decoded one
    after the other, and each result of a list is a ``PackedSegmentation``, whose arrays are read-only.

    A float32 model runs in mixed precision on a GPU, and on a CPU in whatever precision ``torch.autocast`` around this
    call asks for; a float64 model runs in float64.

    Raises ValueError for an unknown task and for a model in training mode or half precision, and ImageError for a file
    that is no usable photo; of a list it names the photo.

    >>> model = pem.load_model("default")
    >>> pem.predict(model, "photo.jpg").ids.shape  # (height, width) of the photo
    (480, 640)
    >>> len(pem.predict(model, ["photo.jpg", "photo.jpg"], task="instance", score_threshold=0.3))
    2
    """
    if task not in READINGS:
        raise ValueError(f"There is no task {task!r}; choose one of: {', '.join(READINGS)}.")
    read = READINGS[task]
    if not isinstance(image, list):
        batch = preprocess_arrays([image], model.config)
        return read(run(model, batch.pixels), batch, model.config, **thresholds)[0]

    results: dict[int, Segmentation] = {}
    for batches in _in_batches(image, model.config):
        output = run(model, np.concatenate([batch.pixels for batch in batches.values()]))
        for i, (place, batch) in enumerate(batches.items()):
            (segmentation,) = read(_only(output, i), batch, model.config, **thresholds)
            results[place] = PackedSegmentation(**vars(segmentation))
    return [results[place] for place in range(len(image))]


def _only(output: PEMOutput | Arrays, i: int) -> PEMOutput | Arrays:
    """The part of one image. Its masks are made later, and not kept: those of a batch would be large."""
    one = slice(i, i + 1)
    if isinstance(output, Arrays):
        return Arrays(output.pred_logits[one], output.pred_masks[one])
    return PEMOutput(output.pred_logits[one], output.mask_embed[one], output.mask_features[one])


# 300 decoded photos of 12 megapixels and their results would fill 25 GB. So photos are opened twice, first for their
# size alone. Each then leaves only what the network wants of it and, in the end, its packed result.


def _in_batches(photos: list[Photo], config: PEMConfig) -> Iterator[dict[int, Batch]]:
    """Batches of one photo each, by their place in the list; those that come together are of one size."""
    sizes = []
    for place, photo in enumerate(photos):
        with _naming(photo, place):
            sizes.append(_upright_size(photo))
    together: dict[int, Batch] = {}
    for place in sorted(range(len(photos)), key=sizes.__getitem__):
        with _naming(photos[place], place):
            batch = preprocess_arrays([_opened_anew(photos[place])], config)
        # The size may differ from the header's: decoding may show another orientation in a file opened elsewhere.
        of_one_size = all(other.original_sizes == batch.original_sizes for other in together.values())
        if len(together) == MAX_BATCH or not of_one_size:
            yield together
            together = {}
        together[place] = batch
    if together:
        yield together


@contextlib.contextmanager
def _naming(photo: Photo, place: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        name = os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else f"photo {place} (counted from 0)"
        raise (ImageError if isinstance(error, ImageError) else ValueError)(f"{name}: {error}") from error


def _upright_size(photo: Photo) -> tuple[int, ...]:
    """(height, width), of a file by its header."""
    if isinstance(photo, (str, os.PathLike)):
        photo = open_photo(photo)
    if isinstance(photo, Image.Image):
        return photo.size if orientation(photo) >= 5 else photo.size[::-1]
    return to_array(photo).shape[:2]


def _opened_anew(photo: Photo) -> Photo:
    """Opens an undecoded PIL file again, or its pixels would stay in the caller's image; returns any other photo."""
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
