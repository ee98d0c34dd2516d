"""The page: a photo in, its segmentation out. ``python app.py`` serves it; PEM_MODEL names another checkpoint."""

from __future__ import annotations

import os
from functools import partial
from html import escape
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it once, while it is imported

try:
    import spaces  # before torch: where Hugging Face lends GPUs call by call, this is who lends them

    on_gpu = spaces.GPU
except ImportError:

    def on_gpu(function):
        return function


import gradio as gr
import numpy as np
import torch
from PIL import Image

import pem
from ui.engine import TASKS, Engine, Reading, ResultGone
from ui.image_input import SafeImage
from ui.legend import EMPTY_LEGEND, describe, legend_html

ROOT = Path(__file__).parent
EXAMPLES = sorted((ROOT / "assets" / "examples").glob("*.jpg"))
BACKBONE_NAMES = {"resnet50": "ResNet-50", "tf_efficientnet_lite2": "EfficientNet-lite2"}
OPACITY = 0.55
# The page shows larger photos at this size, more than its viewer has, so that a slider is answered at once;
# the API answers in the photo's own pixels.
MAX_SHOWN_PX = 2048

HEADER = """
<div class="title"><h1>PEM Studio</h1><span class="{kind}">{state}</span></div>
<p>PEM, the Prototype-based Efficient MaskFormer
(CVPR 2024, <a href="https://arxiv.org/abs/2402.19422" target="_blank" rel="noopener noreferrer">arXiv 2402.19422</a>),
splits a photo into regions and names them: each of its queries looks at a few chosen points instead of the whole image.
{about}</p>
"""
ABOUT_DEFAULT = (
    "This model was trained by this project on everyday photos with 47 classes. It makes mistakes, "
    "and its weights are for research and demonstration only."
)


def build_page(model: pem.PEM | None = None) -> gr.Blocks:
    """The whole page. Without a model it loads the one that PEM_MODEL names, or says on the page why it cannot."""
    problem = ""
    if model is None:
        try:
            model = pem.load_model(os.environ.get("PEM_MODEL", "default"), device="auto")
        except (OSError, ValueError) as error:
            problem = f"Nothing can be segmented yet: {error}"
    config = pem.get_config("default") if model is None else model.config
    engine = None if model is None else Engine(model, on_gpu=on_gpu)

    def ready() -> Engine:
        if engine is None:
            raise gr.Error(problem, print_exception=False)
        return engine

    def run(image: np.ndarray | None, progress=gr.Progress()):  # noqa: B008, this default is how Gradio hands it over
        if image is None:
            gr.Warning("Please choose a photo first.")
            return gr.skip()
        progress(0.3, desc="Running the network")
        shown = Image.fromarray(image)
        shown.thumbnail((MAX_SHOWN_PX, MAX_SHOWN_PX))
        return ready().run(np.asarray(shown))

    def read(result_id: str, task: str, object_threshold: float, overlap_threshold: float, opacity: float):
        if not result_id:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            reading = ready().read(result_id, task, object_threshold, overlap_threshold)
        except ResultGone as gone:
            gr.Warning(str(gone))
            return gr.skip(), gr.skip(), gr.skip()
        description = describe(reading)
        return draw(reading, opacity), legend_html(description), description

    def segment(image: np.ndarray | None, task: str):
        if image is None:
            raise gr.Error("Please send a photo.", print_exception=False)
        result_id = ready().run(image)
        reading = ready().read(result_id, task, config.object_threshold, config.overlap_threshold)
        return draw(reading, OPACITY), describe(reading)

    slider = partial(gr.Slider, 0, 1, step=0.05, buttons=[])

    with gr.Blocks(title="PEM Studio", delete_cache=(3600, 3600)) as page:
        result_id = gr.State("")
        gr.HTML(header(model, problem), apply_default_css=False, elem_id="header")
        with gr.Row(elem_id="main"):
            with gr.Column(elem_id="inputs"):
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
            with gr.Column(elem_id="results"):
                overlay = gr.Image(
                    label="Segmentation",
                    format="jpeg",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    alt_text="The photo with its segments in colour",
                    elem_id="viewer",
                )
                legend = gr.HTML(EMPTY_LEGEND, container=True, apply_default_css=False, elem_id="legend")
                with gr.Accordion("The same as JSON", open=False):
                    details = gr.JSON(show_label=False, elem_id="details")
            with gr.Column(elem_id="settings"):
                task = gr.Radio(TASKS, value=config.task, label="Task", elem_id="task")
                with gr.Group():
                    object_threshold = slider(
                        value=config.object_threshold,
                        label="Object threshold",
                        info="A query counts when its score is above this.",
                        elem_id="score-threshold",
                    )
                    overlap_threshold = slider(
                        value=config.overlap_threshold,
                        label="Overlap threshold",
                        info="A segment stays when it wins this share of its mask.",
                        elem_id="overlap-threshold",
                    )
                    opacity = slider(value=OPACITY, label="Overlay opacity", elem_id="opacity")

        settings = [result_id, task, object_threshold, overlap_threshold, opacity]
        shown = [overlay, legend, details]
        network = {"concurrency_id": "network", "concurrency_limit": 1}  # one forward pass at a time, whoever asks
        reading = {"fn": read, "inputs": settings, "outputs": shown}

        quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

        picked = examples.select(pick_example, None, photo, **quiet)
        for event in (segment_button.click, photo.upload, picked.success):
            ran = event(run, photo, result_id, show_progress_on=overlay, api_visibility="private", **network)
            ran.success(**reading, **quiet)
            # A file that was refused would stay in the field as a broken picture.
            ran.failure(lambda: None, None, photo, **quiet)
        gr.on(
            [task.change, object_threshold.change, overlap_threshold.change, opacity.change],
            trigger_mode="always_last",
            **reading,
            **quiet,
        )
        task.change(
            lambda task: [gr.update(interactive=task == "panoptic")] * 2,
            task,
            [object_threshold, overlap_threshold],
            **quiet,
        )
        gr.on(
            [],
            segment,
            [photo, task],
            [overlay, details],
            api_name="segment",
            api_description="Segments one photo; task is 'panoptic' or 'semantic'. Returns the overlay, and JSON whose "
            "segments have id, category, score, area, bbox and queries; bbox is (left, top, width, height) in pixels.",
            **network,
        )
    return page


