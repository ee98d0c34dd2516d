"""The networks that the page runs: which model is the bundled one, and where its masked baseline comes from."""

from __future__ import annotations

import pytest
from small_model import small_model

import pem
from pem.load import DEFAULT_WEIGHTS
from ui.networks import is_bundled, load_masked_baseline


def test_a_masked_baseline_is_loaded_from_beside_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    model, masked = small_model(), small_model(attention="masked", name="other", trained="2026-11-27")
    given = str(tmp_path / "mine.safetensors")
    assert load_masked_baseline(model, given) is None
    pem.save_weights(masked, tmp_path / "mine-masked.safetensors")
    baseline = load_masked_baseline(model, given)
    assert baseline is not None and baseline.config == masked.config
    loaded = []
    monkeypatch.setattr(pem, "load_model", lambda path, device, runtime: loaded.append(path) or masked)
    (tmp_path / "copy.safetensors").write_bytes(DEFAULT_WEIGHTS.read_bytes())
    assert is_bundled(str(tmp_path / "copy.safetensors"))
    for name in (str(tmp_path / "copy.safetensors"), "default"):
        assert load_masked_baseline(model, name) is masked
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
def test_a_masked_baseline_of_another_network_is_left_out_with_a_warning(other, reason, tmp_path, caplog) -> None:
    if "categories" in other:
        other = other | {"num_classes": len(other["categories"])}
    pem.save_weights(small_model(**other), tmp_path / "mine-masked.safetensors")
    assert load_masked_baseline(small_model(), str(tmp_path / "mine.safetensors")) is None
    assert f"mine-masked.safetensors has {reason}" in caplog.text
