from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_model import small_model

import analysis
from analysis import latency
from analysis.results import conditions, save_json

CPU = torch.device("cpu")


def test_stages_are_all_that_the_model_does() -> None:
    model, pixels = small_model(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole = model(pixels)
        parts = model.decoder(*model.pixel_decoder(model.backbone(pixels)))
    assert torch.equal(parts.pred_logits, whole.pred_logits)
    assert torch.equal(parts.pred_masks, whole.pred_masks)


def test_a_result_has_every_stage() -> None:
    result = analysis.measure_latency(small_model(), size=(64, 96), batch=2, repeats=3, warmup=1)
    assert [row.stage for row in result.rows] == ["backbone", "pixel decoder", "decoder", "masks"]
    for row in (result, *result.rows):
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
    assert result.peak_mib == max(row.peak_mib for row in result.rows)
    # The last stage holds the full-size masks: 2 images, 12 queries, a quarter of the size each way, 4 bytes.
    assert result.rows[-1].peak_mib > 2 * 12 * 16 * 24 * 4 / 2**20


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        analysis.measure_latency(small_model().train(), size=(64, 64))


def test_parts_of_a_run_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 12.5])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))

    def run(done: Callable[[], None]) -> None:
        done()
        done()

    assert latency.measure_ms(run, CPU) == [500, 2000]


def test_percentiles() -> None:
    assert latency.percentiles([10, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]) == (5, 1, 9)


def test_peak_memory_is_what_lives_at_once() -> None:
    def mib(n: int) -> torch.Tensor:
        return torch.empty(n * 2**20, dtype=torch.uint8)

    def run(done: Callable[[], None]) -> None:
        a = mib(4)
        done()  # 4
        b = mib(1)
        del a
        done()  # 5, now 1
        c = mib(2)
        done()  # 3
        del b, c

    assert latency.measure_peak_mib(run, CPU) == [4, 5, 3]


def test_conditions_name_no_path_of_the_interpreter() -> None:
    found = conditions("cpu")
    assert {"device", "threads", "torch", "precision", "commit", "command", "date"} <= set(found)
    assert all(found.values())
    assert found["command"].startswith("python ")


def test_a_result_is_saved_with_its_conditions_or_not_at_all(tmp_path: Path) -> None:
    row = latency.LatencyRow("backbone", median_ms=2.0, p10_ms=1.0, p90_ms=3.0, peak_mib=4.0)
    with pytest.raises(ValueError, match="conditions"):
        save_json({"rows": [row]}, tmp_path / "bare.json")
    assert not (tmp_path / "bare.json").exists()
    save_json({"conditions": conditions("cpu"), "rows": [row]}, tmp_path / "new" / "full.json")
    saved = json.loads((tmp_path / "new" / "full.json").read_text())
    assert saved["rows"][0]["p90_ms"] == 3.0
    assert saved["conditions"]["torch"] == torch.__version__
