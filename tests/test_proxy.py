"""Two workers behind a proxy share nothing, and a visitor does not notice."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image
from proxied import NAMES, workers
from stranger import component_ids, segment, upload

SERVE = """
import sys

sys.path.insert(0, "tests")
from halves_model import HalvesModel

import app

build_page = app.build_page
app.build_page = lambda settings: build_page(HalvesModel())
app.main(["--port", sys.argv[1]])
"""


class Visitor:
    def __init__(self, url: str, photo: Path) -> None:
        self.url, self.photo, self.viewer_id = url, photo, 0
        self.client = httpx.Client(base_url=f"{url}/gradio_api/", timeout=100)

    @property
    def worker(self) -> str:
        return self.client.cookies["worker"]

    def arrive(self) -> None:
        self.viewer_id = component_ids(self.url, self.client)["viewer"]

    def segment(self) -> str:
        told = segment(self.client, upload(self.client, self.photo.read_bytes()))
        overlay = re.search(r'"path": ?("[^"]+overlay[^"]*")', told)
        assert overlay and self.client.get(f"file={json.loads(overlay[1])}").status_code == 200
        found = re.search(r'"result_id": ?"([^"]+)"', told)
        assert found, told
        return found[1]

    def read(self, result_id: str) -> dict:
        data = [result_id, "semantic", 0.5, 0.5]
        body = {"session_hash": "x", "component_id": self.viewer_id, "fn_name": "read", "data": data}
        return self.client.post("component_server", json=body).json()


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="There is no HAProxy: apt-get install haproxy.")
def test_visitors_stay_with_their_worker_and_get_another_when_it_ends(tmp_path: Path) -> None:
    Image.new("RGB", (128, 96)).save(tmp_path / "photo.png")
    with workers(lambda port: [sys.executable, "-c", SERVE, str(port)], tmp_path) as (url, servers):
        visitors = [Visitor(url, tmp_path / "photo.png") for _ in range(4)]
        for visitor in visitors:
            visitor.arrive()
        assert {visitor.worker for visitor in visitors} == set(NAMES)
        for visitor in visitors:
            at_first, result_id = visitor.worker, visitor.segment()
            assert "error" not in visitor.read(result_id) and visitor.worker == at_first
        ended = visitors[0].worker
        servers[ended].send_signal(signal.SIGTERM)
        servers[ended].wait()
        while httpx.get(f"{url}/health/ready").status_code != 200:
            time.sleep(0.1)
        visitors[0].arrive()
        visitors[0].segment()
        assert visitors[0].worker in {*NAMES} - {ended}
