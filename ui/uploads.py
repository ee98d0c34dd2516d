"""An upload, looked at while it is received: it is a form with one file, and it does not stand still."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive

MAX_BOUNDARY = 70  # letters, as RFC 2046 says
SECONDS_WITHOUT_DATA = 30
NO_FORM = "An upload must be a form (multipart/form-data) with one file."


class Upload:
    """Receives the body of an upload. Raises HTTPException for everything else than a form with one file: Gradio keeps
    other fields in memory, and a thousand files per request."""

    def __init__(self, content_type: str, receive: Receive) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 1 <= len(boundary) <= MAX_BOUNDARY:
            raise HTTPException(400, NO_FORM)
        self._receive_message, self._num_parts, self._name, self._value, self._is_file = receive, 0, b"", b"", False
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add("_name", data[start:end]),
            "on_header_value": lambda data, start, end: self._add("_value", data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_part,
        }
        self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]

    async def receive(self) -> Message:
        """The next message. Raises HTTPException when none comes for some time."""
        message = await receive_in_time(self._receive_message)
        try:
            self._parser.write(message.get("body", b""))
        except FormParserError:
            raise HTTPException(400, NO_FORM) from None
        if not message.get("more_body") and self._num_parts == 0:
            raise HTTPException(400, NO_FORM)
        return message

    def _begin_part(self) -> None:
        self._num_parts, self._is_file = self._num_parts + 1, False
        if self._num_parts > 1:
            raise HTTPException(400, NO_FORM)

    def _add(self, name: str, data: bytes) -> None:
        setattr(self, name, getattr(self, name) + data)

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._is_file = b"filename" in parse_options_header(self._value)[1]
        self._name = self._value = b""

    def _check_part(self) -> None:
        if not self._is_file:
            raise HTTPException(400, NO_FORM)


async def receive_in_time(receive: Receive) -> Message:
    """The next message of a body. Raises HTTPException when none comes for SECONDS_WITHOUT_DATA."""
    try:
        return await asyncio.wait_for(receive(), SECONDS_WITHOUT_DATA)
    except asyncio.TimeoutError:
        raise HTTPException(408, "The request stands still; please send it again.") from None
