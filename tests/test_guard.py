"""A stranger may use a few routes, a few fields, and files that this server received. The rest gets a sentence."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from PIL import Image
from stranger import as_file, component_ids, post, segment, upload

from ui import uploads
from ui.guard import MAX_BODY_BYTES, MAX_UPLOAD_BYTES
from ui.queues import Unheard, Unread, cancel_if_running, check_queue
from ui.request_fields import NO_FILE
from ui.storage import Storage

# Wrong values for every place of a request.
ODD = [None, True, -1, 0, 10**30, 1e308, "", "x", "\x00", "<b>", "../../etc", "a" * 5000, [], [1], {}, {"a": 1}, [[[]]]]
NO_JSON = [float("nan"), float("inf"), "\ud800"]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def stranger(page_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{page_url}gradio_api/", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def viewer_id(page_url: str) -> int:
    return component_ids(page_url)["viewer"]


@pytest.fixture
def uploaded(stranger: httpx.Client) -> str:
    """Where the server keeps a photo that it received."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((96, 128, 3), np.uint8)).save(file, "PNG")
    return upload(stranger, file.getvalue())


def assert_refused(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    assert answer.json()["detail"].endswith((".", "’")) and len(answer.json()["detail"]) < 300


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[
            ("GET", f"/{path}")
            for path in ("monitoring", "monitoring/summary", "monitoring/key", "runs", "docs", "login")
        ],
        *[("GET", f"/gradio_api/{path}") for path in ("user", "token", "dev/reload", "runs", "deep_link")],
        *[
            ("GET", f"/gradio_api/{path}")
            for path in ("proxy=https://huggingface.co/x", "file=http://127.0.0.1/", "mcp")
        ],
        *[("GET", f"/gradio_api/{path}") for path in ("file=https:/example.org", "stream/a/b/1/playlist-file")],
        *[("POST", f"/gradio_api/{path}") for path in ("run/predict", "run/read", "api/segment", "process_recording")],
        *[("POST", f"/gradio_api/{path}") for path in ("vibe-edit", "stream/x", "run-history/connect", "upload/x")],
        ("PUT", "/"),
        ("DELETE", "/gradio_api/upload"),
    ],
)
def test_there_is_nothing_at_other_addresses(stranger: httpx.Client, page_url: str, method: str, path: str) -> None:
    answer = stranger.request(method, page_url.rstrip("/") + path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "There is nothing at this address."})


def test_a_browser_may_ask_whether_the_server_is_still_the_same(stranger: httpx.Client) -> None:
    """Gradio asks this after a connection broke, and reloads the page if the server was restarted."""
    assert stranger.get("app_id").json()["app_id"]


def test_a_photo_that_the_server_received_is_segmented(stranger: httpx.Client, uploaded: str) -> None:
    assert '"category": "cat"' in segment(stranger, uploaded)


