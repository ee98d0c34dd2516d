"""What the page shows of the selected query: its prototypes, why they were chosen, and how its mask grew."""

from __future__ import annotations

import base64
from typing import Any

import gradio as gr
import numpy as np

from pem.explain import Choice
from ui.engine import Engine
from ui.results import KeptLayer


def choice_payload(engine: Engine, result_id: str, query: int, layer: int, head: int) -> dict[str, Any]:
    """Why one head of one query took its prototype, as JSON; the maps are base64 of one byte per token.

    ``baseline`` is what the masked baseline attends to in the same layer and head, or None where there is none.
    Raises ValueError for a query, layer or head that does not exist.
    """
    result = engine.result(result_id)
    choice, kept = engine.choice(result, query, layer, head), result.layers[layer]
    low, high = float(choice.scores.min()), float(choice.scores.max())
    return {
        "query": query,
        "layer": layer,
        "head": head,
        "kind": "similarity" if result.config.attention == "prototype" else "logit",
        "channels": kept.key.shape[1],
        "low": low,
        "high": high,
        "scores": _as_bytes((choice.scores - low) / ((high - low) or 1)),  # 0..255 from low to high
        "banned": base64.b64encode(choice.banned.astype(np.uint8)).decode(),
        "tokens": len(choice.scores),
        "allowed": int((~choice.banned).sum()),
        "empty": choice.empty,
        # The network's own numbers; `choice` was computed from the half floats that were kept.
        "index": int(kept.prototype_index[head, query]),
        "similarity": float(kept.similarity[head, query]),
        "baseline": _baseline_payload(engine, result_id, query, layer, head),
        **_weights_payload(kept, choice),
    }


def _baseline_payload(engine: Engine, result_id: str, query: int, layer: int, head: int) -> dict[str, Any] | None:
    try:
        found = engine.baseline_choice(result_id, query, layer, head)
    except gr.Error:  # a GPU that is lent call by call may be refused; the network's own choice is known all the same
        found = None
    if found is None:
        return None
    kept, choice, its_query, iou = found
    return {"query": its_query, "iou": round(iou, 4), **_weights_payload(kept, choice)}


def _weights_payload(kept: KeptLayer, choice: Choice) -> dict[str, Any]:
    max_weight = float(choice.weights.max())
    return {
        "rows": kept.grid_size[0],
        "cols": kept.grid_size[1],
        "weights": _as_bytes(choice.weights / max_weight),  # 0..255 from 0 to max_weight
        "max_weight": max_weight,
        "tokens_for_half": choice.tokens_for_half,
    }


def _as_bytes(fractions: np.ndarray) -> str:
    return base64.b64encode((fractions * 255).round().astype(np.uint8)).decode()
