"""Pictures for the README, from stored results only; ``--overview`` draws photos and what the model makes of them."""

from __future__ import annotations

import argparse
import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.patheffects
import numpy as np
import torch
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

import pem
from analysis.latency import STAGES
from analysis.results import RESULTS, machine
from pem.names import deepest_place

PAPER = Path(__file__).parent / "paper_results.csv"
FIGURES = Path(__file__).parent.parent / "assets" / "figures"
EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"
SMALLEST_NAMED = 0.01  # share of the photo that a segment must cover to have its name written on it

# Colours that are told apart with any colour vision (Okabe and Ito).
COLORS = {"prototype": "#0072B2", "sdpa": "#D55E00", "softmax": "#CC79A7", "flex": "#009E73"}
GREY = "#777777"
METHOD_NAMES = {
    "prototype": "prototype",
    "sdpa": "masked, fused (SDPA)",
    "softmax": "masked, spelled out",
    "flex": "masked, FlexAttention",
}
SUBJECTS = {
    "PEM": {"color": COLORS["prototype"], "marker": "o"},
    "masked twin": {"color": COLORS["sdpa"], "marker": "o"},
    "prototype attention": {"color": COLORS["prototype"], "marker": "s", "linestyle": "--"},
    "masked attention": {"color": COLORS["sdpa"], "marker": "s", "linestyle": "--"},
}
SWEPT = {"long_side_px": "long side of the image in px", "num_queries": "queries", "num_heads": "heads"}


def overview(model: pem.PEM, photos: list[Path]) -> Figure:
    """Each photo with its panoptic segments and their names, and below it the prototypes of its largest thing's query.

    A prototype is drawn at the centre of its cell, in the colour of its layer (dark is the first).
    """
    figure = Figure(figsize=(4 * len(photos), 5.8), layout="constrained")
    axes = figure.subplots(2, len(photos), squeeze=False)
    outline = [matplotlib.patheffects.withStroke(linewidth=2.5, foreground="black")]
    for column, path in enumerate(photos):
        image = np.asarray(pem.load_image(path))
        batch = pem.preprocess([image], model.config, next(model.parameters()).device)
        with torch.inference_mode():
            output = model(batch.pixels, trace=True)
        reading = pem.panoptic(output, batch, model.config)[0]
        top, bottom = axes[:, column]
        top.imshow(pem.render(image, reading, opacity=0.55))
        for segment in reading.segments:
            if segment.area_px >= SMALLEST_NAMED * reading.ids.size:
                row, col, _ = deepest_place(reading.ids, segment.id)
                top.text(col, row, segment.label, color="white", ha="center", va="center", path_effects=outline)

        bottom.imshow(image)
        largest = max(reading.segments, key=lambda s: (s.is_thing, s.area_px), default=None)
        if largest is not None and output.trace is not None:
            query = largest.queries[0]
            bottom.contour(reading.ids == largest.id, levels=[0.5], colors="white", linewidths=1.2)
            for number, layer in enumerate(output.trace):
                if layer.allowed_fraction[0, query] == 0:
                    continue  # no foreground, so no prototype
                index = layer.prototype_index[0, :, query].cpu().numpy()
                points = np.stack(np.divmod(index, layer.grid_size[1])) * layer.stride + layer.stride / 2
                scale = np.array(batch.original_sizes[0]) / np.array(batch.content_sizes[0])
                rows, cols = points * scale[:, None]
                color = matplotlib.colormaps["plasma"](number / (len(output.trace) - 1))
                bottom.scatter(cols, rows, s=36, color=[color], edgecolors="white", linewidths=0.8)
            bottom.set_title(f"where the query for “{largest.label}” looked", fontsize=10)
        for axis in (top, bottom):
            axis.set_xlim(-0.5, image.shape[1] - 0.5)
            axis.set_ylim(image.shape[0] - 0.5, -0.5)
            axis.set_axis_off()
    return figure


def side_by_side(image: np.ndarray, name: str, labelled: pem.Segmentation, found: pem.Segmentation) -> Figure:
    """A photo, what people labelled in it, and what a model found."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(image)
    axes[0].set_title(name)
    for axis, (title, reading) in zip(axes[1:], {"labelled": labelled, "found": found}.items()):
        axis.imshow(pem.render(image, reading, opacity=0.6))
        labels = sorted({segment.label for segment in reading.segments if segment.area_px})
        axis.set_title(f"{title}: {', '.join(labels)}", fontsize=9, wrap=True)
    for axis in axes:
        axis.set_axis_off()
    return figure


def cost_against_accuracy(paper: list[dict[str, str]]) -> Figure:
    """The paper's tables, each in a panel: methods of few MACs stand left, good ones high. Without cost, no point."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    settings = sorted({(row["dataset"], row["task"]) for row in paper})
    for axis, (dataset, task) in zip(figure.subplots(2, 2).flat, settings):
        rows = [row for row in paper if (row["dataset"], row["task"]) == (dataset, task)]
        for row in rows:
            if row["gmacs"]:
                x, y = float(row["gmacs"]), float(row["value"])
                ours = row["method"] == "PEM"
                axis.plot(x, y, "o", color=COLORS["prototype"] if ours else GREY, markersize=9 if ours else 6)
                name = f"{row['method']} {row['backbone']}".strip()
                weight = "bold" if ours else "normal"
                axis.annotate(name, (x, y), (6, 4), textcoords="offset points", fontsize=9, weight=weight)
        axis.margins(y=0.15)
        axis.set_xlim(0, 1.5 * max(float(row["gmacs"] or 0) for row in rows))  # room for names
        axis.grid(alpha=0.3)
        axis.set_title(f"{dataset}, {task}")
        axis.set_xlabel("GMACs per image (the paper's “FLOPs”)")
        axis.set_ylabel(f"{rows[0]['metric']} in %")
    return figure


