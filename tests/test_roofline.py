from __future__ import annotations

import pytest
import torch

from analysis import roofline
from analysis.roofline import Roofline, measure_roofline


def test_few_macs_per_byte_are_bound_by_copying_and_many_by_multiplying() -> None:
    machine = Roofline(matrix_gmacs_per_s=100, copy_gb_per_s=10)
    assert machine.attainable_gmacs_per_s(macs=2e9, num_bytes=1e9) == 20
    assert machine.attainable_gmacs_per_s(macs=10e9, num_bytes=1e9) == 100  # the ridge
    assert machine.attainable_gmacs_per_s(macs=50e9, num_bytes=1e9) == 100


def test_achieved_is_one_on_the_roofline() -> None:
    machine = Roofline(matrix_gmacs_per_s=100, copy_gb_per_s=10)
    # 1e9 bytes take 100 ms to move, whatever is computed meanwhile below 10 GMACs.
    assert machine.achieved(macs=2e9, num_bytes=1e9, ms=100) == pytest.approx(1)
    assert machine.achieved(macs=2e9, num_bytes=1e9, ms=400) == pytest.approx(0.25)


def test_the_ceilings_are_the_best_of_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 2.0, 3.0, 40.0, 20.0, 30.0])
    monkeypatch.setattr(roofline, "measure_ms", lambda run, device: [next(times)])
    monkeypatch.setattr(roofline, "COPIED_BYTES", 2**20)
    found = measure_roofline("cpu", repeats=3)
    assert found.matrix_gmacs_per_s == pytest.approx(1024**3 / 1e9 / 2e-3)
    assert found.copy_gb_per_s == pytest.approx(2 * 2**20 / 1e9 / 20e-3)


def test_what_is_timed_is_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "COPIED_BYTES", 2**10)
    calls = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out: calls.append((a.shape, b.shape, a.dtype)))
    measure_roofline("cpu", "bfloat16", repeats=1)
    assert calls == [((1024, 1024), (1024, 1024), torch.bfloat16)]
