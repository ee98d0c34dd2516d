"""What a stranger may ask of this server, checked before Gradio sees the request.

Gradio has many routes, and takes files in many forms. Here are the few routes that the page needs, the few fields that
Gradio reads in their requests, and of files only those that this server received. What does not pass gets one sentence
as ``{"detail": ...}`` and a status of 400 to 499.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.server_messages import ProcessCompletedMessage
from pydantic import BaseModel, Field, StrictInt, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.image_input import SafeImage
from ui.storage import Storage, cannot_write

MAX_PHOTO_MB = 20
MAX_UPLOAD_BYTES = MAX_PHOTO_MB * 2**20 + 2**16  # with what surrounds it; Gradio counts a MB as 2**20 bytes
# What waits for what, by Gradio's "concurrency_id". Examples do not wait for photos, nor the page for programs.
NETWORK, EXAMPLE, PROGRAMS, READING = "network", "example", "programs", "reading"
PLACES_PER_VISITOR = 3  # in each queue
UNREAD_SECONDS = 60  # answers that wait longer for their visitor are dropped
MAX_BODY_BYTES = 1_000_000  # of JSON; the page sends a few hundred
# A browser runs and loads nothing but what comes from here. Gradio builds functions from text, hence unsafe-eval.
CONTENT_SECURITY_POLICY = "; ".join(
    (
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
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
API = "/gradio_api/"
READ = re.compile(
    r"/|/(config|theme\.css|robots\.txt|favicon\.ico|manifest\.json|pwa_icon(/\d+)?|(static|assets|svelte|scripts)/.+"
    rf"|{API[1:]}(info|openapi\.json|app_id|startup-events|theme\.css|upload_progress|queue/data|queue/status|heartbeat/\w+"
    r"|call/(v2/)?\w+/\w+|file=(?!\w\w+:).+))/?"
)
WRITE = re.compile(rf"{API}(upload|queue/join|call/(v2/)?\w+|component_server|cancel|reset)/?")
NO_FILE = "A photo must be a file that was uploaded to this page less than an hour ago; please choose it again."

KINDS: dict[type, Any] = {
    gr.Number: (int, float),
    gr.Slider: (int, float),
    gr.Textbox: str,
    gr.Radio: str,
    gr.Dropdown: str,
}
Key = Annotated[str, Field(min_length=1, max_length=100)]


class Join(BaseModel):
    """An event of the page, or of a client."""

    session_hash: Key
    fn_index: StrictInt
    data: list
    event_data: dict | None = None
    trigger_id: StrictInt | None = None


class Call(BaseModel):
    """An endpoint, by its name in the path."""

    data: list
    session_hash: Key | None = None


class Ask(BaseModel):
    """A function of a component, from a script in the browser."""

    session_hash: Key
    component_id: StrictInt
    fn_name: Key
    data: list


class Cancel(BaseModel):
    session_hash: Key
    fn_index: StrictInt
    event_id: Key


class Reset(BaseModel):
    event_id: Key


FIELDS: dict[str, type[BaseModel]] = {
    "queue/join": Join,
    "component_server": Ask,
    "cancel": Cancel,
    "reset": Reset,
}


class Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.response = JSONResponse({"detail": sentence}, status)


class Guard:
    """The ASGI middleware, inside of Gradio's own. Uploads go to the ``storage``; ``max_waiting`` may wait at once."""

    def __init__(self, app: ASGIApp, storage: Storage, max_waiting: int) -> None:
        self.app, self.storage, self.max_waiting = app, storage, max_waiting
        self.unread = Unread()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        answering = False

        async def send_with_headers(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start":
                answering = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            receive, content = await self._admit(scope, receive)
            await self.app(scope, receive, send_with_headers)
            if content and scope["path"].rstrip("/") == f"{API}queue/join":
                drop_older_photos(scope["app"].get_blocks(), content)
        except Refused as refused:
            await refused.response(scope, receive, send_with_headers)
        except OSError as error:  # of an upload
            if answering:
                raise
            await Refused(507, cannot_write(error)).response(scope, receive, send_with_headers)

    async def _admit(self, scope: Scope, receive: Receive) -> tuple[Receive, dict[str, Any]]:
        """From where Gradio receives the request, and its content if that is JSON. Raises Refused."""
        path = scope["path"]
        routes = {"GET": READ, "HEAD": READ, "POST": WRITE, "OPTIONS": WRITE}.get(scope["method"])
        if routes is None or not routes.fullmatch(path):
            raise Refused(404, "There is nothing at this address.")
        route = path.rstrip("/").removeprefix(API)
        if scope["method"] != "POST":
            return receive, {}
        headers = Headers(scope=scope)
        if route == "upload":
            self._admit_upload(headers.get("content-length", ""))
            return receive, {}
        if not headers.get("content-type", "").startswith("application/json"):
            raise Refused(415, "The request must be JSON.")
        content = parse_json(await read_body(receive))
        page = scope["app"].get_blocks()
        self.unread.forget(page._queue.pending_messages_per_session)
        content = check(content, route, page, self.max_waiting)
        return replay(content, receive), content

    def _admit_upload(self, length: str) -> None:
        if not length.isdecimal():
            raise Refused(411, "An upload must say how long it is (Content-Length).")
        if int(length) > MAX_UPLOAD_BYTES:
            raise Refused(413, f"A photo may have at most {MAX_PHOTO_MB} MB; make it smaller.")
        self.storage.make_room(int(length))


class Unread:
    """Answers that nobody fetches. Gradio keeps those of 2,000 sessions, and one may take some megabytes."""

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._first: dict[str, Any] = {}  # of the messages of each session, when they were last looked at

    def forget(self, messages_of: Mapping[str, asyncio.Queue]) -> None:
        """Drops those of sessions that have fetched nothing since it last looked, a minute ago or more."""
        if time.monotonic() - self._looked_at < UNREAD_SECONDS:
            return
        self._looked_at = time.monotonic()
        unread = {session: messages for session, messages in messages_of.items() if not messages.empty()}
        for session, messages in unread.items():
            if first_of(messages) is self._first.get(session):
                while not messages.empty():
                    messages.get_nowait()
        self._first = {session: first_of(messages) for session, messages in unread.items() if not messages.empty()}


def first_of(messages: asyncio.Queue) -> Any:
    return messages._queue[0]  # type: ignore[attr-defined]


async def read_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, "The request is too long; photos are uploaded before they are named.")
    return body


