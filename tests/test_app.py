"""The page without a browser: how it is built and served."""

from __future__ import annotations

import socket
from hashlib import sha256

import httpx
import pytest
from gradio.data_classes import ImageData
from halves_model import HalvesModel

import app
import pem
from pem.load import DEFAULT_WEIGHTS
from ui import precompute
from ui.engine import TASKS
from ui.image_input import SafeImage
from ui.networks import is_bundled
from ui.settings import read_settings


def test_a_photo_that_was_deleted_meanwhile_is_asked_for_again(tmp_path) -> None:
    found = SafeImage().preprocess(ImageData(path=str(tmp_path / "gone.png")))
    assert str(found) == "The photo is no longer on the server; please choose it again."


def test_a_port_that_is_taken_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with app.gr.Blocks() as page:
        pass
    monkeypatch.setattr("app.build_page", lambda settings: page)
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(
            SystemExit, match="The page cannot be served .*; choose another --port .*PORT=8000. or --host"
        ):
            app.main(["--port", str(other.getsockname()[1])])


def test_the_network_sees_no_more_pixels_than_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = []
    monkeypatch.setattr(app, "build_studio", lambda page, engine, storage, first: engines.append((engine, first)))
    app.build_page(settings=read_settings(["--max-side", "256"]))
    ((engine, first),) = engines
    assert first is None  # the stored result was made from more pixels
    for network in (engine.model, engine.baseline):
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

    def load(name: str, device: str, runtime: str) -> pem.PEM:
        asked_for.append(name)
        raise FileNotFoundError("as far as this test goes")

    monkeypatch.setattr(pem, "load_model", load)
    monkeypatch.delenv("PEM_MODEL", raising=False)
    if given is not None:
        monkeypatch.setenv("PEM_MODEL", given)
    app.build_page()
    assert asked_for == [name]


@pytest.mark.parametrize(
    ("given", "bundled"),
    [("default", True), (str(DEFAULT_WEIGHTS), True), ("copy.safetensors", False), ("owner/repo@main", False)],
)
def test_the_bundled_model_is_known_by_its_file(given: str, bundled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_bundled(given) == bundled
    monkeypatch.chdir(DEFAULT_WEIGHTS.parent)
    assert is_bundled(DEFAULT_WEIGHTS.name)
    told = []
    monkeypatch.setattr(pem, "load_model", lambda name, device, runtime: HalvesModel())
    monkeypatch.setattr("ui.networks.load_masked_baseline", lambda model, name: None)
    monkeypatch.setattr(app, "header", lambda model, problem, bundled: told.append(bundled) or "")
    monkeypatch.setattr(app, "build_studio", lambda page, engine, storage, first: told.append(first is not None))
    monkeypatch.setenv("PEM_MODEL", given)
    app.build_page()
    assert told == [bundled, bundled]  # the stored result is that of the bundled model


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