def header(model: pem.PEM | None, problem: str) -> str:
    """What PEM is, what this model is, and which checkpoint runs on which device."""
    if model is None:
        return HEADER.format(about="", kind="problem", state=escape(problem))
    config = model.config
    about = ABOUT_DEFAULT if config.name == "default" else ""
    params = sum(parameter.numel() for parameter in model.parameters())
    backbone = BACKBONE_NAMES.get(config.backbone, config.backbone)
    device = next(model.parameters()).device
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' * (threads > 1)}"
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    parts = (config.name, backbone, f"{params / 1e6:.0f} M parameters", f"{config.num_classes} classes", place)
    return HEADER.format(about=about, kind="model", state=" · ".join(escape(part) for part in parts))


def pick_example(event: gr.SelectData) -> str:
    return str(EXAMPLES[event.index])


def draw(reading: Reading, opacity: float) -> np.ndarray:
    return pem.render(reading.image, reading.segmentation, opacity=opacity)


def launch(page: gr.Blocks, **options) -> tuple:
    """Serves the page. Returns what Blocks.launch returns: the FastAPI app, the local and the public address."""
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="zinc",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_label_border_width="0px",
        block_label_border_width_dark="0px",
        block_label_background_fill="rgb(255 255 255 / 0.85)",
        block_label_background_fill_dark="rgb(24 24 27 / 0.85)",
        block_label_margin="8px",
        block_label_radius="*radius_md",
        block_title_text_weight="600",
        block_info_text_color="*body_text_color_subdued",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        slider_color="*primary_600",
    )
    return page.queue(max_size=20, default_concurrency_limit=4).launch(
        theme=theme,
        css_paths=ROOT / "ui" / "page.css",
        allowed_paths=[str(ROOT / "assets" / "examples")],
        max_file_size="20mb",
        show_error=True,
        ssr_mode=False,
        run_history=False,
        footer_links=["api", "settings"],
        **options,
    )


def main() -> None:
    launch(build_page())


if __name__ == "__main__":
    main()
