"""What the page is sent about one choice."""

from __future__ import annotations

import base64
import json

import gradio as gr
import numpy as np
import pytest
from halves_model import SIMILARITY, HalvesBaseline, HalvesModel
from small_model import small_model

from ui.engine import Engine
from ui.prototypes import choice_payload
from ui.results import KeptResult


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(small_model(short_side_px=64, max_long_side_px=128, empty_mask="release"))


@pytest.fixture(scope="module")
def result_id(engine: Engine) -> str:
    return engine.run(np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8))


@pytest.fixture(scope="module")
def result(engine: Engine, result_id: str) -> KeptResult:
    return engine.result(result_id)


def as_array(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8)


def query_where(result, layer: int, is_wanted) -> int:
    return next(query for query in range(12) if is_wanted(result.layers[layer].banned(query)))


def test_the_maps_say_what_the_choice_says(engine: Engine, result: KeptResult, result_id: str) -> None:
    layer, head = 1, 2
    query = query_where(result, layer, lambda banned: banned.any() and not banned.all())
    choice = engine.choice(result, query, layer, head)
    sent = json.loads(json.dumps(choice_payload(engine, result_id, query, layer, head)))

    assert (sent["rows"], sent["cols"]) == result.layers[layer].grid_size
    assert sent["tokens"] == sent["rows"] * sent["cols"] and sent["channels"] == 32
    scores = sent["low"] + as_array(sent["scores"]) / 255 * (sent["high"] - sent["low"])
    assert np.abs(scores - choice.scores).max() <= (sent["high"] - sent["low"]) / 255
    assert as_array(sent["banned"]).astype(bool).tolist() == choice.banned.tolist()
    assert sent["allowed"] == (~choice.banned).sum() and not sent["empty"]
    weights = as_array(sent["weights"]) / 255 * sent["max_weight"]
    assert np.abs(weights - choice.weights).max() <= sent["max_weight"] / 255
    assert weights[choice.banned].max() == 0
    assert sent["kind"] == "similarity" and sent["baseline"] is None


def test_index_and_similarity_are_the_networks_own(engine: Engine, result: KeptResult, result_id: str) -> None:
    for layer, kept in enumerate(result.layers):
        for head in range(4):
            sent = choice_payload(engine, result_id, 3, layer, head)
            assert sent["index"] == kept.prototype_index[head, 3]
            assert sent["similarity"] == kept.similarity[head, 3]


def test_a_query_without_foreground_is_said_to_be_released(engine: Engine, result: KeptResult, result_id: str) -> None:
    layer = next(i for i, kept in enumerate(result.layers) if (kept.allowed_fraction == 0).any())
    query = query_where(result, layer, np.all)
    sent = choice_payload(engine, result_id, query, layer, 0)
    assert sent["empty"] and sent["allowed"] == 0
    assert as_array(sent["weights"]).min() > 0


@pytest.mark.parametrize(("query", "layer", "head"), [(12, 0, 0), (0, 6, 0), (0, 0, 4), (-1, 0, 0)])
def test_what_does_not_exist_is_refused(engine: Engine, result_id: str, query: int, layer: int, head: int) -> None:
    with pytest.raises(ValueError, match="choose one from 0 to"):
        choice_payload(engine, result_id, query, layer, head)


def test_a_gpu_that_is_refused_to_the_baseline_leaves_the_choice_explained() -> None:
    """As ZeroGPU does when a visitor's share is used up."""
    refused = []

    def once(forward):
        def run(*arguments):
            if refused:
                raise gr.Error("You have exceeded your GPU quota.")
            refused.append(True)
            return forward(*arguments)

        return run

    engine = Engine(HalvesModel(), baseline=HalvesBaseline(), on_gpu=once)
    sent = choice_payload(engine, engine.run(np.zeros((96, 128, 3), np.uint8)), 0, 0, 0)
    assert sent["baseline"] is None and sent["similarity"] == SIMILARITY
