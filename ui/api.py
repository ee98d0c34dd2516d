"""The endpoints for programs, documented on the page's API page: each answers with plain JSON, after its files."""

from __future__ import annotations

from typing import Any

import gradio as gr

import pem
from ui.engine import TASKS, Engine, Reading, ResultGone
from ui.export import arrays_files, overlay_files, segments_files, trace_json, write
from ui.gate import Busy, bytes_for
from ui.guard import PROGRAMS, READING
from ui.image_input import SafeImage, Upload
from ui.results import KeptResult
from ui.storage import Storage, cannot_write
from ui.viewer.payload import segment_json


def add_endpoints(engine: Engine, storage: Storage) -> None:
    """Adds /segment, /read and /trace to the page that is being built."""
    config = engine.model.config

    def answer(result_id: str, task: str, object_threshold: float | None, overlap_threshold: float | None):
        try:
            result = engine.result(result_id or "")
            with engine.gate.place(bytes_for(result.original_size)):
                reading = engine.read(result, task, object_threshold, overlap_threshold)
                folder = storage.new_download()
                segments = write(segments_files(result, reading.segmentation), result, "segments", folder)
                overlay = write(overlay_files(result, reading.segmentation), result, "overlay", folder)
        except (ResultGone, Busy, ValueError, OSError) as error:
            raise refusal(error) from None
        return str(overlay), str(segments), describe(result_id, result, reading)

    def segment(photo: Upload | pem.ImageError | None, task: str):
        if photo is None or isinstance(photo, pem.ImageError):
            raise gr.Error(str(photo or "Please send a photo."), print_exception=False)
        try:
            result_id = engine.run(photo.path, file_name=photo.file_name)
        except (Busy, pem.ImageError) as error:
            raise refusal(error) from None
        return answer(result_id, task, None, None)

    def trace(result_id: str, query: float | None):
        try:
            if query is None or query != int(query):
                raise ValueError("Please name a query by its whole number.")
            result = engine.result(result_id or "")
            with engine.gate.place():
                found = trace_json(result, query=int(query))
                arrays = write(arrays_files(result), result, "trace-npz", storage.new_download())
        except (ResultGone, Busy, ValueError, OSError) as error:
            raise refusal(error) from None
        return str(arrays), found

    # While the network runs on one photo, the files of another are written.
    programs: dict[str, Any] = {"concurrency_id": PROGRAMS, "concurrency_limit": 2}
    reading: dict[str, Any] = {"concurrency_id": READING, "concurrency_limit": 2}
    # Endpoints take and give components; these are never drawn.
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

    gr.on(
        [],
        segment,
        [photo, task],
        [overlay, file, json],
        api_name="segment",
        api_description="Segments one photo. task is 'panoptic', 'semantic' or 'instance'. Returns the overlay (PNG), "
        "a zip of the id map and its COCO panoptic JSON (info, images, annotations, categories), and JSON whose "
        "result_id the other endpoints take. That JSON names the photo's file and the model. Each of its segments has "
        "id, category, score, area, bbox (left, top, width, height; in pixels) and queries; each of its queries says "
        "what became of it.",
        **programs,
    )
    gr.on(
        [],
        answer,
        [result_id, task, object_threshold, overlap_threshold],
        [overlay, file, json],
        api_name="read",
        api_description="Reads a kept result again for another task or other thresholds; the network does not run. "
        "Returns what /segment returns. Results are kept until newer ones need the room. Where the page has a switch "
        "for the attention, the same photo by the masked-attention twin has its result_id with ~masked at the end.",
        **reading,
    )
    gr.on(
        [],
        trace,
        [result_id, query],
        [file, json],
        api_name="trace",
        api_description="Which prototypes one query of a kept result picked, in every layer and head, in pixels of the "
        "photo, and how its class and mask developed. Returns the trace of all queries as arrays (NPZ), and the one "
        "query's as JSON.",
        **reading,
    )


def refusal(error: ResultGone | Busy | ValueError | OSError) -> gr.Error:
    way_out = " Please call /segment again." if isinstance(error, ResultGone) else ""
    sentence = cannot_write(error) if isinstance(error, OSError) else f"{error}{way_out}"
    return gr.Error(sentence, print_exception=False)


def describe(result_id: str, result: KeptResult, reading: Reading) -> dict[str, Any]:
    """A reading as plain JSON: areas and boxes (left, top, width, height) in pixels of the photo, times in ms."""
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
