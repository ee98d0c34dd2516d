"""The efficiency tab without a browser: its charts show the stored numbers, and its words what was found."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import pytest

from analysis.charts import paper_rows
from analysis.here import Comparison, Measurement
from ui import efficiency
from ui.efficiency import charts, tables
from ui.gate import Gate
from ui.storage import Storage

CONDITIONS = {"device": "Test CPU", "threads": 2, "precision": "float32", "command": "python -m analysis attention"}


def row(**values):
    timed = {"median_ms": 4.0, "p10_ms": 3.0, "p90_ms": 6.0}
    return (
        {"direction": "forward", "num_queries": 100, "tokens": "16x32", "gmacs": 0.2, "moved_mib": 10.0}
        | timed
        | values
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(charts, "RESULTS", tmp_path)
    attention = [
        row(method="prototype"),
        row(method="sdpa", median_ms=8.0),
        row(method="flex", median_ms=None, p10_ms=None, p90_ms=None),
        row(method="prototype", direction="forward+backward", median_ms=99.0),
        row(method="prototype", num_queries=20, median_ms=1.0),
    ]
    roofline = {"matrix_gmacs_per_s": 50.0, "copy_gb_per_s": 10.0}
    base = {"backbone": "stdc1", "long_side_px": 1024, "num_queries": 100, "num_heads": 8}
    scaling = [
        {**base, "long_side_px": side, "subject": "PEM", "stage": stage, **row(median_ms=ms)}
        for side, stage, ms in ((512, "total", 10.0), (256, "total", 3.0), (512, "decoder", 5.0))
    ]
    scaling.append(scaling[0] | {"backbone": "r50"})
    scaling[0]["num_queries"] = scaling[1]["num_queries"] = scaling[2]["num_queries"] = 100
    growth = [
        {"swept": "pixels", "subject": "PEM", "stage": "total", "quantity": "median_ms", "exponent": 0.87}
        | {"standard_error": 0.04}
    ]
    latency = [
        {"preset": "cityscapes-panoptic-r50", "stage": stage, "median_ms": ms}
        for stage, ms in (("backbone", 5.0), ("pixel decoder", 2.0), ("decoder", 1.0), ("masks", 0.5), ("total", 8.5))
    ]
    for name, rest in (
        ("attention", {"rows": attention, "roofline": roofline}),
        ("scaling", {"rows": scaling, "base": base, "growth": growth}),
        ("latency", {"rows": latency}),
    ):
        (tmp_path / f"{name}_test.json").write_text(json.dumps({"conditions": CONDITIONS, **rest}), encoding="utf-8")
    return tmp_path


def traces(chart: charts.Chart | None) -> dict[str, object]:
    assert chart is not None
    return {trace.name: trace for trace in chart.figure.data if trace.name}  # without a name: labels


def test_a_machine_is_named_by_what_it_measured_on(results: Path) -> None:
    assert charts.machines() == {"Test CPU, 2 threads, float32": "test"}


def test_what_was_not_stored_has_no_chart(results: Path) -> None:
    assert charts.stored_charts("test")["networks"] is None
    assert not any(charts.stored_charts("another machine").values())


def test_every_chart_names_its_data_and_its_command(results: Path) -> None:
    for chart in charts.stored_charts("test").values():
        if chart:
            assert chart.data.suffix == ".csv" and chart.command == "python -m analysis attention"
            assert chart.figure.layout.paper_bgcolor == "rgba(0,0,0,0)"  # dark mode shines through


def test_bars_are_medians_with_whiskers_of_the_forward_pass_alone(results: Path) -> None:
    bars = traces(charts.stored_charts("test")["attention"])
    prototype = bars["prototype attention"]
    assert (list(prototype.x), list(prototype.y)) == (["16x32"], [4.0])
    assert (list(prototype.error_y.array), list(prototype.error_y.arrayminus)) == ([2.0], [1.0])
    assert list(bars["masked attention, fused"].y) == [8.0]
    assert list(bars["masked attention, FlexAttention"].y) == []  # it did not run


def test_medians_stand_above_the_whiskers_of_their_bars(results: Path) -> None:
    chart = charts.stored_charts("test")["attention"]
    assert chart is not None
    bars, labels = ([trace for trace in chart.figure.data if trace.type == kind] for kind in ("bar", "scatter"))
    assert [bar.offsetgroup for bar in bars] == [label.offsetgroup for label in labels]
    assert (list(labels[0].text), list(labels[0].y)) == (["4"], [6.0])
    assert all(bar.text is None for bar in bars)


def test_the_roofline_bends_where_both_ceilings_meet(results: Path) -> None:
    lines = traces(charts.stored_charts("test")["roofline"])
    line = lines["what the machine allows"]
    assert (line.x[1], line.y[1]) == (5.0, 50.0)  # 50 GMAC/s over 10 GB/s
    assert line.y[0] == pytest.approx(10 * line.x[0]) and line.y[2] == 50.0
    points = lines["prototype attention"]
    assert points.x[0] == pytest.approx(0.2e9 / (10 * 2**20)) and points.y[0] == pytest.approx(50.0)  # 0.2 G in 4 ms


def test_growth_is_drawn_over_pixels_with_its_fitted_exponent(results: Path) -> None:
    chart = charts.stored_charts("test")["resolution"]
    (curve,) = (trace for name, trace in traces(chart).items() if name.startswith("PEM"))
    assert chart is not None
    assert curve.name == "PEM, exponent 0.87 ± 0.04"
    assert "The chart shows stdc1 with 100 queries" in chart.caption and "also measures r50" in chart.caption
    assert (list(curve.x), list(curve.y)) == ([256 * 128, 512 * 256], [3.0, 10.0])


def test_stages_are_stacked_without_their_total(results: Path) -> None:
    stages = traces(charts.stored_charts("test")["stages"])
    assert {name: list(bar.y) for name, bar in stages.items()} == {
        "backbone": [5.0],
        "pixel decoder": [2.0],
        "decoder": [1.0],
        "masks": [0.5],
    }


def test_the_paper_s_charts_name_every_point_and_mark_pem() -> None:
    figures = charts.paper_figures()
    assert list(figures) == [
        f"{data}, {task}" for task in ("panoptic", "semantic") for data in ("Cityscapes", "ADE20K")
    ]
    for figure in figures.values():
        (points,) = figure.data
        assert all(points.text)
        assert [name.startswith("PEM") for name in points.text] == [s == "star" for s in points.marker.symbol]
    rows = paper_rows()
    named = {(benchmark, row["network"]) for benchmark in rows for row in rows[benchmark]}
    assert charts.NAME_PLACES.keys() <= named


def test_pem_stands_below_mask2former_on_every_benchmark_of_the_paper() -> None:
    words = tables.paper_table()
    for benchmark, rows in paper_rows().items():
        by_network = {row["network"]: row for row in rows}
        theirs, ours = by_network["Mask2Former R50"], by_network["PEM R50"]
        gain = float(ours["value"]) - float(theirs["value"])
        speed = float(ours["fps_paper"]) / float(theirs["fps_paper"])
        above = f"| {benchmark}, {ours['metric']} | Mask2Former R50 | {theirs['value']} |"
        below = f"| PEM R50 | {ours['value']} "
        assert above in words and f"{below}({gain:+.1f})" in words and f"{ours['fps_paper']} ({speed:.1f}x)" in words
    assert "The paper repeats its panoptic row" in words  # what is known to be wrong with a number is said


def test_the_masked_baseline_is_shown_after_equal_steps_and_as_bundled() -> None:
    words = tables.masked_baseline_table()
    rows = json.loads((charts.RESULTS / "twins.json").read_text(encoding="utf-8"))["rows"]
    assert all(f"| {row['pq']:.1f} ({row['pq_low']:.1f}" in words for row in rows)
    assert "| PEM, as long as its twin, float32 |" in words and "after as many steps" in words
    assert f"{rows[0]['pq_gain']:+.1f} ({rows[0]['pq_gain_low']:+.1f}" in words


def measurement(**changes) -> Measurement:
    slower = Comparison("16x32 tokens", (6.0, 5.0, 7.0), (3.0, 2.0, 4.0), (0.5, 0.4, 0.6), 40)
    values = {"size_px": (512, 1024), "num_queries": 100, "precision": "float32", "conditions": CONDITIONS}
    return Measurement(**values | {"comparisons": (slower,), "fraction_done": 1.0, "doing": ""} | changes)


def test_the_tab_says_when_prototype_attention_is_not_faster() -> None:
    words = efficiency.found(measurement())
    assert "slower over 16x32 tokens (0.50x as fast)" in words
    assert "| 16x32 tokens | 6.00 (5.00 to 7.00) | 3.00 (2.00 to 4.00) | **0.50x** (0.40 to 0.60) | 40 |" in words
    assert "python -m analysis attention --tokens 16x32 32x64 64x128 --queries 100 --precision float32" in words
    assert efficiency.found(measurement(comparisons=(), doing="16x32 tokens", fraction_done=0.1)) == ""
    bars = {trace.name: list(trace.y) for trace in charts.measured_figure(measurement()).data if trace.name}
    assert bars == {"prototype attention": [6.0], "masked attention, fused": [3.0]}


def test_progress_is_told_in_words_too() -> None:
    assert "40%, measuring 16x32 tokens" in efficiency.progress(measurement(doing="16x32 tokens", fraction_done=0.4))
    assert "100%, done" in efficiency.progress(measurement())


def test_networks_are_ordered_by_time_and_those_that_did_not_run_left_out() -> None:
    rows = [row(network="Baseline", median_ms=9.0), row(network="PEM R50"), row(network="Absent", median_ms=None)]
    figure = charts.networks_figure({"rows": rows})
    assert list(figure.layout.yaxis.categoryarray) == ["Baseline", "PEM R50"]  # plotly draws the first at the bottom
    bars = {bar.name: list(bar.x) for bar in figure.data}
    assert bars == {"PEM and its masked baselines": [0.004], "others": [0.009]}


@pytest.mark.parametrize(
    ("device", "fast", "offered"),
    [
        ("cpu", True, ["float32", "bfloat16"]),
        ("cpu", False, ["float32"]),
        ("cuda", False, ["float32", "bfloat16", "float16"]),
    ],
)
def test_a_precision_is_offered_where_the_machine_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, fast: bool, offered: list[str]
) -> None:
    monkeypatch.setattr(efficiency, "has_bfloat16", lambda device: fast)
    with gr.Blocks() as page, gr.Tab("Efficiency") as tab:
        efficiency.add_tab(tab, device, lambda function: function, Storage(tmp_path), Gate())
    (precision,) = [block for block in page.blocks.values() if getattr(block, "label", "") == "Precision"]
    assert [choice for _, choice in precision.choices] == offered
    assert (precision.info is not None) == (offered == ["float32"])
