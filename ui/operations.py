"""What whoever runs the server needs: its health, a log line and numbers per request, an end that loses no photo."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import gradio as gr
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.efficiency import MEASUREMENT
from ui.engine import Engine

SECONDS_TO_FINISH = 30  # for what runs when the server is told to end
SECONDS_TO_FETCH = 1  # for the answer, and the files that it names
ENDING = "The server is being restarted; please try again in a minute."
# What a request was about. The rest of an address may name a visitor's file, and is neither logged nor counted.
ROUTE = re.compile(
    r"/gradio_api/(upload_progress|upload|queue/join|queue/data|call|component_server|file|cancel|reset|heartbeat)\b"
    r"|/(config|assets|static|svelte|scripts)\b"
)


@dataclass
class Status:
    """What becomes of this server: ``engine`` is None while it has no model."""

    engine: Engine | None = None
    is_ending: bool = False
    page: gr.Blocks | None = field(default=None, repr=False)

    @property
    def is_ready(self) -> bool:
        return self.engine is not None and not self.is_ending


class Operations:
    """The ASGI middleware around all others. ``record`` is called with what is known of every finished request."""

    def __init__(self, app: ASGIApp, status: Status, record: Callable[[dict[str, Any]], None] | None) -> None:
        self.app, self.status, self.record = app, status, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] in ("/health", "/health/ready", "/health/live"):
            # /health says both and fails as /health/ready does, which a proxy asks; a restart helps only if not live.
            ready = self.status.is_ready
            code = 200 if ready or scope["path"] == "/health/live" else 503
            return await JSONResponse({"live": True, "ready": ready}, code)(scope, receive, send)
        refused = self.status.is_ending and scope["method"] == "POST"
        app = JSONResponse({"detail": ENDING}, 503) if refused else self.app
        if self.record is None:
            return await app(scope, receive, send)
        start, status, num_bytes = time.perf_counter(), 500, 0

        async def watch(message: Message) -> None:
            nonlocal status, num_bytes
            status = message.get("status", status)
            num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive, watch)
        finally:
            self.record(
                {
                    "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                    "method": scope["method"],
                    "route": route_of(scope["path"]),
                    "status": status,
                    "ms": round((time.perf_counter() - start) * 1000, 1),
                    "bytes": num_bytes,
                }
            )


def route_of(path: str) -> str:
    """The kind of address, one of a few."""
    found = ROUTE.match(path)
    return "/" if path == "/" else (found[1] or found[2]) if found else "other"


def recorder(log: TextIO | None, metrics: Metrics | None) -> Callable[[dict[str, Any]], None] | None:
    """Writes one JSON line per request to the log and counts it in the metrics, where there are any."""
    if log is None and metrics is None:
        return None

    def record(request: dict[str, Any]) -> None:
        if metrics is not None:
            metrics.count(request)
        if log is not None:
            print(json.dumps(request), file=log, flush=True)

    return record


def open_log(name: str | None) -> TextIO | None:
    """The file of a name to append to; ``-`` is the standard output."""
    if name is None or name == "-":
        return sys.stdout if name else None
    return Path(name).open("a", encoding="utf-8")


class Metrics:
    """Numbers for Prometheus, served at a port of their own, which strangers need not reach."""

    def __init__(self, status: Status, host: str, port: int) -> None:
        """Raises ImportError without prometheus-client, and OSError for a port that is taken."""
        import prometheus_client as prometheus

        registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.requests = prometheus.Counter("pem_requests", "Requests", ["route", "status"], registry=registry)
        self.seconds = prometheus.Histogram(
            "pem_request_seconds",
            "Time of a request, streams included",
            ["route"],
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )
        registry.register(_Now(status))
        self.server, _ = prometheus.start_http_server(port, host, registry)

    def count(self, request: dict[str, Any]) -> None:
        self.requests.labels(request["route"], request["status"]).inc()
        self.seconds.labels(request["route"]).observe(request["ms"] / 1000)


class _Now:
    """What holds at the moment of asking."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield GaugeMetricFamily("pem_ready", "Whether photos are taken", value=self.status.is_ready)
        page, engine = self.status.page, self.status.engine
        if page is not None:
            waiting = GaugeMetricFamily("pem_waiting", "Events that wait their turn", labels=["queue"])
            for name, events in page._queue.event_queue_per_concurrency_id.items():
                waiting.add_metric([str(name)], len(events.queue))
            yield waiting
        if engine is not None:
            yield GaugeMetricFamily("pem_places_taken", "Places of the gate", value=engine.gate.inside)
            yield CounterMetricFamily("pem_photos", "Photos that the network ran on", value=engine.num_runs)
            seconds = CounterMetricFamily("pem_photo_seconds", "Time by stage", labels=["stage"])
            for stage, ms in dict(engine.run_ms).items():
                seconds.add_metric([stage], ms / 1000)
            yield seconds


def finish(status: Status, told_again: Callable[[], bool]) -> None:
    """Takes nothing new, and returns when what runs is done and fetched, after 30 s, or when told again."""
    status.is_ending = True
    assert status.page is not None
    queue = status.page._queue
    for events in queue.event_queue_per_concurrency_id.values():
        # What waits does not begin any more. Gradio divides by this number, so it is not 0.
        events.concurrency_limit = -math.inf

    def is_busy() -> bool:
        running = [event for job in queue.active_jobs for event in job or ()]
        return any(event.concurrency_id != MEASUREMENT for event in running)

    if is_busy():
        print("The running photo will be finished first; press Ctrl-C again to end now.", flush=True)
        deadline = time.monotonic() + SECONDS_TO_FINISH
        while is_busy() and time.monotonic() < deadline and not told_again():
            time.sleep(0.05)
        if not told_again():
            time.sleep(SECONDS_TO_FETCH)
