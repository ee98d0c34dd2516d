"""The endpoints for programs, called as a program calls them."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from halves_model import CAT, CAT_SCORE, COUCH, COUCH_SCORE, picked_token
from PIL import Image

# 3:4, so that the network sees it without padding and its halves are halves of the photo.
PHOTO = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def client(page_url: str) -> Client:
    return Client(page_url, verbose=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(PHOTO).save(path)
    return handle_file(path)


def test_the_public_endpoints_are_segment_read_and_trace(client: Client) -> None:
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/segment", "/read", "/trace"}


def test_segment_answers_with_overlay_segments_and_json(client: Client, photo) -> None:
    overlay, segments, answer = client.predict(photo, "panoptic", api_name="/segment")
    with Image.open(overlay) as image:
        assert image.size == (128, 96)
    with zipfile.ZipFile(segments) as archive:
        assert sorted(archive.namelist()) == ["photo_segments.json", "photo_segments.png"]
        content = json.loads(archive.read("photo_segments.json"))
    assert list(content) == ["info", "images", "annotations", "categories"]
    assert content["info"]["model"] == answer["model"] == "default"
    assert content["images"][0]["file_name"] == answer["file_name"] == "photo.png"
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
    assert [query["fate"] for query in answer["queries"]] == ["kept", "kept", "no object"]


def test_read_answers_for_a_kept_result(client: Client, photo) -> None:
    result_id = client.predict(photo, "panoptic", api_name="/segment")[-1]["result_id"]
    _, _, answer = client.predict(result_id, "panoptic", 0.7, 0.6, api_name="/read")
    assert [segment["category"] for segment in answer["segments"]] == ["cat"]
    assert (answer["result_id"], answer["object_threshold"]) == (result_id, 0.7)
    _, _, answer = client.predict(result_id, "semantic", 0.7, 0.6, api_name="/read")
    assert [segment["category"] for segment in answer["segments"]] == ["cat", "couch"]
    with pytest.raises(AppError, match="no longer kept on the server. Please call /segment again."):
        client.predict("gone", "panoptic", 0.5, 0.6, api_name="/read")


def test_trace_answers_with_the_prototypes_of_one_query_in_pixels_of_the_photo(client: Client, photo) -> None:
    result_id = client.predict(photo, "panoptic", api_name="/segment")[-1]["result_id"]
    arrays, answer = client.predict(result_id, 0, api_name="/trace")
    (query,) = answer["queries"]
    assert query["query"] == 0 and len(query["layers"]) == 6
    for layer, seen in zip(answer["layers"], query["layers"]):
        for head, prototype in enumerate(seen["prototypes"]):
            row, col = picked_token(0, head, layer["rows"], layer["cols"])
            assert (prototype["row"], prototype["col"]) == (row, col)
            assert prototype["y"] == pytest.approx((row + 0.5) * 96 / layer["rows"], abs=0.01)
            assert prototype["x"] == pytest.approx((col + 0.5) * 128 / layer["cols"], abs=0.01)
    with np.load(arrays) as trace:
        assert trace["prototype_index"].shape == (6, 8, 3)
    with pytest.raises(AppError, match="There is no query 3"):
        client.predict(result_id, 3, api_name="/trace")
    with pytest.raises(AppError, match="Please name a query"):
        client.predict(result_id, None, api_name="/trace")
    with pytest.raises(AppError, match="no longer kept on the server"):
        client.predict(None, 0, api_name="/trace")


@pytest.mark.parametrize("content", [b"this is no image", b""])
def test_a_file_that_is_no_photo_gets_one_clear_sentence(client: Client, tmp_path, content) -> None:
    bad = tmp_path / "photo.jpg"
    bad.write_bytes(content)
    with pytest.raises(AppError, match="not an image that can be read"):
        client.predict(handle_file(bad), "panoptic", api_name="/segment")
