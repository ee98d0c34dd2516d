"""The page's second tab: what prototype attention costs, measured elsewhere and measured here."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr
import torch

from analysis.charts import PAPER, paper_rows
from analysis.here import Measurement, describe, measure_here
from analysis.results import RESULTS
from pem.decoder import STRIDES
from pem.devices import has_bfloat16
from ui.efficiency.charts import Chart, machines, measured_figure, paper_figures, stored_charts
from ui.efficiency.tables import masked_baseline_table, paper_table, precisions_table
from ui.gate import Busy, Gate
from ui.queues import MEASUREMENT, wait_in
from ui.storage import Storage

FILES = [str(RESULTS), str(PAPER)]  # what the page must be allowed to serve
SIZES = {"256 x 512 px": (256, 512), "512 x 1024 px": (512, 1024), "1024 x 2048 px": (1024, 2048)}
CHARTS = tuple(stored_charts(""))
REFRESH_S = 0.3  # progress is told no more often

INTRODUCTION = """
Masked attention, as in Mask2Former, lets every query read **all** positions of the image inside its mask; prototype
attention lets each head of a query read **one**. That spares about half of the multiplications of such a layer. Whether
it also spares time depends on the machine and on the code, so measure it on the one that serves this page: the same
tensors, in turns, warmed up. 1 MAC (multiply-accumulate) is 2 FLOPs.
"""


def add_tab(
    tab: gr.Tab, device: str, on_gpu: Callable[[Callable], Callable], storage: Storage, network_gate: Gate
) -> None:
    """Fills the tab. A measurement passes the gate of the network, and gives way to photos after every run."""

    cancelled: set[str] = set()  # sessions that want their measurement to end

    def stop(request: gr.Request) -> None:
        cancelled.add(str(request.session_hash))

    def begin(request: gr.Request) -> tuple[str, Any, str, Any]:
        """Nothing of an older measurement stays beside the settings of this one."""
        cancelled.discard(str(request.session_hash))
        return "", gr.update(value=None, visible=False), "", gr.update(value=None, interactive=False)

    # Alone, without what surrounds it: a lent GPU works in another process, which would not hear of a cancellation.
    measure_on_gpu = on_gpu(measure_here)

    def measure(size: str, num_queries: float, precision: str, seconds: float, request: gr.Request) -> Iterator[tuple]:
        last_told, num_shown = 0.0, 0
        rounds = measure_on_gpu(SIZES[size], int(num_queries), precision, seconds, device)
        while True:
            try:
                with network_gate.place():
                    measurement = next(rounds, None)
            except Busy as error:
                yield f'<p class="state">{error}</p>', gr.skip(), gr.skip(), gr.skip()
                return
            if measurement is None:
                return
            if str(request.session_hash) in cancelled:
                yield CANCELLED, gr.skip(), gr.skip(), gr.skip()
                return
            if measurement.doing and time.monotonic() - last_told < REFRESH_S:
                continue
            last_told = time.monotonic()
            figure = file = gr.skip()
            if len(measurement.comparisons) > num_shown:
                num_shown = len(measurement.comparisons)
                figure = gr.update(value=measured_figure(measurement), visible=True)
            if not measurement.doing:  # it is complete
                numbers = json.dumps(dataclasses.asdict(measurement), indent=1)
                path = storage.write_download("measured_here.json", numbers.encode())
                file = gr.update(value=str(path), interactive=True)
            yield progress(measurement), figure, found(measurement), file

    gr.Markdown(INTRODUCTION)
    with gr.Column(elem_id="measure"):
        with gr.Row():
            size = gr.Radio(list(SIZES), value="512 x 1024 px", label="Image size")
            queries = gr.Slider(20, 300, value=100, step=10, label="Queries", buttons=[])
            halves = ["bfloat16", "float16"] if device != "cpu" else ["bfloat16"] * has_bfloat16(torch.device("cpu"))
            why = None if halves else "This CPU has no instructions for bfloat16."
            precision = gr.Radio(["float32", *halves], value="float32", label="Precision", info=why)
            seconds = gr.Slider(10, 55, value=30, step=5, label="At most, seconds", buttons=[])
        with gr.Row(elem_id="measure-run"):
            fit: dict[str, Any] = {"scale": 0, "min_width": 170, "size": "md"}
            start = gr.Button("Measure here", variant="primary", elem_id="measure-start", **fit)
            cancel = gr.Button("Cancel", elem_id="measure-cancel", **fit)
            save = gr.DownloadButton("Numbers as JSON", interactive=False, elem_id="measure-save", **fit)
            state = gr.HTML(elem_id="measure-progress", apply_default_css=False)
        sentence = gr.Markdown(elem_id="measure-found", elem_classes="numbers")
        plot = gr.Plot(show_label=False, visible=False, elem_id="measure-plot")
    private: dict[str, Any] = {"api_visibility": "private"}
    quiet: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", **private}  # they take no time
    shown = [state, plot, sentence, save]
    start.click(begin, None, shown, **quiet).then(
        measure,
        [size, queries, precision, seconds],
        shown,
        show_progress="hidden",
        **wait_in(MEASUREMENT),
        **private,
    )
    cancel.click(stop, None, None, **quiet)

    names = machines()
    gr.Markdown("## PEM against Mask2Former, in the paper")
    gr.Markdown(paper_table(), elem_id="paper-table", elem_classes="numbers")
    paper = []
    with gr.Row(elem_id="paper-charts", elem_classes="charts"):
        for benchmark in paper_rows():
            with gr.Column(min_width=340, elem_classes="chart"):
                gr.Markdown(f"### {benchmark}")
                paper.append(gr.Plot(show_label=False))
    gr.DownloadButton("Data (CSV)", str(PAPER), size="sm")
    gr.Markdown("## Stored results", elem_id="stored")
    gr.Markdown(masked_baseline_table(), elem_id="twins", elem_classes="numbers")
    gr.Markdown(precisions_table(), elem_id="precisions", elem_classes="numbers")
    machine = gr.Dropdown(
        list(names.items()),
        value=next(iter(names.values()), None),
        label="Measured on",
        interactive=True,
        visible=len(names) > 0,
        elem_id="machine",
    )
    outputs: list[gr.Blocks | Any] = []
    with gr.Row(elem_id="charts", elem_classes="charts"):
        for name in CHARTS:
            with gr.Column(min_width=340, elem_id=f"chart-{name}", elem_classes="chart") as column:
                title = gr.Markdown()
                figure = gr.Plot(show_label=False)
                text = gr.Markdown()
                data = gr.DownloadButton("Data (CSV)", size="sm")
            outputs += [column, title, figure, text, data]

    def draw(machine: str | None) -> list[Any]:
        return [update for chart in stored_charts(machine or "").values() for update in _show(chart)]

    # Drawn when they are looked at: the plotting library is larger than the rest of the page.
    gr.on([tab.select, machine.change], draw, machine, outputs, **quiet)
    tab.select(lambda: list(paper_figures().values()), None, paper, **quiet)


CANCELLED = '<p class="state">Cancelled.</p>'


def _show(chart: Chart | None) -> list[Any]:
    if chart is None:
        return [gr.update(visible=False), "", None, "", gr.skip()]
    text = f"{chart.caption} `{chart.command}`"
    return [gr.update(visible=True), f"### {chart.title}", chart.figure, text, str(chart.data)]


def progress(measurement: Measurement) -> str:
    """A bar and what is being measured, as HTML."""
    doing = f"measuring {measurement.doing}" if measurement.doing else "done"
    done = f"{measurement.fraction_done:.0%}"
    return (
        f'<progress value="{measurement.fraction_done:.3f}" max="1" aria-label="Measurement">{done}</progress>'
        f'<span class="state">{done}, {escape(doing)}</span>'
    )


def found(measurement: Measurement) -> str:
    """What was found in one sentence, and the ratios with their spread as a table."""
    if measurement.doing and not measurement.comparisons:
        return ""
    rows = [
        f"| {c.subject} | {_ms(c.prototype_ms)} | {_ms(c.masked_ms)} | "
        f"**{c.speedup[0]:.2f}x** ({c.speedup[1]:.2f} to {c.speedup[2]:.2f}) | {c.num_rounds} |"
        for c in measurement.comparisons
    ]
    titles = ("", "prototype, ms", "masked, ms", "masked / prototype (10th to 90th percentile)", "rounds")
    head = f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|\n"
    levels = " ".join(f"{measurement.size_px[0] // stride}x{measurement.size_px[1] // stride}" for stride in STRIDES)
    command = f"python -m analysis attention --tokens {levels} --queries {measurement.num_queries}"
    command += f" --precision {measurement.precision} --out attention.json"
    return f"{describe(measurement)}\n\n{head}" + "\n".join(rows) + f"\n\nOne layer, in a terminal: `{command}`"


def _ms(times: tuple[float, float, float]) -> str:
    median, p10, p90 = times
    return f"{median:.2f} ({p10:.2f} to {p90:.2f})"
