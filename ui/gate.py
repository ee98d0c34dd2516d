"""How much may run at once: everything that computes, decodes or writes takes a place and some of the memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ui.memory import hand_back

LEAST_BYTES = 32 * 2**20  # of any work
BYTES_PER_PIXEL = 12  # of a photo in its own size: its pixels twice, its ids, and temporary arrays


class Busy(RuntimeError):
    """There was no place, or none came free in time."""

    def __init__(self) -> None:
        super().__init__("The server is busy; please try again in a moment.")


class Gate:
    """Lets work in as long as there are a place and memory for it. Some more work may wait for them.

    Without a number there are as many places as cores, and at least four. Work that needs more than the whole budget
    enters when nothing else is inside. At a gate ``in_order`` nobody overtakes; elsewhere small work does.
    """

    def __init__(
        self,
        places: int = 0,
        budget_bytes: int = 512 * 2**20,
        max_waiting: int = 64,
        wait_seconds: float = 30.0,
        in_order: bool = False,
    ) -> None:
        self.places = places or max(4, os.cpu_count() or 1)
        self.budget_bytes, self.max_waiting, self.wait_seconds = budget_bytes, max_waiting, wait_seconds
        self.in_order = in_order
        self._inside, self._bytes = 0, 0
        self._waiting: list[object] = []
        self._changed = threading.Condition()
        self._mine = threading.local()

    @property
    def inside(self) -> int:
        """How many places are taken."""
        return self._inside

    @contextmanager
    def place(self, num_bytes: int = LEAST_BYTES) -> Iterator[None]:
        """A place for the block, unless the thread has one already. Raises Busy."""
        if getattr(self._mine, "held", False):
            yield
            return
        self._enter(num_bytes)
        self._mine.held = True
        try:
            yield
        finally:
            self._mine.held = False
            with self._changed:
                self._inside -= 1
                self._bytes -= num_bytes
                is_empty = not self._inside
                self._changed.notify_all()
            if is_empty:
                hand_back()

    def _enter(self, num_bytes: int) -> None:
        ticket = object()

        def may_enter() -> bool:
            if self.in_order and self._waiting and self._waiting[0] is not ticket:
                return False
            return self._inside < self.places and (not self._inside or self._bytes + num_bytes <= self.budget_bytes)

        with self._changed:
            if not may_enter():
                if len(self._waiting) >= self.max_waiting:
                    raise Busy
                self._waiting.append(ticket)
                try:
                    if not self._changed.wait_for(may_enter, self.wait_seconds):
                        raise Busy
                finally:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()  # the next in order may have waited only for this one
            self._inside += 1
            self._bytes += num_bytes


def bytes_for(size: tuple[int, int]) -> int:
    """The memory that work on a photo of this (height, width) needs, in bytes."""
    return LEAST_BYTES + BYTES_PER_PIXEL * size[0] * size[1]
