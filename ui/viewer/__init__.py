"""The viewer: one gr.HTML. Its HTML, styles and scripts are files of ``ui/``; browsers load the scripts as modules."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

UI = Path(__file__).parent.parent
PARTS = ("prototypes", "gallery", "export")  # of the page; the viewer's HTML has a place for each
STYLES = [UI / "page.css", UI / "viewer" / "viewer.css", *(UI / part / f"{part}.css" for part in PARTS)]
SCRIPTS = {path.relative_to(UI).as_posix(): path.read_bytes() for path in sorted(UI.glob("*/*.js"))}
# Another version of any script is another folder. So browsers may keep the files, and never mix two versions.
VERSION = sha256(repr(SCRIPTS).encode()).hexdigest()[:16]
# The address is relative to the page's, which may have a path prefix.
START = f"""
import(new URL("scripts/{VERSION}/viewer/main.js", document.baseURI)).then(
  ({{ start }}) => start({{ element, props, watch, server }}),
  (error) => {{
    element.querySelector(".studio-empty").textContent = "Parts of this page did not arrive; please reload it.";
    throw error;
  }},
);
"""


def viewer(value: dict[str, Any] | None, server_functions: list[Callable]) -> gr.HTML:
    """The component. Its value is what ``result_payload`` makes, with ``readings`` by task; None shows an empty one.

    The server that shows it must have the ``script_route``.
    """
    return gr.HTML(
        value,
        html_template=page(),
        js_on_load=START,
        server_functions=server_functions,
        apply_default_css=False,
        elem_id="viewer",
    )


def page() -> str:
    """The HTML inside the component, which ``viewer/main.js`` brings to life."""
    html = (UI / "viewer" / "viewer.html").read_text(encoding="utf-8")
    for part in PARTS:
        html = html.replace(f"<!-- {part} -->", (UI / part / f"{part}.html").read_text(encoding="utf-8"))
    return html


def script_route() -> Route:
    """Serves the scripts, and nothing else, below ``/scripts/VERSION/``. Gradio serves files, but not as modules."""

    def send(request: Request) -> Response:
        script = SCRIPTS.get(request.path_params["path"])
        if script is None:
            raise HTTPException(404, "There is nothing at this address.")
        return Response(script, media_type="text/javascript", headers={"Cache-Control": "max-age=31536000, immutable"})

    return Route(f"/scripts/{VERSION}/{{path:path}}", send)
