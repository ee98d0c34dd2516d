"""The page without a browser: what it says of itself, and what its endpoints answer."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import zipfile
from hashlib import sha256

import httpx
import numpy as np
import pytest
from gradio.data_classes import ImageData
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from halves_model import CAT, CAT_SCORE, COUCH, COUCH_SCORE, HalvesModel, picked_token
from PIL import Image
from small_model import small_model

import app
import pem
from pem.weights import DEFAULT_WEIGHTS
from ui import precompute
from ui.engine import TASKS, is_bundled, load_twin
from ui.image_input import SafeImage
from ui.settings import OPTIONS, read_settings
from ui.viewer import UI

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


def test_a_photo_that_was_deleted_meanwhile_is_asked_for_again(tmp_path) -> None:
    found = SafeImage().preprocess(ImageData(path=str(tmp_path / "gone.png")))
    assert str(found) == "The photo is no longer on the server; please choose it again."


@pytest.mark.parametrize("content", [b"this is no image", b""])
def test_a_file_that_is_no_photo_gets_one_clear_sentence(client: Client, tmp_path, content) -> None:
    bad = tmp_path / "photo.jpg"
    bad.write_bytes(content)
    with pytest.raises(AppError, match="not an image that can be read"):
        client.predict(handle_file(bad), "panoptic", api_name="/segment")


def test_a_port_that_is_taken_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with app.gr.Blocks() as page:
        pass
    monkeypatch.setattr("app.build_page", lambda settings: page)
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(
            SystemExit, match="The page cannot be served .*; choose another --port .*PORT=8000. or --host"
        ):
            app.main(["--port", str(other.getsockname()[1])])


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (
            [],
            {},
            {"port": None, "model": "default", "device": "auto", "queue": 200, "host_names": [], "max_side": None},
        ),
        ([], {"PEM_QUEUE": "7", "PEM_PORT": "", "PEM_HOST_NAMES": "a.org, b.org"}, {"queue": 7, "port": None}),
        (["--queue", "9"], {"PEM_QUEUE": "7", "PEM_HOST_NAMES": "a.org, b.org"}, {"host_names": ["a.org", "b.org"]}),
        (["--queue", "9", "--max-side", "512", "--threads", "3"], {"PEM_QUEUE": "7"}, {"queue": 9, "max_side": 512}),
    ],
)
def test_settings_come_from_the_command_or_the_environment(arguments, environment, expected) -> None:
    found = vars(read_settings(arguments, environment))
    assert {name: found[name] for name in expected} == expected


def test_the_documentation_lists_every_setting() -> None:
    page = (UI.parent / "docs" / "hosting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `--")]
    expected = [(f"| `--{o.name} {o.metavar}`", f"`{o.variable}`", o.meaning) for o in OPTIONS]
    assert [(option, variable) for option, variable, _ in rows] == [
        (option, variable) for option, variable, _ in expected
    ]
    for (_, _, told), (_, _, meaning) in zip(rows, expected):
        assert told.startswith(meaning)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--port", "x"], {}), (["--port", "65536"], {}), ([], {"PEM_THREADS": "0"}), (["--max-side", "-1"], {})],
)
def test_a_setting_that_cannot_be_is_named(arguments, environment, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(arguments, environment)
    (name,) = environment or arguments[:1]
    assert re.search(f"{name}: .* is no whole number from", capsys.readouterr().err)


def test_the_network_sees_no_more_pixels_than_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = []
    monkeypatch.setattr(app, "build_studio", lambda page, engine, first: engines.append((engine, first)))
    app.build_page(settings=read_settings(["--max-side", "256"]))
    ((engine, first),) = engines
    assert first is None  # what was made ahead was made of more pixels
    for network in (engine.model, engine.twin):
        assert (network.config.short_side_px, network.config.max_long_side_px) == (256, 256)


def test_only_hosts_that_are_named_are_answered() -> None:
    with app.gr.Blocks() as page:
        pass
    _, url, _ = app.launch(page, host_names=["*.example.org"], prevent_thread_lock=True, quiet=True)
    statuses = {host: httpx.get(url, headers={"host": host}).status_code for host in ("a.example.org", "other.org")}
    page.close(verbose=False)
    assert statuses == {"a.example.org": 200, "other.org": 400}


def test_without_a_checkpoint_the_page_and_the_terminal_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*args, **kwargs):
        raise FileNotFoundError("The weights <here> are missing.")

    monkeypatch.setattr(pem, "load_model", missing)
    config = app.build_page().get_config_file()
    header = next(c["props"]["value"] for c in config["components"] if c["props"].get("elem_id") == "header")
    assert "Nothing can be segmented yet: The weights &lt;here&gt; are missing." in header
    assert "Nothing can be segmented yet: The weights <here> are missing." in capsys.readouterr().err


@pytest.mark.parametrize(("given", "name"), [(None, "default"), ("", "default"), ("mine.safetensors",) * 2])
def test_the_environment_may_name_another_checkpoint(
    given: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = []

    def load(name: str, device: str) -> pem.PEM:
        asked_for.append(name)
        raise FileNotFoundError("as far as this test goes")

    monkeypatch.setattr(pem, "load_model", load)
    monkeypatch.delenv("PEM_MODEL", raising=False)
    if given is not None:
        monkeypatch.setenv("PEM_MODEL", given)
    app.build_page()
    assert asked_for == [name]


def test_the_header_names_checkpoint_and_device() -> None:
    header = app.header(HalvesModel(), problem="", bundled=True)
    assert "default · EfficientNet-lite2 · 0 M parameters · 47 classes · CPU" in header
    assert "trained by this project" in header and "research and demonstration only" in header and "IoU in %" in header


def fine_tuned(name: str = "fruit") -> HalvesModel:
    model = HalvesModel()
    classes = ((1, "<b>Äpfel</b>", True), (2, "a class with quite a long name of many words", False))
    model.config = dataclasses.replace(model.config, name=name, num_classes=2, categories=classes)
    return model


@pytest.mark.parametrize("name", ["fruit", "default"])
def test_what_is_said_of_the_bundled_model_is_not_said_of_another(name: str) -> None:
    header = app.header(fine_tuned(name), problem="")
    assert f"{name} · EfficientNet-lite2 · 0 M parameters · 2 classes · CPU" in header
    assert "&lt;b&gt;Äpfel&lt;/b&gt;" in header and "a class with quite a long name" in header
    for words in ("trained by this project", "47", "IoU", "research and demonstration"):
        assert words not in header


def test_the_header_tells_when_a_model_was_trained() -> None:
    model = fine_tuned()
    model.config = dataclasses.replace(model.config, trained="2026-11-27")
    assert "fruit, trained 2026-11-27 · EfficientNet-lite2 · " in app.header(model, problem="")
    model.config = dataclasses.replace(model.config, attention="masked")
    assert "EfficientNet-lite2 · masked attention · " in app.header(model, problem="")


@pytest.mark.parametrize(
    ("given", "bundled"),
    [("default", True), (str(DEFAULT_WEIGHTS), True), ("copy.safetensors", False), ("owner/repo@main", False)],
)
def test_the_bundled_model_is_known_by_its_file(given: str, bundled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_bundled(given) == bundled
    monkeypatch.chdir(DEFAULT_WEIGHTS.parent)
    assert is_bundled(DEFAULT_WEIGHTS.name)
    told = []
    monkeypatch.setattr(pem, "load_model", lambda name, device: HalvesModel())
    monkeypatch.setattr(app, "load_twin", lambda model, name: None)
    monkeypatch.setattr(app, "header", lambda model, problem, bundled: told.append(bundled) or "")
    monkeypatch.setattr(app, "build_studio", lambda page, engine, first: told.append(first is not None))
    monkeypatch.setenv("PEM_MODEL", given)
    app.build_page()
    assert told == [bundled, bundled]  # the first example was segmented ahead by the bundled one


def test_a_twin_is_loaded_where_its_checkpoint_lies_beside(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    model, masked = small_model(), small_model(attention="masked", name="other", trained="2026-11-27")
    given = str(tmp_path / "mine.safetensors")
    assert load_twin(model, given) is None
    pem.save_weights(masked, tmp_path / "mine-masked.safetensors")
    twin = load_twin(model, given)
    assert twin is not None and twin.config == masked.config
    loaded = []
    monkeypatch.setattr(pem, "load_model", lambda path, device: loaded.append(path) or masked)
    (tmp_path / "copy.safetensors").write_bytes(DEFAULT_WEIGHTS.read_bytes())
    assert is_bundled(str(tmp_path / "copy.safetensors"))
    for name in (str(tmp_path / "copy.safetensors"), "default"):
        assert load_twin(model, name) is masked
    assert set(loaded) == {DEFAULT_WEIGHTS.with_name("default-masked.safetensors")}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, "the same attention"),
        ({"attention": "masked", "num_queries": 5}, "another num_queries"),
        ({"attention": "masked", "pixel_mean": (0.0, 0.0, 0.0)}, "another pixel_mean"),
        ({"attention": "masked", "categories": ((1, "cat", True), (2, "dog", True))}, "another num_classes"),
    ],
)
def test_a_twin_of_another_network_is_left_out_with_a_word(other, reason, tmp_path, caplog) -> None:
    if "categories" in other:
        other = other | {"num_classes": len(other["categories"])}
    pem.save_weights(small_model(**other), tmp_path / "mine-masked.safetensors")
    assert load_twin(small_model(), str(tmp_path / "mine.safetensors")) is None
    assert f"mine-masked.safetensors has {reason}" in caplog.text


def test_the_first_example_was_segmented_by_the_bundled_checkpoint() -> None:
    """Otherwise: python -m ui.precompute."""
    ahead, now = precompute.load(), precompute.make()
    assert ahead["weights_sha256"] == sha256(DEFAULT_WEIGHTS.read_bytes()).hexdigest()
    assert [reading["task"] for reading in ahead["readings"]] == list(TASKS)
    assert ahead.keys() == now.keys() and ahead["readings"][0].keys() == now["readings"][0].keys()
    for one, other in zip(ahead["readings"], now["readings"]):
        assert [(s["category"], s["queries"]) for s in one["segments"]] == [
            (s["category"], s["queries"]) for s in other["segments"]
        ]
