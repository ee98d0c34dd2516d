"""The head of the page: what it says about the model."""

from __future__ import annotations

import dataclasses

import pytest
from halves_model import HalvesModel

from ui.header import header


def test_the_header_names_checkpoint_and_device() -> None:
    text = header(HalvesModel(), problem="", bundled=True)
    assert "default · EfficientNet-lite2 · 0 M parameters · 47 classes · CPU" in text
    assert "trained by this project" in text and "research and demonstration only" in text and "IoU in %" in text


def fine_tuned(name: str = "fruit") -> HalvesModel:
    model = HalvesModel()
    classes = ((1, "<b>Äpfel</b>", True), (2, "a class with quite a long name of many words", False))
    model.config = dataclasses.replace(model.config, name=name, num_classes=2, categories=classes)
    return model


@pytest.mark.parametrize("name", ["fruit", "default"])
def test_what_is_said_of_the_bundled_model_is_not_said_of_another(name: str) -> None:
    text = header(fine_tuned(name), problem="")
    assert f"{name} · EfficientNet-lite2 · 0 M parameters · 2 classes · CPU" in text
    assert "&lt;b&gt;Äpfel&lt;/b&gt;" in text and "a class with quite a long name" in text
    for words in ("trained by this project", "47", "IoU", "research and demonstration"):
        assert words not in text


def test_the_header_tells_when_a_model_was_trained() -> None:
    model = fine_tuned()
    model.config = dataclasses.replace(model.config, trained="2026-11-27")
    assert "fruit, trained 2026-11-27 · EfficientNet-lite2 · " in header(model, problem="")
    model.config = dataclasses.replace(model.config, attention="masked")
    assert "EfficientNet-lite2 · masked attention · " in header(model, problem="")
