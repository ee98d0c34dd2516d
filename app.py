"""The page: a photo in, its segmentation out. ``python app.py`` serves it; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: see pem/cores.py
# The readings of several visitors run at once, beside the network: more threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it once, while it is imported

try:
    import spaces  # before torch; on Hugging Face it lends a GPU for each call

    on_gpu = spaces.GPU
except ImportError:

    def on_gpu(function):
        return function


import gradio as gr
import torch
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

import pem
from pem.devices import use_given_cores
from pem.errors import first_line
from ui import efficiency, precompute
from ui.api import add_endpoints
from ui.engine import Engine
from ui.guard import MAX_PHOTO_MB, Guard
from ui.header import header
from ui.memory import hand_back_regularly, use_few_arenas
from ui.metrics import Metrics, open_log
from ui.networks import is_bundled, load_networks
from ui.operations import Operations, Record, Status, finish
from ui.precompute import EXAMPLES
from ui.settings import read_settings
from ui.storage import KEEP_SECONDS, Storage
from ui.studio import build_studio
from ui.theme import THEME
from ui.viewer import STYLES, script_route

if TYPE_CHECKING:
    from pem.run import AnyPEM

ROOT = Path(__file__).parent
try:
    STORAGE = Storage()
except OSError as error:
    sys.exit(f"There is no folder for photos ({first_line(error)}); set TMPDIR to one that can be written to.")
os.environ["GRADIO_TEMP_DIR"] = str(STORAGE.uploads)  # Gradio reads it when a page is built
STATUS = Status()


def build_page(
    model: AnyPEM | None = None, baseline: AnyPEM | None = None, settings: argparse.Namespace | None = None
) -> gr.Blocks:
    """Builds the whole page. Without a model it loads the one of the settings, or the page says why it cannot."""
    problem, bundled = "", False
    settings = settings or read_settings()
    if model is None:
        try:
            bundled = is_bundled(settings.model)
            model, baseline = load_networks(settings.model, settings.device, settings.max_side, settings.runtime)
        except (OSError, ValueError) as error:
            problem = f"Nothing can be segmented yet: {error}"
            print(problem, file=sys.stderr)
    with gr.Blocks(title="PEM Studio") as page:
        gr.HTML(header(model, problem, bundled), apply_default_css=False, elem_id="header")
        if model is not None:
            engine = Engine(model, on_gpu=on_gpu, examples=EXAMPLES, baseline=baseline, storage=STORAGE)
            STATUS.engine = engine
            STORAGE.sweep_with.append(lambda: engine.results.forget_older(KEEP_SECONDS))
            with gr.Tab("Studio"):
                first = precompute.load() if bundled and settings.max_side is None else None
                build_studio(page, engine, STORAGE, first)
                add_endpoints(engine, STORAGE)
            with gr.Tab("Efficiency", elem_id="efficiency") as tab:
                device = "cpu" if isinstance(model, pem.ExportedPEM) else next(model.parameters()).device.type
                efficiency.add_tab(tab, device, on_gpu, STORAGE, engine.network_gate)
    return page


def launch(
    page: gr.Blocks,
    max_waiting: int = 200,
    host_names: Sequence[str] = (),
    records: Sequence[Record] = (),
    **options,
) -> tuple:
    """Serves the page. Returns what Blocks.launch returns: the FastAPI app, the local and the public address.

    With ``host_names`` it refuses requests to other names, except for those of this machine. Every finished request is
    passed to the ``records``.
    """

    def forget_removed_files() -> None:
        for files in page.temp_file_sets:
            files.difference_update([file for file in tuple(files) if not Path(file).exists()])

    STORAGE.kept = lambda: {file for block in page.blocks.values() for file in block.keep_in_cache}
    STORAGE.sweep_with.append(forget_removed_files)
    STORAGE.sweep_regularly()
    allowed = [*host_names, "127.0.0.1", "localhost"] if host_names else ["*"]
    guards = [
        Middleware(Operations, status=STATUS, records=records),
        Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False),
        Middleware(Guard, storage=STORAGE, max_waiting=max_waiting, has_proxy=not host_names),
    ]
    STATUS.page = page
    return page.queue(max_size=None, default_concurrency_limit=4, api_open=False).launch(
        app_kwargs={"middleware": guards, "routes": [script_route()]},
        theme=THEME,
        css_paths=[*STYLES, ROOT / "ui" / "efficiency" / "efficiency.css"],
        allowed_paths=[str(ROOT / "assets" / "examples"), *efficiency.FILES, str(STORAGE.downloads)],
        max_file_size=f"{MAX_PHOTO_MB}mb",
        show_error=True,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=100,  # of each it keeps 0.7 MB, of the viewer's last value mostly
        footer_links=["api", "settings"],
        **options,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves the page until SIGINT or SIGTERM, then finishes the running photo; a second signal ends it at once."""
    settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the storage is removed
    use_few_arenas()
    use_given_cores()
    if settings.threads:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)  # for other runtimes; torch has read it already
        torch.set_num_threads(settings.threads)
    records: list[Record] = []
    try:
        if settings.log:
            records.append(open_log(settings.log))
    except OSError as error:
        sys.exit(f"The log {settings.log} cannot be written ({error.strerror}); choose another file with --log.")
    host = settings.host or "127.0.0.1"  # like the page; prometheus would take all addresses
    try:
        if settings.metrics_port:
            records.append(Metrics(STATUS, host, settings.metrics_port).count)
    except ImportError:
        sys.exit("--metrics-port needs the package prometheus-client: pip install -r requirements-metrics.txt")
    except OSError as error:
        sys.exit(f"The metrics cannot be served ({first_line(error)}); choose another --metrics-port.")
    page = build_page(settings=settings)
    where: dict[str, Any] = {"server_name": settings.host, "server_port": settings.port, "quiet": settings.log == "-"}
    try:
        launch(page, settings.queue, settings.host_names, records, prevent_thread_lock=True, **where)
    except (OSError, OverflowError):  # Gradio reports every reason as a port that is taken
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
