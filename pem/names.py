"""The names of segments, written where each of them has most room."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from pem.outputs import Segmentation

# Places are looked for in an id map of at most this many pixels a side: a name needs no finer one.
SEARCHED_PX = 480
FONT_SHARE = 1 / 48  # of the long side of the image


def write_names(pixels: np.ndarray, segmentation: Segmentation) -> np.ndarray:
    """A copy of uint8 RGB [H0, W0, 3] with the name of every segment of ``segmentation`` that has room for it.

    The largest come first: a name that would cover another, is higher than its segment is thick or wider than the image
    is left out.
    """
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image, "RGBA")
    height_px = max(11, round(max(image.size) * FONT_SHARE))
    font = _font(height_px)
    margin = height_px / 2.5
    taken: list[tuple[float, float, float, float]] = []
    for segment in sorted(segmentation.segments, key=lambda segment: -segment.area_px):
        name = " ".join(segment.label.split())
        y, x, depth = deepest_place(segmentation.ids, segment.id)
        half = draw.textlength(name, font) / 2 + margin
        if not name or depth < 0.8 * height_px or 2 * half > image.width:
            continue
        x = min(max(x, half), image.width - half)
        box = (x - half, y - height_px / 2 - margin / 2, x + half, y + height_px / 2 + margin / 2)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=margin, fill=(0, 0, 0, 170))
        draw.text((x, y), name, fill=(255, 255, 255), font=font, anchor="mm")
    return np.array(image)  # which may be written to


def _font(height_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which matplotlib brings, has Latin, Greek and Cyrillic letters; Pillow's own only ASCII."""
    matplotlib = find_spec("matplotlib")  # without importing it
    if matplotlib is not None and matplotlib.origin is not None:
        path = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, height_px)
    return ImageFont.load_default(height_px)


def deepest_place(ids: np.ndarray, segment_id: int) -> tuple[float, float, float]:
    """(y, x, depth) in pixels: of the places that are nearly as deep inside a segment as can be, the one nearest to its
    middle. Depth is the distance to the next pixel of anything else, or out of the image; 0 where there is none."""
    step = -(-max(ids.shape) // SEARCHED_PX)
    inside = ids[::step, ::step] == segment_id
    found = ndimage.find_objects(inside.astype(np.uint8))
    if not found:
        return 0.0, 0.0, 0.0
    [(rows, cols)] = found
    depth = ndimage.distance_transform_edt(np.pad(inside[rows, cols], 1))[1:-1, 1:-1]
    ys, xs = np.nonzero(depth >= 0.9 * depth.max())
    middle_y, middle_x = ndimage.center_of_mass(depth > 0)
    best = np.argmin((ys - middle_y) ** 2 + (xs - middle_x) ** 2)
    y, x = ((first.start + at[best] + 0.5) * step for first, at in ((rows, ys), (cols, xs)))
    return float(y), float(x), float(depth.max() * step)
