"""What the operator of a server is told, and how the server ends."""

from __future__ import annotations

import errno
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import httpx
import numpy as np
import processes
import pytest
from halves_model import HalvesModel
from PIL import Image
from processes import free_port
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from stranger import as_file, call_segment, post, upload

import app
from ui.engine import Engine
from ui.metrics import Metrics, open_log
from ui.operations import ENDING, Operations, Record, Status, finish, route_of

ROOT = Path(__file__).parent.parent
# Starts and stops like the real server, but its network runs until a file appears.
SERVE = """
import sys
import time
from pathlib import Path

sys.path.insert(0, "tests")
from halves_model import HalvesModel

import app

build_page, forward = app.build_page, app.Engine._forward_on_arrays

def run_until_told(*arguments):
    print("running", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.05)
    return forward(*arguments)

app.Engine._forward_on_arrays = run_until_told
app.build_page = lambda settings: build_page(HalvesModel())
app.main(["--port", sys.argv[1]])
"""


def served(status: Status, *records: Record) -> TestClient:
    inner = Starlette(
        routes=[Route("/{path:path}", lambda request: PlainTextResponse("hello"), methods=["GET", "POST"])]
    )
    return TestClient(Operations(inner, status, records))


def test_the_page_is_healthy(page_url: str) -> None:
    for path in ("health", "health/ready", "health/live"):
        answer = httpx.get(page_url + path)
        assert (answer.status_code, answer.json()) == (200, {"live": True, "ready": True})


@pytest.mark.parametrize("status", [Status(), Status(engine=Mock(), is_ending=True)])
def test_a_server_without_a_model_or_at_its_end_lives_but_is_not_ready(status: Status) -> None:
    client = served(status)
    codes = {path: client.get(path).status_code for path in ("/health", "/health/ready", "/health/live", "/")}
    assert codes == {"/health": 503, "/health/ready": 503, "/health/live": 200, "/": 200}
    assert client.get("/health").json() == {"live": True, "ready": False}


def test_a_request_is_logged_in_one_line_that_names_no_file(tmp_path: Path) -> None:
    client = served(Status(engine=Mock()), open_log(str(tmp_path / "log")))
    client.get("/gradio_api/file=/tmp/pem-studio-x/uploads/y/holiday.jpg")
    client.post("/gradio_api/call/segment", content=b"holiday.jpg")
    client.get("/holiday.jpg")
    text = (tmp_path / "log").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert "holiday" not in text
    assert [(line["method"], line["route"], line["status"], line["bytes"]) for line in lines] == [
        ("GET", "file", 200, 5),
        ("POST", "call", 200, 5),
        ("GET", "other", 200, 5),
    ]
    assert all(set(line) == {"time", "method", "route", "status", "ms", "bytes"} for line in lines)


def test_a_request_that_is_refused_at_the_end_is_logged_too() -> None:
    told: list[dict] = []
    served(Status(engine=Mock(), is_ending=True), told.append).post("/gradio_api/queue/join")
    assert [(line["route"], line["status"]) for line in told] == [("queue/join", 503)]


def test_routes_are_of_a_few_kinds() -> None:
    paths = ("/", "/gradio_api/upload?x", "/gradio_api/upload_progress", "/gradio_api/queue/data", "/config", "/x/y")
    assert [route_of(path) for path in paths] == ["/", "upload", "upload_progress", "queue/data", "config", "other"]


def test_prometheus_finds_requests_photos_and_waiting_events() -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    engine, page = Engine(HalvesModel()), Mock()
    engine.run(np.zeros((96, 128, 3), np.uint8))
    page._queue.event_queue_per_concurrency_id = {"network": Mock(queue=[1, 2])}
    status = Status(engine, page=page)
    port = free_port()
    metrics = Metrics(status, "127.0.0.1", port)
    try:
        served(status, metrics.count).get("/config")
        told = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    finally:
        metrics.server.shutdown()
        metrics.server.server_close()
    assert 'pem_requests_total{route="config",status="200"} 1.0' in told
    assert 'pem_request_seconds_count{route="config"} 1.0' in told
    assert 'pem_waiting{queue="network"} 2.0' in told
    assert "pem_ready 1.0" in told and "pem_photos_total 1.0" in told and "process_resident_memory_bytes" in told
    assert 'pem_photo_seconds_total{stage="backbone"}' in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--log", "/there/is/no/folder"], "The log .* cannot be written .*; choose another file"),
        (["--metrics-port", "TAKEN"], "The metrics cannot be served .*; choose another --metrics-port"),
    ],
)
def test_a_log_or_port_that_cannot_be_used_gets_a_sentence(arguments: list[str], sentence: str) -> None:
    if "TAKEN" in arguments:
        pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        with pytest.raises(SystemExit, match=sentence):
            app.main([taken if argument == "TAKEN" else argument for argument in arguments])


