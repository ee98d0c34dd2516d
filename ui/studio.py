"""The first tab: the photo field, the example photos and the viewer, and what happens between them."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

import pem
from ui.engine import BASELINE, Engine, ResultGone
from ui.gate import Busy
from ui.image_input import SafeImage, Upload
from ui.precompute import EXAMPLES, FIRST_EXAMPLE
from ui.queues import EXAMPLE, NETWORK, wait_in
from ui.storage import Storage
from ui.viewer import viewer
from ui.viewer.server import open_result, server_functions

PRIVACY = (
    "<p>Your photo stays on this server. It and everything made of it are deleted within an hour, and when the server "
    "stops.</p>"
)


def build_studio(page: gr.Blocks, engine: Engine, storage: Storage, first: dict[str, Any] | None) -> None:
    """Fills the tab of the ``page`` that is being built; the viewer shows ``first`` until something else is chosen."""
    task = engine.model.config.task

    def opened(result_id: str) -> dict[str, Any]:
        try:
            return open_result(engine, result_id, task)
        except (Busy, ResultGone) as error:
            raise gr.Error(str(error), print_exception=False) from None

    def run(photo: Upload | pem.ImageError | None, name: str = ""):
        """Runs the photo of the field, or again the example of that name."""
        path = engine.examples.get(f"example-{name}")
        name = path.stem if path else ""
        if path:
            photo = Upload(path, path.name)
        if photo is None:
            gr.Warning("Please choose a photo first.")
            return gr.skip()
        try:
            if isinstance(photo, pem.ImageError):
                raise photo
            result_id = engine.run(photo.path, name, file_name=photo.file_name)
            if notice := engine.result(result_id).notice:
                gr.Info(notice)
            return opened(result_id), name, gr.skip()
        except pem.ImageError as error:
            gr.Warning(escape(str(error), quote=False))  # Gradio shows markup
            return gr.skip(), gr.skip(), None  # otherwise the field would show a broken picture
        except Busy as error:
            raise gr.Error(str(error), print_exception=False) from None

    def pick_example(event: gr.SelectData):
        if event.index not in range(len(EXAMPLES)):
            raise gr.Error("There is no such example photo.", print_exception=False)
        path = EXAMPLES[event.index]
        return str(path), opened(f"example-{path.stem}"), path.stem

    def arrive(request: gr.Request):
        """Shows the example of a link. The viewer has the first one already; that is only made ready for questions."""
        name = request.query_params.get("example", FIRST_EXAMPLE)
        if f"example-{name}" not in engine.examples:
            gr.Warning("There is no example photo of that name; this is the first one.")
            name = FIRST_EXAMPLE
        result_id = f"example-{name}"
        if engine.baseline and request.query_params.get("attention") == "masked":
            result_id += BASELINE
        if first and result_id == first["id"]:
            engine.result(result_id)
            return gr.skip(), name
        return opened(result_id), name

    with gr.Row(elem_id="inputs"):
        photo = SafeImage(label="Photo", sources=["upload", "clipboard"], elem_id="photo", buttons=[])
        examples = gr.Gallery(
            [(path, path.stem) for path in EXAMPLES],
            label="Example photos",
            show_label=False,
            columns=len(EXAMPLES),
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
        segment_button = gr.Button("Segment", variant="primary", elem_id="run")
    gr.HTML(PRIVACY, apply_default_css=False, elem_id="privacy")
    result = viewer(first, server_functions(engine, storage))
    # The name of the example that is shown, if any. The browser keeps it and empties it for every upload.
    shown_example = gr.Textbox(visible=False, label="shown example")

    private: dict[str, Any] = {"api_visibility": "private"}
    on_photo: dict[str, Any] = {"show_progress_on": result, **private, **wait_in(NETWORK)}
    on_example: dict[str, Any] = {"show_progress_on": result, **private, **wait_in(EXAMPLE)}
    # From now on Segment runs the visitor's photo, even if its first run fails.
    photo.upload(None, None, shown_example, js="() => ''", **private)
    # Gradio would drop an event while an older one of its kind waits. The guard drops the older photos instead.
    sent = photo.upload(run, [photo], [result, shown_example, photo], trigger_mode="multiple", **on_photo)
    pressed = segment_button.click(run, [photo, shown_example], [result, shown_example, photo], **on_photo)
    picked = examples.select(pick_example, None, [photo, result, shown_example], trigger_mode="multiple", **on_example)
    # A run for an earlier choice that ends later is not shown.
    photo.upload(None, cancels=[picked])
    examples.select(None, cancels=[sent, pressed])
    page.load(arrive, None, [result, shown_example], show_progress="hidden", **on_example)
