"""The names of segments, written where each of them has most room."""

from __future__ import annotations

import unicodedata

import numpy as np
from edt import edt
from PIL import Image, ImageDraw

from pem.fonts import JOINERS, font_files_for, open_font
from pem.outputs import Segmentation

# To find a place for a name, an id map of at most this many pixels a side is enough.
SEARCHED_PX = 480
FONT_SHARE = 1 / 48  # of the long side of the image


def write_names(pixels: np.ndarray, segmentation: Segmentation) -> np.ndarray:
    """A copy of uint8 RGB [H0, W0, 3] with the name of every segment of ``segmentation`` that has room for it.

    The largest segments come first. A name is left out if it would cover another, does not fit into its segment's
    thickest part, or is wider than the image. So is a name if no font has all its letters; the log says so, once per
    name. The fonts are the file in the environment variable PEM_FONT, DejaVu Sans, and those of the system, in this
    order.

    Raises ValueError when PEM_FONT names no font.
    """
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image, "RGBA")
    height_px = max(11, round(max(image.size) * FONT_SHARE))
    margin = height_px / 2.5
    taken: list[tuple[float, float, float, float]] = []
    names = {segment.id: _plain_text(segment.label) for segment in segmentation.segments}
    font_files = font_files_for(names.values())
    for segment in sorted(segmentation.segments, key=lambda segment: -segment.area_px):
        name = names[segment.id]
        if name not in font_files:
            continue
        y, x, depth = deepest_place(segmentation.ids, segment.id)
        font = open_font(font_files[name], height_px)
        half = draw.textlength(name, font) / 2 + margin
        if depth < 0.8 * height_px or 2 * half > image.width:
            continue
        x = min(max(x, half), image.width - half)
        box = (x - half, y - height_px / 2 - margin / 2, x + half, y + height_px / 2 + margin / 2)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=margin, fill=(0, 0, 0, 170))
        draw.text((x, y), name, fill=(255, 255, 255), font=font, anchor="mm")
    return np.array(image)  # which may be written to


def _plain_text(label: str) -> str:
    """On one line, with letters and marks composed, and without what nobody sees: controls, directions, variants."""
    text = unicodedata.normalize("NFC", " ".join(label.split()))
    return "".join(
        c for c in text if c in JOINERS or not (unicodedata.category(c) in ("Cc", "Cf", "Cs") or c == "\ufe0f")
    )


def deepest_place(ids: np.ndarray, segment_id: int) -> tuple[float, float, float]:
    """Where a segment is thick, (y, x, depth) in pixels: nearly as deep inside it as possible, and near to its middle.

    Depth is the distance to the next pixel of anything else, or out of the image; 0 for a segment without pixels.
    """
    step = -(-max(ids.shape) // SEARCHED_PX)
    inside = ids[::step, ::step] == segment_id
    if not inside.any():
        return 0.0, 0.0, 0.0
    depth = edt(inside, black_border=True)
    ys, xs = np.nonzero(depth >= 0.9 * depth.max())
    middle_y, middle_x = np.argwhere(inside).mean(0)
    best = np.argmin((ys - middle_y) ** 2 + (xs - middle_x) ** 2)
    return float((ys[best] + 0.5) * step), float((xs[best] + 0.5) * step), float(depth.max() * step)
