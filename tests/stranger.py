"""What the page's scripts send to the server, without a browser. The clients have its ``gradio_api/`` as their base."""

from __future__ import annotations

import json
from typing import Any

import httpx


def component_ids(url: str, client: Any = httpx) -> dict[str, int]:
    """The components of the page at an address, by their names in its HTML."""
    config = client.get(f"{url.rstrip('/')}/config").raise_for_status().json()
    return {component["props"].get("elem_id"): component["id"] for component in config["components"]}


def as_file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def upload(client: httpx.Client, photo: bytes) -> str:
    """Where the server keeps a photo that it received."""
    return client.post("upload", files={"files": ("photo.png", photo)}).json()[0]


def post(client: httpx.Client, route: str, content: Any) -> httpx.Response:
    return client.post(route, content=json.dumps(content), headers={"content-type": "application/json"})


def call_segment(client: httpx.Client, path: str) -> str:
    """The id of the event."""
    answer = post(client, "call/segment", {"data": [as_file(path), "panoptic"]})
    assert answer.status_code == 200, answer.text
    return answer.json()["event_id"]


def segment(client: httpx.Client, path: str) -> str:
    """What the server sends in the end."""
    return client.get(f"call/segment/{call_segment(client, path)}").text
