"""What a stranger may ask of this server, checked before Gradio sees the request.

Gradio has many routes and takes files in many forms. The guard lets through the few routes that the page needs, the few
fields that Gradio reads in their requests, and only files that this server received. Everything else gets one sentence
as ``{"detail": ...}`` and a status of 400 to 499.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.queues import Unheard, Unread, cancel_if_running, check_queue, drop_older_photos
from ui.request_fields import check, parse_json
from ui.storage import Storage, cannot_write
from ui.uploads import Upload, receive_in_time

MAX_PHOTO_MB = 20
MAX_UPLOAD_BYTES = MAX_PHOTO_MB * 2**20 + 2**16  # with the form around it; Gradio counts a MB as 2**20 bytes
MAX_BODY_BYTES = 1_000_000  # of JSON; the page sends a few hundred
# A browser runs and loads only what comes from here. Gradio builds functions from text, hence unsafe-eval.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "font-src 'self' data:",
    "object-src 'none'",
    "base-uri 'self'",
    "form-action 'self'",
    "frame-ancestors 'self' https://huggingface.co https://*.hf.space",  # a Space is shown in a frame
)
HEADERS = {
    "Content-Security-Policy": "; ".join(CONTENT_SECURITY_POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
API = "/gradio_api/"
NOTHING_HERE = "There is nothing at this address."
READ = re.compile(
    r"/|/(config|theme\.css|robots\.txt|favicon\.ico|manifest\.json|pwa_icon(/\d+)?|(static|assets|svelte|scripts)/.+"
    rf"|{API[1:]}(info|openapi\.json|app_id|startup-events|theme\.css|upload_progress|queue/data|queue/status|heartbeat/\w+"
    r"|call/(v2/)?\w+/\w+|file=(?!\w\w+:).+))/?"
)
WRITE = re.compile(rf"{API}(upload|queue/join|call/(v2/)?\w+|component_server|cancel|reset)/?")


class Guard:
    """The ASGI middleware, inside of Gradio's own. The ``storage`` makes room for uploads; ``max_waiting`` events may
    wait in each queue. ``has_proxy`` tells whether a proxy may say by which name it was asked (X-Forwarded-Host)."""

    def __init__(self, app: ASGIApp, storage: Storage, max_waiting: int, has_proxy: bool = True) -> None:
        self.app, self.storage, self.max_waiting, self.has_proxy = app, storage, max_waiting, has_proxy
        self.unread, self.unheard = Unread(), Unheard()
        self.listening: Counter[str] = Counter()  # open streams, by session and by event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request: by Gradio, or with a sentence that says why not."""
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        route = scope["path"].rstrip("/").removeprefix(API)
        answering, heard = False, listener(scope, route)

        async def send_with_headers(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start":
                answering = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        self.listening[heard] += 1
        try:
            self._drop_odd_host(scope)
            receive, content = await self._admit(scope, receive, route)
            if route == "cancel" and cancel_if_running(scope["app"].get_blocks(), content):
                return await JSONResponse({"success": True})(scope, receive, send_with_headers)
            await self.app(scope, receive, send_with_headers)
            if content and route == "queue/join":
                page = scope["app"].get_blocks()
                drop_older_photos(page, page.fns[content["fn_index"]], content["session_hash"])
        except (HTTPException, OSError) as error:
            if answering:
                raise
            if isinstance(error, HTTPException):
                status, sentence = error.status_code, error.detail
            elif scope["method"] == "POST":  # an upload cannot be written
                status, sentence = 507, cannot_write(error)
            else:  # a name that is too long, for one
                status, sentence = 404, NOTHING_HERE
            await JSONResponse({"detail": sentence}, status)(scope, receive, send_with_headers)
        finally:
            self.listening[heard] -= 1
            if not self.listening[heard]:
                del self.listening[heard]

    async def _admit(self, scope: Scope, receive: Receive, route: str) -> tuple[Receive, dict[str, Any]]:
        """From where Gradio receives the request, and its content if that is JSON. Raises HTTPException."""
        routes = {"GET": READ, "HEAD": READ, "POST": WRITE, "OPTIONS": WRITE}.get(scope["method"])
        if routes is None or not routes.fullmatch(scope["path"]):
            raise HTTPException(404, NOTHING_HERE)
        if route == "info":
            scope["app"].api_info = None  # Gradio keeps it with the host that the first visitor named
        if scope["method"] != "POST":
            return receive, {}
        headers = Headers(scope=scope)
        if route == "upload":
            await self._admit_upload(headers.get("content-length", ""))
            return Upload(headers.get("content-type", ""), receive).receive, {}
        if not headers.get("content-type", "").startswith("application/json"):
            raise HTTPException(415, "The request must be JSON.")
        content = parse_json(await read_body(receive))
        page = scope["app"].get_blocks()
        self.unread.forget(page._queue.pending_messages_per_session)
        self.unheard.drop(page, self.listening)
        content, function = check(content, route, page)
        if function is not None:
            check_queue(page, function, content.get("session_hash", ""), self.max_waiting)
        return replay(content, receive), content

    def _drop_odd_host(self, scope: Scope) -> None:
        """Drops an X-Forwarded-Host that no proxy can have sent."""
        headers, name = MutableHeaders(scope=scope), "x-forwarded-host"
        values = headers.getlist(name)
        if not self.has_proxy or not all(re.fullmatch(r"[\w.-]+(:\d+)?", value, re.ASCII) for value in values):
            del headers[name]

    async def _admit_upload(self, length: str) -> None:
        if not length.isdecimal():
            raise HTTPException(411, "An upload must say how long it is (Content-Length).")
        if int(length) > MAX_UPLOAD_BYTES:
            raise HTTPException(413, f"A photo may have at most {MAX_PHOTO_MB} MB; make it smaller.")
        await asyncio.to_thread(self.storage.make_room, int(length))


def listener(scope: Scope, route: str) -> str:
    """The session or the event whose stream a request opens; "" for other requests."""
    if route == "queue/data":
        return Request(scope).query_params.get("session_hash", "")
    is_stream = scope["method"] == "GET" and route.startswith("call/")
    return route.rpartition("/")[2] if is_stream else ""


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request. Raises HTTPException for more than MAX_BODY_BYTES."""
    body, more = b"", True
    while more:
        message = await receive_in_time(receive)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, "The request is too long; photos are uploaded before they are named.")
    return body


def replay(content: dict[str, Any], receive: Receive) -> Receive:
    """Receives this content as the body, and then whatever else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": json.dumps(content).encode()}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again
