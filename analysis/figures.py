"""Pictures for the README: ``python -m analysis.figures --out assets/figures/overview.png``."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.patheffects
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt

import pem

EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"
SMALLEST_NAMED = 0.01  # share of the photo that a segment must cover to have its name written on it


def innermost_point(inside: np.ndarray) -> tuple[int, int]:
    """The (row, col) of a mask that is farthest from its edge: where a name is easiest to read."""
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(col)


def overview(model: pem.PEM, photos: list[Path]) -> Figure:
    """Each photo with its panoptic segments and their names, and below it the prototypes of its largest thing's query.

    A prototype is drawn at the centre of its cell, in the colour of its layer (dark is the first).
    """
    figure = Figure(figsize=(4 * len(photos), 5.8), layout="constrained")
    axes = figure.subplots(2, len(photos), squeeze=False)
    outline = [matplotlib.patheffects.withStroke(linewidth=2.5, foreground="black")]
    for column, path in enumerate(photos):
        image = np.asarray(pem.load_image(path))
        batch = pem.preprocess([image], model.config)
        with torch.inference_mode():
            output = model(batch.pixels, trace=True)
        reading = pem.panoptic(output, batch, model.config)[0]
        top, bottom = axes[:, column]
        top.imshow(pem.render(image, reading, opacity=0.55))
        for segment in reading.segments:
            if segment.area_px >= SMALLEST_NAMED * reading.ids.size:
                row, col = innermost_point(reading.ids == segment.id)
                top.text(col, row, segment.label, color="white", ha="center", va="center", path_effects=outline)

        bottom.imshow(image)
        largest = max(reading.segments, key=lambda s: (s.is_thing, s.area_px), default=None)
        if largest is not None and output.trace is not None:
            query = largest.queries[0]
            bottom.contour(reading.ids == largest.id, levels=[0.5], colors="white", linewidths=1.2)
            for number, layer in enumerate(output.trace):
                if layer.allowed_fraction[0, query] == 0:
                    continue  # no foreground, so no prototype
                index = layer.prototype_index[0, :, query].numpy()
                points = np.stack(np.divmod(index, layer.grid_size[1])) * layer.stride + layer.stride / 2
                scale = np.array(batch.original_sizes[0]) / np.array(batch.content_sizes[0])
                rows, cols = points * scale[:, None]
                color = matplotlib.colormaps["plasma"](number / (len(output.trace) - 1))
                bottom.scatter(cols, rows, s=36, color=[color], edgecolors="white", linewidths=0.8)
            bottom.set_title(f"where the query for “{largest.label}” looked", fontsize=10)
        for axis in (top, bottom):
            axis.set_xlim(-0.5, image.shape[1] - 0.5)
            axis.set_ylim(image.shape[0] - 0.5, -0.5)
            axis.set_axis_off()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description=__doc__)
    parser.add_argument("photos", nargs="*", type=Path, help="default: three of the examples")
    parser.add_argument("--model", default="default", help="what pem.load_model takes")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    photos = arguments.photos or [EXAMPLES / name for name in ("cat.jpg", "motorcycle.jpg", "palace.jpg")]
    overview(pem.load_model(arguments.model, device="cpu"), photos).savefig(arguments.out, dpi=100)


if __name__ == "__main__":
    main()
