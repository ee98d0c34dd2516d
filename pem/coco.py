"""Segmentation -> the COCO panoptic format: an id map as a PNG, and a JSON that describes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pem.categories import categories_for
from pem.config import PEMConfig
from pem.outputs import Segmentation
from pem.packed import bounding_boxes

OVERLAP_NOTE = (
    "Instances may overlap, and a pixel of the PNG shows only the one with the best score: area and bbox are of what "
    "it shows, whole_area and whole_bbox of the whole instance."
)


def id_map_png(segmentation: Segmentation) -> np.ndarray:
    """The id map as COCO panoptic stores it in a PNG: uint8 RGB [H0, W0, 3], id = R + 256 G + 65536 B."""
    ids = segmentation.ids
    stored = np.empty((*ids.shape, 3), np.uint8)
    for channel in range(3):
        np.right_shift(ids, 8 * channel, out=stored[:, :, channel], casting="unsafe")  # it keeps the lower 8 bits
    return stored


def panoptic_json(
    segmentation: Segmentation, config: PEMConfig, image_file: str, id_map_file: str, image_id: int = 1
) -> dict[str, Any]:
    """One photo as a file of the COCO panoptic format, ready for ``json.dump``.

    ``image_file`` is the name of the photo and ``id_map_file`` that of the PNG of ``id_map_png``. To join several
    photos of one model in a file, join their ``images`` and ``annotations``; each photo then needs its own
    ``image_id``. Each segment also has its score and its queries. Its ``area`` and its ``bbox`` (left, top, width,
    height) are what the PNG shows, in pixels. Instances may overlap: ``whole_area`` and ``whole_bbox`` are those of the
    whole instance. One that the PNG shows no pixel of is left out, as the format demands; a note says so.
    """
    height, width = segmentation.ids.shape
    categories = categories_for(config)
    areas_px = np.zeros(int(segmentation.ids.max(initial=0)) + 1, np.int64)
    for row in segmentation.ids:  # bincount makes 8 bytes of every pixel
        areas_px += np.bincount(row, minlength=len(areas_px))
    boxes = bounding_boxes(segmentation.ids)
    annotation: dict[str, Any] = {"image_id": image_id, "file_name": _as_utf8(id_map_file), "segments_info": []}
    for segment in segmentation.segments:
        if areas_px[segment.id : segment.id + 1].sum() == 0:
            continue
        rows, cols = boxes[segment.id - 1]
        info = {
            "id": segment.id,
            "category_id": categories[segment.category_id].id,
            "area": int(areas_px[segment.id]),
            "bbox": [cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start],
            "iscrowd": 0,
            "score": round(segment.score, 4),
            "queries": list(segment.queries),
        }
        if segmentation.masks is not None:
            info |= {"whole_area": segment.area_px, "whole_bbox": list(segment.bbox)}
        annotation["segments_info"].append(info)
    if segmentation.masks is not None:
        num_hidden = len(segmentation.segments) - len(annotation["segments_info"])
        annotation["note"] = OVERLAP_NOTE + (f" Left out, because wholly covered: {num_hidden}." if num_hidden else "")
    return {
        "info": {
            "description": "Segmentation of photos by PEM Studio",
            "model": config.name,
            "trained": config.trained,  # when its training ended; empty where that is not known
            "attention": config.attention,
        },
        "images": [{"id": image_id, "file_name": _as_utf8(image_file), "width": width, "height": height}],
        "annotations": [annotation],
        "categories": [
            {
                "id": category.id,
                "name": category.name,
                "isthing": int(category.is_thing),
                "supercategory": "thing" if category.is_thing else "stuff",
                "color": list(category.color),
            }
            for category in categories
        ],
    }


def _as_utf8(name: str) -> str:
    """A file's name may be no valid text, and strict readers refuse a JSON file with such a name."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "replace").decode("utf-8")
