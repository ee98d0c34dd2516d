"""Figures of the stored results, drawn by matplotlib; and photos with what the model makes of them."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import matplotlib.patheffects
import numpy as np
import torch
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

import pem
from analysis import charts
from analysis.results import EXAMPLES, FIGURES, RESULTS, Result, load, machine
from pem.names import deepest_place

SMALLEST_NAMED = 0.01  # share of the photo that a segment must cover to have its name written on it

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
            axis.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
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


def cost_against_accuracy() -> Figure:
    """The paper's tables, each in a panel: methods of few MACs stand left, good ones high. Without cost, no point."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    for axis, (benchmark, rows) in zip(figure.subplots(2, 2).flat, charts.paper_costs().items()):
        for row in rows:
            x, y = float(row["gmacs"]), float(row["value"])
            ours = row["method"] == "PEM"
            axis.plot(x, y, "o", color=charts.PUBLISHED.get(row["method"], charts.GREY), markersize=9 if ours else 6)
            weight = "bold" if ours else "normal"
            axis.annotate(row["network"], (x, y), (6, 4), textcoords="offset points", fontsize=9, weight=weight)
        axis.margins(y=0.15)
        axis.set_xlim(0, 1.5 * max(float(row["gmacs"]) for row in rows))  # room for names
        axis.set(title=benchmark, xlabel="GMACs per image (the paper's “FLOPs”)", ylabel=f"{rows[0]['metric']} in %")
        axis.grid(alpha=0.3)
    return figure


def scaling_curves(result: Result) -> Figure:
    """Time (above) and memory (below) against each swept value; the legends have the fitted exponents."""
    curves = {field: charts.by_subject(result, field) for field in SWEPT}
    curves = {field: series for field, series in curves.items() if len(series[0].rows) > 1}
    figure = Figure(figsize=(4.6 * len(curves), 9), layout="constrained")
    for column, (field, series) in zip(figure.subplots(2, len(curves), squeeze=False).T, curves.items()):
        values = [row[field] for row in series[0].rows]
        for axis, quantity, unit in zip(column, ("median_ms", "peak_mib"), ("ms", "peak MiB")):
            for one in series:
                style = {"marker": "s", "linestyle": "--"} if one.is_layer else {"marker": "o"}
                y = [row[quantity] for row in one.rows]
                axis.plot(values, y, label=one.name + exponent(one, quantity), color=one.color, **style)
            axis.set(xscale="log", yscale="log", xlabel=SWEPT[field], ylabel=unit)
            readable_log_axis(axis.yaxis)
            axis.set_xticks(values, [str(value) for value in values])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
            axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.suptitle(machine(result["conditions"]))
    return figure


def exponent(series: charts.Series, quantity: str) -> str:
    """As it stands in a legend; nothing where none was fitted."""
    fit = series.growth.get(quantity)
    return f": {fit['swept'].removeprefix('num_')}^({fit['exponent']:.2f} ± {fit['standard_error']:.2f})" if fit else ""