def replay(content: dict[str, Any], receive: Receive) -> Receive:
    """Receives this content as a body, and then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": json.dumps(content).encode()}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def parse_json(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        content = json.loads(body, parse_constant=refuse)
        json.dumps(content, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    except (ValueError, RecursionError):
        raise Refused(400, "The request is not valid JSON.") from None
    if not isinstance(content, dict):
        raise Refused(422, "The request must be a JSON object.")
    return content


def check(content: dict[str, Any], route: str, page: gr.Blocks, max_waiting: int) -> dict[str, Any]:
    """The fields that Gradio may see."""
    function: BlockFunction | None = None  # that will wait its turn
    if route.startswith("call/"):
        function = find_endpoint(page, route.rpartition("/")[2])
    if route.startswith("call/v2/"):
        check_parameters(content, function, page)
    else:
        try:
            checked = FIELDS.get(route, Call).model_validate(content)
        except ValidationError as error:
            raise Refused(422, first_problem(error)) from None
        content = checked.model_dump(exclude_unset=True)
        if isinstance(checked, (Join, Cancel)):
            known = page.fns.get(checked.fn_index)
            if known is None or known.fn is None:  # some run in the browser alone
                raise Refused(404, "There is no such event.")
            function = known if isinstance(checked, Join) else None
        if isinstance(checked, Ask):
            asked = getattr(page.blocks.get(checked.component_id), checked.fn_name, None)
            if not getattr(asked, "_is_server_fn", False):
                raise Refused(404, "There is no such function.")
        if function is not None:
            check_inputs(content["data"], function)
    # What an event tells of itself is never opened.
    named = set(files_in({key: value for key, value in content.items() if key != "event_data"}))
    if named:
        # Examples are not uploaded: the server put them into the field.
        examples = (block.temp_files for block in page.blocks.values() if isinstance(block, SafeImage))
        received = page.upload_file_set.union(*examples)
        if any(file not in received or not Path(file).is_file() for file in named):
            raise Refused(422, NO_FILE)
    if function is not None:
        check_queue(page, function, content.get("session_hash", ""), max_waiting)
    return content


def find_endpoint(page: gr.Blocks, name: str) -> BlockFunction:
    for function in page.fns.values():
        if function.api_name == name and function.api_visibility == "public":
            return function
    raise Refused(404, "There is no such endpoint.")


def check_inputs(values: list, function: BlockFunction) -> None:
    """Whether these are as many values as the function has inputs, each of a kind that its component understands."""
    given = [block for block in function.inputs if not block.skip_api]  # clients leave out what is the server's own
    blocks = function.inputs if len(values) == len(function.inputs) else given
    if len(values) != len(blocks):
        raise Refused(422, f"There must be {len(given)} inputs.")
    for block, value in zip(blocks, values):
        if value is None or block.stateful:
            continue
        try:
            if block.data_model is not None:
                block.data_model.model_validate(value, context={"validate_meta": True})
            fits = block.data_model is not None or isinstance(value, KINDS.get(type(block), object))
        except ValidationError:
            fits = False
        if not fits or isinstance(value, bool):
            raise Refused(422, f"The input {block.label!r} is not of its kind.")


def check_parameters(content: dict[str, Any], function: BlockFunction, page: gr.Blocks) -> None:
    """The same of an endpoint whose inputs have names."""
    endpoint = page.get_api_info()["named_endpoints"][f"/{function.api_name}"]
    parameters = {parameter["parameter_name"]: parameter for parameter in endpoint["parameters"]}
    for parameter in content.keys() - parameters.keys():
        raise Refused(422, f"There is no parameter {parameter[:100]!r}; take from: {', '.join(parameters)}.")
    for parameter, known in parameters.items():
        if parameter not in content and not known["parameter_has_default"]:
            raise Refused(422, f"The parameter {parameter!r} is missing.")
    check_inputs([content.get(parameter) for parameter in parameters], function)


def check_queue(page: gr.Blocks, function: BlockFunction, session_hash: str, max_waiting: int) -> None:
    """Whether one more may wait for what this function waits for. Gradio would count those of all functions."""
    queue = page._queue
    alike = queue.event_queue_per_concurrency_id.get(function.concurrency_id)
    if alike is None:
        return
    waiting = alike.queue
    if sum(event.session_hash == session_hash for event in waiting) >= PLACES_PER_VISITOR:
        raise Refused(429, f"You have {PLACES_PER_VISITOR} requests waiting; please try again when one is done.")
    if len(waiting) >= max_waiting:
        times = queue.process_time_per_fn
        of_each = [times[event.fn].avg_time for event in waiting if event.fn in times]
        seconds = sum(of_each) / (alike.concurrency_limit or 1)
        raise Refused(429, f"{len(waiting)} visitors are waiting, for about {seconds:.0f} s; please try again then.")


def drop_older_photos(page: gr.Blocks, joined: dict[str, Any]) -> None:
    """Of the photos that a visitor chose on the page one after the other, only the last one needs to wait."""
    function = page.fns[joined["fn_index"]]
    if function.concurrency_id not in (NETWORK, EXAMPLE):
        return
    waiting = page._queue.event_queue_per_concurrency_id.get(NETWORK)
    of_visitor = [event for event in waiting.queue if event.session_hash == joined["session_hash"]] if waiting else []
    for event in of_visitor[:-1] if function.concurrency_id == NETWORK else of_visitor:
        waiting.queue.remove(event)
        page._queue.event_ids_to_events.pop(event._id, None)
        nothing_new = [gr.skip() for _ in event.fn.outputs]
        page._queue.send_message(event, ProcessCompletedMessage(output={"data": nothing_new}, success=True))


def first_problem(error: ValidationError) -> str:
    """In one sentence, without what was sent."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{' '.join(map(str, problem['loc']))}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def files_in(content: Any) -> Iterator[str]:
    """What the content names as files, at any depth: Gradio takes {"path": ...} wherever it stands."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value:
                yield str(value["path"])
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
