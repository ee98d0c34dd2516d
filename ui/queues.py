"""The queues in which events wait: how many run at once, how many may wait, and answers that nobody fetches.

The queues are Gradio's own, which has no public interface for this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping
from time import monotonic
from typing import Any

import gradio as gr
from fastapi import HTTPException
from gradio.block_function import BlockFunction
from gradio.queueing import Event
from gradio.server_messages import ProcessCompletedMessage

# Examples do not wait for photos, and the page does not wait for programs.
NETWORK, EXAMPLE, PROGRAMS, READING, MEASUREMENT = "network", "example", "programs", "reading", "measurement"
# How many events of each queue run at once. One photo and one example, so that the last one chosen is the last one
# shown. Two programs: while the network runs on one photo, the files of another are written.
LIMITS = {NETWORK: 1, EXAMPLE: 1, PROGRAMS: 2, READING: 2, MEASUREMENT: 1}
PLACES_PER_VISITOR = 3  # in each queue
UNREAD_SECONDS = 60  # answers that wait longer for their visitor are dropped
UNHEARD_SECONDS = 15  # events that wait longer without a listener are dropped


def wait_in(queue: str) -> dict[str, Any]:
    """The arguments that make a Gradio event wait in this queue."""
    return {"concurrency_id": queue, "concurrency_limit": LIMITS[queue]}


def check_queue(page: gr.Blocks, function: BlockFunction, session_hash: str, max_waiting: int) -> None:
    """Whether one more event may wait in the queue of this function. Gradio's own limit counts all queues together.

    Raises HTTPException for a visitor who has no place left, and for a full queue.
    """
    queue = page._queue.event_queue_per_concurrency_id.get(function.concurrency_id)
    if queue is None:
        return
    waiting = queue.queue
    if sum(event.session_hash == session_hash for event in waiting) >= PLACES_PER_VISITOR:
        raise HTTPException(429, f"You have {PLACES_PER_VISITOR} requests waiting; please try again when one is done.")
    if len(waiting) >= max_waiting:
        times = page._queue.process_time_per_fn
        of_each = [times[event.fn].avg_time for event in waiting if event.fn in times]
        seconds = sum(of_each) / (queue.concurrency_limit or 1)
        sentence = f"{len(waiting)} visitors are waiting, for about {seconds:.0f} s; please try again then."
        raise HTTPException(429, sentence)


def drop_older_photos(page: gr.Blocks, function: BlockFunction, session_hash: str) -> None:
    """A visitor who chose several photos or examples on the page only waits for the last one."""
    if function.concurrency_id not in (NETWORK, EXAMPLE):
        return
    waiting = page._queue.event_queue_per_concurrency_id.get(NETWORK)
    of_visitor = [event for event in waiting.queue if event.session_hash == session_hash] if waiting else []
    for event in of_visitor[:-1] if function.concurrency_id == NETWORK else of_visitor:
        nothing_new = [gr.skip() for _ in event.fn.outputs]
        drop(page, event, ProcessCompletedMessage(output={"data": nothing_new}, success=True))


def cancel_if_running(page: gr.Blocks, content: dict[str, Any]) -> bool:
    """Takes over a visitor's wish to cancel when an event of his kind runs.

    Gradio would give away the event's place in the queue, but the thread goes on, and the next photo would have to wait
    for it elsewhere. So the event keeps its place until it is done. A measurement does end, and is left to Gradio.
    """
    function, running = page.fns[content["fn_index"]], running_events(page)
    if function.concurrency_id == MEASUREMENT or not any(
        event.session_hash == content["session_hash"] and event.fn is function for event in running
    ):
        return False
    event = page._queue.event_ids_to_events.get(content["event_id"])
    if event is not None and event not in running:
        drop(page, event, ProcessCompletedMessage(output={}, success=True))
    return True


def running_events(page: gr.Blocks) -> list[Event]:
    return [event for job in page._queue.active_jobs for event in job or ()]


def drop(page: gr.Blocks, event: Event, message: ProcessCompletedMessage) -> None:
    """Takes an event out of its queue, if it still waits there, and tells its visitor why."""
    waiting = page._queue.event_queue_per_concurrency_id[event.concurrency_id].queue
    if event in waiting:
        waiting.remove(event)
        page._queue.event_ids_to_events.pop(event._id, None)
        page._queue.send_message(event, message)


class Unheard:
    """Events that wait though nobody listens for their answers."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}  # by event

    def drop(self, page: gr.Blocks, listening: Container[str]) -> None:
        """Drops the events of sessions without an open stream, when that has been so for UNHEARD_SECONDS."""
        queues, now = page._queue.event_queue_per_concurrency_id.values(), monotonic()
        waiting = [event for queue in queues for event in queue.queue]
        unheard = [event for event in waiting if event.session_hash not in listening and event._id not in listening]
        self._since = {event._id: self._since.get(event._id, now) for event in unheard}
        for event in unheard:
            if now - self._since[event._id] > UNHEARD_SECONDS:
                drop(page, event, ProcessCompletedMessage(output={"error": "Nobody listened."}, success=False))


class Unread:
    """Answers that nobody fetches. Gradio keeps those of 2,000 sessions, and one may take some megabytes."""

    def __init__(self) -> None:
        self._looked_at = monotonic()
        self._first: dict[str, Any] = {}  # the first message of each session at the last look

    def forget(self, messages_of: Mapping[str, asyncio.Queue]) -> None:
        """Drops the answers of sessions that fetched nothing since the last look, at least a minute ago."""
        if monotonic() - self._looked_at < UNREAD_SECONDS:
            return
        self._looked_at = monotonic()
        unread = {session: messages for session, messages in messages_of.items() if not messages.empty()}
        for session, messages in unread.items():
            if _first_of(messages) is self._first.get(session):
                while not messages.empty():
                    messages.get_nowait()
        self._first = {session: _first_of(messages) for session, messages in unread.items() if not messages.empty()}


def _first_of(messages: asyncio.Queue) -> Any:
    return messages._queue[0]  # type: ignore[attr-defined]
