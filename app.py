"""The page: a photo in, its segmentation out. ``python app.py`` serves it; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it once, while it is imported

try:
    import spaces  # before torch: where Hugging Face lends GPUs call by call, this is who lends them

    on_gpu = spaces.GPU
except ImportError:

    def on_gpu(function):
        return function


import gradio as gr
import torch
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

import pem
from analysis.results import RESULTS
from pem.categories import categories_for
from pem.layers import first_line
from ui import efficiency, guard, precompute
from ui.api import add_endpoints
from ui.engine import TWIN, Engine, ResultGone, is_bundled, load_twin
from ui.gate import Busy
from ui.guard import MAX_PHOTO_MB, Guard
from ui.image_input import SafeImage, Upload
from ui.memory import hand_back_regularly, use_few_arenas
from ui.operations import Metrics, Operations, Status, finish, open_log, recorder
from ui.precompute import EXAMPLES, FIRST_EXAMPLE
from ui.settings import read_settings
from ui.storage import KEEP_SECONDS, Storage
from ui.viewer import STYLES, script_route, viewer
from ui.viewer.server import open_result, server_functions

ROOT = Path(__file__).parent
try:
    STORAGE = Storage()
except OSError as error:
    sys.exit(f"There is no folder for photos ({first_line(error)}); set TMPDIR to one that can be written to.")
os.environ["GRADIO_TEMP_DIR"] = str(STORAGE.uploads)  # Gradio reads it when a page is built
BACKBONE_NAMES = {"resnet50": "ResNet-50", "tf_efficientnet_lite2": "EfficientNet-lite2"}

STATUS = Status()

# One photo at a time, so that the last one chosen is the last one shown; and so for examples.
NETWORK: dict[str, Any] = {"concurrency_id": guard.NETWORK, "concurrency_limit": 1}
EXAMPLE: dict[str, Any] = {"concurrency_id": guard.EXAMPLE, "concurrency_limit": 1}

HEADER = """
<div class="title"><h1>PEM Studio</h1><span class="{kind}">{state}</span></div>
<p>PEM, the Prototype-based Efficient MaskFormer
(CVPR 2024, <a href="https://arxiv.org/abs/2402.19422" target="_blank" rel="noopener noreferrer">arXiv 2402.19422</a>),
splits a photo into regions and names them: each of its queries looks at a few chosen points instead of the whole image.
{about}</p>
{classes}
"""
ABOUT_BUNDLED = (
    "This model was trained by this project on everyday photos with 47 classes. It makes mistakes, "
    "and its weights are for research and demonstration only."
)
PRIVACY = (
    "<p>Your photo stays on this server. It and all that is made of it are deleted within an hour, and when the server "
    "stops.</p>"
)


def build_page(
    model: pem.PEM | None = None, twin: pem.PEM | None = None, settings: argparse.Namespace | None = None
) -> gr.Blocks:
    """The whole page. Without a model it loads the one of the settings, or says on the page why it cannot."""
    problem, bundled = "", False
    settings = settings or read_settings()
    if model is None:
        name = settings.model
        try:
            model, bundled = pem.load_model(name, device=settings.device), is_bundled(name)
            twin = load_twin(model, name)
            for network in filter(None, (model, twin)):
                if settings.max_side is not None:
                    network.config = limit_side(network.config, settings.max_side)
        except (OSError, ValueError) as error:
            problem = f"Nothing can be segmented yet: {error}"
            print(problem, file=sys.stderr)
    with gr.Blocks(title="PEM Studio") as page:
        gr.HTML(header(model, problem, bundled), apply_default_css=False, elem_id="header")
        if model is not None:
            engine = Engine(model, on_gpu=on_gpu, examples=EXAMPLES, twin=twin, storage=STORAGE)
            STATUS.engine = engine
            STORAGE.sweep_with.append(lambda: engine.results.forget_older(KEEP_SECONDS))
            with gr.Tab("Studio"):
                build_studio(page, engine, first=precompute.load() if bundled and settings.max_side is None else None)
            with gr.Tab("Efficiency", elem_id="efficiency") as tab:
                device = next(model.parameters()).device.type
                efficiency.add_tab(tab, device, on_gpu, STORAGE, engine.network_gate)
    return page


def limit_side(config: pem.PEMConfig, max_side_px: int) -> pem.PEMConfig:
    """The config of a network that sees no photo at more pixels than these a side."""
    longest, shortest = (min(side, max_side_px) for side in (config.max_long_side_px, config.short_side_px))
    return dataclasses.replace(config, max_long_side_px=longest, short_side_px=shortest)


def build_studio(page: gr.Blocks, engine: Engine, first: dict[str, Any] | None) -> None:
    """The photo field, the viewer, and the endpoints for programs; ``first`` is what the viewer shows at first."""
    task = engine.model.config.task

    def opened(result_id: str) -> dict[str, Any]:
        try:
            return open_result(engine, result_id, task)
        except (Busy, ResultGone) as error:
            raise gr.Error(str(error), print_exception=False) from None

    def run(photo: Upload | pem.ImageError | None, name: str = ""):
        """Runs the photo of the field, or the example of that name once more."""
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
            return gr.skip(), gr.skip(), None  # or it would stay in the field as a broken picture
        except Busy as error:
            raise gr.Error(str(error), print_exception=False) from None

    def pick_example(event: gr.SelectData):
        if event.index not in range(len(EXAMPLES)):
            raise gr.Error("There is no such example photo.", print_exception=False)
        path = EXAMPLES[event.index]
        return str(path), opened(f"example-{path.stem}"), path.stem

    def arrive(request: gr.Request):
        """Shows the example of a link; the first one is there already, and is only made ready for questions."""
        name = request.query_params.get("example", FIRST_EXAMPLE)
        if f"example-{name}" not in engine.examples:
            gr.Warning("There is no example photo of that name; this is the first one.")
            name = FIRST_EXAMPLE
        result_id = f"example-{name}"
        if engine.twin and request.query_params.get("attention") == "masked":
            result_id += TWIN
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
    result = viewer(first, server_functions(engine, STORAGE))
    # The name of the example that is shown, if one is; in the browser, which knows of an upload whatever becomes of it.
    shown_example = gr.Textbox(visible=False, label="shown example")

    private: dict[str, Any] = {"api_visibility": "private"}
    on_result: dict[str, Any] = {"show_progress_on": result, **private}
    # From now on it is the visitor's photo that Segment runs, even when its first run fails.
    photo.upload(None, None, shown_example, js="() => ''", **private)
    # Gradio would drop an event while an older one of its kind waits. The guard drops the older photos.
    sent = photo.upload(run, [photo], [result, shown_example, photo], trigger_mode="multiple", **on_result, **NETWORK)
    pressed = segment_button.click(run, [photo, shown_example], [result, shown_example, photo], **on_result, **NETWORK)
    picked = examples.select(
        pick_example, None, [photo, result, shown_example], trigger_mode="multiple", **on_result, **EXAMPLE
    )
    # What ran for the other choice, and ended later, is not shown.
    photo.upload(None, cancels=[picked])
    examples.select(None, cancels=[sent, pressed])
    page.load(arrive, None, [result, shown_example], show_progress="hidden", **on_result, **EXAMPLE)
    add_endpoints(engine, STORAGE)


def header(model: pem.PEM | None, problem: str, bundled: bool = False) -> str:
    """What PEM is, what this model is, and which checkpoint runs on which device."""
    if model is None:
        return HEADER.format(about="", classes="", kind="problem", state=escape(problem))
    config = model.config
    about = ABOUT_BUNDLED if bundled else ""
    params = sum(parameter.numel() for parameter in model.parameters())
    backbone = BACKBONE_NAMES.get(config.backbone, config.backbone)
    device = next(model.parameters()).device
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' * (threads > 1)}"
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    name = f"{config.name}, trained {config.trained}" if config.trained else config.name
    parts = (
        name,
        backbone,
        *(["masked attention"] if config.attention == "masked" else []),
        f"{params / 1e6:.0f} M parameters",
        f"{config.num_classes} class{'es' * (config.num_classes > 1)}",
        place,
    )
    state = " · ".join(escape(part) for part in parts)
    return HEADER.format(about=about, classes=class_list(model, bundled), kind="model", state=state)


def class_list(model: pem.PEM, bundled: bool) -> str:
    """What the model can name, to be unfolded; of the bundled one with how well it knows each class."""
    result = json.loads((RESULTS / "default_val.json").read_text(encoding="utf-8"))
    scores = result["overall"]["per_class"] if bundled else []
    iou = {score["category"]: f" {100 * score['iou']:.0f}" for score in scores if score["iou"] is not None}
    categories = sorted(categories_for(model.config), key=lambda category: not category.is_thing)
    items = "".join(
        f'<li><i style="background: rgb{c.color}"></i>{escape(c.name)}<b>{iou.get(c.name, "")}</b></li>'
        for c in categories
    )
    note = "Numbers: IoU in % on validation photos. What is near 0 it hardly ever gets right." if iou else ""
    title = f"The {len(categories)} classes that it knows" if len(categories) > 1 else "The class that it knows"
    return f"<details><summary>{title}</summary><ul>{items}</ul><p>{note}</p></details>"


def launch(
    page: gr.Blocks,
    max_waiting: int = 200,
    host_names: Sequence[str] = (),
    record: Callable[[dict[str, Any]], None] | None = None,
    **options,
) -> tuple:
    """Serves the page. Returns what Blocks.launch returns: the FastAPI app, the local and the public address.

    Requests to other host names are refused, where some are given; those from this machine itself are not. ``record``
    is called with what is known of every finished request.
    """
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

    def forget_removed_files() -> None:
        for files in page.temp_file_sets:
            files.difference_update([file for file in tuple(files) if not Path(file).exists()])

    STORAGE.kept = lambda: {file for block in page.blocks.values() for file in block.keep_in_cache}
    STORAGE.sweep_with.append(forget_removed_files)
    STORAGE.sweep_regularly()
    guards = [Middleware(Guard, storage=STORAGE, max_waiting=max_waiting)]
    if host_names:
        allowed = [*host_names, "127.0.0.1", "localhost"]
        guards.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False))
    guards.insert(0, Middleware(Operations, status=STATUS, record=record))
    STATUS.page = page
    return page.queue(max_size=None, default_concurrency_limit=4, api_open=False).launch(
        app_kwargs={"middleware": guards, "routes": [script_route()]},
        theme=theme,
        css_paths=[*STYLES, ROOT / "ui" / "efficiency" / "efficiency.css"],
        allowed_paths=[str(ROOT / "assets" / "examples"), *efficiency.FILES, str(STORAGE.downloads)],
        max_file_size=f"{MAX_PHOTO_MB}mb",
        show_error=True,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api", "settings"],
        **options,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the storage is removed
    use_few_arenas()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        log = open_log(settings.log)
    except OSError as error:
        sys.exit(f"The log {settings.log} cannot be written ({error.strerror}); choose another file with --log.")
    try:
        host = settings.host or "127.0.0.1"  # like the page; prometheus takes none for all addresses
        metrics = Metrics(STATUS, host, settings.metrics_port) if settings.metrics_port else None
    except ImportError:
        sys.exit("--metrics-port needs the package prometheus-client: pip install -r requirements-metrics.txt")
    except OSError as error:
        sys.exit(f"The metrics cannot be served ({first_line(error)}); choose another --metrics-port.")
    page = build_page(settings=settings)
    where: dict[str, Any] = {"server_name": settings.host, "server_port": settings.port, "quiet": settings.log == "-"}
    try:
        launch(page, settings.queue, settings.host_names, recorder(log, metrics), prevent_thread_lock=True, **where)
    except (OSError, OverflowError):  # Gradio takes every reason for a port that is taken
        place = f"port {settings.port} of {host}" if settings.port else host
        sys.exit(
            f"The page cannot be served at {place}: the port is taken, or the address is not this machine's; choose "
            "another --port (make app PORT=8000) or --host."
        )
    hand_back_regularly()
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda told, _: signals.append(told))
    while not signals:
        time.sleep(0.1)
    finish(STATUS, told_again=lambda: len(signals) > 1)
    page.close(verbose=False)


if __name__ == "__main__":
    main()