def test_a_file_that_the_server_did_not_receive_is_refused_in_the_same_words(
    stranger: httpx.Client, uploaded: str, viewer_id: int, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(Path(uploaded).read_bytes())
    beside = Path(uploaded).with_name("beside.png")  # in the folder of uploads, but not uploaded
    beside.write_bytes(Path(uploaded).read_bytes())
    overlay = json.loads(segment(stranger, uploaded).rpartition("data: ")[2])[0]["path"]
    assert Path(overlay).is_file()
    example = str(Path(__file__).parent.parent / "assets" / "examples" / "cat.jpg")
    gone = [str(tmp_path / "gone.png"), str(Path(uploaded).with_name("gone.png")), "", "/", "."]
    addresses = [
        "http://127.0.0.1:1/x.png",
        "https://example.org/x.png",
        "data:image/png;base64,AAAA",
        f"file://{mine}",
    ]
    dressed_up = [f"{Path(uploaded).parent}/../{Path(uploaded).parent.name}/beside.png"]
    for path in [str(mine), str(beside), overlay, example, *gone, *addresses, *dressed_up]:
        photo = as_file(path)
        session: dict[str, Any] = {"session_hash": "s"}
        asks = {"component_id": viewer_id, "fn_name": "read", "data": [photo, "panoptic", 0.5, 0.5]}
        for route, content in (
            ("call/segment", {"data": [photo, "panoptic"]}),
            ("call/segment", {"data": [photo | {"url": "http://127.0.0.1:1/"}, "panoptic"]}),
            ("call/v2/segment", {"photo": photo, "task": "panoptic"}),
            ("component_server", session | asks),
            ("component_server", session | asks | {"data": [[{"deep": [photo]}]]}),
        ):
            answer = post(stranger, route, content)
            assert (answer.status_code, answer.json()) == (422, {"detail": NO_FILE}), (path, route)


def test_a_file_instead_of_a_text_is_refused_and_a_text_instead_of_a_file(
    stranger: httpx.Client, uploaded: str
) -> None:
    for data in ([as_file(uploaded), "panoptic", 0.5, 0.5], ["id", as_file(uploaded), 0.5, 0.5]):
        assert_refused(post(stranger, "call/read", {"data": data}), 422)
    for photo in (uploaded, [as_file(uploaded)], {"path": 1}, as_file(uploaded) | {"meta": None}):
        assert_refused(post(stranger, "call/segment", {"data": [photo, "panoptic"]}), 422)
    answer = post(stranger, "call/segment", {"data": [{"url": "https://example.org/x.png"}, "panoptic"]})
    assert "Please send a photo." in stranger.get(f"call/segment/{answer.json()['event_id']}").text


def test_a_deleted_photo_is_asked_for_again(stranger: httpx.Client, uploaded: str) -> None:
    Path(uploaded).unlink()
    assert post(stranger, "call/segment", {"data": [as_file(uploaded), "panoptic"]}).json() == {"detail": NO_FILE}


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (JSON, b"{", 400),
        (JSON, b"[" * 100_000, 400),
        (JSON, b"\xff", 400),
        (JSON, b'{"data": [NaN]}', 400),
        (JSON, b'{"data": ["\\ud800"]}', 400),
        (JSON, b"[]", 422),
        (JSON, b'{"data": "' + b"a" * MAX_BODY_BYTES + b'"}', 413),
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x--", 415),
        ({}, b"{}", 415),
    ],
)
def test_a_body_that_is_not_json_gets_a_sentence(stranger: httpx.Client, headers, body: bytes, status: int) -> None:
    for route in ("call/segment", "component_server", "queue/join"):
        assert_refused(stranger.post(route, content=body, headers=headers), status)


def test_odd_arguments_of_the_viewer_s_functions_get_a_sentence(
    stranger: httpx.Client, uploaded: str, viewer_id: int
) -> None:
    result_id = json.loads(segment(stranger, uploaded).rpartition("data: ")[2])[2]["result_id"]
    good = {
        "read": [result_id, "panoptic", 0.5, 0.5],
        "other": [result_id, "panoptic"],
        "choice": [result_id, 0, 0, 0],
        "export": [result_id, "panoptic", 0.5, 0.5, 0.5, "overlay", True, False, [[1, 2]]],
    }
    for name, arguments in good.items():
        body = {"session_hash": "s", "component_id": viewer_id, "fn_name": name}
        answer = post(stranger, "component_server", body | {"data": arguments})
        assert answer.status_code == 200 and "error" not in answer.json(), answer.text
        odd_ones = [arguments[:i] + [odd] + arguments[i + 1 :] for i in range(len(arguments)) for odd in ODD]
        for odd in [*odd_ones, *ODD, arguments + [1] * 9, []]:
            answer = post(stranger, "component_server", body | {"data": odd})
            if answer.status_code == 200:  # a possible value, such as 1.0 for a fraction, or the id of a lost result
                assert isinstance(answer.json(), dict)
            else:
                assert_refused(answer, 422)
        for odd in NO_JSON:
            assert_refused(post(stranger, "component_server", body | {"data": [odd, *arguments[1:]]}), 400)


def test_odd_fields_of_a_request_get_a_sentence(stranger: httpx.Client, viewer_id: int) -> None:
    ask = {"session_hash": "s", "component_id": viewer_id, "fn_name": "read", "data": ["id", "panoptic", 0.5, 0.5]}
    for key in ask:
        without = {name: value for name, value in ask.items() if name != key}
        for content in [without, *(ask | {key: odd} for odd in ODD)]:
            answer = post(stranger, "component_server", content)
            if answer.status_code != 200:
                assert_refused(answer, 404, 422)
    for route in ("queue/join", "call/segment", "call/nothing", "call/v2/read", "call/v2/nothing", "cancel"):
        for odd in ODD[1:]:  # None is not odd
            for content in (
                odd,
                {"data": odd},
                {"data": [odd, odd]},
                {"session_hash": "s", "fn_index": odd, "data": []},
            ):
                assert_refused(post(stranger, route, content), 404, 422)


