"""What the charts show: the rows of a stored result that belong together, their names, and one palette.

``analysis.figures`` (matplotlib) and the page (plotly) draw what is chosen here.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.results import Result, Row

PAPER = Path(__file__).parent / "paper_results.csv"

# Okabe and Ito's colours, which are told apart with any colour vision, on white and on black.
BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
GREY = "#808080"
METHODS = {
    "prototype": ("prototype attention", BLUE),
    "sdpa": ("masked attention, fused", RED),
    "softmax": ("masked attention, spelled out", PINK),
    "flex": ("masked attention, FlexAttention", GREEN),
}
MASKED = "masked twin"  # so stored results call the masked baseline
# Of the scaling: the name, the colour, and whether it is one layer alone instead of a network.
SUBJECTS = {
    "PEM": ("PEM", BLUE, False),
    MASKED: ("masked baseline", RED, False),
    "prototype attention": ("prototype attention", BLUE, True),
    "masked attention": ("masked attention", RED, True),
}
STAGES = {"backbone": GREY, "pixel decoder": ORANGE, "decoder": BLUE, "masks": SKY}
PATHS = {"plain": GREY, "fast": BLUE}
PUBLISHED = {"PEM": BLUE, "Mask2Former": RED}  # all others are grey
DATASETS = {"cityscapes": "Cityscapes", "ade20k": "ADE20K"}


@dataclass(frozen=True)
class Series:
    """One line, or the bars of one colour: rows of a result in the order in which they are drawn."""

    name: str
    color: str
    rows: list[Row]
    is_layer: bool = False  # one layer alone, to be told from whole networks
    growth: dict[str, Row] = field(default_factory=dict)  # the fitted exponent of each quantity that has one


def select(rows: list[Row], **wanted: Any) -> list[Row]:
    """The rows whose fields have the values that are wanted."""
    return [row for row in rows if wanted.items() <= row.items()]


def by_method(result: Result, **wanted: Any) -> list[Series]:
    """Of a comparison of attentions: for each method the rows that are wanted and that ran."""
    ran = [row for row in select(result["rows"], **wanted) if row["median_ms"] is not None]
    return [Series(name, color, select(ran, method=method)) for method, (name, color) in METHODS.items()]


def swept_value(row: Row, field: str) -> float:
    """What a row of the scaling is drawn and fitted over: for the resolution, the pixels of the image."""
    return row[field] ** 2 / 2 if field == "long_side_px" else row[field]


def by_subject(result: Result, field: str) -> list[Series]:
    """Of the scaling: each subject along one swept field, in ascending order; the other fields are as in the base."""
    fixed = {name: value for name, value in result["base"].items() if name != field}
    swept = "pixels" if field == "long_side_px" else field
    found = []
    for subject, (name, color, is_layer) in SUBJECTS.items():
        rows = select(result["rows"], **fixed, subject=subject, stage="total")
        fits = select(result["growth"], swept=swept, subject=subject, stage="total")
        growth = {fit["quantity"]: fit for fit in fits}
        found.append(Series(name, color, sorted(rows, key=lambda row: row[field]), is_layer, growth))
    return found


def by_stage(result: Result) -> list[Series]:
    """Of the latency: the presets in each stage, without their totals."""
    return [Series(stage, color, select(result["rows"], stage=stage)) for stage, color in STAGES.items()]


def by_kind(result: Result) -> list[Series]:
    """Of the networks that ran: PEMs with their masked baselines, and all others; the slowest first."""
    rows = sorted((row for row in result["rows"] if row["median_ms"] is not None), key=lambda row: -row["median_ms"])
    ours = [row for row in rows if row["network"].startswith("PEM")]
    others = [row for row in rows if row not in ours]
    return [Series("PEM and its masked baselines", BLUE, ours), Series("others", RED, others)]


def before_and_after(result: Result, field: str) -> list[Row]:
    """Of the speed-up: whole networks over "pixels" with 100 queries, or over "num_queries" at the usual size."""
    rows = [row | {"pixels": row["height_px"] * row["width_px"]} for row in select(result["rows"], stage="total")]
    usual_px = max((row["pixels"] for row in rows), key=lambda pixels: len(select(rows, pixels=pixels)))
    fixed = {"num_queries": 100} if field == "pixels" else {"pixels": usual_px}
    return sorted(select(rows, **fixed), key=lambda row: row[field])


def paper_rows() -> dict[str, list[Row]]:
    """The paper's own results by benchmark, each with the name of its "network"."""
    benchmarks: dict[str, list[Row]] = {}
    with PAPER.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            network = {"network": f"{row['method']} {row['backbone']}".strip()}
            benchmarks.setdefault(f"{DATASETS[row['dataset']]}, {row['task']}", []).append(row | network)
    return benchmarks


def paper_costs() -> dict[str, list[Row]]:
    """The same without the networks whose cost the paper does not tell."""
    return {benchmark: [row for row in rows if row["gmacs"]] for benchmark, rows in paper_rows().items()}