def scaling_curves(result: dict[str, Any]) -> Figure:
    """Time (above) and memory (below) against each swept value; the legends have the fitted exponents."""
    columns = []
    for field, label in SWEPT.items():
        fixed = {name: value for name, value in result["base"].items() if name != field} | {"stage": "total"}
        rows = [row for row in result["rows"] if fixed.items() <= row.items()]
        values = sorted({row[field] for row in rows})
        if len(values) > 1:
            columns.append((field, label, rows, values))
    figure = Figure(figsize=(4.6 * len(columns), 9), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False)
    for j, (field, label, rows, values) in enumerate(columns):
        for axis, quantity, unit in zip(grid[:, j], ("median_ms", "peak_mib"), ("ms", "peak MiB")):
            for subject, style in SUBJECTS.items():
                curve = {row[field]: row[quantity] for row in rows if row["subject"] == subject}
                name = subject + fitted_exponent(result["growth"], field, subject, quantity)
                axis.plot(values, [curve[value] for value in values], label=name, **style)
            axis.set_xscale("log")
            axis.set_yscale("log")
            readable_log_axis(axis.yaxis)
            axis.set_xticks(values, [str(value) for value in values])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel(label)
            axis.set_ylabel(unit)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.suptitle(machine(result["conditions"]))
    return figure


def fitted_exponent(growth: list[dict[str, Any]], field: str, subject: str, quantity: str) -> str:
    swept = "pixels" if field == "long_side_px" else field
    wanted = {"swept": swept, "subject": subject, "stage": "total", "quantity": quantity}
    for fit in growth:
        if wanted.items() <= fit.items():
            return f": {swept.removeprefix('num_')}^({fit['exponent']:.2f} ± {fit['standard_error']:.2f})"
    return ""


def stacked_stages(result: dict[str, Any]) -> Figure:
    """One bar for each network, in the time of its stages."""
    presets = list(dict.fromkeys(row["preset"] for row in result["rows"]))
    figure = Figure(figsize=(10, 1.2 + 0.7 * len(presets)), layout="constrained")
    axis = figure.subplots()
    left = np.zeros(len(presets))
    for stage, color in zip(STAGES, ("#999999", "#E69F00", "#0072B2", "#56B4E9")):
        times_ms = np.array([row["median_ms"] for row in result["rows"] if row["stage"] == stage])
        axis.barh(presets, times_ms, left=left, label=stage, color=color)
        left += times_ms
    for preset, total in zip(presets, left):
        axis.annotate(f"{total:.0f} ms", (total, preset), (4, 0), textcoords="offset points", va="center")
    axis.invert_yaxis()
    axis.margins(x=0.12)
    size = result["rows"][0]
    axis.set_xlabel(f"ms per batch of {size['batch']}, {size['height_px']}x{size['width_px']} px")
    axis.legend(ncols=len(STAGES), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    figure.suptitle(machine(result["conditions"]))
    return figure


def attention_times(result: dict[str, Any]) -> Figure:
    """One panel for each level and direction: time against queries, with the 10th to 90th percentile as a band."""
    rows = [row for row in result["rows"] if row["median_ms"] is not None]
    directions, levels = (list(dict.fromkeys(row[name] for row in rows)) for name in ("direction", "tokens"))
    figure = Figure(figsize=(4.3 * len(levels), 3.6 * len(directions) + 0.5), layout="constrained")
    grid = figure.subplots(len(directions), len(levels), squeeze=False)
    for (i, direction), (j, level) in product(enumerate(directions), enumerate(levels)):
        axis = grid[i, j]
        for method, color in COLORS.items():
            wanted = {"direction": direction, "tokens": level, "method": method}
            curve = sorted((row for row in rows if wanted.items() <= row.items()), key=lambda r: r["num_queries"])
            if curve:
                x = [row["num_queries"] for row in curve]
                axis.plot(x, [row["median_ms"] for row in curve], "o-", color=color, label=METHOD_NAMES[method])
                low, high = ([row[name] for row in curve] for name in ("p10_ms", "p90_ms"))
                axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set_title(f"{level} tokens, {direction}")
        axis.set_xlabel("queries")
        axis.set_ylabel("ms")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(machine(result["conditions"]))
    return figure


def thresholds_and_reliability(result: dict[str, Any]) -> Figure:
    """PQ at every pair of thresholds, the chosen pair framed; and how often segments of a score are right."""
    about, table = result["conditions"], result["thresholds"]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    quality = 100 * np.array(table["pq"])
    left.imshow(quality, cmap="cividis", aspect="auto")
    for (row, col), value in np.ndenumerate(quality):
        dark = value < (quality.min() + quality.max()) / 2
        left.text(col, row, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black")
    col, row = table["overlap"].index(about["overlap_threshold"]), table["object"].index(about["object_threshold"])
    left.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, fill=False, linewidth=2.5, color=COLORS["sdpa"]))
    left.set_xticks(range(len(table["overlap"])), table["overlap"])
    left.set_yticks(range(len(table["object"])), table["object"])
    left.set_xlabel("overlap threshold")
    left.set_ylabel("object threshold")
    left.set_title("PQ in %")

    bins = result["reliability"]["bins"]
    right.plot([0, 1], [0, 1], color=GREY, linestyle="--")
    scores, success = [b["score"] for b in bins], [b["right"] for b in bins]
    right.plot(scores, success, "o-", color=COLORS["prototype"])
    for b in bins:
        right.annotate(f"{b['segments']}", (b["score"], b["right"]), (6, -10), textcoords="offset points", fontsize=8)
    right.set_xlabel("score of a segment (number: how many)")
    right.set_ylabel("share that matches a labelled one")
    right.set_title(f"expected calibration error {result['reliability']['expected_calibration_error']:.3f}")
    right.grid(alpha=0.3)
    return figure