def stacked_stages(result: Result) -> Figure:
    """One bar for each network, in the time of its stages."""
    stages = charts.by_stage(result)
    presets = [row["preset"] for row in stages[0].rows]
    figure = Figure(figsize=(10, 1.2 + 0.7 * len(presets)), layout="constrained")
    axis = figure.subplots()
    left = np.zeros(len(presets))
    for stage in stages:
        times_ms = np.array([row["median_ms"] for row in stage.rows])
        axis.barh(presets, times_ms, left=left, label=stage.name, color=stage.color)
        left += times_ms
    for preset, total in zip(presets, left):
        axis.annotate(f"{total:.0f} ms", (total, preset), (4, 0), textcoords="offset points", va="center")
    axis.invert_yaxis()
    axis.margins(x=0.12)
    size = result["rows"][0]
    axis.set_xlabel(f"ms per batch of {size['batch']}, {size['height_px']}x{size['width_px']} px")
    axis.legend(ncols=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    figure.suptitle(machine(result["conditions"]))
    return figure


def attention_times(result: Result) -> Figure:
    """One panel for each level and direction: time against queries, with the 10th to 90th percentile as a band."""
    directions, levels = (list(dict.fromkeys(row[name] for row in result["rows"])) for name in ("direction", "tokens"))
    figure = Figure(figsize=(4.3 * len(levels), 3.6 * len(directions) + 0.5), layout="constrained")
    axes = figure.subplots(len(directions), len(levels), squeeze=False)
    for axis, (direction, level) in zip(axes.flat, product(directions, levels)):
        for method in charts.by_method(result, direction=direction, tokens=level):
            if method.rows:
                x, y, low, high = (
                    [row[name] for row in method.rows] for name in ("num_queries", "median_ms", "p10_ms", "p90_ms")
                )
                axis.plot(x, y, "o-", color=method.color, label=method.name)
                axis.fill_between(x, low, high, color=method.color, alpha=0.2, linewidth=0)
        axis.set(title=f"{level} tokens, {direction}", xlabel="queries", ylabel="ms", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(machine(result["conditions"]))
    return figure


def thresholds_and_reliability(result: Result) -> Figure:
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
    left.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, fill=False, linewidth=2.5, color=charts.RED))
    left.set_xticks(range(len(table["overlap"])), table["overlap"])
    left.set_yticks(range(len(table["object"])), table["object"])
    left.set(xlabel="overlap threshold", ylabel="object threshold", title="PQ in %")

    bins = result["reliability"]["bins"]
    right.plot([0, 1], [0, 1], color=charts.GREY, linestyle="--")
    scores, success = [b["score"] for b in bins], [b["right"] for b in bins]
    right.plot(scores, success, "o-", color=charts.BLUE)
    for b in bins:
        right.annotate(f"{b['segments']}", (b["score"], b["right"]), (6, -10), textcoords="offset points", fontsize=8)
    right.set(xlabel="score of a segment (number: how many)", ylabel="share that matches a labelled one")
    right.set_title(f"expected calibration error {result['reliability']['expected_calibration_error']:.3f}")
    right.grid(alpha=0.3)
    return figure


def before_and_after(result: Result) -> Figure:
    """Time (above) and memory (below) of the plain network and of its fast copy, over resolution and queries."""
    swept = {"pixels": "size of the image in px", "num_queries": "queries"}
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (field, label) in zip(axes.T, swept.items()):
        curve = charts.before_and_after(result, field)
        x = [row[field] for row in curve]
        names = [f"{row['height_px']}x{row['width_px']}" if field == "pixels" else str(row[field]) for row in curve]
        for axis, unit in zip(column, ("ms", "mib")):
            for path, color in charts.PATHS.items():
                axis.plot(x, [row[f"{path}_{unit}"] for row in curve], "o-", color=color, label=path)
            axis.set(xscale="log", xlabel=label, ylabel="ms" if unit == "ms" else "peak MiB", ylim=(0, None))
            axis.set_xticks(x, names)
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.suptitle(f"{result['rows'][0]['preset']}; {machine(result['conditions'])}")
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=FIGURES, metavar="FOLDER")
    parser.add_argument("--overview", nargs="*", type=Path, metavar="PHOTO", help="instead: photos and their segments")
    parser.add_argument("--model", default="default", help="for the overview: what pem.load_model takes")


def run(args: argparse.Namespace) -> None:
    """Draws every stored result that has a figure, or the overview alone."""
    args.out.mkdir(parents=True, exist_ok=True)
    if args.overview is not None:
        photos = args.overview or [EXAMPLES / name for name in ("cat.jpg", "motorcycle.jpg", "palace.jpg")]
        overview(pem.load_model(args.model, device="cpu"), photos).savefig(args.out / "overview.png", dpi=100)
        return
    cost_against_accuracy().savefig(args.out / "cost_accuracy.png", dpi=100)
    for path in sorted(RESULTS.glob("*.json")):
        draw = DRAWN.get(path.stem.split("_")[0])
        if draw is not None:
            draw(load(path)).savefig(args.out / f"{path.stem}.png", dpi=100)
