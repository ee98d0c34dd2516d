"""The room behind the selected query: its prototypes, why they were chosen, and how its mask grew."""

from __future__ import annotations

import base64
from typing import Any

import gradio as gr
import numpy as np

from ui.engine import Engine


def choice_payload(engine: Engine, result_id: str, query: int, layer: int, head: int) -> dict[str, Any]:
    """Why one head of one query took its prototype, as JSON; the maps are base64 of one byte per token.

    Raises ValueError for a query, layer or head that does not exist.
    """
    result = engine.result(result_id)
    choice, kept = engine.choice(result, query, layer, head), result.layers[layer]
    low, high = float(choice.scores.min()), float(choice.scores.max())
    max_weight = float(choice.weights.max())
    return {
        "query": query,
        "layer": layer,
        "head": head,
        "kind": "similarity" if result.config.attention == "prototype" else "logit",
        "rows": kept.grid_size[0],
        "cols": kept.grid_size[1],
        "channels": kept.key.shape[1],
        "low": low,
        "high": high,
        "scores": _as_bytes((choice.scores - low) / ((high - low) or 1)),  # 0..255 from low to high
        "banned": base64.b64encode(choice.banned.astype(np.uint8)).decode(),
        "weights": _as_bytes(choice.weights / max_weight),  # 0..255 from 0 to max_weight
        "max_weight": max_weight,
        "tokens_for_half": choice.tokens_for_half,
        "tokens": len(choice.scores),
        "allowed": int((~choice.banned).sum()),
        "empty": choice.empty,
        # The network's own, where `choice` knows only the half floats that were kept of what it compared.
        "index": int(kept.prototype_index[head, query]),
        "similarity": float(kept.similarity[head, query]),
        "twin": _twin_payload(engine, result_id, query, layer, head),
    }


def _twin_payload(engine: Engine, result_id: str, query: int, layer: int, head: int) -> dict[str, Any] | None:
    try:
        found = engine.twin_choice(result_id, query, layer, head)
    except gr.Error:  # a GPU that is lent call by call may be refused; the network's own choice is known all the same
        found = None
    if found is None:
        return None
    kept, choice, twin_query, iou = found
    rows, cols = kept.grid_size
    max_weight = float(choice.weights.max())
    return {
        "query": twin_query,
        "iou": round(iou, 4),
        "rows": rows,
        "cols": cols,
        "weights": _as_bytes(choice.weights / max_weight),
        "max_weight": max_weight,
        "tokens_for_half": choice.tokens_for_half,
    }


def _as_bytes(fractions: np.ndarray) -> str:
    return base64.b64encode((fractions * 255).round().astype(np.uint8)).decode()
