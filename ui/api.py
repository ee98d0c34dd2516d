"""The endpoints for programs, which the page's API page documents. Each answers with files and then plain JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

import pem
from ui.engine import EXPECTED, TASKS, Engine, Reading, sentence
from ui.export import arrays_files, overlay_files, segments_files, trace_json, write
from ui.gate import bytes_for
from ui.image_input import SafeImage, Upload
from ui.queues import PROGRAMS, READING, wait_in
from ui.results import KeptResult
from ui.storage import Storage
from ui.viewer.payload import segment_json


def add_endpoints(engine: Engine, storage: Storage) -> None:
    """Adds /segment, /read and /trace to the page that is being built. Gradio shows their docstrings to callers."""
    config = engine.model.config

    def read(result_id: str, task: str, object_threshold: float | None, overlap_threshold: float | None):
        """Reads a kept result again for another task or other thresholds; the network does not run. Returns what
        /segment returns. Results are kept until newer ones need the room. Where the page has a switch for the
        attention, result_id with ~masked at the end is the masked baseline's result for the same photo."""
        with one_sentence():
            result = engine.result(result_id or "")
            with engine.gate.place(bytes_for(result.original_size)):
                reading = engine.read(result, task, object_threshold, overlap_threshold)
                segments = write(segments_files(result, reading.segmentation), result, "segments", storage)
                overlay = write(overlay_files(result, reading.segmentation), result, "overlay", storage)
            return str(overlay), str(segments), describe(result_id, result, reading)

    def segment(photo: Upload | pem.ImageError | None, task: str):
        """Segments one photo. task is 'panoptic', 'semantic' or 'instance'. Returns the overlay (PNG), a zip of the id
        map and its COCO panoptic JSON (info, images, annotations, categories), and JSON whose result_id the other
        endpoints take. That JSON names the photo's file and the model. Each of its segments has id, category, score,
        area, bbox (left, top, width, height; in pixels) and queries; each of its queries says what became of it."""
        with one_sentence():
            if not isinstance(photo, Upload):
                raise photo or ValueError("Please send a photo.")
            return read(engine.run(photo.path, file_name=photo.file_name), task, None, None)

    def trace(result_id: str, query: float | None):
        """The prototypes that one query of a kept result picked in every layer and head, in pixels of the photo, and
        how its class and mask developed. Returns the trace of all queries as arrays (NPZ), and that of the one query as
        JSON."""
        with one_sentence():
            if query is None or query != int(query):
                raise ValueError("Please name a query by its whole number.")
            result = engine.result(result_id or "")
            with engine.gate.place():
                found = trace_json(result, query=int(query))
                return str(write(arrays_files(result), result, "trace-npz", storage)), found

    # The inputs and outputs of endpoints are components; these are never drawn.
    with gr.Row(visible=False):
        photo = SafeImage(label="photo")
        result_id = gr.Textbox(label="result_id")
        task = gr.Radio(TASKS, value=config.task, label="task")
        object_threshold = gr.Number(config.object_threshold, label="object_threshold", minimum=0, maximum=1)
        overlap_threshold = gr.Number(config.overlap_threshold, label="overlap_threshold", minimum=0, maximum=1)
        query = gr.Number(0, label="query", minimum=0)
        overlay = gr.Image(label="overlay", format="png")
        file = gr.File(label="file")
        json = gr.JSON(label="answer")

    gr.on([], segment, [photo, task], [overlay, file, json], api_name="segment", **wait_in(PROGRAMS))
    settings = [result_id, task, object_threshold, overlap_threshold]
    gr.on([], read, settings, [overlay, file, json], api_name="read", **wait_in(READING))
    gr.on([], trace, [result_id, query], [file, json], api_name="trace", **wait_in(READING))


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns what the engine may raise in the block into a gr.Error with one sentence."""
    try:
        yield
    except EXPECTED as error:
        raise gr.Error(sentence(error, "Please call /segment again."), print_exception=False) from None


def describe(result_id: str, result: KeptResult, reading: Reading) -> dict[str, Any]:
    """A reading as plain JSON, with areas and boxes (left, top, width, height) in pixels of the photo."""
    height, width = reading.segmentation.ids.shape
    return {
        "result_id": result_id,
        "file_name": result.file_name,
        "model": result.config.name,
        "trained": result.config.trained,
        "attention": result.config.attention,
        "notice": result.notice,
        "task": reading.task,
        "object_threshold": reading.object_threshold,
        "overlap_threshold": reading.overlap_threshold,
        "height": height,
        "width": width,
        "reading_ms": round(reading.reading_ms, 1),
        "segments": [
            segment_json(segment) | {"area": segment.area_px, "bbox": list(segment.bbox)}
            for segment in reading.segmentation.segments
        ],
        "queries": [
            {
                "query": outcome.query,
                "category": outcome.label,
                "score": round(outcome.score, 4),
                "fate": outcome.fate,
                "segments": list(outcome.segment_ids),
            }
            for outcome in reading.segmentation.outcomes
        ],
    }
