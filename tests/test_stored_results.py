"""How a run shows its rows, and how a result is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analysis.latency import LatencyRow
from analysis.results import Report, flat_rows, save
from pem.conditions import conditions


def test_conditions_name_no_path_of_the_interpreter() -> None:
    found = conditions("cpu")
    assert {"device", "threads", "torch", "precision", "commit", "command", "date"} <= set(found)
    assert all(value for name, value in found.items() if name != "compiled_attention")
    assert found["command"].startswith("python ")


def test_a_result_is_saved_with_its_conditions_or_not_at_all(tmp_path: Path) -> None:
    row = LatencyRow("backbone", median_ms=2.0, p10_ms=1.0, p90_ms=3.0, peak_mib=4.0)
    with pytest.raises(ValueError, match="conditions"):
        save({"rows": [row]}, tmp_path / "bare.json")
    assert not (tmp_path / "bare.json").exists()
    save({"conditions": conditions("cpu"), "rows": [row]}, tmp_path / "new" / "full.json")
    saved = json.loads((tmp_path / "new" / "full.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["p90_ms"] == 3.0
    assert saved["conditions"]["torch"] == torch.__version__


def test_a_table_is_saved_three_ways(tmp_path: Path) -> None:
    rows = [{"name": "a", "time_ms": 1234.5678, "note": None}, {"name": "b", "time_ms": 0.5, "note": "x, y"}]
    save({"conditions": conditions("cpu"), "rows": rows}, tmp_path / "run.json")
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


def test_a_report_prints_each_row_under_its_columns_and_keeps_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("network", "time_ms", "note", out=tmp_path / "run.json")
    report.add({"network": "PEM", "time_ms": 1234.5678, "gmacs": 1.0})
    report.add({"network": "a longer name", "time_ms": None, "gmacs": 2.0, "note": "did not run"})
    _, header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["network", "time_ms", "note"]
    assert first.split() == ["PEM", "1235"] and second.split() == ["a", "longer", "name", "did", "not", "run"]
    report.save("run", repeats=3)
    saved = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert saved["conditions"] == report.conditions and saved["repeats"] == 3 and saved["rows"] == report.rows
    assert (tmp_path / "run.csv").exists() and (tmp_path / "run.md").exists()


def test_a_result_is_named_after_the_run_and_the_machine() -> None:
    report = Report(device="cpu")
    report.conditions |= {"device": "AMD EPYC, AVX2", "threads": 2, "precision": "float32, TF32 in: nothing"}
    assert report.path("latency").name == "latency_amd-epyc-avx2-2-threads-float32.json"