def test_a_browser_may_ask_what_it_may_send(stranger: httpx.Client) -> None:
    assert stranger.options("queue/join").status_code < 500


def test_functions_that_are_not_the_viewer_s_cannot_be_called(stranger: httpx.Client, viewer_id: int) -> None:
    for name in ("preprocess", "__init__", "get_config", "read "):
        ask = {"session_hash": "s", "component_id": viewer_id, "fn_name": name, "data": []}
        assert_refused(post(stranger, "component_server", ask), 404)


def test_a_browser_runs_only_scripts_of_this_server(stranger: httpx.Client, page_url: str) -> None:
    for answer in (stranger.get(page_url), stranger.get("nothing"), post(stranger, "call/nothing", {})):
        policy = answer.headers["content-security-policy"].split("; ")
        assert "default-src 'self'" in policy and "object-src 'none'" in policy
        assert "frame-ancestors 'self' https://huggingface.co https://*.hf.space" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_upload_says_its_length_and_is_no_longer_than_a_photo(stranger: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield b"x"

    form = {"content-type": "multipart/form-data; boundary=x"}
    assert_refused(stranger.post("upload", content=endless(), headers=form), 411)
    assert_refused(stranger.post("upload", content=bytes(MAX_UPLOAD_BYTES + 1), headers=form), 413)


PART = b'--x\r\nContent-Disposition: form-data; name="files"; %b\r\n\r\nphoto\r\n'
FILE = PART % b'filename="a.png"'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data; boundary=x", 2 * FILE + b"--x--\r\n"),
        ("multipart/form-data; boundary=x", PART % b"size=3" + b"--x--\r\n"),
        ("multipart/form-data; boundary=x", PART % b"filename*=utf-8''a.png" + b"--x--\r\n"),
        ("multipart/form-data; boundary=x; charset=punycode", PART % b"size=3" + b"--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 500, FILE),
        ("multipart/form-data; boundary=other", FILE),
        ("multipart/form-data", FILE),
        ("text/plain", FILE),
        ("multipart/form-data; boundary=x", b""),
    ],
    ids=["two files", "a field", "no plain name", "charset", "long boundary", "other one", "none", "text", "empty"],
)
def test_an_upload_is_a_form_with_one_file(stranger: httpx.Client, kind: str, body: bytes) -> None:
    assert_refused(stranger.post("upload?upload_id=abc", content=body, headers={"content-type": kind}), 400)
    whole = stranger.post(
        "upload", content=FILE + b"--x--\r\n", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert whole.status_code == 200 and len(whole.json()) == 1


def test_a_body_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SECONDS_WITHOUT_DATA", 0.01)
    with pytest.raises(HTTPException, match="stands still") as caught:
        in_a_loop(uploads.receive_in_time(asyncio.Event().wait))  # type: ignore[arg-type]
    assert caught.value.status_code == 408


def in_a_loop(task: Coroutine[Any, Any, Any]) -> Any:
    """In a thread of its own: a browser test may have left a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, task).result()


@pytest.mark.parametrize("name", ["host", "x-forwarded-host"])
def test_no_visitor_s_host_is_told_to_others(stranger: httpx.Client, name: str) -> None:
    stranger.get("info", headers={name: "stranger.example"})
    assert "stranger.example" not in stranger.get("info").text


def test_an_odd_forwarded_host_is_ignored(stranger: httpx.Client, page_url: str) -> None:
    for path in (page_url, f"{page_url}config", "info"):
        assert stranger.get(path, headers={"x-forwarded-host": "[::1"}).status_code == 200


def test_a_long_address_leads_nowhere(stranger: httpx.Client, page_url: str) -> None:
    for path in (f"{page_url}static/{'a' * 5000}", f"{page_url}assets/{'a' * 300}"):
        assert_refused(stranger.get(path), 404)


def test_numbers_without_an_end_and_choices_without_a_value_are_refused(stranger: httpx.Client, page_url: str) -> None:
    assert_refused(stranger.post("call/trace", content='{"data": ["x", 1e400]}', headers=JSON), 400)
    select = next(
        event["id"]
        for event in stranger.get(f"{page_url}config").json()["dependencies"]
        if event["backend_fn"] and event["targets"][0][1] == "select"
    )
    for event_data in ({}, {"event_data": {"index": 1}}):
        assert_refused(
            post(stranger, "queue/join", {"session_hash": "s", "fn_index": select, "data": [], **event_data}), 422
        )


def waiting_page(*sessions: str) -> tuple[Mock, list[Mock]]:
    """A page with an event of each session in the queue of photos."""
    events = [Mock(session_hash=session, _id=f"event of {session}", concurrency_id="network") for session in sessions]
    page = Mock()
    page._queue.event_queue_per_concurrency_id = {"network": Mock(queue=list(events))}
    page._queue.event_ids_to_events = {event._id: event for event in events}
    return page, events


def test_events_that_nobody_listens_to_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ui.queues.monotonic", lambda: now[0])
    page, (first, second, third) = waiting_page("a", "b", "c")
    unheard, queue = Unheard(), page._queue.event_queue_per_concurrency_id["network"].queue
    unheard.drop(page, {"a", "event of b"})
    now[0] = 14
    unheard.drop(page, {"a", "event of b"})
    assert queue == [first, second, third]
    now[0] = 16
    unheard.drop(page, {"a", "event of b"})
    assert queue == [first, second]
    unheard.drop(page, {"a"})  # the time of b begins when it closes its stream
    assert queue == [first, second]


def test_a_photo_that_runs_keeps_its_place_when_it_is_cancelled() -> None:
    page, (running, waiting) = waiting_page("a", "a")
    waiting._id = "waiting"
    queue = page._queue
    queue.event_queue_per_concurrency_id["network"].queue = [waiting]
    queue.event_ids_to_events, queue.active_jobs = {running._id: running, "waiting": waiting}, [[running], None]
    page.fns = {1: Mock(concurrency_id="network"), 2: Mock(concurrency_id="measurement")}
    running.fn = waiting.fn = page.fns[1]
    assert not cancel_if_running(page, {"session_hash": "b", "fn_index": 1, "event_id": running._id})
    assert not cancel_if_running(page, {"session_hash": "a", "fn_index": 2, "event_id": running._id})
    assert cancel_if_running(page, {"session_hash": "a", "fn_index": 1, "event_id": running._id})
    assert queue.event_queue_per_concurrency_id["network"].queue == [waiting]
    assert cancel_if_running(page, {"session_hash": "a", "fn_index": 1, "event_id": "waiting"})
    assert queue.event_queue_per_concurrency_id["network"].queue == []
    assert queue.active_jobs == [[running], None]


def test_an_upload_to_a_full_disk_gets_a_sentence(
    stranger: httpx.Client, page_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Storage, "make_room", full)
    answer = stranger.post("upload", files={"files": ("photo.png", b"x")})
    assert_refused(answer, 507)
    assert "No space left on device" in answer.json()["detail"]
    monkeypatch.undo()
    assert stranger.post("upload", files={"files": ("photo.png", b"x")}).status_code == 200


def test_one_visitor_has_three_places_and_a_full_queue_says_how_long_it_is() -> None:
    network, reading = Mock(concurrency_id="network"), Mock(concurrency_id="reading")
    waiting = [Mock(session_hash=name, fn=network) for name in ("a", "a", "b", "c", "a")]
    page = Mock()
    page._queue.event_queue_per_concurrency_id = {"network": Mock(queue=waiting, concurrency_limit=2)}
    page._queue.process_time_per_fn = {network: Mock(avg_time=1.6)}
    check_queue(page, reading, "a", max_waiting=1)
    check_queue(page, network, "b", max_waiting=6)
    with pytest.raises(HTTPException, match="You have 3 requests waiting"):
        check_queue(page, network, "a", max_waiting=6)
    with pytest.raises(HTTPException, match="5 visitors are waiting, for about 4 s; please try again then"):
        check_queue(page, network, "b", max_waiting=5)


def test_answers_that_nobody_fetches_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: dict[str, asyncio.Queue] = {"reads": asyncio.Queue(), "does not": asyncio.Queue()}
    now, sizes = [time.monotonic()], []
    monkeypatch.setattr("ui.queues.monotonic", lambda: now[0])
    unread = Unread()
    for _ in range(3):
        for queue in messages.values():
            queue.put_nowait(object())
        now[0] += 100
        unread.forget(messages)
        unread.forget(messages)  # too soon to tell
        sizes.append([queue.qsize() for queue in messages.values()])
        messages["reads"].get_nowait()
    assert sizes == [[1, 1], [1, 0], [1, 1]]
