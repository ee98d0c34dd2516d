from __future__ import annotations

import pytest
import torch
from small_model import small_model

import analysis
from analysis import latency


def test_the_model_tells_when_each_stage_is_done() -> None:
    model = small_model()
    done: list[str] = []
    for name in ("backbone", "pixel_decoder", "decoder"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: done.append(name))
    model(torch.randn(1, 3, 64, 96), stage_done=lambda: done.append("told"))
    assert done == ["backbone", "told", "pixel_decoder", "told", "decoder", "told"]


def test_a_result_has_every_stage() -> None:
    result = analysis.measure_latency(small_model(), size=(64, 96), batch=2, repeats=3, warmup=1)
    assert [row.stage for row in result.rows] == ["backbone", "pixel decoder", "decoder", "masks"]
    for row in (result, *result.rows):
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
    assert result.peak_mib == max(row.peak_mib for row in result.rows)
    assert result.num_warmup == 1
    # The last stage holds the full-size masks: 2 images, 12 queries, a quarter of the size each way, 4 bytes.
    assert result.rows[-1].peak_mib > 2 * 12 * 16 * 24 * 4 / 2**20


def test_compiled_stages_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "COMPILED", {"backend": "aot_eager", "dynamic": False})
    model, pixels = small_model(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(pixels)
        latency.compile_stages(model)
        for _ in range(2):  # the features are handed on in a dict that the next stage empties
            compiled = model(pixels)
    torch.testing.assert_close(compiled.pred_logits, expected.pred_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.pred_masks, expected.pred_masks, rtol=1e-4, atol=1e-5)
    assert model.backbone._compiled_call_impl is not None


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        analysis.measure_latency(small_model().train(), size=(64, 64))


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="100x96 px; both sides must be multiples of 32"):
        analysis.measure_latency(small_model(), size=(100, 96))
