"""The viewer: one gr.HTML that draws everything in the browser, put together from the files of the ui's rooms."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

UI = Path(__file__).parent.parent
# In the order in which they build on each other: a script may import from those before it.
SCRIPTS = (
    "viewer/state.js",
    "viewer/geometry.js",
    "prototypes/points.js",
    "prototypes/bar.js",
    "prototypes/choice.js",
    "prototypes/evolution.js",
    "prototypes/walk.js",
    "viewer/names.js",
    "viewer/canvas.js",
    "viewer/legend.js",
    "viewer/timing.js",
    "gallery/gallery.js",
    "export/export.js",
    "viewer/controls.js",
    "viewer/compare.js",
    "viewer/main.js",
)
ROOMS = ("prototypes", "gallery", "export")
STYLES = [UI / "page.css", UI / "viewer" / "viewer.css", *(UI / room / f"{room}.css" for room in ROOMS)]


def viewer(value: dict[str, Any] | None, server_functions: list[Callable]) -> gr.HTML:
    """The component. Its value is what ``result_payload`` makes, with ``readings`` by task; None shows an empty one."""
    return gr.HTML(
        value,
        html_template=page(),
        js_on_load=script(),
        server_functions=server_functions,
        apply_default_css=False,
        elem_id="viewer",
    )


def page() -> str:
    html = (UI / "viewer" / "viewer.html").read_text(encoding="utf-8")
    for room in ROOMS:
        html = html.replace(f"<!-- {room} -->", (UI / room / f"{room}.html").read_text(encoding="utf-8"))
    return html


def script() -> str:
    """The modules as one script, for gr.HTML takes no modules: without their imports and exports they share a scope."""
    sources = "\n".join((UI / path).read_text(encoding="utf-8") for path in SCRIPTS)
    without_imports = re.sub(r"^import\s[^;]*?;\n", "", sources, flags=re.MULTILINE)
    return re.sub(r"^export (?=const|let|function|async)", "", without_imports, flags=re.MULTILINE)
