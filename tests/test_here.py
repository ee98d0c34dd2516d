from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from analysis import here, timing
from analysis.here import Comparison, Measurement, compare, describe, measure_here
from analysis.timing import Round, Workload
from pem.decoder import Decoder

CONDITIONS = {"device": "Toaster", "threads": 2, "precision": "float32"}


def comparison(subject: str, speedup: tuple[float, float, float]) -> Comparison:
    return Comparison(subject, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), speedup, num_rounds=5)


def measurement(*comparisons: Comparison) -> Measurement:
    return Measurement((64, 64), 100, "float32", CONDITIONS, comparisons, 1.0, "")


class Stage:
    """Replaces all that is measured by workloads that take the given times, on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, prototype_s: float, masked_s: float) -> None:
        self.seconds, self.calls = 0.0, []
        pair = {"prototype": self.workload("prototype", prototype_s), "masked": self.workload("masked", masked_s)}
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.seconds)
        monkeypatch.setattr(here, "level_workloads", lambda *_: pair)
        monkeypatch.setattr(here, "decoder_workloads", lambda *_: pair)

    def workload(self, name: str, seconds: float) -> Workload:
        def run(done: Callable[[], None]) -> None:
            self.seconds += seconds
            self.calls.append(name)
            done()

        return run


def test_ratios_are_paired_round_by_round() -> None:
    # The machine slows down ten-fold in the second round; the ratio does not see it.
    rounds = [Round({"prototype": [p], "masked": [m]}, False) for p, m in ((1, 2), (10, 20), (4, 2))]
    found = compare("x", rounds)
    assert found.speedup[0] == 2
    assert found.prototype_ms[0] == 4 and found.masked_ms[0] == 2
    assert found.num_rounds == 3


@pytest.mark.parametrize(
    ("speedup", "verdict"),
    [((1.5, 1.2, 1.9), "faster"), ((0.6, 0.5, 0.9), "slower"), ((1.1, 0.9, 1.2), "not clearly faster or slower")],
)
def test_a_verdict_needs_nine_rounds_in_ten(speedup: tuple[float, float, float], verdict: str) -> None:
    assert comparison("x", speedup).verdict == verdict


def test_the_sentence_says_when_prototypes_are_slower() -> None:
    found = measurement(
        comparison("16x32 tokens", (1.5, 1.4, 1.6)),
        comparison("32x64 tokens", (0.7, 0.6, 0.8)),
        comparison("64x128 tokens", (0.6, 0.5, 0.7)),
        comparison("the whole decoder", (1.02, 0.9, 1.1)),
    )
    assert describe(found) == (
        "Compared with masked attention, prototype attention is faster over 16x32 tokens (1.50x as fast); slower over "
        "32x64 tokens (0.70x as fast) and 64x128 tokens (0.60x as fast); not clearly faster or slower over the whole "
        "decoder (1.02x as fast): 100 queries on Toaster, 2 threads, float32."
    )
    assert "slower" not in describe(measurement(comparison("x", (2, 2, 2))))
    assert describe(measurement()).startswith("Nothing was measured")


def test_everything_is_compared_and_progress_only_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    Stage(monkeypatch, 1.0, 2.0)
    steps = list(measure_here((64, 96), seconds=1000))
    assert [c.subject for c in steps[-1].comparisons] == [
        "2x3 tokens",
        "4x6 tokens",
        "8x12 tokens",
        "the whole decoder",
    ]
    assert [c.speedup for c in steps[-1].comparisons] == [(2, 2, 2)] * 4
    assert steps[-1].doing == "" and all(step.doing for step in steps[:-1])
    fractions = [step.fraction_done for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1


@pytest.mark.parametrize("seconds", [10, 45, 59])
@pytest.mark.parametrize("round_s", [0.1, 1, 4])
def test_the_budget_is_kept(monkeypatch: pytest.MonkeyPatch, seconds: float, round_s: float) -> None:
    stage = Stage(monkeypatch, round_s / 2, round_s / 2)
    *_, last = measure_here((64, 96), seconds=seconds)
    assert stage.seconds < seconds + round_s  # a round that is under way is not stopped
    for found in last.comparisons:
        assert found.num_rounds >= here.FEWEST_ROUNDS


def test_what_has_no_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Stage(monkeypatch, 5.0, 5.0)
    *_, last = measure_here((64, 96), seconds=20)
    assert last.comparisons == ()


def test_cancelling_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, 1.0, 1.0)
    running = measure_here((64, 96), seconds=1000)
    next(running)
    running.close()
    assert len(stage.calls) == 1  # of the two in a round


def test_what_cannot_be_measured_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        next(measure_here((100, 96)))
    with pytest.raises(ValueError, match="no precision 'float8'"):
        next(measure_here((64, 96), precision="float8"))


def test_decoder_and_masked_baseline_are_measured_for_real() -> None:
    workloads = here.decoder_workloads((32, 64), 5, torch.device("cpu"), "bfloat16")
    assert list(workloads) == list(here.level_workloads((1, 2), 5, torch.device("cpu"), "bfloat16"))
    for run in workloads.values():
        assert len(timing.measure_ms(run, torch.device("cpu"))) == 1


def test_the_decoders_get_features_in_the_layout_of_the_network() -> None:
    """In another one they take twice as long."""
    layouts = []

    def look(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, Decoder):
            layouts.extend(x.is_contiguous(memory_format=torch.channels_last) for x in (inputs[0], *inputs[1]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        for run in here.decoder_workloads((64, 64), 5, torch.device("cpu"), "float32").values():
            run(lambda: None)
    finally:
        hook.remove()
    assert layouts == [True] * 8


def test_a_measurement_can_be_stored() -> None:
    stored = dataclasses.asdict(measurement(comparison("x", (2, 1, 3))))
    assert stored["comparisons"][0]["speedup"] == (2, 1, 3)
