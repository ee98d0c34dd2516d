"""What an operator needs of the server: its health, a record of every request, and an end that loses no photo."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import gradio as gr
from gradio.server_messages import ProcessCompletedMessage
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.engine import Engine
from ui.queues import MEASUREMENT, drop, running_events

SECONDS_TO_FINISH = 30  # for running photos when the server is told to end
SECONDS_TO_FETCH = 1  # for the answer, and the files that it names
_log = logging.getLogger("pem")
ENDING = "The server is being restarted; please try again in a minute."
# The kind of a request. The rest of an address may name a visitor's file, so it is neither logged nor counted.
ROUTE = re.compile(
    r"/gradio_api/(upload_progress|upload|queue/join|queue/data|call|component_server|file|cancel|reset|heartbeat)\b"
    r"|/(config|assets|static|svelte|scripts)\b"
)


Record = Callable[[dict[str, Any]], None]  # takes the facts about one finished request


@dataclass
class Status:
    """The state of this server: ``engine`` is None while it has no model."""

    engine: Engine | None = None
    is_ending: bool = False
    page: gr.Blocks | None = field(default=None, repr=False)

    @property
    def is_ready(self) -> bool:
        """Whether the server takes photos."""
        return self.engine is not None and not self.is_ending


class Operations:
    """The ASGI middleware around all others. It passes every finished request to the ``records``."""

    def __init__(self, app: ASGIApp, status: Status, records: Sequence[Record] = ()) -> None:
        self.app, self.status, self.records, self.said_unrecorded = app, status, records, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers questions about health itself, and refuses new work while the server is ending."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] in ("/health", "/health/ready", "/health/live"):
            # A proxy asks /health or /health/ready, which fail alike. Only a server that is not live needs a restart.
            ready = self.status.is_ready
            code = 200 if ready or scope["path"] == "/health/live" else 503
            return await JSONResponse({"live": True, "ready": ready}, code)(scope, receive, send)
        refused = self.status.is_ending and scope["method"] == "POST"
        app = JSONResponse({"detail": ENDING}, 503) if refused else self.app
        start, status, num_bytes = time.perf_counter(), 500, 0

        async def watch(message: Message) -> None:
            nonlocal status, num_bytes
            status = message.get("status", status)
            num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive, watch)
        finally:
            request = {
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "method": scope["method"],
                "route": route_of(scope["path"]),
                "status": status,
                "ms": round((time.perf_counter() - start) * 1000, 1),
                "bytes": num_bytes,
            }
            for record in self.records:
                try:
                    record(request)
                except OSError as error:  # the disk of the log is full, for one
                    if not self.said_unrecorded:
                        self.said_unrecorded = True
                        _log.warning("Requests cannot be recorded (%s).", error.strerror)


def route_of(path: str) -> str:
    """The kind of an address, one of a few."""
    found = ROUTE.match(path)
    return "/" if path == "/" else (found[1] or found[2]) if found else "other"


def finish(status: Status, told_again: Callable[[], bool]) -> None:
    """Starts nothing new, and returns when running photos are done and fetched, after 30 s, or when told again."""
    status.is_ending = True
    assert status.page is not None
    page = status.page
    for events in page._queue.event_queue_per_concurrency_id.values():
        # No waiting event starts any more. Gradio divides by this number, so it is not 0.
        events.concurrency_limit = -math.inf
        for event in list(events.queue):
            drop(page, event, ProcessCompletedMessage(output={"error": ENDING}, success=False))

    def is_busy() -> bool:
        return any(event.concurrency_id != MEASUREMENT for event in running_events(page))

    if is_busy():
        print("The running photo will be finished first; press Ctrl-C again to end now.", flush=True)
        deadline = time.monotonic() + SECONDS_TO_FINISH
        while is_busy() and time.monotonic() < deadline and not told_again():
            time.sleep(0.05)
        if not told_again():
            time.sleep(SECONDS_TO_FETCH)