def test_metrics_are_served_at_the_address_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(status: Status, host: str, port: int) -> None:
        hosts.append(host)
        raise OSError("enough")

    hosts: list[str] = []
    monkeypatch.setattr(app, "Metrics", refuse)
    for arguments in ([], ["--host", "0.0.0.0"]):
        with pytest.raises(SystemExit, match="The metrics cannot be served"):
            app.main(["--metrics-port", "9090", *arguments])
    assert hosts == ["127.0.0.1", "0.0.0.0"]


def test_without_prometheus_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SystemExit, match="pip install -r requirements-metrics.txt"):
        app.main(["--metrics-port", "9090"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Linux and macOS")
def test_the_photo_that_runs_is_finished_before_the_server_ends(tmp_path: Path) -> None:
    go_on, port = tmp_path / "go on", free_port()
    api = f"http://127.0.0.1:{port}/gradio_api/"
    command = [sys.executable, "-u", "-c", SERVE, str(port), go_on]
    with (
        processes.started(command, cwd=ROOT, stdout=subprocess.PIPE) as server,
        httpx.Client(base_url=api, timeout=200) as visitor,
    ):
        assert server.stdout is not None
        while "Running on" not in server.stdout.readline():
            assert server.poll() is None
        file = io.BytesIO()
        Image.new("RGB", (128, 96)).save(file, "PNG")
        photo = upload(visitor, file.getvalue())
        events = [call_segment(visitor, photo) for _ in range(3)]
        told: list[str] = []
        reading = threading.Thread(
            target=lambda: told.append(httpx.get(f"{api}call/segment/{events[0]}", timeout=200).text)
        )
        reading.start()
        while "running" not in server.stdout.readline():
            assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        while visitor.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200:
            time.sleep(0.05)
        refused = post(visitor, "call/segment", {"data": [as_file(photo), "panoptic"]})
        assert refused.status_code == 503 and "please try again in a minute" in refused.json()["detail"]
        go_on.touch()
        reading.join()
        assert "event: complete" in told[0] and "result_id" in told[0]
        assert server.wait() == 0
        assert not Path(photo).exists()


def test_who_waits_when_the_server_ends_is_told() -> None:
    waiting, page = Mock(concurrency_id="network"), Mock()
    page._queue.active_jobs, page._queue.event_queue_per_concurrency_id = [], {"network": Mock(queue=[waiting])}
    finish(Status(engine=Mock(), page=page), told_again=lambda: False)
    ((event, message),) = [call.args for call in page._queue.send_message.call_args_list]
    assert event is waiting and message.output == {"error": ENDING} and not message.success
    assert page._queue.event_queue_per_concurrency_id["network"].queue == []


def test_a_log_that_is_full_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def full(request: dict) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    client = served(Status(engine=Mock()), full)
    assert [client.get("/config").status_code for _ in range(3)] == [200, 200, 200]
    assert caplog.text.count("Requests cannot be recorded (No space left on device)") == 1


def test_a_second_signal_ends_the_server_at_once() -> None:
    running = Mock(concurrency_id="network")
    page = Mock()
    page._queue.active_jobs, page._queue.event_queue_per_concurrency_id = [[running], None], {"network": Mock(queue=[])}
    status = Status(engine=Mock(), page=page)
    finish(status, told_again=lambda: True)
    assert status.is_ending and page._queue.event_queue_per_concurrency_id["network"].concurrency_limit < 0


def test_the_end_does_not_wait_for_a_measurement() -> None:
    page = Mock()
    page._queue.active_jobs = [[Mock(concurrency_id="measurement")]]
    page._queue.event_queue_per_concurrency_id = {}
    finish(Status(page=page), told_again=lambda: pytest.fail("it waits"))  # type: ignore[arg-type]
