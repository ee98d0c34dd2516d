"""What the browser gets of a photo: at most a megabyte. The viewer draws everything from it by itself.

All indices start at 0. Places are fractions of the photo's width and height.
"""

from __future__ import annotations

import base64
import math
import time
from typing import Any

import numpy as np
from PIL import Image

from pem.categories import Color, categories_for, has_background
from pem.coco import id_map_png
from pem.config import PEMConfig
from pem.explain import cell_centres
from pem.outputs import Segment
from pem.tiles import MASK_STRIDE
from ui.engine import Engine, Reading
from ui.gallery import explain_outcome
from ui.results import KeptResult, encode

# Together with the readings and numbers this stays below a megabyte; base64 adds a third.
MAX_PHOTO_BYTES = 420_000
MAX_SHEETS_BYTES = 240_000


def result_payload(engine: Engine, result_id: str) -> dict[str, Any]:
    """Photo, prototypes, evolution and times of a kept result; its readings come from ``reading_payload``."""
    result = engine.result(result_id)
    start = time.perf_counter()
    height, width = result.shown_size
    rows, cols = result.evolution.masks.shape[2:]
    payload = {
        "id": result_id,
        "other_id": engine.other(result_id),  # the same photo by the network with the other attention, or null
        "name": result.name,
        "stem": result.stem,
        "photo": _photo(result),
        "height": height,
        "width": width,
        "original_size": list(result.original_size),
        "content_size": list(result.content_size),
        "model": _model(result.config),
        "layers": [
            {
                "stride": layer.stride,
                "rows": layer.grid_size[0],
                "cols": layer.grid_size[1],
                "y": _rounded(cell_centres(layer.grid_size[0], layer.stride, result.content_size[0])),
                "x": _rounded(cell_centres(layer.grid_size[1], layer.stride, result.content_size[1])),
            }
            for layer in result.layers
        ],
        # [layer][query][head]
        "prototype_index": [layer.prototype_index.T.tolist() for layer in result.layers],
        "similarity": [_rounded(layer.similarity.T, 3) for layer in result.layers],
        # [layer][query]: 0 means that this query had no foreground here, so its prototypes mean nothing
        "allowed_fraction": [_rounded(layer.allowed_fraction, 6) for layer in result.layers],
        # [step][query]
        "steps": {
            "category_id": result.evolution.category_id.tolist(),
            "score": _rounded(result.evolution.score),
            "no_object_score": _rounded(result.evolution.no_object_score),
            "area_fraction": _rounded(result.evolution.area_fraction),
            "final_iou": _rounded(result.evolution.final_iou, 3),
        },
        "masks": {
            "sheets": _mask_sheets(result.evolution.masks),  # one per step
            "rows": rows,
            "cols": cols,
            "per_row": _per_row(result.evolution.masks.shape[1]),  # query q is at column q % per_row, row q // per_row
            # How much of the photo's height and width a mask spans: the last cells may reach into the padding.
            "extent": [-(-side // MASK_STRIDE) * MASK_STRIDE / side for side in result.content_size],
        },
    }
    stage_ms = {**result.stage_ms, "drawing": (time.perf_counter() - start) * 1000}
    payload["stage_ms"] = {stage: round(ms, 1) for stage, ms in stage_ms.items()}
    return payload


def reading_payload(reading: Reading) -> dict[str, Any]:
    """One reading of a kept result, made at the size that the viewer shows."""
    start = time.perf_counter()
    ids = reading.segmentation.ids
    payload = {
        "task": reading.task,
        "object_threshold": reading.object_threshold,
        "overlap_threshold": reading.overlap_threshold,
        # It has no colour profile, which would change its values.
        "ids": data_uri(encode(id_map_png(reading.segmentation), "png"), "png"),
        "unassigned_fraction": round(float(np.mean(ids == 0)), 5),
        "segments": [
            segment_json(segment) | {"area_fraction": round(segment.area_px / ids.size, 5)}
            for segment in reading.segmentation.segments
        ],
        "outcomes": [
            {
                "query": outcome.query,
                "category": outcome.label,
                "category_id": outcome.category_id,
                "score": round(outcome.score, 4),
                "fate": outcome.fate,
                "reason": explain_outcome(outcome, reading),
            }
            for outcome in reading.segmentation.outcomes
        ],
        "reading_ms": round(reading.reading_ms, 1),
    }
    payload["drawing_ms"] = round((time.perf_counter() - start) * 1000, 1)
    return payload


def segment_json(segment: Segment) -> dict[str, Any]:
    """A segment without its area: the viewer adds it as a fraction, the API in pixels."""
    return {
        "id": segment.id,
        "category": segment.label,
        "category_id": segment.category_id,
        "is_thing": segment.is_thing,
        "score": round(segment.score, 4),
        "queries": list(segment.queries),
        "color": _hex(segment.color),
    }


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def data_uri(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _photo(result: KeptResult) -> str:
    height, width = result.shown_size
    photo = result.photo
    photo.draft("RGB", (width, height))  # decodes a large photo at a fraction of its size, which is enough
    shown = photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2)
    return _jpegs([shown], (90, 80, 65, 45, 25), MAX_PHOTO_BYTES)[0]


def _model(config: PEMConfig) -> dict[str, Any]:
    return {
        "attention": config.attention,
        "num_queries": config.num_queries,
        "num_heads": config.num_heads,
        "overlap_threshold": config.overlap_threshold,
        "has_background": has_background(config),
        "categories": [{"name": c.name, "color": _hex(c.color)} for c in categories_for(config)],
    }


def _per_row(num_queries: int) -> int:
    return math.ceil(math.sqrt(num_queries))


def _mask_sheets(masks: np.ndarray) -> list[str]:
    """For each step, the masks [L+1, Q, rows, cols] of all queries as tiles of one grey picture."""
    steps, num_queries, rows, cols = masks.shape
    per_row = _per_row(num_queries)
    tiles = np.zeros((steps, per_row * per_row, rows, cols), np.uint8)
    tiles[:, :num_queries] = masks
    sheets = tiles.reshape(steps, per_row, per_row, rows, cols).swapaxes(2, 3)
    images = [Image.fromarray(sheet) for sheet in sheets.reshape(steps, per_row * rows, per_row * cols)]
    # WebP is no smaller at this quality, and takes twenty times as long.
    return _jpegs(images, (50, 30, 15, 5), MAX_SHEETS_BYTES)


def _jpegs(images: list[Image.Image], qualities: tuple[int, ...], max_bytes: int) -> list[str]:
    """JPEGs of the first quality at which all together have at most so many bytes, or else of the last one."""
    for quality in qualities:
        data = [encode(image, "jpeg", quality=quality) for image in images]
        if sum(map(len, data)) <= max_bytes:
            break
    return [data_uri(jpeg, "jpeg") for jpeg in data]


def _rounded(values: np.ndarray, digits: int = 4) -> list:
    return np.round(values.astype(np.float64), digits).tolist()
