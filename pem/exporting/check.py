"""Whether an exported network says what the model says that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pem.arrays import as_arrays
from pem.errors import WeightsError
from pem.load import EXAMPLES
from pem.model import PEM, run_on_arrays
from pem.outputs import PEMOutput, Segmentation
from pem.photos import Photo
from pem.postprocess import panoptic
from pem.preprocess import preprocess_arrays
from pem.runtimes import PREDICTION

TOLERANCE = 1e-4  # of logits, absolute and relative
ROUNDING = 1e-5  # of similarities and of pixels: what float32 may decide otherwise


@dataclass(frozen=True)
class Comparison:
    """An exported network beside the model in torch, over several photos."""

    runtime: str
    photos: int
    logits: float  # the largest difference of a class logit
    masks: float  # of a mask logit
    prototypes: float  # the share of prototypes that are the same
    pixels: float  # the share of pixels of the same class in a panoptic reading

    def __str__(self) -> str:
        return (
            f"{self.runtime}, {self.photos} photos: class logits within {self.logits:.1e}, mask logits within "
            f"{self.masks:.1e}; {self.prototypes:.3%} of the prototypes and the class of {self.pixels:.4%} of the "
            "pixels are the same"
        )


def example_photos() -> list[Photo]:
    """Those that come with the repository; of an installed package noise, coarse enough to look like objects."""
    if found := sorted(EXAMPLES.glob("*.jpg")):
        return list(found)
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size // 32, 20, 3), np.uint8).repeat(32, 0).repeat(32, 1) for size in (480, 640)]


def compare(
    plain: PEM, exported: Callable[..., Any], runtime: str, photos: Sequence[Photo], strict: bool
) -> Comparison:
    """``exported`` is an ExportedPEM with a trace, or is called like one. With ``strict``, raises WeightsError that
    names the output which differs by more than rounding explains."""
    rows = []
    for photo in photos:
        batch = preprocess_arrays([photo], plain.config)
        ours, theirs = run_on_arrays(plain, batch.pixels, trace=True), exported(batch.pixels, trace=True)
        assert isinstance(theirs, PEMOutput)
        row, excess = [], {}
        for name, x, y in zip(PREDICTION, as_arrays(ours), as_arrays(theirs), strict=True):
            row.append(float(np.abs(x - y).max()))
            excess[name] = bool((np.abs(x - y) > TOLERANCE * (1 + np.abs(x))).any())
        moved = []
        for i, (layer, other) in enumerate(zip(ours.trace or (), theirs.trace or (), strict=True), 1):
            moved.append(layer.prototype_index.cpu().numpy() != other.prototype_index)
            gap = np.abs(layer.similarity.cpu().numpy() - other.similarity)
            excess[f"layer_{i}_prototype_index"] = bool((gap[moved[-1]] > ROUNDING).any())
        row.append(1 - float(np.mean([m.mean() for m in moved])))
        reading, other_reading = (panoptic(output, batch, plain.config)[0] for output in (ours, theirs))
        row.append(float((classes(reading) == classes(other_reading)).mean()))
        excess["the panoptic reading"] = float((reading.ids != other_reading.ids).mean()) > ROUNDING
        if wrong := [name for name, is_too_much in excess.items() if is_too_much and strict]:
            raise WeightsError(f"{runtime} does not compute what torch does: {', '.join(wrong)} differ.")
        rows.append(row)
    logits, masks, prototypes, pixels = np.array(rows).T
    return Comparison(runtime, len(photos), logits.max(), masks.max(), prototypes.mean(), pixels.mean())


def classes(reading: Segmentation) -> np.ndarray:
    """The class of each pixel, -1 where nothing was recognised."""
    return np.array([-1, *(segment.category_id for segment in reading.segments)])[reading.ids]
