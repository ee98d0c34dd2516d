"""The one command for a GPU: its steps fit into 25 minutes, and a step that fails or hangs takes nothing else away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import gpu
from analysis.__main__ import main


def test_the_steps_fit_into_25_minutes_and_store_their_measurements_apart(tmp_path: Path) -> None:
    steps = list(gpu.steps("cuda", tmp_path))
    assert sum(step.limit_s for step in steps) <= 25 * 60
    files = [word for step in steps for word in step.command if word.endswith(".json")]
    assert len(files) == len(set(files)) == 11
    assert all(Path(word).is_file() for word in steps[0].command if word.endswith(".py"))


@pytest.mark.parametrize(
    ("code", "limit_s", "result", "said"),
    [
        ("print(1); print(2)", 60, "passed", "2"),
        ("import sys; print('so far'); sys.exit('no')", 60, "failed", "no"),
        ("pass", 60, "passed", ""),
        ("import time; time.sleep(600)", 1, "failed", "ended after 1 s"),
    ],
)
def test_a_step_says_how_it_ended(code: str, limit_s: int, result: str, said: str) -> None:
    assert gpu.attempt(gpu.Step("some", ["-c", code], limit_s))[:2] == (result, said)


def test_every_step_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [gpu.Step("right", ["-c", "print('fine')"], 60), gpu.Step("wrong", ["-c", "raise ValueError('bad')"], 60)]
    monkeypatch.setattr(gpu, "steps", lambda device, out: iter(steps))
    main(["gpu", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    rows = [(row["step"], row["result"], row["said"]) for row in found["rows"]]
    assert rows == [("right", "passed", "fine"), ("wrong", "failed", "ValueError: bad")]
    assert found["versions"]["torch"] != "unknown"