def before_and_after(result: dict[str, Any]) -> Figure:
    """Time (above) and memory (below) of the plain path and of the network, over resolution and queries."""
    rows = [row | {"pixels": row["height_px"] * row["width_px"]} for row in result["rows"] if row["stage"] == "total"]
    base = max(rows, key=lambda row: sum(row["pixels"] == other["pixels"] for other in rows))
    swept = {"pixels": "size of the image in px", "num_queries": "queries"}
    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(2, 2)
    for column, (field, label) in zip(grid.T, swept.items()):
        other = "num_queries" if field == "pixels" else "pixels"
        fixed = 100 if field == "pixels" else base["pixels"]
        curve = sorted((row for row in rows if row[other] == fixed), key=lambda row: row[field])
        x = [row[field] for row in curve]
        names = [f"{row['height_px']}x{row['width_px']}" if field == "pixels" else str(row[field]) for row in curve]
        for axis, unit in zip(column, ("ms", "mib")):
            for name, color in (("plain", GREY), ("fast", COLORS["prototype"])):
                axis.plot(x, [row[f"{name}_{unit}"] for row in curve], "o-", color=color, label=name)
            axis.set_xscale("log")
            axis.set_xticks(x, names)
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel(label)
            axis.set_ylabel("ms" if unit == "ms" else "peak MiB")
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    grid[0, 0].legend()
    figure.suptitle(f"{rows[0]['preset']}; {machine(result['conditions'])}")
    return figure


def readable_log_axis(axis: Axis) -> None:
    """Plain numbers at 1, 2, 5, 10, ...: powers of ten say little when an axis spans less than two decades."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


# What a stored result is drawn as, by the start of its file name.
DRAWN = {
    "scaling": scaling_curves,
    "latency": stacked_stages,
    "attention": attention_times,
    "speedup": before_and_after,
    "validation": thresholds_and_reliability,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description=__doc__)
    parser.add_argument("--out", type=Path, default=FIGURES, metavar="FOLDER")
    parser.add_argument("--overview", nargs="*", type=Path, metavar="PHOTO", help="instead: photos and their segments")
    parser.add_argument("--model", default="default", help="for the overview: what pem.load_model takes")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.overview is not None:
        photos = arguments.overview or [EXAMPLES / name for name in ("cat.jpg", "motorcycle.jpg", "palace.jpg")]
        model = pem.load_model(arguments.model, device="cpu")
        overview(model, photos).savefig(arguments.out / "overview.png", dpi=100)
        return
    with PAPER.open(newline="", encoding="utf-8") as file:
        cost_against_accuracy(list(csv.DictReader(file))).savefig(arguments.out / "cost_accuracy.png", dpi=100)
    for path in sorted(RESULTS.glob("*.json")):
        draw = DRAWN.get(path.stem.split("_")[0])
        if draw is not None:
            draw(json.loads(path.read_text(encoding="utf-8"))).savefig(arguments.out / f"{path.stem}.png", dpi=100)


if __name__ == "__main__":
    main()
