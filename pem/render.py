"""Segmentation -> what people look at: the painted photo and its legend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pem.categories import Color
from pem.names import write_names
from pem.outputs import Segmentation
from pem.packed import run_lengths
from pem.photos import Photo, to_array

ROWS_AT_ONCE = 32  # of a photo: what is made of them on the way to the result stays in the cache


def render(
    image: Photo, segmentation: Segmentation, opacity: float = 0.5, outlines: bool = True, names: bool = False
) -> np.ndarray:
    """The photo, read as ``pem.predict`` reads it, with its segments painted over it: uint8 RGB [H0, W0, 3].

    ``opacity`` 0 leaves the photo as it is, 1 hides it under flat colours. White ``outlines`` part the segments; void
    stays unpainted. ``names`` are written where there is room for them. Raises ValueError for an opacity outside 0..1
    and a photo of another size than the segmentation.

    >>> segmentation = pem.predict(model, "photo.jpg")
    >>> pem.render("photo.jpg", segmentation, opacity=0.5, names=True).shape
    (480, 640, 3)
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; it must lie between 0 and 1.")
    pixels, ids = to_array(image), segmentation.ids
    # An array belongs to the caller. What was read here may be painted over.
    painted = np.empty_like(pixels) if pixels is image else pixels
    if pixels.shape[:2] != ids.shape:
        raise ValueError(f"The segmentation belongs to an image of {list(ids.shape)}, not {list(pixels.shape[:2])}.")
    # An id without a segment is void: somebody may have filtered the segments.
    colors = np.zeros((max(ids.max(), *(s.id for s in segmentation.segments), 0) + 1, 3), np.uint8)
    is_void = np.ones(len(colors), bool)
    for segment in segmentation.segments:
        colors[segment.id] = np.multiply(segment.color, opacity)
        is_void[segment.id] = False
    for top in range(0, len(ids), ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        # Most neighbours share their segment, so colours are looked up once per run of equal ids.
        flat = ids[rows].ravel()
        starts, lengths = run_lengths(flat)
        run_ids = flat[starts]
        faded = np.multiply(pixels[rows], round(256 * (1 - opacity)), dtype=np.uint16)
        faded += 128
        faded >>= 8
        faded += np.repeat(colors[run_ids], lengths, axis=0).reshape(faded.shape)
        np.copyto(faded.reshape(-1), pixels[rows].reshape(-1), where=np.repeat(is_void[run_ids], 3 * lengths))
        painted[rows] = faded

    if outlines:
        strength = min(1.0, 1.6 * opacity)  # lines stay visible at opacities where areas hardly are
        for top in range(0, len(ids), ROWS_AT_ONCE):
            first = max(top - 1, 0)  # the lines also depend on the row above and the row below
            marks = _outlines(ids[first : top + ROWS_AT_ONCE + 1], two_pixels=min(ids.shape) > 600)
            lines = np.flatnonzero(marks[top - first :][:ROWS_AT_ONCE])
            by_pixel = painted[top : top + ROWS_AT_ONCE].reshape(-1, 3)
            by_pixel[lines] = by_pixel[lines] * (1 - strength) + 255 * strength
    return write_names(painted, segmentation) if names else painted


def _outlines(ids: np.ndarray, two_pixels: bool) -> np.ndarray:
    """Where a line is drawn, bool [rows, cols]: along the upper and left edges of segments, inside; with ``two_pixels``
    also outside."""
    outlines = np.zeros(ids.shape, bool)
    for here, before, mark, other in (
        (ids[1:], ids[:-1], outlines[1:], outlines[:-1]),
        (ids[:, 1:], ids[:, :-1], outlines[:, 1:], outlines[:, :-1]),
    ):
        edge = here != before
        mark |= edge
        if two_pixels:
            other |= edge
    return outlines


@dataclass(frozen=True)
class LegendRow:
    """One segment, in the words of a legend."""

    label: str
    color: Color
    score: float
    area_fraction: float  # of the whole image


def legend(segmentation: Segmentation) -> list[LegendRow]:
    """One row per segment, the largest first."""
    segments = sorted(segmentation.segments, key=lambda segment: -segment.area_px)
    return [
        LegendRow(segment.label, segment.color, segment.score, segment.area_px / segmentation.ids.size)
        for segment in segments
    ]
