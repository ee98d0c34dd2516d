from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_model import small_model

import analysis
from analysis import latency
from analysis.results import flat_rows, save_json, save_tables
from pem.conditions import arithmetic, conditions

CPU = torch.device("cpu")


def test_every_workload_follows_every_other() -> None:
    ran: list[str] = []
    workloads = {name: (lambda stage_done, name=name: (ran.append(name), stage_done())) for name in "abc"}
    latency.measure_rounds(workloads, CPU, repeats=40, max_warmup=0)
    assert all(sorted(ran[i : i + 3]) == ["a", "b", "c"] for i in range(0, len(ran), 3))
    assert {(x, y) for x, y in zip(ran, ran[1:]) if x != y} == {(x, y) for x in "abc" for y in "abc" if x != y}


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


def test_parts_of_a_run_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 12.5])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))

    def run(done: Callable[[], None]) -> None:
        done()
        done()

    assert latency.measure_ms(run, CPU) == [500, 2000]


def test_percentiles() -> None:
    assert latency.percentiles([10, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]) == (5, 1, 9)


class Clock:
    """Time passes only when a workload says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.seconds)

    def workload(self, *durations_s: float, calls: list[str] | None = None, name: str = "") -> latency.Workload:
        """Takes the given times, run by run; the last one from then on."""
        durations = list(durations_s)

        def run(done: Callable[[], None]) -> None:
            if calls is not None:
                calls.append(name)
            self.seconds += durations.pop(0) if len(durations) > 1 else durations[0]
            done()

        return run


def test_workloads_take_turns_and_keep_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(monkeypatch), []
    workloads = {"a": clock.workload(1, 2, 3, calls=calls, name="a"), "b": clock.workload(10, calls=calls, name="b")}
    times_ms, num_warmup = latency.measure_rounds(workloads, CPU, repeats=2, max_warmup=1)
    assert [sorted(calls[i : i + 2]) for i in (0, 2, 4)] == [["a", "b"]] * 3
    assert num_warmup == 1
    assert times_ms["a"].tolist() == [[2000], [3000]]
    assert times_ms["b"].tolist() == [[10_000], [10_000]]


def test_warm_up_ends_when_the_slowest_to_settle_is_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    steady, settling = clock.workload(1), clock.workload(9, 7, 5, 3, 1)
    assert latency.measure_rounds({"a": steady}, CPU, repeats=1)[1] == 4
    # Medians of three: 7, 5, 3, then 1 for ever: first equal after the 7th run.
    times_ms, num_warmup = latency.measure_rounds({"a": steady, "b": settling}, CPU, repeats=5)
    assert num_warmup == 7
    assert (times_ms["b"] == 1000).all()


@pytest.mark.parametrize(
    ("times_ms", "stable"),
    [([1, 1, 1], False), ([1, 1, 1, 1], True), ([9, 1, 1, 1], True), ([8, 4, 2, 1], False), ([100, 90, 94, 96], True)],
)
def test_stable_is_a_median_that_moves_less_than_5_percent(times_ms: list[float], stable: bool) -> None:
    assert latency.is_stable(times_ms) == stable


def test_warm_up_has_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    ever_slower = Clock(monkeypatch).workload(*(2.0**i for i in range(20)))
    assert latency.measure_rounds({"a": ever_slower}, CPU, repeats=1, max_warmup=6)[1] == 6


def test_a_budget_is_kept_and_warm_up_leaves_two_thirds_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    done = list(latency.rounds({"a": clock.workload(2)}, CPU, repeats=100, seconds=15))
    assert [r.is_warmup for r in done] == [True] * 3 + [False] * 4  # an eighth round would have ended at 16 s
    assert clock.seconds == 14


def test_no_time_for_a_round_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="allow more"):
        latency.measure_rounds({"a": Clock(monkeypatch).workload(2)}, CPU, seconds=3)


def test_who_asks_for_no_more_rounds_has_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    running = latency.rounds({"a": clock.workload(1)}, CPU, repeats=100)
    next(running)
    next(running)
    running.close()
    assert clock.seconds == 2


def test_half_precision_computes_in_half_precision() -> None:
    with latency.at_precision("bfloat16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with latency.at_precision("float32", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        latency.at_precision("int8", CPU)
    assert conditions("cpu", "bfloat16")["precision"] == "bfloat16 autocast"
    on_gpu = torch.device("cuda")
    assert arithmetic(on_gpu, "float64") == "float64" and arithmetic(on_gpu, "float32").startswith("float32, TF32 in: ")


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
    assert all(value for name, value in found.items() if name != "compiled_attention")
    assert found["command"].startswith("python ")


def test_a_result_is_saved_with_its_conditions_or_not_at_all(tmp_path: Path) -> None:
    row = latency.LatencyRow("backbone", median_ms=2.0, p10_ms=1.0, p90_ms=3.0, peak_mib=4.0)
    with pytest.raises(ValueError, match="conditions"):
        save_json({"rows": [row]}, tmp_path / "bare.json")
    assert not (tmp_path / "bare.json").exists()
    save_json({"conditions": conditions("cpu"), "rows": [row]}, tmp_path / "new" / "full.json")
    saved = json.loads((tmp_path / "new" / "full.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["p90_ms"] == 3.0
    assert saved["conditions"]["torch"] == torch.__version__


def test_a_table_is_saved_three_ways(tmp_path: Path) -> None:
    rows = [{"name": "a", "time_ms": 1234.5678, "note": None}, {"name": "b", "time_ms": 0.5, "note": "x, y"}]
    save_tables({"conditions": conditions("cpu"), "rows": rows}, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["rows"] == rows
    assert (tmp_path / "run.csv").read_text(encoding="utf-8").splitlines() == [
        "name,time_ms,note",
        "a,1234.5678,",
        'b,0.5,"x, y"',
    ]
    assert (tmp_path / "run.md").read_text(encoding="utf-8").splitlines()[2:] == [
        "| name | time_ms | note |",
        "| --- | --- | --- |",
        "| a | 1235 |  |",
        "| b | 0.5 | x, y |",
    ]


def test_rows_of_cases_say_which_case_they_are_of() -> None:
    cases = [{"preset": "p", "size": [32, 64], "rows": [{"stage": "s", "gmacs": 1.0}]}]
    assert flat_rows({"cases": cases}) == [{"preset": "p", "size": "32x64", "stage": "s", "gmacs": 1.0}]
