"""Workloads take turns, warm up, and are timed and weighed part by part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from analysis import timing
from pem.conditions import arithmetic, conditions

CPU = torch.device("cpu")


def test_every_workload_follows_every_other() -> None:
    ran: list[str] = []
    workloads = {name: (lambda stage_done, name=name: (ran.append(name), stage_done())) for name in "abc"}
    timing.measure_rounds(workloads, CPU, repeats=40, max_warmup=0)
    assert all(sorted(ran[i : i + 3]) == ["a", "b", "c"] for i in range(0, len(ran), 3))
    assert {(x, y) for x, y in zip(ran, ran[1:]) if x != y} == {(x, y) for x in "abc" for y in "abc" if x != y}


def test_parts_of_a_run_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 12.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))

    def run(done: Callable[[], None]) -> None:
        done()
        done()

    assert timing.measure_ms(run, CPU) == [500, 2000]


def test_percentiles() -> None:
    assert timing.percentiles([10, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]) == (5, 1, 9)


class Clock:
    """Time passes only when a workload says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.seconds)

    def workload(self, *durations_s: float, calls: list[str] | None = None, name: str = "") -> timing.Workload:
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
    times_ms, num_warmup = timing.measure_rounds(workloads, CPU, repeats=2, max_warmup=1)
    assert [sorted(calls[i : i + 2]) for i in (0, 2, 4)] == [["a", "b"]] * 3
    assert num_warmup == 1
    assert times_ms["a"].tolist() == [[2000], [3000]]
    assert times_ms["b"].tolist() == [[10_000], [10_000]]


def test_warm_up_ends_when_the_slowest_to_settle_is_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    steady, settling = clock.workload(1), clock.workload(9, 7, 5, 3, 1)
    assert timing.measure_rounds({"a": steady}, CPU, repeats=1)[1] == 4
    # Medians of three: 7, 5, 3, then 1 for ever: first equal after the 7th run.
    times_ms, num_warmup = timing.measure_rounds({"a": steady, "b": settling}, CPU, repeats=5)
    assert num_warmup == 7
    assert (times_ms["b"] == 1000).all()


@pytest.mark.parametrize(
    ("times_ms", "stable"),
    [([1, 1, 1], False), ([1, 1, 1, 1], True), ([9, 1, 1, 1], True), ([8, 4, 2, 1], False), ([100, 90, 94, 96], True)],
)
def test_stable_is_a_median_that_moves_less_than_5_percent(times_ms: list[float], stable: bool) -> None:
    assert timing.is_stable(times_ms) == stable


def test_warm_up_has_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    ever_slower = Clock(monkeypatch).workload(*(2.0**i for i in range(20)))
    assert timing.measure_rounds({"a": ever_slower}, CPU, repeats=1, max_warmup=6)[1] == 6


def test_a_budget_is_kept_and_warm_up_leaves_two_thirds_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    done = list(timing.rounds({"a": clock.workload(2)}, CPU, repeats=100, seconds=15))
    assert [r.is_warmup for r in done] == [True] * 3 + [False] * 4  # an eighth round would have ended at 16 s
    assert clock.seconds == 14


def test_no_time_for_a_round_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="allow more"):
        timing.measure_rounds({"a": Clock(monkeypatch).workload(2)}, CPU, seconds=3)


def test_who_asks_for_no_more_rounds_has_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    running = timing.rounds({"a": clock.workload(1)}, CPU, repeats=100)
    next(running)
    next(running)
    running.close()
    assert clock.seconds == 2


def test_half_precision_computes_in_half_precision() -> None:
    with timing.at_precision("bfloat16", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with timing.at_precision("float32", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        timing.at_precision("int8", CPU)
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

    assert timing.measure_peak_mib(run, CPU) == [4, 5, 3]
