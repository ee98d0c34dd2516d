"""Stored results and fresh measurements as plotly charts, each with its data and the command that makes it anew."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

import analysis
from analysis.here import Measurement

RESULTS = Path(analysis.__file__).parent / "results"
PAPER = Path(analysis.__file__).parent / "paper_results.csv"

# Okabe and Ito's colours: told apart by everyone, on white and on black.
BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
METHODS = {
    "prototype": ("prototype attention", BLUE),
    "sdpa": ("masked attention, fused", ORANGE),
    "softmax": ("masked attention, spelled out", PINK),
    "flex": ("masked attention, FlexAttention", GREEN),
}
SUBJECTS = {
    "PEM": BLUE,
    "masked twin": ORANGE,
    "prototype attention": SKY,
    "masked attention": RED,
}
STAGES = {"backbone": BLUE, "pixel decoder": SKY, "decoder": ORANGE, "masks": GREEN}
GREY = "#808080"  # readable on white and on black
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
    found = {}
    for path in sorted(RESULTS.glob("attention_*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))["conditions"]
        threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
        found[f"{about['device']}, {threads}, {about['precision']}"] = path.stem.removeprefix("attention_")
    return found


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


def _chart(name: str, title: str, draw: Callable[[dict[str, Any]], go.Figure], caption: str) -> Chart | None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
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

DATASETS = {"cityscapes": "Cityscapes", "ade20k": "ADE20K"}
PAPER_COLORS = {"PEM": BLUE, "Mask2Former": ORANGE}
# Names stand above their points; where these did, they would lie upon others.
NAME_PLACES = {
    ("Cityscapes, panoptic", "YOSO R50"): "bottom center",
    ("ADE20K, panoptic", "YOSO R50"): "bottom center",
    ("Cityscapes, semantic", "YOSO R50"): "bottom right",
    ("ADE20K, semantic", "YOSO R50"): "bottom center",
}


def paper_rows() -> dict[str, list[dict[str, str]]]:
    """The rows of the paper by benchmark."""
    benchmarks: dict[str, list[dict[str, str]]] = {}
    with PAPER.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            row["network"] = f"{row['method']} {row['backbone']}".strip()
            benchmarks.setdefault(f"{DATASETS[row['dataset']]}, {row['task']}", []).append(row)
    return benchmarks


def paper_figures() -> dict[str, go.Figure]:
    """Score against cost on each benchmark, of the networks whose cost the paper tells."""
    figures = {}
    for benchmark, rows in paper_rows().items():
        rows = [row for row in rows if row["gmacs"]]
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
                "color": [PAPER_COLORS.get(row["method"], GREY) for row in rows],
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
    "Drawn is {backbone} with {num_queries} queries: the whole network and its masked twin, and one layer of either "
    "attention at stride 8. Exponents are fitted over pixels: 1 is linear."
)
QUERIES_CAPTION = (
    "The same network on photos {long_side_px} px wide, by the number of queries; exponents are fitted over queries."
)
STAGES_CAPTION = "Where the time of each PEM goes, at 512x1024 px: medians of each stage."
NETWORKS_CAPTION = (
    "Whole networks with random weights, on the same pixels and in turns: medians. Under the pointer: 10th to 90th "
    "percentile and multiply-accumulates."
)


def attention_figure(result: dict[str, Any]) -> go.Figure:
    figure = _figure("tokens", "ms", **GROUPED)
    rows = [row for row in result["rows"] if row["direction"] == "forward" and row["num_queries"] == 100]
    for method, (name, color) in METHODS.items():
        chosen = [row for row in rows if row["method"] == method and row["median_ms"] is not None]
        _bars(figure, name, color, [row["tokens"] for row in chosen], chosen)
    return figure


def roofline_figure(result: dict[str, Any]) -> go.Figure:
    figure = _figure("MACs per byte moved", "GMACs per second", log_x=True, log_y=True)
    ceiling, copy_rate = result["roofline"]["matrix_gmacs_per_s"], result["roofline"]["copy_gb_per_s"]
    rows = [row for row in result["rows"] if row["direction"] == "forward" and row["median_ms"] is not None]
    intensity = [row["gmacs"] * 1e9 / (row["moved_mib"] * 2**20) for row in rows]
    edge = ceiling / copy_rate
    xs = [min([*intensity, edge]) / 2, edge, max([*intensity, edge]) * 2]
    figure.add_scatter(
        x=xs,
        y=[min(ceiling, x * copy_rate) for x in xs],
        name="what the machine allows",
        mode="lines",
        line={"color": GREY, "dash": "dash"},
    )
    for method, (name, color) in METHODS.items():
        chosen = [(x, row) for x, row in zip(intensity, rows) if row["method"] == method]
        figure.add_scatter(
            x=[x for x, _ in chosen],
            y=[row["gmacs"] / (row["median_ms"] / 1e3) for _, row in chosen],
            name=name,
            mode="markers",
            marker={"color": color, "size": 9},
            customdata=[f"{row['tokens']} tokens, {row['num_queries']} queries" for _, row in chosen],
            hovertemplate="%{customdata}: %{y:.1f} GMACs/s",
        )
    return figure


def resolution_figure(result: dict[str, Any]) -> go.Figure:
    figure = _figure("pixels", "ms", log_x=True, log_y=True)
    return _curves(figure, result, "long_side_px", "pixels", lambda row: row["long_side_px"] ** 2 / 2)


def queries_figure(result: dict[str, Any]) -> go.Figure:
    figure = _figure("queries", "ms", log_x=True, log_y=True)
    return _curves(figure, result, "num_queries", "num_queries", lambda row: row["num_queries"])


def _curves(
    figure: go.Figure, result: dict[str, Any], field: str, swept: str, x_of: Callable[[dict[str, Any]], float]
) -> go.Figure:
    fixed = {name: value for name, value in result["base"].items() if name != field}
    rows = [row for row in result["rows"] if fixed.items() <= row.items() and row["stage"] == "total"]
    exponents = {
        fit["subject"]: fit
        for fit in result["growth"]
        if (fit["swept"], fit["stage"], fit["quantity"]) == (swept, "total", "median_ms")
    }
    for subject, color in SUBJECTS.items():
        chosen = sorted((row for row in rows if row["subject"] == subject), key=x_of)
        fit = exponents.get(subject)
        power = f", exponent {fit['exponent']:.2f} ± {fit['standard_error']:.2f}" if fit else ""
        figure.add_scatter(
            x=[x_of(row) for row in chosen],
            y=[row["median_ms"] for row in chosen],
            name=subject + power,
            mode="lines+markers",
            line={"color": color},
            **_whiskers(chosen),
        )
    return figure


def stages_figure(result: dict[str, Any]) -> go.Figure:
    figure = _figure("", "ms", barmode="stack")
    for stage, color in STAGES.items():
        chosen = [row for row in result["rows"] if row["stage"] == stage]
        names = [row["preset"].removeprefix("cityscapes-panoptic-") for row in chosen]
        figure.add_bar(x=names, y=[row["median_ms"] for row in chosen], name=stage, marker_color=color)
    return figure


def networks_figure(result: dict[str, Any]) -> go.Figure:
    figure = _figure("seconds", "", height=460, barmode="stack")  # beside each other, bars would be half as thick
    rows = sorted((row for row in result["rows"] if row["median_ms"] is not None), key=lambda row: -row["median_ms"])
    slowest_s = max(row["median_ms"] for row in rows) / 1000
    figure.update_xaxes(range=[0, 1.3 * slowest_s], nticks=5)  # with room for the label of the longest bar
    names = [row["network"] for row in rows]
    figure.update_yaxes(categoryorder="array", categoryarray=names, automargin=True, showgrid=False)
    figure.update_layout(legend={"traceorder": "normal", "y": -0.18})
    for is_pem, name, color in ((True, "PEM and its masked twins", BLUE), (False, "others", ORANGE)):
        chosen = [row for row in rows if row["network"].startswith("PEM") == is_pem]
        figure.add_bar(
            x=[row["median_ms"] / 1000 for row in chosen],
            y=[row["network"] for row in chosen],
            name=name,
            orientation="h",
            marker_color=color,
            texttemplate="%{x:.2f} s",
            textposition="outside",
            textangle=0,
            cliponaxis=False,
            customdata=[
                f"{row['p10_ms'] / 1000:.2f} to {row['p90_ms'] / 1000:.2f} s, {row['gmacs']:.0f} GMACs"
                for row in chosen
            ],
            hovertemplate="%{y}: %{customdata}<extra></extra>",
        )
    return figure


def measured_figure(measurement: Measurement) -> go.Figure:
    """Prototype beside masked attention, as far as they were measured here."""
    figure = _figure("", "ms", **GROUPED)
    # In two lines, for on a phone they would run into one another.
    names = ["<br>".join(comparison.subject.rsplit(" ", 1)) for comparison in measurement.comparisons]
    for name, color, times in (
        ("prototype attention", BLUE, [comparison.prototype_ms for comparison in measurement.comparisons]),
        ("masked attention, fused", ORANGE, [comparison.masked_ms for comparison in measurement.comparisons]),
    ):
        rows = [dict(zip(("median_ms", "p10_ms", "p90_ms"), each)) for each in times]
        _bars(figure, name, color, names, rows)
    return figure


def _bars(figure: go.Figure, name: str, color: str, x: list[str], rows: list[dict[str, Any]]) -> None:
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


def _whiskers(rows: list[dict[str, Any]]) -> dict[str, Any]:
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
