"""The page without a browser: what it computes, what it remembers, and what its API answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from halves_model import CAT, CAT_SCORE, COUCH, COUCH_SCORE, HalvesModel
from PIL import Image
from torch.nn import functional as F

import app
import pem
from pem.outputs import Batch, PEMOutput, Segment, Segmentation
from ui.engine import Engine, Reading, ResultGone
from ui.legend import describe, legend_html
from ui.results import KeptResult, ResultStore

# 3:4, so that the network sees it without padding and its halves are halves of the photo.
PHOTO = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def labels(reading: Reading) -> list[str]:
    return [segment.label for segment in reading.segmentation.segments]


def test_tasks_and_thresholds_read_the_kept_output_and_never_run_the_network() -> None:
    model = HalvesModel()
    engine = Engine(model)
    result_id = engine.run(PHOTO)
    assert labels(engine.read(result_id, "panoptic", 0.5, 0.6)) == ["cat", "couch"]
    assert labels(engine.read(result_id, "panoptic", 0.7, 0.6)) == ["cat"]
    assert labels(engine.read(result_id, "panoptic", 0.95, 0.6)) == []
    assert labels(engine.read(result_id, "semantic", 0.95, 0.6)) == ["cat", "couch"]
    assert model.forwards == 1


def test_the_kept_output_reads_like_the_network_s_own() -> None:
    random = torch.Generator().manual_seed(0)
    blobs = F.interpolate(torch.randn(1, 8, 6, 8, generator=random) * 5, scale_factor=16, mode="bilinear")
    output = PEMOutput(torch.randn(1, 8, 48, generator=random) * 3, torch.eye(8)[None], blobs)
    model = HalvesModel()
    model.forward = lambda pixels: output
    batch = pem.preprocess([PHOTO], model.config)
    expected = pem.panoptic(output, batch, model.config, object_threshold=0.1, overlap_threshold=0.1)[0]
    engine = Engine(model)
    kept = engine.read(engine.run(PHOTO), "panoptic", 0.1, 0.1).segmentation
    assert len(expected.segments) > 3
    assert [s.label for s in kept.segments] == [s.label for s in expected.segments]
    assert np.mean(kept.ids == expected.ids) > 0.995  # half precision may move a border by a pixel


def kept_result(num_bytes: int) -> KeptResult:
    nothing = torch.zeros(0, dtype=torch.float16)
    return KeptResult(np.zeros(num_bytes, np.uint8), nothing, nothing, Batch(nothing, (), ()), 0.0)


def test_the_store_forgets_the_least_recently_used_beyond_its_budget() -> None:
    store = ResultStore(budget_bytes=250)
    first, second = store.put(kept_result(100)), store.put(kept_result(100))
    assert store.get(first) is not None  # now the second is the oldest
    third = store.put(kept_result(100))
    assert store.get(second) is None
    assert store.get(first) is not None and store.get(third) is not None
    huge = store.put(kept_result(1000))  # whoever just pressed Segment sees the result, whatever its size
    assert store.get(huge) is not None and store.get(first) is None and store.get(third) is None


def test_a_forgotten_result_says_what_to_do() -> None:
    engine = Engine(HalvesModel(), budget_bytes=0)
    old = engine.run(PHOTO)
    engine.run(PHOTO)
    with pytest.raises(ResultGone, match="press Segment again"):
        engine.read(old, "panoptic", 0.5, 0.6)


def test_segment_is_the_only_public_endpoint_and_answers_with_overlay_and_json(page_url: str, tmp_path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    client = Client(page_url, verbose=False)
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/segment"}

    overlay, answer = client.predict(handle_file(tmp_path / "photo.png"), "panoptic", api_name="/segment")
    with Image.open(overlay) as image:
        assert image.size == (128, 96)
    assert (answer["task"], answer["height"], answer["width"]) == ("panoptic", 96, 128)
    cat, couch = answer["segments"]
    assert cat | {"score": None, "color": None} == {
        "id": 1,
        "category": "cat",
        "category_id": CAT,
        "is_thing": True,
        "score": None,
        "area": 96 * 64,
        "bbox": [0, 0, 64, 96],
        "queries": [0],
        "color": None,
    }
    assert (couch["category_id"], couch["area"], couch["bbox"]) == (COUCH, 96 * 64, [64, 0, 64, 96])
    assert (cat["score"], couch["score"]) == pytest.approx((CAT_SCORE, COUCH_SCORE), abs=1e-3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"this is no image", "not an image that can be read"), (b"", "not an image that can be read")],
)
def test_a_file_that_is_no_photo_gets_one_clear_sentence(page_url: str, tmp_path, content, sentence) -> None:
    bad = tmp_path / "photo.jpg"
    bad.write_bytes(content)
    with pytest.raises(AppError, match=sentence):
        Client(page_url, verbose=False).predict(handle_file(bad), "panoptic", api_name="/segment")


def test_without_a_checkpoint_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args, **kwargs):
        raise FileNotFoundError("The weights <here> are missing.")

    monkeypatch.setattr(pem, "load_model", missing)
    config = app.build_page().get_config_file()
    header = next(c["props"]["value"] for c in config["components"] if c["props"].get("elem_id") == "header")
    assert "Nothing can be segmented yet: The weights &lt;here&gt; are missing." in header


def test_the_header_names_checkpoint_and_device() -> None:
    header = app.header(HalvesModel(), problem="")
    assert "default · EfficientNet-lite2 · 0 M parameters · 47 classes · CPU" in header
    assert "research and demonstration only" in header


def test_the_legend_shows_the_overlay_s_colours_largest_first_and_what_was_not_recognised() -> None:
    small = Segment(1, 9, "cat", True, 0.75, 2, (0, 0, 2, 1), (4,), (255, 0, 16))
    large = Segment(2, 19, "<b>couch</b>", True, 0.5, 5, (0, 1, 4, 2), (7,), (0, 128, 255))
    ids = np.array([[1, 1, 0, 0], [2, 2, 2, 0], [2, 2, 0, 0]], np.int32)
    image = np.zeros((3, 4, 3), np.uint8)
    reading = Reading(image, Segmentation(ids, (small, large)), "panoptic", network_ms=12.34, reading_ms=3.0)

    html = legend_html(describe(reading))
    parts = [
        "#0080ff",
        "&lt;b&gt;couch&lt;/b&gt;",
        "41.7%",
        "0.50",
        "#ff0010",
        "cat",
        "16.7%",
        "not recognised",
        "41.7%",
    ]
    positions = [html.find(part) for part in parts[:-1]]
    assert -1 not in positions and positions == sorted(positions)
    assert html.count("41.7%") == 2  # five pixels of the couch, five of nothing
    assert "<b>" not in html

    overlay = pem.render(image, reading.segmentation, opacity=1.0)
    assert tuple(overlay[2, 0]) == large.color
