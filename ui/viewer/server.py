"""What the viewer may ask the server for after it got a photo. The network does not run for it.

Only the masked baseline runs on the photo, when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any
from urllib.parse import quote

import gradio as gr
from fastapi import HTTPException
from pydantic import Field, ValidationError, validate_call

from ui.engine import EXPECTED, Engine, sentence
from ui.export import export_file
from ui.gate import bytes_for
from ui.prototypes import choice_payload
from ui.request_fields import first_problem
from ui.storage import Storage
from ui.viewer.payload import reading_payload, result_payload

Text = Annotated[str, Field(max_length=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def open_result(engine: Engine, result_id: str, task: str) -> dict[str, Any]:
    """The viewer's value: a kept result and its first reading, with the thresholds of the config."""
    result = engine.result(result_id)
    reading = engine.read(result, task, size=result.shown_size)
    payload = result_payload(engine, result_id)
    return {**payload, "readings": [reading_payload(reading)]}


def server_functions(engine: Engine, storage: Storage) -> list[Callable]:
    """The functions that scripts in the browser call as ``server.NAME(...)``; Gradio hands over one list of arguments.

    An answer with an ``error`` says in one sentence what is wrong. Arguments that our scripts never send get a status
    of 422 and a sentence. Files go into the downloads of the ``storage``, which Gradio must be allowed to serve.
    """

    def answers(function: Callable[..., dict[str, Any]]) -> Callable[[list], dict[str, Any]]:
        checked = validate_call(function)

        @wraps(function)
        def answer(args: list) -> dict[str, Any]:
            try:
                return checked(*args)
            except ValidationError as error:
                raise HTTPException(422, f"Argument {first_problem(error)}") from None
            except EXPECTED as error:
                return {"error": sentence(error, "Please press Segment again.")}
            except gr.Error as error:  # from whoever lends the GPU
                return {"error": error.message}

        del answer.__wrapped__  # Gradio reads the signature, and it is the one of ``answer``
        return answer

    @answers
    def read(result_id: Text, task: Text, object_threshold: Fraction, overlap_threshold: Fraction) -> dict[str, Any]:
        result = engine.result(result_id)
        return reading_payload(engine.read(result, task, object_threshold, overlap_threshold, result.shown_size))

    @answers
    def other(result_id: Text, task: Text) -> dict[str, Any]:
        return open_result(engine, engine.other(result_id) or result_id, task)

    @answers
    def choice(result_id: Text, query: int, layer: int, head: int) -> dict[str, Any]:
        return choice_payload(engine, result_id, query, layer, head)

    @answers
    def export(
        result_id: Text,
        task: Text,
        object_threshold: Fraction,
        overlap_threshold: Fraction,
        opacity: Fraction,
        what: Text,
        outlines: bool = True,
        names: bool = False,
        hidden: Annotated[list[tuple[int, int]], Field(max_length=1000)] = [],  # noqa: B006 (pydantic copies it)
    ) -> dict[str, Any]:
        reading = (task, object_threshold, overlap_threshold)
        painting = (opacity, outlines, names, hidden)
        result = engine.result(result_id)
        with engine.gate.place(bytes_for(result.original_size)):
            path = export_file(engine, result, what, storage, *reading, *painting)
        return {"url": f"gradio_api/file={quote(path.as_posix())}", "name": path.name}

    return [read, other, choice, export]
