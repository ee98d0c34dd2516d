"""Stored results and fresh measurements drawn by plotly, each with its data and the command that measured it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analysis import charts
from analysis.charts import GREY, METHODS
from analysis.here import Measurement
from analysis.results import MIB, RESULTS, Result, Row, load, machine
from analysis.roofline import Roofline

GROUPED: dict[str, Any] = {"barmode": "group", "scattermode": "group", "bargap": 0.2, "scattergap": 0.2}


@dataclass(frozen=True)
class Chart:
    """A figure, one sentence on how to read it, the file of its numbers and the command that measured them."""

    title: str
    figure: go.Figure
    caption: str
    data: Path
    command: str


def machines() -> dict[str, str]:
    """Those with stored results: how they are called, and how their files end."""
    files = sorted(RESULTS.glob("attention_*.json"))
    return {machine(load(path)["conditions"]): path.stem.removeprefix("attention_") for path in files}


def stored_charts(machine: str) -> dict[str, Chart | None]:
    """The charts by name, for the ``machine`` as its files end; None where nothing was stored for it."""
    return {
        "attention": _chart(
            f"attention_{machine}", "One layer of cross-attention", attention_figure, ATTENTION_CAPTION
        ),
        "resolution": _chart(f"scaling_{machine}", "Growth with resolution", resolution_figure, RESOLUTION_CAPTION),
        "queries": _chart(f"scaling_{machine}", "Growth with queries", queries_figure, QUERIES_CAPTION),
        "stages": _chart(f"latency_{machine}", "Where the time goes", stages_figure, STAGES_CAPTION),
        "roofline": _chart(f"attention_{machine}", "Roofline", roofline_figure, ROOFLINE_CAPTION),
        "networks": _chart(f"peers-512x1024_{machine}", "Network against network", networks_figure, NETWORKS_CAPTION),
    }


def _chart(name: str, title: str, draw: Callable[[Result], go.Figure], caption: str) -> Chart | None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    result = load(path)
    base = result.get("base", {})
    others = {row.get("backbone") for row in result["rows"]} - {base.get("backbone")}
    caption = caption.format(**base)
    if others:
        caption += f" The command also measures {', '.join(sorted(others))}: that is in the data, not drawn."
    return Chart(title, draw(result), caption, path.with_suffix(".csv"), result["conditions"]["command"])


def _figure(x: str, y: str, log_x: bool = False, log_y: bool = False, **layout: Any) -> go.Figure:
    """An empty figure that is readable on white, on black and 340 px wide."""

    def axis(title: str, log: bool) -> dict[str, Any]:
        colors = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.4)", "linecolor": GREY}
        # Plotly writes only every tenth number of a logarithmic axis in full.
        values = [digit * 10.0**power for power in range(-4, 8) for digit in (1, 2, 5)]
        ticks = {"type": "log", "tickvals": values, "ticktext": [_short(value) for value in values]} if log else {}
        return {"title": {"text": title, "standoff": 8}, "tickangle": 0, **colors, **ticks}

    return go.Figure(
        layout={
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": GREY, "size": 12},
            "legend": {"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0},
            "margin": {"l": 52, "r": 12, "t": 12, "b": 44},
            "height": 360,
            "xaxis": axis(x, log_x),
            "yaxis": axis(y, log_y),
            **layout,
        }
    )


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e4 else f"{value:g}"


# ------------------------------------------------------------------------------------------------------ from the paper

# Names stand above their points, but for these, which would cover others there.
NAME_PLACES = {
    ("Cityscapes, panoptic", "YOSO R50"): "bottom center",
    ("ADE20K, panoptic", "YOSO R50"): "bottom center",
    ("Cityscapes, semantic", "YOSO R50"): "bottom right",
    ("ADE20K, semantic", "YOSO R50"): "bottom center",
}


def paper_figures() -> dict[str, go.Figure]:
    """Score against cost on each benchmark, of the networks whose cost the paper tells."""
    figures = {}
    for benchmark, rows in charts.paper_costs().items():
        gmacs, scores = ([float(row[key]) for row in rows] for key in ("gmacs", "value"))
        room = 0.2 * (max(scores) - min(scores))  # for the names
        figure = figures[benchmark] = _figure("GMACs", f"{rows[0]['metric']}, %", height=320)
        figure.update_xaxes(range=[0, 1.3 * max(gmacs)], nticks=6, showgrid=False)
        figure.update_yaxes(range=[min(scores) - room, max(scores) + room], nticks=6, showgrid=False)
        figure.add_scatter(
            x=gmacs,
            y=scores,
            mode="markers+text",
            text=[row["network"] for row in rows],
            textposition=[NAME_PLACES.get((benchmark, row["network"]), "top center") for row in rows],
            textfont={"size": 10},
            cliponaxis=False,
            hovertemplate="%{text}: %{y} at %{x} GMACs<extra></extra>",
            marker={
                "color": [charts.PUBLISHED.get(row["method"], GREY) for row in rows],
                "size": [14 if row["method"] == "PEM" else 9 for row in rows],
                "symbol": ["star" if row["method"] == "PEM" else "circle" for row in rows],
            },
        )
    return figures


# -------------------------------------------------------------------------------------------------------- as measured

ATTENTION_CAPTION = (
    "One cross-attention layer, forward, 100 queries, on the same tensors and in turns; bars are medians, whiskers the "
    "10th and 90th percentile."
)
ROOFLINE_CAPTION = (
    "How fast each layer multiplies, against what the machine allows: its measured matrix rate on the right, its "
    "measured copy rate on the left. A point far below the line loses its time elsewhere."
)
RESOLUTION_CAPTION = (
    "The chart shows {backbone} with {num_queries} queries: the network, its masked baseline, and one layer of either "
    "attention at stride 8 (dashed). Exponents are fitted over pixels: 1 is linear."
)
QUERIES_CAPTION = (
    "The same network on photos {long_side_px} px wide, by the number of queries; exponents are fitted over queries."
)
STAGES_CAPTION = "Where the time of each PEM goes, at 512x1024 px: medians of each stage."
NETWORKS_CAPTION = (
    "Whole networks with random weights, on the same pixels and in turns: medians. Under the pointer: 10th to 90th "
    "percentile and multiply-accumulates."
)


def attention_figure(result: Result) -> go.Figure:
    figure = _figure("tokens", "ms", **GROUPED)
    for method in charts.by_method(result, direction="forward", num_queries=100):
        _bars(figure, method.name, method.color, [row["tokens"] for row in method.rows], method.rows)
    return figure


def roofline_figure(result: Result) -> go.Figure:
    figure = _figure("MACs per byte moved", "GMACs per second", log_x=True, log_y=True)
    roofline = Roofline(**result["roofline"])
    methods = charts.by_method(result, direction="forward")
    edge = roofline.matrix_gmacs_per_s / roofline.copy_gb_per_s  # where both ceilings meet
    reached = [edge, *(_intensity(row) for method in methods for row in method.rows)]
    xs = [min(reached) / 2, edge, max(reached) * 2]
    figure.add_scatter(
        x=xs,
        y=[roofline.attainable_gmacs_per_s(macs=x, num_bytes=1) for x in xs],
        name="what the machine allows",
        mode="lines",
        line={"color": GREY, "dash": "dash"},
    )
    for method in methods:
        figure.add_scatter(
            x=[_intensity(row) for row in method.rows],
            y=[row["gmacs"] / (row["median_ms"] / 1e3) for row in method.rows],
            name=method.name,
            mode="markers",
            marker={"color": method.color, "size": 9},
            customdata=[f"{row['tokens']} tokens, {row['num_queries']} queries" for row in method.rows],
            hovertemplate="%{customdata}: %{y:.1f} GMACs/s",
        )
    return figure


def _intensity(row: Row) -> float:
    """MACs per byte that must be moved."""
    return row["gmacs"] * 1e9 / (row["moved_mib"] * MIB)


def resolution_figure(result: Result) -> go.Figure:
    return _curves(result, "long_side_px", "pixels")


def queries_figure(result: Result) -> go.Figure:
    return _curves(result, "num_queries", "queries")


def _curves(result: Result, field: str, label: str) -> go.Figure:
    figure = _figure(label, "ms", log_x=True, log_y=True)
    for subject in charts.by_subject(result, field):
        fit = subject.growth.get("median_ms")
        power = f", exponent {fit['exponent']:.2f} ± {fit['standard_error']:.2f}" if fit else ""
        figure.add_scatter(
            x=[charts.swept_value(row, field) for row in subject.rows],
            y=[row["median_ms"] for row in subject.rows],
            name=subject.name + power,
            mode="lines+markers",
            line={"color": subject.color, "dash": "dash" if subject.is_layer else "solid"},
            **_whiskers(subject.rows),
        )
    return figure


def stages_figure(result: Result) -> go.Figure:
    figure = _figure("", "ms", barmode="stack")
    for stage in charts.by_stage(result):
        names = [row["preset"].removeprefix("cityscapes-panoptic-") for row in stage.rows]
        figure.add_bar(x=names, y=[row["median_ms"] for row in stage.rows], name=stage.name, marker_color=stage.color)
    return figure


def networks_figure(result: Result) -> go.Figure:
    figure = _figure("seconds", "", height=460, barmode="stack")  # beside each other, bars would be half as thick
    kinds = charts.by_kind(result)
    rows = sorted((row for kind in kinds for row in kind.rows), key=lambda row: -row["median_ms"])
    figure.update_xaxes(range=[0, 1.3 * rows[0]["median_ms"] / 1000], nticks=5)  # room for the longest bar's label
    names = [row["network"] for row in rows]
    figure.update_yaxes(categoryorder="array", categoryarray=names, automargin=True, showgrid=False)
    figure.update_layout(legend={"traceorder": "normal", "y": -0.18})
    for kind in kinds:
        figure.add_bar(
            x=[row["median_ms"] / 1000 for row in kind.rows],
            y=[row["network"] for row in kind.rows],
            name=kind.name,
            orientation="h",
            marker_color=kind.color,
            texttemplate="%{x:.2f} s",
            textposition="outside",
            textangle=0,
            cliponaxis=False,
            customdata=[
                f"{row['p10_ms'] / 1000:.2f} to {row['p90_ms'] / 1000:.2f} s, {row['gmacs']:.0f} GMACs"
                for row in kind.rows
            ],
            hovertemplate="%{y}: %{customdata}<extra></extra>",
        )
    return figure


def measured_figure(measurement: Measurement) -> go.Figure:
    """Prototype beside masked attention, as far as they were measured here."""
    figure = _figure("", "ms", **GROUPED)
    # In two lines: on a phone they would overlap in one.
    names = ["<br>".join(comparison.subject.rsplit(" ", 1)) for comparison in measurement.comparisons]
    for method, field in (("prototype", "prototype_ms"), ("sdpa", "masked_ms")):
        times = [getattr(comparison, field) for comparison in measurement.comparisons]
        rows = [dict(zip(("median_ms", "p10_ms", "p90_ms"), each)) for each in times]
        _bars(figure, *METHODS[method], names, rows)
    return figure


def _bars(figure: go.Figure, name: str, color: str, x: list[str], rows: list[Row]) -> None:
    """Bars with whiskers, and above those the medians: plotly itself writes on the top of a bar, under its whisker."""
    times_ms = [row["median_ms"] for row in rows]
    figure.update_xaxes(showgrid=False)
    figure.add_bar(x=x, y=times_ms, name=name, offsetgroup=name, marker_color=color, **_whiskers(rows))
    figure.add_scatter(
        x=x,
        y=[row["p90_ms"] for row in rows],
        offsetgroup=name,  # with scattermode "group": in the middle of the bar
        mode="text",
        text=[f"{time:.0f}" if time >= 10 else f"{time:.2g}" for time in times_ms],
        textposition="top center",
        textfont={"size": 11},
        showlegend=False,
        hoverinfo="skip",
    )


def _whiskers(rows: list[Row]) -> dict[str, Any]:
    return {
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [row["p90_ms"] - row["median_ms"] for row in rows],
            "arrayminus": [row["median_ms"] - row["p10_ms"] for row in rows],
            "color": GREY,
            "thickness": 1,
        }
    }
