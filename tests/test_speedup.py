"""Before and after: the rows of the comparison, and its command with what it draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analysis import __main__ as cli
from analysis import speedup
from analysis.figures import before_and_after

PRESET = "cityscapes-panoptic-stdc1"


def test_both_paths_are_measured_and_the_fast_one_needs_less_memory() -> None:
    backbone, decoders, total = speedup.compare(PRESET, (128, 256), 100, torch.device("cpu"), "float32", repeats=2)
    assert [row["stage"] for row in (backbone, decoders, total)] == list(speedup.STAGES)
    assert total["fast_ms"] >= max(backbone["fast_ms"], decoders["fast_ms"]) > 0
    assert total["plain_mib"] == max(backbone["plain_mib"], decoders["plain_mib"])
    assert decoders["memory"] == decoders["fast_mib"] / decoders["plain_mib"] < 1


def test_the_command_writes_a_table_that_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speedup, "BASE_SIZE", (64, 64))
    out = tmp_path / "speedup.json"
    options = ["--preset", PRESET, "--sizes", "64x64", "64x96", "--queries", "5", "--repeats", "1"]
    cli.main(["speedup", *options, "--device", "cpu", "--out", str(out)])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 9  # the machine, the names of the columns, the rows
    result = json.loads(out.read_text(encoding="utf-8"))
    settings = {(row["height_px"], row["width_px"], row["num_queries"]) for row in result["rows"]}
    assert settings == {(64, 64, 100), (64, 96, 100), (64, 64, 5)}
    before_and_after(result).savefig(tmp_path / "speedup.png")
    assert out.with_suffix(".md").is_file()
