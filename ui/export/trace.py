"""The trace of a kept result as plain JSON and as arrays: which prototypes every query picked, and how it grew.

A *step* is one of the L+1 predictions: 0 is made before any decoder layer, step i after i of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pem.arrays import as_arrays
from pem.categories import categories_for
from pem.explain import cell_centres, check_index
from pem.postprocess import class_probs
from ui.results import KeptLayer, KeptResult


def trace_json(result: KeptResult, query: int | None = None) -> dict[str, Any]:
    """What happened to one query, or to all of them. All indices start at 0.

    - ``model``, ``trained``, ``attention``: the model's name, when its training ended (empty where that is not known),
      and "prototype" or "masked".
    - ``photo``: its ``name`` (empty unless it is an example), its ``file_name``, ``height`` and ``width`` in pixels.
    - ``content_size``, ``padded_size``: [height, width] of the network's input, without and with its padding.
    - ``layers``: of each decoder layer the ``stride`` and the grid of its tokens, ``rows`` and ``cols``.
    - ``queries``: per query
      - ``query``: its index;
      - ``layers``: per decoder layer ``allowed_fraction``, the share of tokens inside its previous mask;
        ``no_foreground``, whether there were none; and ``prototypes``, one per head, or none where there was no
        foreground: ``head``, ``token``, its ``row`` and ``col`` in the grid, ``x`` and ``y`` (the centre of its cell
        in pixels of the photo, from its left upper corner; beyond the photo lies the padding), and ``similarity``
        (with masked attention: the attention weight);
      - ``steps``: per step ``category_id``, ``category``, ``score``, ``no_object_score``, ``area_fraction`` (of the
        photo) and ``final_iou`` (with the query's mask of the last step).

    Raises ValueError for a query that does not exist.
    """
    num_queries = len(result.layers[0].target)
    if query is not None:
        check_index("query", query, num_queries)
    queries = range(num_queries) if query is None else [query]
    places = [_places(result, layer) for layer in result.layers]
    return {
        "model": result.config.name,
        "trained": result.config.trained,
        "attention": result.config.attention,
        "photo": {
            "name": result.name,
            "file_name": result.file_name,
            "height": result.original_size[0],
            "width": result.original_size[1],
        },
        "content_size": list(result.content_size),
        "padded_size": list(result.padded_size),
        "layers": [
            {"stride": layer.stride, "rows": layer.grid_size[0], "cols": layer.grid_size[1]} for layer in result.layers
        ],
        "queries": [
            {
                "query": q,
                "layers": [_layer_json(layer, at, q) for layer, at in zip(result.layers, places, strict=True)],
                "steps": _steps_json(result, q),
            }
            for q in queries
        ],
    }


def trace_arrays(result: KeptResult) -> dict[str, np.ndarray]:
    """The same for all queries as arrays. L layers, h heads, Q queries, K classes.

    - ``prototype_index`` int32, ``similarity``, ``prototype_x``, ``prototype_y`` float32 [L, h, Q]: x and y in pixels
      of the photo; these four mean nothing where ``allowed_fraction`` float32 [L, Q] is 0
    - ``strides`` [L], ``grid_sizes`` [L, 2]: (rows, cols) of each layer's tokens
    - ``category_id`` int64, ``score``, ``no_object_score``, ``area_fraction``, ``final_iou`` float32 [L+1, Q]
    - ``masks`` uint8 [L+1, Q, rows, cols]: mask probability * 255, over the photo
    - ``class_probs`` float32 [Q, K+1]: of the last step, no-object last; ``categories`` [K]: their names
    - ``original_size``, ``content_size``, ``padded_size`` [2]: (height, width) of the photo, and of the network's input
      without and with its padding
    """
    layers = result.layers
    places = [_places(result, layer) for layer in layers]
    return {
        "prototype_index": np.stack([layer.prototype_index for layer in layers]),
        "similarity": np.stack([layer.similarity for layer in layers]).astype(np.float32),
        "prototype_x": np.stack([at["x"] for at in places]).astype(np.float32),
        "prototype_y": np.stack([at["y"] for at in places]).astype(np.float32),
        "allowed_fraction": np.stack([layer.allowed_fraction for layer in layers]),
        "strides": np.array([layer.stride for layer in layers]),
        "grid_sizes": np.array([layer.grid_size for layer in layers]),
        **vars(result.evolution),
        "class_probs": class_probs(as_arrays(result.output).pred_logits[0]),
        "categories": np.array([category.name for category in categories_for(result.config)]),
        "original_size": np.array(result.original_size),
        "content_size": np.array(result.content_size),
        "padded_size": np.array(result.padded_size),
    }


def _places(result: KeptResult, layer: KeptLayer) -> dict[str, np.ndarray]:
    """Where the prototypes of a layer lie, each [h, Q]: row and col in its grid, x and y in pixels of the photo."""
    row, col = np.divmod(layer.prototype_index, layer.grid_size[1])
    y, x = (
        cell_centres(count, layer.stride, content_px) * original_px
        for count, content_px, original_px in zip(
            layer.grid_size, result.content_size, result.original_size, strict=True
        )
    )
    return {"row": row, "col": col, "x": x[col], "y": y[row]}


def _layer_json(layer: KeptLayer, at: dict[str, np.ndarray], query: int) -> dict[str, Any]:
    allowed_fraction = float(layer.allowed_fraction[query])
    heads = range(len(layer.prototype_index)) if allowed_fraction > 0 else ()
    return {
        "allowed_fraction": round(allowed_fraction, 5),
        "no_foreground": allowed_fraction == 0,
        "prototypes": [
            {
                "head": head,
                "token": int(layer.prototype_index[head, query]),
                "row": int(at["row"][head, query]),
                "col": int(at["col"][head, query]),
                "x": round(float(at["x"][head, query]), 2),
                "y": round(float(at["y"][head, query]), 2),
                "similarity": round(float(layer.similarity[head, query]), 4),
            }
            for head in heads
        ],
    }


def _steps_json(result: KeptResult, query: int) -> list[dict[str, Any]]:
    steps, categories = result.evolution, categories_for(result.config)
    return [
        {
            "category_id": int(category_id),
            "category": categories[category_id].name,
            "score": round(float(steps.score[i, query]), 4),
            "no_object_score": round(float(steps.no_object_score[i, query]), 4),
            "area_fraction": round(float(steps.area_fraction[i, query]), 5),
            "final_iou": round(float(steps.final_iou[i, query]), 4),
        }
        for i, category_id in enumerate(steps.category_id[:, query])
    ]
