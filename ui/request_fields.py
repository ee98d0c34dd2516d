"""What a request may contain: the fields that Gradio needs, each of its kind, and files that this server received.

Everything else raises an HTTPException with one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from fastapi import HTTPException
from gradio.block_function import BlockFunction
from pydantic import BaseModel, Field, StrictInt, ValidationError

from ui.image_input import SafeImage

NO_FILE = "A photo must be a file that was uploaded to this page less than an hour ago; please choose it again."

NUMBERS, TEXTS = (gr.Number, gr.Slider), (gr.Textbox, gr.Radio, gr.Dropdown)
KINDS: dict[type, Any] = dict.fromkeys(NUMBERS, (int, float)) | dict.fromkeys(TEXTS, str)
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


class Reset(BaseModel):
    """What Gradio's clients also send when they cancel an event."""

    event_id: Key


class Cancel(Reset):
    """Ends an event that waits or runs."""

    session_hash: Key
    fn_index: StrictInt


FIELDS: dict[str, type[BaseModel]] = {"queue/join": Join, "component_server": Ask, "cancel": Cancel, "reset": Reset}


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises HTTPException for everything else."""
    try:
        content = json.loads(body)
        # Python reads more than is JSON: NaN, infinite numbers, and half of a surrogate pair.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise HTTPException(400, "The request is not valid JSON.") from None
    if not isinstance(content, dict):
        raise HTTPException(422, "The request must be a JSON object.")
    return content


def check(content: dict[str, Any], route: str, page: gr.Blocks) -> tuple[dict[str, Any], BlockFunction | None]:
    """The fields that Gradio may see, and the function that will wait its turn, if any. Raises HTTPException."""
    function: BlockFunction | None = None
    if route.startswith("call/"):
        endpoint = route.rpartition("/")[2], "public"
        function = next((each for each in page.fns.values() if (each.api_name, each.api_visibility) == endpoint), None)
        if function is None:
            raise HTTPException(404, "There is no such endpoint.")
    if function is not None and route.startswith("call/v2/"):
        check_parameters(content, function, page)
    else:
        try:
            checked = FIELDS.get(route, Call).model_validate(content)
        except ValidationError as error:
            raise HTTPException(422, first_problem(error)) from None
        content = checked.model_dump(exclude_unset=True)
        if isinstance(checked, (Join, Cancel)):
            known = page.fns.get(checked.fn_index)
            if known is None or known.fn is None:  # some events run in the browser alone
                raise HTTPException(404, "There is no such event.")
            function = known if isinstance(checked, Join) else None
            is_select = any(name == "select" for _, name in known.targets)
            if isinstance(checked, Join) and is_select and not {"index", "value"} <= (checked.event_data or {}).keys():
                raise HTTPException(422, "event_data: an index and a value are missing.")
        if isinstance(checked, Ask):
            asked = getattr(page.blocks.get(checked.component_id), checked.fn_name, None)
            if not getattr(asked, "_is_server_fn", False):
                raise HTTPException(404, "There is no such function.")
        if function is not None:
            check_inputs(content["data"], function)
    # The server never opens a file that "event_data" names.
    named = set(files_in({key: value for key, value in content.items() if key != "event_data"}))
    if named:
        # Examples are not uploaded: the server put them into the field.
        examples = (block.temp_files for block in page.blocks.values() if isinstance(block, SafeImage))
        received = page.upload_file_set.union(*examples)
        if any(file not in received or not Path(file).is_file() for file in named):
            raise HTTPException(422, NO_FILE)
    return content, function


def check_inputs(values: list, function: BlockFunction) -> None:
    """Whether there is one value per input, each of a kind that its component understands. Raises HTTPException."""
    given = [block for block in function.inputs if not block.skip_api]  # clients leave out what is the server's own
    blocks = function.inputs if len(values) == len(function.inputs) else given
    if len(values) != len(blocks):
        raise HTTPException(422, f"There must be {len(given)} inputs.")
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
            raise HTTPException(422, f"The input {block.label!r} is not of its kind.")


def check_parameters(content: dict[str, Any], function: BlockFunction, page: gr.Blocks) -> None:
    """``check_inputs`` for an endpoint whose inputs have names."""
    endpoint = page.get_api_info()["named_endpoints"][f"/{function.api_name}"]
    parameters = {parameter["parameter_name"]: parameter for parameter in endpoint["parameters"]}
    for parameter in content.keys() - parameters.keys():
        raise HTTPException(422, f"There is no parameter {parameter[:100]!r}; take from: {', '.join(parameters)}.")
    for parameter, known in parameters.items():
        if parameter not in content and not known["parameter_has_default"]:
            raise HTTPException(422, f"The parameter {parameter!r} is missing.")
    check_inputs([content.get(parameter) for parameter in parameters], function)


def first_problem(error: ValidationError) -> str:
    """The first problem in one sentence, without what was sent."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{' '.join(map(str, problem['loc']))}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def files_in(content: Any) -> Iterator[str]:
    """The files that the content names at any depth. Gradio takes {"path": ...} for a file wherever it stands."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value:
                yield str(value["path"])
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
